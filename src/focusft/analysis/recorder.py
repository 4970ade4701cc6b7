"""Records the attention of chosen queries, layer by layer, while a model runs forward.

Shapes: B batch, S sequence, H query heads, G key heads, T tokens of one document, Q queries of one
document, D features of a head, L layers, F figures, E distances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from focusft.analysis.attention_rows import FIGURES, KeyGroups, RowFigures, attention_figures
from focusft.method.config import ContextAttention
from focusft.method.loss import PredictedRows
from focusft.method.masks import may_attend
from focusft.method.turns import Document, TurnLayout


@dataclass(frozen=True)
class QuerySample:
    """How many queries of a document are measured at most, evenly spaced; None for all, 0 for none.

    Attributes:
        response: Of those that predict a labelled response token.
        context: Of the other context tokens, without the first, which sees but itself under the
            causal mask.
    """

    response: int | None = None
    context: int | None = 128


@dataclass(frozen=True)
class QueryDilution:
    """One document, one kind of queries: means over them, for each layer.

    Attributes:
        figures_LHF: The `FIGURES` of each head, float64.
        distances_LHE: Attention by distance, see `attention_rows`.
        received_T: Attention that each token gets, mean over layers and heads.
        queries: How many queries were measured.
    """

    figures_LHF: Tensor
    distances_LHE: Tensor
    received_T: Tensor
    queries: int

    def means(self) -> dict[str, float | None]:
        """Each figure as the mean over layers and heads; None for needles that are not marked."""
        return named_figures(self.figures_LHF.mean(dim=(0, 1)))


@dataclass(frozen=True)
class DocumentDilution:
    """The attention of one document.

    Attributes:
        response: Of the queries that predict a labelled response token.
        context: Of the other context tokens; None where there are none, or none are wanted.
        tokens: Length of the document.
    """

    response: QueryDilution
    context: QueryDilution | None
    tokens: int


class Recorder:
    """Collects the figures of each layer and document of one forward."""

    def __init__(
        self,
        batch: Mapping[str, Tensor],
        layout: TurnLayout,
        context_attention: ContextAttention,
        sample: QuerySample,
    ) -> None:
        """Choose the queries; see `measure_documents`."""
        predicts_BS = PredictedRows.of(batch["labels"], layout).mask_BS
        self._documents = [
            _Rows.of(document, batch, layout, predicts_BS, context_attention, sample)
            for document in layout.documents()
            if predicts_BS[document.row, document.start : document.stop].any()
        ]
        self._layers: list[list[list[RowFigures]]] = []
        self._kept: tuple[Tensor, Tensor, float] | None = None

    @property
    def layers(self) -> int:
        """How many layers were seen."""
        return len(self._layers)

    def keep(self, query_BHSD: Tensor, key_BGSD: Tensor, scaling: float) -> None:
        """Take in the queries and keys of the next layer, for `reduce`."""
        self._kept = query_BHSD.detach(), key_BGSD.detach(), scaling

    def reduce(self) -> None:
        """Reduce what was kept to figures, if something was."""
        if self._kept is None:
            return
        query_BHSD, key_BGSD, scaling = self._kept
        self._kept = None
        # bfloat16 products would cost the small masses their last digits.
        with torch.no_grad(), torch.autocast(query_BHSD.device.type, enabled=False):
            self._layers.append(
                [rows.measure(query_BHSD, key_BGSD, scaling) for rows in self._documents]
            )

    def observe(self, query_BHSD: Tensor, key_BGSD: Tensor, scaling: float) -> None:
        """Take in the queries and keys of the next layer and reduce them."""
        self.keep(query_BHSD, key_BGSD, scaling)
        self.reduce()

    def documents(self) -> list[DocumentDilution]:
        """The documents with a label, in their order in the batch."""
        found = []
        for number, rows in enumerate(self._documents):
            by_kind = [
                _stack([layer[number][kind] for layer in self._layers], len(positions_Q))
                for kind, positions_Q in enumerate(rows.queries)
            ]
            context = by_kind[1] if len(by_kind) > 1 else None
            found.append(DocumentDilution(by_kind[0], context, rows.tokens))
        return found


@dataclass(frozen=True)
class _Rows:
    """The queries of one document: those of the response, then those of the context, if any."""

    document: Document
    queries: list[Tensor]
    allowed: list[Tensor]
    groups: KeyGroups

    @classmethod
    def of(
        cls,
        document: Document,
        batch: Mapping[str, Tensor],
        layout: TurnLayout,
        predicts_BS: Tensor,
        context_attention: ContextAttention,
        sample: QuerySample,
    ) -> _Rows:
        row, tokens = document.row, slice(document.start, document.stop)
        context_T = layout.is_context_BS[row, tokens]
        predicts_T = predicts_BS[row, tokens]
        others_T = context_T & ~predicts_T
        others_T[0] = False
        queries = [_evenly(predicts_T.nonzero()[:, 0], sample.response)]
        if others_T.any() and sample.context != 0:
            queries.append(_evenly(others_T.nonzero()[:, 0], sample.context))
        keys = torch.arange(document.start, document.stop, device=context_T.device)
        of_row = torch.tensor(row, device=context_T.device)
        allowed = [
            may_attend(layout, context_attention, of_row, keys[q][:, None], keys[None, :])
            for q in queries
        ]
        content, needle = batch.get("content_mask"), batch.get("needle_mask")
        needle_T = None if needle is None else needle[row, tokens].bool()
        groups = KeyGroups(
            context_T,
            context_T if content is None else content[row, tokens].bool() & context_T,
            needle_T if needle_T is not None and needle_T.any() else None,
        )
        return cls(document, queries, allowed, groups)

    @property
    def tokens(self) -> int:
        return self.document.stop - self.document.start

    def measure(self, query_BHSD: Tensor, key_BGSD: Tensor, scaling: float) -> list[RowFigures]:
        row, tokens = self.document.row, slice(self.document.start, self.document.stop)
        query_HTD, key_GTD = query_BHSD[row, :, tokens], key_BGSD[row, :, tokens]
        return [
            attention_figures(query_HTD[:, q], key_GTD, q, allowed_QT, self.groups, scaling)
            for q, allowed_QT in zip(self.queries, self.allowed, strict=True)
        ]


def _evenly(positions: Tensor, most: int | None) -> Tensor:
    if most is None or len(positions) <= most:
        return positions
    chosen = torch.arange(most, device=positions.device) * len(positions) // most
    return positions[chosen]


def _stack(layers: Sequence[RowFigures], queries: int) -> QueryDilution:
    def stacked(tensors: Sequence[Tensor]) -> Tensor:
        # float64 on the CPU: Apple's GPUs have none.
        return torch.stack(list(tensors)).cpu().double()

    return QueryDilution(
        stacked([layer.figures_HF for layer in layers]),
        stacked([layer.distances_HE for layer in layers]),
        stacked([layer.received_T for layer in layers]).mean(dim=0),
        queries,
    )


def named_figures(figures_F: Tensor) -> dict[str, float | None]:
    """The `FIGURES` by name."""
    return dict(zip(FIGURES, map(json_number, figures_F.tolist()), strict=True))


def json_number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if value != value else value
