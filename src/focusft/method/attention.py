"""How a model is made to use the mask: through the stock attention, with a prebuilt mask."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from focusft.errors import UnsupportedModelError
from focusft.method.config import ContextAttention
from focusft.method.masks import dense_mask
from focusft.method.turns import TurnLayout


def check_implementation(config: PreTrainedConfig) -> None:
    """Refuse an attention implementation that does not take a dense mask.

    Raises:
        UnsupportedModelError: The implementation would drop a custom mask without a word.
    """
    implementation = config._attn_implementation
    if implementation not in ("sdpa", "eager"):
        raise UnsupportedModelError(
            f"attn_implementation={implementation!r} ignores custom masks; "
            "load the model with attn_implementation='sdpa'"
        )


def attention_mask_for(
    config: PreTrainedConfig,
    layout: TurnLayout,
    context_attention: ContextAttention,
    dtype: torch.dtype,
) -> Tensor:
    """Build the mask in the form that the model's attention implementation takes.

    Args:
        config: The model's configuration.
        layout: Turns of the batch.
        context_attention: Attention among context tokens.
        dtype: Type of the hidden states.

    Returns:
        [B, 1, S, S]; bool for "sdpa", additive for "eager".

    Raises:
        UnsupportedModelError: The implementation would drop a custom mask without a word.
    """
    check_implementation(config)
    allowed_B1SS = dense_mask(layout, context_attention)
    if config._attn_implementation == "sdpa":
        return allowed_B1SS
    blocked = torch.finfo(dtype).min
    return torch.zeros_like(allowed_B1SS, dtype=dtype).masked_fill(~allowed_B1SS, blocked)
