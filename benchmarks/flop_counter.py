"""Count the FLOPs of everything that runs in a context, the CPU's attention included."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def flop_counter() -> FlopCounterMode:
    """A context that counts, which torch itself does for the attention of CUDA kernels only.

    Nor does torch count products that are added in place.
    """
    kernels = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward_flops,
        torch.ops.aten.addmm_: product_flops,
    }
    return FlopCounterMode(display=False, custom_mapping=kernels)


def product_flops(added: Any, left: Any, right: Any, **_: Any) -> int:
    """Of a product that is added in place, from the shapes."""
    return int(2 * left[0] * left[1] * right[1])


def _attention_flops(
    query: Any, key: Any, value: Any, dropout: float = 0.0, is_causal: bool = False, **_: Any
) -> int:
    """Two products over every pair of query and key."""
    return _pairs(query, key, is_causal) * 2 * (query[3] + value[3])


def _backward_flops(
    grad: Any,
    query: Any,
    key: Any,
    value: Any,
    output: Any,
    logsumexp: Any,
    dropout: float = 0.0,
    is_causal: bool = False,
    **_: Any,
) -> int:
    """The scores once more, and two products for each of the two products."""
    return _pairs(query, key, is_causal) * 2 * (3 * query[3] + 2 * value[3])


def _pairs(query: Any, key: Any, is_causal: bool) -> int:
    """Of query and key; the kernel leaves out those that a causal mask of its own hides."""
    batch, heads, queries, _ = query
    pairs: int = batch * heads * queries * key[2]
    return pairs // 2 if is_causal else pairs
