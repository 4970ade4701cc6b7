"""Give freed memory back to the system while training on a CPU.

Where layers are checkpointed, most of their tensors are freed at once. glibc keeps what lies
between those that stay, and later tensors do not always fit in: a seventh of a process's peak is
memory that nobody uses. `docs/log.md` has what returning it at other points saves and costs.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# Below, there is little to give back, and to take it anew costs 5 to 9% of a step (docs/log.md).
LEAST_TOKENS = 2048


class ReturnFreedMemory(TrainerCallback):
    """Returns it before the inner loop, and once in the backward pass.

    Only in batches of `LEAST_TOKENS` or more, and without glibc never.
    """

    def __init__(self, first_adapted_layer: nn.Module) -> None:
        """Take the layer before which the inner loop runs."""
        self._layer = first_adapted_layer
        self._handles: list[RemovableHandle] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Hook the layer, before the hook of the engine, which runs the inner loop."""
        layer = self._layer
        self._handles = [
            layer.register_forward_pre_hook(_on_arrival, prepend=True, with_kwargs=True),
            layer.register_forward_hook(_on_departure),
        ]

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


def _on_arrival(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    hidden_BSD = args[0] if args else kwargs["hidden_states"]
    if layer.training and _is_long(hidden_BSD):
        _return_freed_memory()


def _on_departure(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    if layer.training and output.requires_grad and _is_long(output):
        output.register_hook(lambda gradient: _return_freed_memory())


def _is_long(hidden_BSD: Tensor) -> bool:
    return hidden_BSD.shape[:-1].numel() >= LEAST_TOKENS


def _return_freed_memory() -> None:
    malloc_trim = _malloc_trim()
    if malloc_trim is not None:
        malloc_trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        malloc_trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except AttributeError:  # another C library
        return None
    return malloc_trim
