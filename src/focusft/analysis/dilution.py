"""Attention dilution: how much attention goes to the sink, to the content and to the needles.

Attention is recomputed for the rows that predict response tokens, and for an even sample of the
context's rows, so memory never grows with S x S. The figures are defined in docs/attention.md.

Shapes: B batch, S sequence, H query heads, G key heads, T tokens of one document, Q queries of one
document, D features of a head, L layers, N documents, F figures, E distances.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from focusft.analysis.attention_rows import (
    DISTANCE_STARTS,
    FIGURES,
    KeyGroups,
    RowFigures,
    attention_figures,
)
from focusft.errors import UnsupportedModelError
from focusft.method.architectures import CALL, Architecture, has_sliding_window, unwrap_causal_lm
from focusft.method.attention import ATTENTION, SEGMENTS, TurnAttention, turn_attention
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
        return _named(self.figures_LHF.mean(dim=(0, 1)))


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


@dataclass(frozen=True)
class Dilution:
    """Means over documents of one kind of queries; each document counts the same.

    Attributes:
        means: Each figure, mean over layers and heads too; None for needles that are not marked.
        per_layer: The same for each layer, from the lowest upwards.
        per_head: Each figure as one list for each layer, with one number for each head.
        distances: `from` (smallest distance of each bin; -1 is ahead of the query) and `mass`,
            the attention at it, without that on the first token.
        documents: How many documents were measured.
        queries: How many queries were measured in all.
    """

    means: dict[str, float | None]
    per_layer: list[dict[str, float | None]]
    per_head: dict[str, list[list[float | None]]]
    distances: dict[str, list[float]]
    documents: int
    queries: int

    @classmethod
    def of(cls, documents: Sequence[QueryDilution]) -> Dilution:
        """Average documents."""
        figures_LHF = torch.stack([d.figures_LHF for d in documents]).nanmean(dim=0)
        mass_E = torch.stack([d.distances_LHE.mean(dim=(0, 1)) for d in documents]).mean(dim=0)
        reached = 1 + max(mass_E.nonzero().flatten().tolist(), default=1)
        return cls(
            means=_named(figures_LHF.mean(dim=(0, 1))),
            per_layer=[_named(layer_F) for layer_F in figures_LHF.mean(dim=1)],
            per_head={
                name: [[_number(x) for x in layer] for layer in figures_LHF[..., index].tolist()]
                for index, name in enumerate(FIGURES)
            },
            distances={"from": list(DISTANCE_STARTS[:reached]), "mass": mass_E[:reached].tolist()},
            documents=len(documents),
            queries=sum(d.queries for d in documents),
        )

    @property
    def sink_mass(self) -> float:
        """Attention on the first token of the document, 0 to 1."""
        return _known(self.means["sink_mass"])

    @property
    def context_engagement(self) -> float:
        """Attention on the content of the context, 0 to 1."""
        return _known(self.means["context_engagement"])

    def to_dict(self) -> dict[str, Any]:
        """For a results file: the means at the top."""
        fields = dict(vars(self))
        return {**fields.pop("means"), **fields}


def measure_dilution(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    context_attention: ContextAttention,
    sample: QuerySample | None = None,
) -> Dilution:
    """Measure the response queries of a model without fast weights.

    Args:
        model: A causal language model; its mode and attention implementation are restored.
        batches: As for `measure_documents`.
        context_attention: Attention among context tokens during the measurement.
        sample: Which queries; all response queries by default.
    """
    with probing(model) as measured:
        documents = [
            document.response
            for batch in batches
            for document in measure_documents(measured, batch, context_attention, sample)
        ]
    return Dilution.of(documents)


@contextmanager
def probing(model: nn.Module) -> Iterator[PreTrainedModel]:
    """Prepare a model for `measure_documents`, and restore its mode and attention afterwards.

    Yields:
        The causal language model below a PEFT wrapper.

    Raises:
        UnsupportedModelError: The model has layers without full attention.
    """
    below = unwrap_causal_lm(model)
    if has_sliding_window(below.config):
        raise UnsupportedModelError(
            f"{type(below).__name__} has layers without full attention (sliding window, chunked or "
            "linear), where the sink is not in reach of every query; probe another model"
        )
    implementation = below.config._attn_implementation
    # A part may be in eval mode on purpose, inside a model in training mode.
    was_training = {module: module.training for module in below.modules()}
    below.set_attn_implementation(SEGMENTS)
    below.eval()
    try:
        yield below
    finally:
        below.set_attn_implementation(implementation)
        for module, training in was_training.items():
            module.training = training


def measure_documents(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    context_attention: ContextAttention,
    sample: QuerySample | None = None,
) -> list[DocumentDilution]:
    """Measure each document of a batch that has a label, in one forward.

    Args:
        model: What `probing` yields.
        batch: input_ids and labels, and optionally attention_mask, position_ids, turn_ids,
            content_mask (1 on context tokens that are no template text and no special token) and
            needle_mask (1 on tokens of marked facts), each [B, S]. Without a content_mask the
            whole context counts as content.
        context_attention: Attention among context tokens.
        sample: Which queries; all response queries by default.

    Raises:
        UnsupportedModelError: The model's attention does not show its queries and keys.
    """
    layout = TurnLayout.from_batch(batch)
    recorder = Recorder(batch, layout, context_attention, sample or QuerySample())
    attention = replace(turn_attention(model, layout, context_attention), observer=recorder.observe)
    with torch.no_grad():
        model(
            input_ids=batch["input_ids"],
            position_ids=batch.get("position_ids"),
            use_cache=False,
            logits_to_keep=1,
            **attention.model_kwargs,
        )
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    if recorder.layers != layers:
        raise UnsupportedModelError(
            f"{type(model).__name__} showed the attention of {recorder.layers} of its {layers} "
            "layers; its attention does not go through the interface of transformers"
        )
    return recorder.documents()


@contextmanager
def observing(architecture: Architecture, recorder: Recorder) -> Iterator[None]:
    """Show a recorder the attention of training calls: with the fast weights of the outer loop.

    Inner steps are left out. The backend must be "segments" or "flex".

    Args:
        architecture: Of the model that the engine is attached to.
        recorder: For the batch of the one call that is to come.
    """

    def add_observer(
        attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        call = kwargs.get(CALL)
        if call is None or call.is_adapting:
            return None
        turns: TurnAttention = kwargs[ATTENTION]
        return args, {**kwargs, ATTENTION: replace(turns, observer=recorder.keep)}

    def reduce(*_: Any) -> None:
        recorder.reduce()

    handles = [
        attention.register_forward_pre_hook(add_observer, with_kwargs=True)
        for attention in architecture.attentions
    ]
    # Outside the layer, since selective checkpointing takes the order of all products inside it
    # for that of the recompute.
    handles += [layer.register_forward_hook(reduce) for layer in architecture.layers]
    try:
        yield
    finally:
        # Gone before a checkpointed layer runs again in the backward pass.
        for handle in handles:
            handle.remove()


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
        return torch.stack(list(tensors)).double().cpu()

    return QueryDilution(
        stacked([layer.figures_HF for layer in layers]),
        stacked([layer.distances_HE for layer in layers]),
        stacked([layer.received_T for layer in layers]).mean(dim=0),
        queries,
    )


def _named(figures_F: Tensor) -> dict[str, float | None]:
    return dict(zip(FIGURES, map(_number, figures_F.tolist()), strict=True))


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if value != value else value


def _known(value: float | None) -> float:
    assert value is not None
    return value
