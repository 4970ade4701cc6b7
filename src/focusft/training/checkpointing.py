"""Selective activation checkpointing: keep what is dear to compute, recompute what is cheap.

A layer keeps its input, the outputs of its matrix products and of its attention. Norms, activation
functions, rotary positions and residual sums are run again in the backward pass. That halves the
memory of a layer for a few percent of its work, and changes no bit of the result.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    create_selective_checkpoint_contexts,
)

from focusft.method.architectures import unwrap_causal_lm

Checkpointing = Literal["none", "selective", "full"]

_aten = torch.ops.aten
KEPT_OPERATIONS = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.higher_order.flex_attention,
    }
)


def checkpoint_selectively(model: nn.Module) -> None:
    """Turn selective checkpointing on in the layers of a model, for training mode.

    Args:
        model: A transformers model, possibly with PEFT adapters. One whose layers cannot be
            checkpointed stays as it is.

    Raises:
        UnsupportedModelError: It is no decoder-only transformers model.
    """
    stock = unwrap_causal_lm(model)
    if stock.supports_gradient_checkpointing:
        context = partial(create_selective_checkpoint_contexts, _policy)
        stock.activation_checkpointing_enable({"use_reentrant": False, "context_fn": context})


def _policy(
    context: SelectiveCheckpointContext, operation: Any, *args: Any, **kwargs: Any
) -> CheckpointPolicy:
    if operation in KEPT_OPERATIONS:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
