"""Proof, before training starts, that the mask reaches the model's attention.

A wrapper or an attention function that drops a custom mask does so without a word. So a few
tokens are changed, one at a time, and the outputs that change are compared with the predicate.

Shapes: C changed token, plus one row without a change, S sequence, D hidden.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from focusft.errors import UnsupportedModelError
from focusft.method.attention import turn_attention
from focusft.method.config import ContextAttention
from focusft.method.masks import dense_mask
from focusft.method.turns import TurnLayout

# Two documents in one row, the first with two context turns and two response turns.
_TURN_IDS = (1, 1, 1, -2, -2, 3, 3, -4, 1, 1, 1, -2)
_POSITIONS = (0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3)
# Largest relative change of an output that rounding explains.
_ROUNDING = 1e-4


def check_masking(model: PreTrainedModel, context_attention: ContextAttention) -> None:
    """Change one token at a time and see which outputs follow.

    Args:
        model: A model with its backend installed.
        context_attention: Attention among context tokens.

    Raises:
        UnsupportedModelError: A token changed an output that must not see it, or no context
            token changed the output of an earlier one.
    """
    device = model.device
    tokens = len(_TURN_IDS)
    input_ids_CS = torch.arange(1, tokens + 1, device=device).repeat(tokens + 1, 1)
    input_ids_CS[:tokens] += torch.eye(tokens, dtype=torch.long, device=device) * tokens
    positions_CS = torch.tensor(_POSITIONS, device=device).expand(tokens + 1, -1)
    turn_ids_CS = torch.tensor(_TURN_IDS, device=device).expand(tokens + 1, -1)
    layout = TurnLayout.from_turn_ids(turn_ids_CS, positions_CS)
    attention = turn_attention(model, layout, context_attention)
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            hidden_CSD = model.get_decoder()(
                input_ids=input_ids_CS,
                position_ids=positions_CS,
                use_cache=False,
                **attention.model_kwargs,
            )[0].float()
    finally:
        for module, training in was_training.items():
            module.training = training
    change_CS = (hidden_CSD[:-1] - hidden_CSD[-1]).abs().amax(dim=-1)
    is_changed_CS = change_CS > _ROUNDING * hidden_CSD.abs().amax()
    may_see_CS = dense_mask(layout, context_attention)[0, 0].T
    leaks_CS = is_changed_CS & ~may_see_CS
    name = f"{type(model).__name__} (attn_implementation={model.config._attn_implementation!r})"
    if leaks_CS.any():
        changed, seen_by = leaks_CS.nonzero()[0].tolist()
        raise UnsupportedModelError(
            f"{name} does not apply the attention mask: token {changed} changed the output of "
            f"token {seen_by}, which must not see it; load the model with "
            "attn_implementation='sdpa' and without attention hooks"
        )
    sees_later_CS = may_see_CS & torch.ones_like(may_see_CS).tril(-1)
    if sees_later_CS.any() and not (is_changed_CS & sees_later_CS).any():
        raise UnsupportedModelError(
            f"{name} drops the attention mask: no context token changed the output of an earlier "
            "one; load the model with attn_implementation='sdpa' and without attention hooks"
        )
