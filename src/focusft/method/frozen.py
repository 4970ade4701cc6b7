"""The inner loop differentiates fast weights only: meanwhile the model's own weights are frozen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Freeze the parameters of modules for a while.

    Autograd then keeps nothing that only their gradients would need, such as the inputs of linear
    maps. A checkpointed layer must see the same in its recompute, so its backward pass belongs
    inside.
    """
    trained = {p for module in modules for p in module.parameters() if p.requires_grad}
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
