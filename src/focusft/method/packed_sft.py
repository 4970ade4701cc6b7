"""Plain SFT of packed rows in a model's own forward.

transformers looks for the documents of a row where it gets neither a mask nor a cache.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from focusft.errors import UserError
from focusft.method.turns import TurnLayout


def keep_documents_apart(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A pre-hook that leaves out the mask and the cache of a training call with packed rows.

    Raises:
        UserError: The rows are padded too.
    """
    kwargs = {name: value for name, value in kwargs.items() if name != "turn_ids"}
    mask_BS = kwargs.get("attention_mask")
    if not model.training or kwargs.get("labels") is None or kwargs.get("position_ids") is None:
        return args, kwargs
    if mask_BS is None or mask_BS.ndim != 2:
        return args, kwargs
    if bool((TurnLayout.from_batch(kwargs).document_ids_BS > 0).any()):
        if not bool(mask_BS.all()):
            raise UserError(
                "model(...): plain SFT would let the packed documents of a padded row see each "
                "other; leave the padding out, or train with FocuSFTTrainer"
            )
        kwargs |= {"attention_mask": None, "use_cache": False}
    return args, kwargs
