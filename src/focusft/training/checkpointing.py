"""Activation checkpointing: keep what is dear to compute, recompute what is cheap.

Selective: a layer keeps its input, the outputs of its matrix products and of its attention. Norms,
activation functions, rotary positions and residual sums are run again in the backward pass. That
halves the memory of a layer for a few percent of its FLOPs and 0 to 15% of the time (docs/log.md).

All but attention: a layer keeps its input and the output of its attention, which is as small as
the input, but whose cost grows with the square of the length. The rest is run again.

Full: a layer keeps its input alone.

None of them changes a bit of the result.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

from focusft.method.architectures import unwrap_causal_lm
from focusft.method.product_attention import PRODUCT_ATTENTION
from focusft.training.kept_outputs import KeptOutputs

Checkpointing = Literal["none", "selective", "all_but_attention", "full"]

_aten = torch.ops.aten
ATTENTION_OPERATIONS = frozenset(
    {
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        PRODUCT_ATTENTION,
        torch.ops.higher_order.flex_attention,
    }
)
KEPT_OPERATIONS = ATTENTION_OPERATIONS | {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
}


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
        contexts = partial(_contexts, KEPT_OPERATIONS)
        stock.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})


def keep_attention(model: nn.Module) -> None:
    """Let checkpointed layers keep the output of their attention instead of running it again.

    Args:
        model: A model whose layers are checkpointed. Layers with a `context_fn` of their own, or
            with reentrant checkpointing, stay as they are.
    """
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
            checkpointed: Any = layer
            function = checkpointed._gradient_checkpointing_func
            is_reentrant = function.keywords.get("use_reentrant", True)
            if "context_fn" not in function.keywords and not is_reentrant:
                contexts = partial(_contexts, ATTENTION_OPERATIONS)
                checkpointed._gradient_checkpointing_func = partial(function, context_fn=contexts)


class KeepAttention(TrainerCallback):
    """`keep_attention`, once transformers has turned its checkpointing on."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Called at the start of training."""
        keep_attention(kwargs["model"])


def _contexts(
    kept: frozenset[Any],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    forward, recompute = KeptOutputs(kept).contexts()
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
