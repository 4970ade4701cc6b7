"""Attention as plain matrix products, a block of queries at a time, for bfloat16 on a CPU.

PyTorch's fused CPU kernel computes its products in float32 where the CPU has no AMX, and is then
no faster in bfloat16 than in float32. A CPU with AVX512-BF16 multiplies matrices in bfloat16 four
times as fast, so two products and a softmax over a block of queries win by a factor of two to
three. `python -m benchmarks.product_attention` measures both.

Scores are rounded to bfloat16 before the softmax, as in the eager attention of transformers; the
softmax itself, and the sums of the gradients of keys and values, are in float32.

Shapes: B batch, H query heads, G key heads, N query heads of a key head, Q queries, K keys,
D features of a head, R queries of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

# A block of scores and their gradients stays in a core's cache, unless it got too few rows.
_SCORES_PER_BLOCK = 2**19
_FEWEST_ROWS = 64


def products_are_faster(like: Tensor) -> bool:
    """Whether attention of tensors of this kind should be computed by plain products.

    False while `torch.nn.attention.sdpa_kernel` excludes fused kernels: then there is no second
    derivative either, which this module doesn't have.
    """
    if like.device.type != "cpu" or not torch.backends.cuda.flash_sdp_enabled():
        return False
    return _compute_dtype(like) is torch.bfloat16 and _multiplies_bfloat16_without_amx()


@cache
def _multiplies_bfloat16_without_amx() -> bool:
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16")) and not able.get("amx_bf16")


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return tensor.dtype


def product_attention(
    query_BHQD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    *,
    is_causal: bool,
    scaling: float | None = None,
) -> Tensor:
    """Softmax attention, [B, H, Q, D].

    Args:
        query_BHQD: Queries.
        key_BGKD: Keys.
        value_BGKD: Values.
        is_causal: Each query sees the keys up to itself, where the last query is the last key.
        scaling: Factor of the scores; 1 / sqrt(D) if None.
    """
    dtype = _compute_dtype(query_BHQD)
    factor = query_BHQD.shape[-1] ** -0.5 if scaling is None else scaling
    attended: Tensor = _attend(
        query_BHQD.to(dtype), key_BGKD.to(dtype), value_BGKD.to(dtype), is_causal, factor
    )
    return attended


class _Block(NamedTuple):
    """Queries `rows` of all heads, and the keys before `keys`, which are all that they see."""

    rows: slice
    keys: int
    is_causal: bool

    def scores(self, query: Tensor, key: Tensor, scaling: float, scores: Tensor) -> Tensor:
        """Write the attention weights' logits to `scores`, [B * G, N * R, K]."""
        torch.baddbmm(scores, query, key.transpose(1, 2), beta=0, alpha=scaling, out=scores)
        if self.is_causal:
            rows = self.rows.stop - self.rows.start
            later = torch.full((rows, rows), -math.inf, dtype=scores.dtype).triu(1)
            scores.unflatten(1, (-1, rows))[..., -rows:] += later
        return scores


def _blocks(queries: int, keys: int, heads: int, is_causal: bool) -> Iterator[_Block]:
    rows = max(_FEWEST_ROWS, _SCORES_PER_BLOCK // (heads * keys))
    for start in range(0, queries, rows):
        stop = min(start + rows, queries)
        yield _Block(slice(start, stop), keys - queries + stop if is_causal else keys, is_causal)


class _Heads:
    """Tensors of one call with the heads that share a key head side by side."""

    def __init__(self, query_BHQD: Tensor, key_BGKD: Tensor) -> None:
        batch, heads, self.queries, _ = query_BHQD.shape
        self.keys = key_BGKD.shape[2]
        self.groups = batch * key_BGKD.shape[1]
        self.heads = batch * heads

    def of_queries(self, tensor_BHQD: Tensor) -> Tensor:
        """Reshape to [B * G, N, Q, D]."""
        return tensor_BHQD.reshape(self.groups, -1, *tensor_BHQD.shape[2:])

    def of_keys(self, tensor_BGKD: Tensor) -> Tensor:
        """Reshape to [B * G, K, D]."""
        return tensor_BGKD.reshape(self.groups, *tensor_BGKD.shape[2:])

    def blocks(self, is_causal: bool) -> Iterator[_Block]:
        return _blocks(self.queries, self.keys, self.heads, is_causal)


class _Buffers:
    """Memory for the scores of a block, used again for each: asking for it anew takes longer."""

    def __init__(self, like: Tensor, heads: _Heads, is_causal: bool, count: int) -> None:
        largest = max(
            (block.rows.stop - block.rows.start) * block.keys for block in heads.blocks(is_causal)
        )
        self._memory = [like.new_empty(heads.heads * largest) for _ in range(count)]

    def for_scores(self, groups: int, rows: int, keys: int) -> list[Tensor]:
        return [m[: groups * rows * keys].view(groups, rows, keys) for m in self._memory]


@torch.library.custom_op("focusft::product_attention", mutates_args=())
def _attend(query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scaling: float) -> Tensor:
    heads = _Heads(query, key)
    queries, keys, values = heads.of_queries(query), heads.of_keys(key), heads.of_keys(value)
    output = query.new_empty(*queries.shape[:3], value.shape[3])
    buffers = _Buffers(query, heads, is_causal, 2)
    for block in heads.blocks(is_causal):
        rows_of = queries[:, :, block.rows].flatten(1, 2)
        scores, weights = buffers.for_scores(heads.groups, rows_of.shape[1], block.keys)
        block.scores(rows_of, keys[:, : block.keys], scaling, scores)
        torch._softmax(scores, -1, False, out=weights)
        attended = torch.bmm(weights, values[:, : block.keys])
        output[:, :, block.rows] = attended.unflatten(1, (queries.shape[1], -1))
    return output.view(*query.shape[:3], value.shape[3])


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scaling: float) -> Tensor:
    return query.new_empty(*query.shape[:3], value.shape[3])


@torch.library.custom_op("focusft::product_attention_backward", mutates_args=())
def _attend_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    heads = _Heads(query, key)
    grads, queries = heads.of_queries(grad), heads.of_queries(query)
    keys, values = heads.of_keys(key), heads.of_keys(value)
    query_grad = query.new_empty(queries.shape)
    # The parts of the blocks add up in float32.
    key_grad = keys.new_zeros(keys.shape, dtype=torch.float32)
    value_grad = values.new_zeros(values.shape, dtype=torch.float32)
    buffers = _Buffers(query, heads, is_causal, 3)
    for block in heads.blocks(is_causal):
        rows_of = queries[:, :, block.rows].flatten(1, 2)
        grad_of = grads[:, :, block.rows].flatten(1, 2)
        seen_keys, seen_values = keys[:, : block.keys], values[:, : block.keys]
        scores, weights, weights_grad = buffers.for_scores(
            heads.groups, rows_of.shape[1], block.keys
        )
        block.scores(rows_of, seen_keys, scaling, scores)
        torch._softmax(scores, -1, False, out=weights)
        value_grad[:, : block.keys] += torch.bmm(weights.transpose(1, 2), grad_of)
        torch.bmm(grad_of, seen_values.transpose(1, 2), out=weights_grad)
        scores_grad = torch._softmax_backward_data(
            weights_grad, weights, -1, weights.dtype, grad_input=scores
        )
        query_grad[:, :, block.rows] = torch.bmm(scores_grad, seen_keys).unflatten(
            1, (queries.shape[1], -1)
        )
        key_grad[:, : block.keys] += torch.bmm(scores_grad.transpose(1, 2), rows_of)
    return (
        query_grad.mul_(scaling).view(query.shape),
        key_grad.mul_(scaling).to(key.dtype).view(key.shape),
        value_grad.to(value.dtype).view(value.shape),
    )


@_attend_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.is_causal, ctx.scaling = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = _attend_backward(grad, *ctx.saved_tensors, ctx.is_causal, ctx.scaling)
    return (*grads, None, None)


_attend.register_autograd(_backward, setup_context=_remember)

# The operation as dispatch modes see it.
PRODUCT_ATTENTION = torch.ops.focusft.product_attention.default
