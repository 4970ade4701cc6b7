"""Attention as plain matrix products, a block of queries at a time, for bfloat16 on a CPU.

PyTorch's fused CPU kernel computes its products in float32 where the CPU has no AMX, and is then
no faster in bfloat16 than in float32. Some CPUs with AVX512-BF16 multiply matrices in bfloat16 up
to four times as fast; there, two products and a softmax over a block of queries win by a factor of
two to three. `python -m benchmarks.product_attention` measures both.

Scores are rounded to bfloat16 before the softmax, as in the eager attention of transformers; the
softmax itself, and the sums of the gradients of keys and values, are in float32.

Shapes: B batch, H query heads, G key heads, N query heads of a key head, Q queries, K keys,
D features of a head, R queries of a block, P = B * G pairs of a row and a key head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from focusft.method.bfloat16 import bfloat16_speedup

# A block of scores and their gradients stays in a core's cache, unless it got too few rows.
_SCORES_PER_BLOCK = 2**19
_FEWEST_ROWS = 64
# Far from both kinds of CPU that were measured (0.5 and 2 to 4), so that noise decides nothing.
_LEAST_SPEEDUP = 1.3


def products_are_faster(like: Tensor) -> bool:
    """Whether attention of tensors of this kind should be computed by plain products.

    False while `torch.nn.attention.sdpa_kernel` excludes fused kernels: then there is no second
    derivative either, which this module does not have.
    """
    if like.device.type != "cpu" or not torch.backends.cuda.flash_sdp_enabled():
        return False
    return _compute_dtype(like) is torch.bfloat16 and _multiplies_bfloat16_fast_without_amx()


@cache
def _multiplies_bfloat16_fast_without_amx() -> bool:
    if torch.cpu.get_capabilities().get("amx_bf16"):
        return False
    return bfloat16_speedup() > _LEAST_SPEEDUP


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return tensor.dtype


class Segment(NamedTuple):
    """Queries `start` to `stop` (excluded) of a document.

    They see its keys 0 to `keys`; where `is_causal`, the last one does, and each before it one
    less. Positions count from the start of the document.
    """

    start: int
    stop: int
    keys: int
    is_causal: bool | int


def product_attention(
    query_BHQD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    segments: Sequence[Segment],
    scaling: float | None = None,
) -> Tensor:
    """Softmax attention, [B, H, Q, D].

    Args:
        query_BHQD: Queries.
        key_BGKD: Keys.
        value_BGKD: Values.
        segments: What the queries see. They do not overlap; a query in none gets zeros.
        scaling: Factor of the scores; 1 / sqrt(D) if None.
    """
    dtype = _compute_dtype(query_BHQD)
    factor = query_BHQD.shape[-1] ** -0.5 if scaling is None else scaling
    # An operation of torch takes lists of numbers, and no tuples with names.
    numbers = [int(number) for segment in segments for number in segment]
    attended: Tensor = _attend(
        query_BHQD.to(dtype), key_BGKD.to(dtype), value_BGKD.to(dtype), numbers, factor
    )
    return attended


def _by_key_head(tensor: Tensor, pairs: int) -> Tensor:
    """[B, H, Q, D] to [P, N, Q, D], or [B, G, K, D] to [P, 1, K, D]."""
    return tensor.reshape(pairs, -1, *tensor.shape[2:])


class _Scores:
    """The scores and weights of one block of queries after the other, in the same memory.

    Asking for memory anew for each block takes 5 to 25% longer.
    """

    def __init__(
        self, query_PNQD: Tensor, key_PKD: Tensor, numbers: Sequence[int], scaling: float
    ) -> None:
        pairs, heads, _, _ = query_PNQD.shape
        self._query, self._key, self._scaling = query_PNQD, key_PKD, scaling
        segments = [Segment(*four) for four in zip(*[iter(numbers)] * 4, strict=True)]
        self.blocks = [b for segment in segments for b in _blocks(segment, pairs * heads)]
        largest = max(((b.stop - b.start) * b.keys for b in self.blocks), default=0)
        self._memory = query_PNQD.new_empty(2, pairs * heads * largest)

    def weights(self, block: Segment) -> tuple[Tensor, Tensor]:
        """The weights of a block, [P, N * R, K], and memory of this shape that is free then."""
        query = self.rows(self._query, block)
        size = (*query.shape[:2], block.keys)
        scores, weights = (m[: math.prod(size)].view(size) for m in self._memory)
        key = self._key[:, : block.keys].transpose(1, 2)
        torch.baddbmm(scores, query, key, beta=0, alpha=self._scaling, out=scores)
        if block.is_causal:
            rows = block.stop - block.start
            later = torch.full((rows, rows), -math.inf, dtype=scores.dtype).triu(1)
            scores.unflatten(1, (-1, rows))[..., -rows:] += later
        return torch._softmax(scores, -1, False, out=weights), scores

    @staticmethod
    def rows(tensor_PNQD: Tensor, block: Segment) -> Tensor:
        """The block's rows of all heads, [P, N * R, D]."""
        return tensor_PNQD[:, :, block.start : block.stop].flatten(1, 2)


def _blocks(segment: Segment, heads: int) -> Iterator[Segment]:
    rows = max(_FEWEST_ROWS, _SCORES_PER_BLOCK // (heads * segment.keys))
    for start in range(segment.start, segment.stop, rows):
        stop = min(start + rows, segment.stop)
        keys = segment.keys - (segment.stop - stop if segment.is_causal else 0)
        yield Segment(start, stop, keys, segment.is_causal)


@torch.library.custom_op("focusft::product_attention", mutates_args=())
def _attend(
    query: Tensor, key: Tensor, value: Tensor, segments: list[int], scaling: float
) -> Tensor:
    pairs = key.shape[0] * key.shape[1]
    query_PNQD = _by_key_head(query, pairs)
    key_PKD, value_PKD = (_by_key_head(t, pairs).squeeze(1) for t in (key, value))
    output_PNQD = query.new_zeros(*query_PNQD.shape[:3], value.shape[3])
    scores = _Scores(query_PNQD, key_PKD, segments, scaling)
    for block in scores.blocks:
        weights, _ = scores.weights(block)
        attended = torch.bmm(weights, value_PKD[:, : block.keys])
        output_PNQD[:, :, block.start : block.stop] = attended.unflatten(
            1, (query_PNQD.shape[1], -1)
        )
    return output_PNQD.view(*query.shape[:3], value.shape[3])


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, segments: list[int], scaling: float) -> Tensor:
    return query.new_empty(*query.shape[:3], value.shape[3])


@torch.library.custom_op("focusft::product_attention_backward", mutates_args=())
def _attend_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, segments: list[int], scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    pairs = key.shape[0] * key.shape[1]
    query_PNQD, grad_PNQD = (_by_key_head(t, pairs) for t in (query, grad))
    key_PKD, value_PKD = (_by_key_head(t, pairs).squeeze(1) for t in (key, value))
    query_grad = query.new_zeros(query_PNQD.shape)
    # The parts of the blocks add up in float32.
    key_grad, value_grad = (t.new_zeros(t.shape, dtype=torch.float32) for t in (key_PKD, value_PKD))
    scores = _Scores(query_PNQD, key_PKD, segments, scaling)
    for block in scores.blocks:
        weights, free = scores.weights(block)
        rows_grad = scores.rows(grad_PNQD, block)
        value_grad[:, : block.keys] += torch.bmm(weights.transpose(1, 2), rows_grad)
        weights_grad = torch.bmm(rows_grad, value_PKD[:, : block.keys].transpose(1, 2), out=free)
        scores_grad = torch._softmax_backward_data(
            weights_grad, weights, -1, weights.dtype, grad_input=free
        )
        query_grad[:, :, block.start : block.stop] = torch.bmm(
            scores_grad, key_PKD[:, : block.keys]
        ).unflatten(1, (query_PNQD.shape[1], -1))
        key_grad[:, : block.keys] += torch.bmm(
            scores_grad.transpose(1, 2), scores.rows(query_PNQD, block)
        )
    return (
        query_grad.mul_(scaling).view(query.shape),
        key_grad.mul_(scaling).to(key.dtype).view(key.shape),
        value_grad.to(value.dtype).view(value.shape),
    )


@_attend_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, segments: list[int], scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.segments, ctx.scaling = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = _attend_backward(grad, *ctx.saved_tensors, ctx.segments, ctx.scaling)
    return (*grads, None, None)


_attend.register_autograd(_backward, setup_context=_remember)

# The operation as dispatch modes see it.
PRODUCT_ATTENTION = torch.ops.focusft.product_attention.default
