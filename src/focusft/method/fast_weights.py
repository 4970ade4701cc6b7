"""Transient LoRA weights, one set for each document of a batch, as plain tensors.

They are no parameters of the model: state-dict names, the optimizer and checkpoints never see
them (arXiv 2605.09932, section 3.1: `phi`).

Shapes: B batch, S sequence, G documents, I input features, O output features, r rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from focusft.method.turns import Document, TurnLayout


@dataclass(frozen=True)
class FastWeights:
    """Low-rank updates of a list of linear maps.

    Attributes:
        A: One [G, r, I] tensor for each adapted linear map.
        B: One [G, O, r] tensor for each adapted linear map.
        scaling: inner_alpha / inner_rank.
        dropout: Probability of dropping an input feature of the fast weights.
        documents: Where the G documents lie in the batch.
        is_zero: B is zero, and only the gradients of B are wanted: the product is left out, and
            so is what would go back through B, which is zero as well.
    """

    A: tuple[Tensor, ...]
    B: tuple[Tensor, ...]
    scaling: float
    dropout: float
    documents: tuple[Document, ...]
    is_zero: bool = False

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All matrices: every A, then every B."""
        return self.A + self.B

    def with_tensors(self, tensors: Sequence[Tensor]) -> FastWeights:
        """The same fast weights with other values, in the order of `tensors`."""
        A, B = tuple(tensors[: len(self.A)]), tuple(tensors[len(self.A) :])
        return replace(self, A=A, B=B, is_zero=False)

    def as_leaves(self) -> FastWeights:
        """Cut the history, so that gradients with respect to these values can be taken."""
        return self.with_tensors([t.detach().requires_grad_() for t in self.tensors])

    def detached(self) -> FastWeights:
        """The values as constants."""
        return self.with_tensors([t.detach() for t in self.tensors])

    def add_to(
        self,
        output: Tensor,
        index: int,
        x: Tensor,
        rows_per_document: Sequence[int] | None = None,
    ) -> Tensor:
        """Add to the output of linear map number `index` what the fast weights make of its input.

        Args:
            output: What the linear map returned, [B, S, O], or [R, O]: some rows of each document,
                in the documents' order. The sum is written to it where that is possible.
            index: Number of the linear map.
            x: What it was called with, [B, S, I] or [R, I].
            rows_per_document: How many rows of each document [R, O] has.
        """
        spans = self._spans(x.shape, rows_per_document)
        if not spans:
            return output
        x_TI = x.flatten(0, -2).to(output.dtype)
        A_GrI, B_GOr = self.A[index].to(x_TI.dtype), self.B[index].to(x_TI.dtype)
        if self.is_zero:
            x_TI, A_GrI = x_TI.detach(), A_GrI.detach()
        if self.dropout > 0:
            x_TI = F.dropout(x_TI, self.dropout)
        if output._base is not None:
            # Writing to a view would copy its gradient.
            output = output.clone()
        pieces = _split(x_TI, spans)
        low_rank = [F.linear(x_PI, A_rI) for x_PI, A_rI in zip(pieces, A_GrI, strict=True)]
        return _AddProducts.apply(output, B_GOr, self.scaling, self.is_zero, spans, *low_rank)

    def _spans(
        self, shape: Sequence[int], rows_per_document: Sequence[int] | None
    ) -> tuple[slice, ...]:
        """Where each document lies in the flattened rows."""
        if rows_per_document is None:
            starts = [d.row * shape[1] + d.start for d in self.documents]
            lengths = [d.stop - d.start for d in self.documents]
        else:
            lengths = list(rows_per_document)
            starts = list(accumulate(lengths, initial=0))[:-1]
        return tuple(slice(s, s + n) for s, n in zip(starts, lengths, strict=True))


def _split(x_TI: Tensor, spans: Sequence[slice]) -> Sequence[Tensor]:
    """The rows of each span. Other than those of slices, their gradients are joined once."""
    if [(span.start, span.stop) for span in spans] == [(0, len(x_TI))]:
        return [x_TI]
    bounds = [0, *(bound for span in spans for bound in (span.start, span.stop)), len(x_TI)]
    with_gaps = x_TI.split([stop - start for start, stop in pairwise(bounds)])
    return with_gaps[1::2]


class _AddProducts(torch.autograd.Function):
    """Add low_rank @ B.T to a span of rows for each document, in place: no copy of the output."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        B_GOr: Tensor,
        scaling: float,
        is_zero: bool,
        spans: tuple[slice, ...],
        *low_rank: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(B_GOr, *low_rank)
        ctx.scaling, ctx.spans = scaling, spans
        if not is_zero:
            output_TO = output.flatten(0, -2)
            for span, low_Pr, B_Or in zip(spans, low_rank, B_GOr, strict=True):
                output_TO[span].addmm_(low_Pr, B_Or.T, alpha=scaling)
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        B_GOr, *low_rank = ctx.saved_tensors
        wants_output, wants_B, _, _, _, *wants_low = ctx.needs_input_grad
        pieces = [gradient.flatten(0, -2)[span] for span in ctx.spans]
        of_B = None
        if wants_B:
            of_B = ctx.scaling * torch.stack(
                [piece_PO.T @ low_Pr for piece_PO, low_Pr in zip(pieces, low_rank, strict=True)]
            )
        of_low = [
            ctx.scaling * (piece_PO @ B_Or) if wanted else None
            for piece_PO, B_Or, wanted in zip(pieces, B_GOr, wants_low, strict=True)
        ]
        return (gradient if wants_output else None, of_B, None, None, None, *of_low)


def initial_fast_weights(
    shapes: Sequence[tuple[int, int]],
    rank: int,
    alpha: float,
    dropout: float,
    input_ids_BS: Tensor,
    layout: TurnLayout,
    seed: int,
    step: int,
    dtype: torch.dtype,
) -> FastWeights:
    """Draw A from Kaiming-uniform(a=sqrt(5)) and set B to zero (section 3.1).

    The values of a document depend on the seed, the step and the document's own tokens alone.
    So they are the same however documents are batched, packed, accumulated or spread over
    ranks, and after a resume; but a GPU draws other values than a CPU.

    Args:
        shapes: (input features, output features) of each adapted linear map.
        rank: Rank r.
        alpha: LoRA alpha; the scaling is alpha / rank.
        dropout: Dropout on the input of the fast weights.
        input_ids_BS: Tokens of the batch.
        layout: Turns of the batch.
        seed: Seed of the run.
        step: Optimizer step, so that each epoch draws other values.
        dtype: Type of the fast weights.
    """
    device = input_ids_BS.device
    documents = tuple(layout.documents())
    sizes = [rank * features for features, _ in shapes]
    # One draw for all matrices of a document: on a GPU each call costs more than its numbers.
    drawn_GN = torch.empty(len(documents), sum(sizes), device=device)
    generator = torch.Generator(device)
    for drawn_N, checksum in zip(drawn_GN, _checksums(input_ids_BS, documents), strict=True):
        generator.manual_seed(_mix(seed, step, checksum))
        drawn_N.uniform_(-1, 1, generator=generator)
    return FastWeights(
        # Kaiming-uniform with a = sqrt(5) is uniform within 1 / sqrt(input features).
        A=tuple(
            (matrix_GN / features**0.5).to(dtype).view(-1, rank, features)
            for matrix_GN, (features, _) in zip(drawn_GN.split(sizes, dim=1), shapes, strict=True)
        ),
        B=tuple(
            torch.zeros(len(documents), out, rank, device=device, dtype=dtype) for _, out in shapes
        ),
        scaling=alpha / rank,
        dropout=dropout,
        documents=documents,
    )


def _mix(*numbers: int) -> int:
    """A 63-bit seed that is the same on every platform and Python version."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _checksums(input_ids_BS: Tensor, documents: Sequence[Document]) -> list[int]:
    """A position-weighted sum of each document's tokens, in wrapping 64-bit integers."""
    sums = []
    for document in documents:
        tokens_T = input_ids_BS[document.row, document.start : document.stop].long() + 1
        weights_T = torch.arange(1, len(tokens_T) + 1, device=tokens_T.device)
        weights_T = weights_T * 6364136223846793005 + 1442695040888963407
        sums.append((tokens_T * weights_T * (weights_T >> 33)).sum())
    return torch.stack(sums).tolist() if sums else []
