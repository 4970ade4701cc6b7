"""Transient LoRA weights, one set for each document of a batch, as plain tensors.

They are no parameters of the model: state-dict names, the optimizer and checkpoints never see
them (arXiv 2605.09932, section 3.1: `phi`).

Shapes: B batch, S sequence, G documents, I input features, O output features, r rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    """

    A: tuple[Tensor, ...]
    B: tuple[Tensor, ...]
    scaling: float
    dropout: float
    documents: tuple[Document, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All matrices: every A, then every B."""
        return self.A + self.B

    def with_tensors(self, tensors: Sequence[Tensor]) -> FastWeights:
        """The same fast weights with other values, in the order of `tensors`."""
        return replace(self, A=tuple(tensors[: len(self.A)]), B=tuple(tensors[len(self.A) :]))

    def as_leaves(self) -> FastWeights:
        """Cut the history, so that gradients with respect to these values can be taken."""
        return self.with_tensors([t.detach().requires_grad_() for t in self.tensors])

    def detached(self) -> FastWeights:
        """The values as constants."""
        return self.with_tensors([t.detach() for t in self.tensors])

    def add_to(self, output_BSO: Tensor, index: int, x_BSI: Tensor) -> Tensor:
        """Add to the output of linear map number `index` what the fast weights make of its input.

        Args:
            output_BSO: What the linear map returned; the sum is written to it where that is
                possible.
            index: Number of the linear map.
            x_BSI: What it was called with.
        """
        if self._is_one_document_per_row(len(x_BSI)):
            x_BSI = self._with_dropout(x_BSI.to(output_BSO.dtype))
            A_GrI, B_GOr = self.A[index].to(x_BSI.dtype), self.B[index].to(x_BSI.dtype)
            low_rank_BSr = torch.bmm(x_BSI, A_GrI.transpose(1, 2))
            B_GrO = B_GOr.transpose(1, 2)
            if output_BSO._base is None:
                # In place, which saves a copy of a large tensor.
                return output_BSO.baddbmm_(low_rank_BSr, B_GrO, alpha=self.scaling)
            # Writing to a view would copy its gradient.
            return torch.baddbmm(output_BSO, low_rank_BSr, B_GrO, alpha=self.scaling)
        rows = []
        for row, (output_SO, x_SI) in enumerate(zip(output_BSO, x_BSI, strict=True)):
            document_numbers, lengths = [], []
            position = 0
            for number, document in enumerate(self.documents):
                if document.row == row:
                    document_numbers += [None, number]
                    lengths += [document.start - position, document.stop - document.start]
                    position = document.stop
            document_numbers.append(None)
            lengths.append(len(x_SI) - position)
            rows.append(self._add_to_pieces(output_SO, index, x_SI, document_numbers, lengths))
        return torch.stack(rows)

    def add_to_rows(
        self, output_RO: Tensor, index: int, x_RI: Tensor, rows_per_document: Sequence[int]
    ) -> Tensor:
        """Like `add_to`, on some rows only: those of each document, in the documents' order."""
        numbers = range(len(rows_per_document))
        return self._add_to_pieces(output_RO, index, x_RI, numbers, rows_per_document)

    def _add_to_pieces(
        self,
        output_TO: Tensor,
        index: int,
        x_TI: Tensor,
        document_numbers: Sequence[int | None],
        lengths: Sequence[int],
    ) -> Tensor:
        """`lengths` tokens belong to each document, or to none."""
        x_TI = self._with_dropout(x_TI.to(output_TO.dtype))
        A_GrI, B_GOr = self.A[index].to(x_TI.dtype), self.B[index].to(x_TI.dtype)
        pieces = []
        for number, output_PO, x_PI in zip(
            document_numbers, output_TO.split(lengths), x_TI.split(lengths), strict=True
        ):
            if number is not None:
                low_rank_Pr = F.linear(x_PI, A_GrI[number])
                output_PO = torch.addmm(output_PO, low_rank_Pr, B_GOr[number].T, alpha=self.scaling)
            pieces.append(output_PO)
        return torch.cat(pieces) if pieces else output_TO

    def _with_dropout(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout > 0 else x

    def _is_one_document_per_row(self, batch: int) -> bool:
        return [document.row for document in self.documents] == list(range(batch))


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
