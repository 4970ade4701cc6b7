"""Selective activation checkpointing: keep what is dear to compute, recompute what is cheap.

A layer keeps its input, the outputs of its matrix products and of its attention. Norms, activation
functions, rotary positions and residual sums are run again in the backward pass. That halves the
memory of a layer for a few percent of its work, and changes no bit of the result.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    create_selective_checkpoint_contexts,
)

from focusft.method.architectures import unwrap_causal_lm
from focusft.method.product_attention import PRODUCT_ATTENTION

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
        PRODUCT_ATTENTION,
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
        stock.activation_checkpointing_enable({"use_reentrant": False, "context_fn": _contexts})


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    forward, recompute = create_selective_checkpoint_contexts(_policy)
    return _WithoutAutocastCache(forward), _WithoutAutocastCache(recompute)


class _WithoutAutocastCache(AbstractContextManager[None]):
    """A context in which autocast casts each weight anew.

    The inner loop has cast the weights of the top layers when the outer forward comes to them. It
    would find them in the cache, the recompute would not, and the two would not match.
    """

    def __init__(self, context: AbstractContextManager[Any]) -> None:
        self._context = context
        self._stack = ExitStack()

    def __enter__(self) -> None:
        self._stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.set_autocast_cache_enabled(False)
        self._stack.enter_context(self._context)

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


def _policy(
    context: SelectiveCheckpointContext, operation: Any, *args: Any, **kwargs: Any
) -> CheckpointPolicy:
    if operation in KEPT_OPERATIONS:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
