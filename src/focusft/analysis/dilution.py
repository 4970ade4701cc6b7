"""Attention dilution: how much attention the responses pay to the sink and to the context.

Attention is recomputed for the rows that predict response tokens only, so memory grows with
R x S and never with S x S times the heads.

Shapes: B batch, S sequence, H heads, N key-value heads, D head size, R queries of one document.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from focusft.method.config import ContextAttention
from focusft.method.loss import PredictedRows
from focusft.method.masks import dense_mask
from focusft.method.turns import Document, TurnLayout

PROBE = "focusft_probe"


@dataclass(frozen=True)
class Dilution:
    """Means over documents, heads and the queries that predict response tokens.

    Attributes:
        sink_mass: Attention on the first token of the document, 0 to 1.
        context_engagement: Attention on all other context tokens, 0 to 1.
        per_layer: The same two figures for each layer, from the lowest upwards.
        documents: How many documents were measured.
    """

    sink_mass: float
    context_engagement: float
    per_layer: list[dict[str, float]]
    documents: int

    def to_dict(self) -> dict[str, Any]:
        """For a results file."""
        return dict(vars(self))


def measure_dilution(
    model: PreTrainedModel,
    batches: Iterable[dict[str, Tensor]],
    context_attention: ContextAttention,
) -> Dilution:
    """Measure a model without fast weights on conversations.

    Args:
        model: A causal language model; its mode and attention implementation are restored.
        batches: input_ids, labels, attention_mask and optionally position_ids and turn_ids.
        context_attention: Attention among context tokens during the measurement.
    """
    masses: list[Tensor] = []
    with _probing(model) as recorder, torch.no_grad():
        for batch in batches:
            layout = TurnLayout.from_batch(batch)
            recorder.begin(layout, PredictedRows.of(batch["labels"], layout).mask_BS)
            model(
                input_ids=batch["input_ids"],
                attention_mask=dense_mask(layout, context_attention),
                position_ids=batch.get("position_ids"),
                use_cache=False,
                logits_to_keep=1,
            )
            masses.append(recorder.masses())
    per_layer = torch.cat(masses, dim=1).mean(dim=1)
    sink_mass, engagement = per_layer.mean(dim=0).tolist()
    return Dilution(
        sink_mass,
        engagement,
        [{"sink_mass": s, "context_engagement": e} for s, e in per_layer.tolist()],
        documents=sum(m.shape[1] for m in masses),
    )


class _Recorder:
    """Collects [sink mass, context engagement] of each layer and document of one forward."""

    def begin(self, layout: TurnLayout, queries_BS: Tensor) -> None:
        self._queries_BS = queries_BS
        self._is_context_BS = layout.is_context_BS
        # A document without a label has no query to measure.
        self._documents = [
            d for d in layout.documents() if queries_BS[d.row, d.start : d.stop].any()
        ]
        self._layers: list[Tensor] = []

    def add(self, query_BHSD: Tensor, key_BNSD: Tensor, mask_B1SS: Tensor, scaling: float) -> None:
        rows = [
            self._document_masses(document, query_BHSD, key_BNSD, mask_B1SS, scaling)
            for document in self._documents
        ]
        self._layers.append(torch.stack(rows))

    def _document_masses(
        self,
        document: Document,
        query_BHSD: Tensor,
        key_BNSD: Tensor,
        mask_B1SS: Tensor,
        scaling: float,
    ) -> Tensor:
        row, tokens = document.row, slice(document.start, document.stop)
        queries_S = torch.zeros_like(self._queries_BS[row])
        queries_S[tokens] = self._queries_BS[row, tokens]
        query_HRD = query_BHSD[row][:, queries_S].float()
        key_HSD = key_BNSD[row, :, tokens].float()
        key_HSD = key_HSD.repeat_interleave(query_HRD.shape[0] // key_HSD.shape[0], dim=0)
        scores_HRS = query_HRD @ key_HSD.transpose(1, 2) * scaling
        allowed_RS = mask_B1SS[row, 0][queries_S][:, tokens]
        weights_HRS = scores_HRS.masked_fill(~allowed_RS, -torch.inf).softmax(dim=-1)
        weights_S = weights_HRS.mean(dim=(0, 1))
        sink = weights_S[0]
        return torch.stack([sink, weights_S[self._is_context_BS[row, tokens]].sum() - sink])

    def masses(self) -> Tensor:
        """[layers, documents, 2]."""
        return torch.stack(self._layers)


@contextmanager
def _probing(model: PreTrainedModel) -> Iterator[_Recorder]:
    recorder = _Recorder()

    def attention(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor,
        scaling: float,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        recorder.add(query, key, attention_mask, scaling)
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )

    AttentionInterface.register(PROBE, attention)
    implementation, was_training = model.config._attn_implementation, model.training
    model.set_attn_implementation(PROBE)
    model.eval()
    try:
        yield recorder
    finally:
        model.set_attn_implementation(implementation)
        model.train(was_training)
