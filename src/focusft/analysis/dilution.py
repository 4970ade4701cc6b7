"""Attention dilution: how much attention goes to the sink, to the content and to the needles.

Attention is recomputed for the rows that predict response tokens, and for an even sample of the
context's rows, so memory never grows with S x S. The figures are defined in docs/attention.md.

Shapes: B batch, S sequence, H heads, L layers, F figures, E distances.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from focusft.analysis.attention_rows import DISTANCE_STARTS, FIGURES
from focusft.analysis.recorder import (
    DocumentDilution,
    QueryDilution,
    QuerySample,
    Recorder,
    json_number,
    named_figures,
)
from focusft.errors import DataError, UnsupportedModelError
from focusft.method.architectures import CALL, Architecture, has_sliding_window, unwrap_causal_lm
from focusft.method.attention import ATTENTION, SEGMENTS, TurnAttention, turn_attention
from focusft.method.config import ContextAttention, ContextBlocks
from focusft.method.turns import TurnLayout


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
            means=named_figures(figures_LHF.mean(dim=(0, 1))),
            per_layer=[named_figures(layer_F) for layer_F in figures_LHF.mean(dim=1)],
            per_head={
                name: [
                    [json_number(x) for x in layer] for layer in figures_LHF[..., index].tolist()
                ]
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

    Raises:
        DataError: No batch has a label.
    """
    with probing(model) as measured:
        documents = [
            document.response
            for batch in batches
            for document in measure_documents(measured, batch, context_attention, sample)
        ]
    if not documents:
        raise DataError("no example has a label, so there is no response query to measure")
    return Dilution.of(documents)


@contextmanager
def probing(model: nn.Module) -> Iterator[PreTrainedModel]:
    """Prepare a model for `measure_documents`, and restore its mode and attention afterwards.

    Yields:
        The causal language model below a PEFT wrapper.

    Raises:
        UnsupportedModelError: The model has layers without full attention, or hides it.
    """
    below = unwrap_causal_lm(model)
    if has_sliding_window(below.config):
        raise UnsupportedModelError(
            f"{type(below).__name__} has layers without full attention (sliding window, chunked or "
            "linear), where the sink is not in reach of every query; probe another model"
        )
    if not any(p.kind is p.VAR_KEYWORD for p in signature(below.forward).parameters.values()):
        raise UnsupportedModelError(
            f"{type(below).__name__} hands no keyword arguments on to its attention, which the "
            "probe needs; probe another model"
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
    context_blocks: ContextBlocks = "merged",
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
        context_blocks: See `TurnLayout.from_turn_ids`.

    Raises:
        UnsupportedModelError: The model's attention does not show its queries and keys.
    """
    layout = TurnLayout.from_batch(batch, context_blocks)
    recorder = Recorder(batch, layout, context_attention, sample or QuerySample())
    attention = turn_attention(model, layout, context_attention).observed_by(recorder.observe)
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
        return args, {**kwargs, ATTENTION: turns.observed_by(recorder.keep)}

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


def _known(value: float | None) -> float:
    assert value is not None
    return value
