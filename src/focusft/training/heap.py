"""On a CPU, give memory of freed tensors back while a step runs.

glibc keeps the memory of freed tensors for later ones of a similar size. The backward pass asks for
other sizes than the forward pass has freed, so the heap grows beside its holes: by about a quarter
of the process (`docs/log.md`). A GPU needs none of this, since torch has an allocator of its own.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

# Each call takes milliseconds; between 3 and 5 layers the peak hardly differs.
LAYERS_BETWEEN_TRIMS = 4


@contextmanager
def trimmed_heap(model: nn.Module) -> Iterator[None]:
    """Trim the heap between layers, forward and backward, as long as the context lasts.

    Args:
        model: A transformers model. One that is not on the CPU is left alone, as is any where the
            C library is not glibc.
    """
    trim = _malloc_trim()
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    if trim is None or not on_cpu:
        yield
        return

    def trim_now_and_in_backward(layer: nn.Module, args: Any, output: Any) -> None:
        trim()
        hidden_BSD: Tensor = output[0] if isinstance(output, tuple) else output
        if torch.is_grad_enabled() and hidden_BSD.requires_grad:
            hidden_BSD.register_hook(lambda gradient: trim())

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    handles = [
        layer.register_forward_hook(trim_now_and_in_backward)
        for layer in layers[::LAYERS_BETWEEN_TRIMS]
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _malloc_trim() -> Callable[[], None] | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)

    def trim() -> None:
        library.malloc_trim(0)

    return trim
