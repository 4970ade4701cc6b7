"""Segment attention: the mask of `masks.py` through torch's own kernels, without the mask.

Turn by turn: the queries of a context turn see every key from the start of their document to
the end of the turn, which needs no mask at all. The queries of a response turn see the same keys
causally; they go in blocks of rows, so that the only mask ever stored is one of [rows, S]. Where
plain matrix products beat these kernels (`product_attention.py`), they take a whole document.

Shapes: B batch, H query heads, G key heads, S sequence, T tokens of one document, P parts of N of
Q queries, K keys, D features of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from focusft.method.config import ContextAttention
from focusft.method.kernels import without_cudnn_attention
from focusft.method.product_attention import (
    Segment,
    product_attention,
    products_are_faster,
)
from focusft.method.turns import PADDING, TurnLayout

# Response queries of one kernel call.
ROWS_PER_CALL = 256
# A part of the queries should be worth a call of its own.
_LEAST_QUERIES_OF_A_PART = 128
# Parts that keep the threads busy for this share of the time are enough.
_BUSY_ENOUGH = 0.95


@dataclass(frozen=True)
class Span:
    """A document of a row as its segments, or a stretch of padding, which has none.

    Queries in no segment get zeros.
    """

    length: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class SegmentPlan:
    """How the attention of one batch is cut into kernel calls.

    Attributes:
        rows: The spans of each row, in order; together they cover it.
        causal_rows: Bool [ROWS_PER_CALL, longest document], the last rows of a causal mask. Its
            lower right corner of any size is the mask of so many queries and keys.
        threads: Of the CPU; asked here, since torch.compile cannot trace the question.
    """

    rows: tuple[tuple[Span, ...], ...]
    causal_rows: Tensor
    threads: int

    @classmethod
    def of(cls, layout: TurnLayout, context_attention: ContextAttention) -> SegmentPlan:
        """Cut a batch into segments."""
        is_causal_BS = layout.is_response_BS
        blocks_BS = layout.block_ids_BS
        if context_attention == "causal":
            is_causal_BS = torch.ones_like(is_causal_BS)
            blocks_BS = layout.document_ids_BS
        columns = (layout.document_ids_BS, blocks_BS, is_causal_BS)
        rows = tuple(
            tuple(_spans(*row))
            for row in zip(*(column.tolist() for column in columns), strict=True)
        )
        longest = max(span.length for spans in rows for span in spans)
        positions_T = torch.arange(longest, device=blocks_BS.device)
        last_rows = positions_T[-ROWS_PER_CALL:]
        causal_rows = positions_T[None, :] <= last_rows[:, None]
        return cls(rows, causal_rows, torch.get_num_threads())

    def only(self, wanted_BS: Tensor) -> SegmentPlan:
        """The same plan with each segment cut to the stretch that holds its wanted queries."""
        rows = []
        for spans, wanted in zip(self.rows, wanted_BS.tolist(), strict=True):
            position, cut_spans = 0, []
            for span in spans:
                of_span = wanted[position : position + span.length]
                cut = [_cut(segment, of_span) for segment in span.segments]
                kept = tuple(segment for segment in cut if segment.start < segment.stop)
                cut_spans.append(replace(span, segments=kept))
                position += span.length
            rows.append(tuple(cut_spans))
        return replace(self, rows=tuple(rows))


def _spans(documents: list[int], blocks: list[int], is_causal: list[bool]) -> Iterator[Span]:
    for start, stop in _runs(documents):
        segments = [
            Segment(first, last, last, is_causal[start + first])
            for first, last in _runs(blocks[start:stop])
        ]
        is_padding = documents[start] == PADDING
        yield Span(stop - start, () if is_padding else tuple(segments))


def _cut(segment: Segment, wanted: list[bool]) -> Segment:
    positions = [i for i in range(segment.start, segment.stop) if wanted[i]]
    if not positions:
        return segment._replace(stop=segment.start)
    stop = positions[-1] + 1
    keys = stop if segment.is_causal else segment.keys
    return segment._replace(start=positions[0], stop=stop, keys=keys)


def _runs(values: list[int]) -> Iterator[tuple[int, int]]:
    """Start and end (excluded) of each stretch of equal values."""
    start = 0
    for position in range(1, len(values) + 1):
        if position == len(values) or values[position] != values[start]:
            yield start, position
            start = position


def segment_attention(
    query_BHSD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    plan: SegmentPlan,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """Attention under the plan's mask, [B, S, H, D]; zero on padding."""
    rows = []
    for row, spans in enumerate(plan.rows):
        lengths = [span.length for span in spans]
        pieces: list[Tensor] = []
        # Split once, so that the gradients of all documents are written in one go.
        queries, keys, values = (
            t[row : row + 1].split(lengths, dim=2) for t in (query_BHSD, key_BGSD, value_BGSD)
        )
        for query, key, value, span in zip(queries, keys, values, spans, strict=True):
            pieces += _attend_document(query, key, value, span, plan, scaling, dropout)
        rows.append(_join([piece.transpose(1, 2) for piece in pieces], dim=1))
    return _join(rows, dim=0)


def _attend_document(
    query_1HTD: Tensor,
    key_1GTD: Tensor,
    value_1GTD: Tensor,
    span: Span,
    plan: SegmentPlan,
    scaling: float | None,
    dropout: float,
) -> Iterator[Tensor]:
    """The output of a document, piece by piece."""
    if dropout == 0 and products_are_faster(query_1HTD):
        yield product_attention(query_1HTD, key_1GTD, value_1GTD, span.segments, scaling)
        return
    attend = partial(_attend, scaling=scaling, dropout=dropout, threads=plan.threads)
    causal_rows = plan.causal_rows
    groups = query_1HTD.shape[1] // key_1GTD.shape[1]
    keys_and_values = for_masks = (key_1GTD, value_1GTD)
    if groups > 1 and query_1HTD.is_cuda and not all(map(_needs_no_mask, span.segments)):
        # With a mask, the fused CUDA kernels want a key head for each query head. Once for all
        # blocks of rows, which then share what is kept for the backward pass.
        for_masks = (
            key_1GTD.repeat_interleave(groups, dim=1),
            value_1GTD.repeat_interleave(groups, dim=1),
        )
    blocks = list(_blocks_of_rows(span))
    # Split once, so that the gradients of all blocks are written in one go.
    queries = query_1HTD.split([block.stop - block.start for block in blocks], dim=2)
    for query, block in zip(queries, blocks, strict=True):
        if block.keys == 0:
            yield _zeros(query, value_1GTD)
            continue
        is_whole = _needs_no_mask(block)
        key, value = keys_and_values if is_whole else for_masks
        mask = causal_rows[-query.shape[2] :, causal_rows.shape[1] - block.keys :]
        yield attend(
            query,
            key[:, :, : block.keys],
            value[:, :, : block.keys],
            mask=None if is_whole else mask,
            is_causal=bool(block.is_causal) and is_whole,
        )


def _blocks_of_rows(span: Span) -> Iterator[Segment]:
    """The kernel calls of a document, in order; rows in no segment are a block without keys."""
    position = 0
    for segment in span.segments:
        if segment.start > position:
            yield Segment(position, segment.start, 0, is_causal=False)
        position = segment.stop
        if _needs_no_mask(segment):
            yield segment
            continue
        for start in range(segment.start, segment.stop, ROWS_PER_CALL):
            stop = min(start + ROWS_PER_CALL, segment.stop)
            yield Segment(start, stop, stop, is_causal=True)
    if position < span.length:
        yield Segment(position, span.length, 0, is_causal=False)


def _needs_no_mask(segment: Segment) -> bool:
    """A whole document without context, or context; other causal rows go in blocks."""
    return not segment.is_causal or segment.start == 0


def _zeros(query_1HQD: Tensor, value_1GTD: Tensor) -> Tensor:
    return query_1HQD.new_zeros(*query_1HQD.shape[:3], value_1GTD.shape[3])


def _attend(
    query_1HQD: Tensor,
    key_1GKD: Tensor,
    value_1GKD: Tensor,
    *,
    scaling: float | None,
    dropout: float,
    threads: int,
    mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    if mask is None and not is_causal and dropout == 0:
        parts = _parts(query_1HQD, threads)
        if parts > 1:
            return _attend_in_parts(query_1HQD, key_1GKD, value_1GKD, parts, scaling)
    with without_cudnn_attention(query_1HQD.device):
        return F.scaled_dot_product_attention(
            query_1HQD,
            key_1GKD,
            value_1GKD,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=is_causal,
            scale=scaling,
            enable_gqa=query_1HQD.shape[1] != key_1GKD.shape[1],
        )


def _parts(query_1HQD: Tensor, threads: int) -> int:
    """Into how many parts to cut the queries, so that a CPU's backward pass uses all its threads.

    torch gives whole heads to threads there: 9 heads keep the second of 2 threads waiting while the
    first works on the fifth.
    """
    has_backward_pass = query_1HQD.requires_grad and torch.is_grad_enabled()
    if query_1HQD.device.type != "cpu" or not has_backward_pass:
        return 1
    heads, queries = query_1HQD.shape[1:3]
    most = max(1, min(queries // _LEAST_QUERIES_OF_A_PART, threads))
    for parts in range(1, most):
        rounds = -(-heads * parts // threads)
        if heads * parts >= _BUSY_ENOUGH * rounds * threads:
            return parts
    return most


def _attend_in_parts(
    query_1HQD: Tensor, key_1GKD: Tensor, value_1GKD: Tensor, parts: int, scaling: float | None
) -> Tensor:
    """Attention without a mask, the parts of the queries as rows of a batch that share the keys."""
    length = query_1HQD.shape[2]
    if length % parts:
        query_1HQD = F.pad(query_1HQD, (0, 0, 0, parts - length % parts))
    attended_PHND = F.scaled_dot_product_attention(
        query_1HQD[0].unflatten(1, (parts, -1)).transpose(0, 1),
        key_1GKD.expand(parts, -1, -1, -1),
        value_1GKD.expand(parts, -1, -1, -1),
        scale=scaling,
        enable_gqa=query_1HQD.shape[1] != key_1GKD.shape[1],
    )
    # The kernel writes the heads of a token side by side, so nothing is copied here.
    return attended_PHND.transpose(1, 2).flatten(0, 1)[:length].transpose(0, 1)[None]


def _join(pieces: Sequence[Tensor], dim: int) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim=dim)
