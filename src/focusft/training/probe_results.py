"""What `focusft probe` writes: means with intervals, ratios, and the values of each example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from focusft.analysis.dilution import Dilution
from focusft.analysis.recorder import DocumentDilution
from focusft.data.marked import MarkedExample, MarkedSet
from focusft.errors import ConfigError
from focusft.method.config import ContextAttention
from focusft.statistics.columns import (
    Estimate,
    bootstrap,
    mean,
    mean_difference,
    median_of_ratios,
    ratio_of_means,
)

MASKS: tuple[ContextAttention, ...] = ("causal", "bidirectional")
# What the name of a condition ends with where fast weights were active.
FAST_WEIGHTS = "_fast_weights"


@dataclass(frozen=True)
class Measured:
    """The documents of one condition, and the inner losses of each."""

    documents: list[DocumentDilution]
    inner_losses: list[list[float]]


def probe_results(
    measured: dict[str, Measured], marked: MarkedSet, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """What a results file says about one model (docs/attention.md).

    Args:
        measured: By the name of the condition.
        marked: The examples, in the order of the measured documents.
        tokenizer: That of the examples.
    """
    examples = [
        _example(example, {name: found.documents[index] for name, found in measured.items()})
        | _inner_losses({name: found.inner_losses[index] for name, found in measured.items()})
        for index, example in enumerate(marked.examples)
    ]
    ratios = {"ratios": _ratios(examples, "")}
    if "causal" + FAST_WEIGHTS in measured:
        ratios["ratios" + FAST_WEIGHTS] = _ratios(examples, FAST_WEIGHTS)
    first = marked.examples[0]
    return {
        **{
            name: _condition(found.documents) | {"intervals": _intervals(examples, name)}
            for name, found in measured.items()
        },
        **ratios,
        "examples": examples,
        "tokens_of_first_example": {
            "where": first.where,
            "text": [str(tokenizer.decode([token])) for token in first.encoded.input_ids],
            "is_response": [turn < 0 for turn in first.encoded.turn_ids],
            "is_needle": [bool(mark) for mark in first.needle_mask],
            "received": {
                name: found.documents[0].response.received_T.tolist()
                for name, found in measured.items()
            },
        },
        "data": {"read": marked.read, "left_out": marked.left_out},
    }


def _condition(documents: Sequence[DocumentDilution]) -> dict[str, Any]:
    context = [document.context for document in documents if document.context is not None]
    return {
        **Dilution.of([document.response for document in documents]).to_dict(),
        "context_queries": Dilution.of(context).to_dict() if context else None,
    }


def _example(example: MarkedExample, documents: dict[str, DocumentDilution]) -> dict[str, Any]:
    any_document = next(iter(documents.values()))
    return {
        "where": example.where,
        "tokens": any_document.tokens,
        "response_queries": any_document.response.queries,
        "needle_tokens": sum(example.needle_mask),
        **{name: document.response.means() for name, document in documents.items()},
    }


def _inner_losses(losses: dict[str, list[float]]) -> dict[str, Any]:
    adapted = {name: values for name, values in losses.items() if values}
    return {"inner_losses": adapted} if adapted else {}


def _intervals(examples: Sequence[dict[str, Any]], condition: str) -> dict[str, list[float]]:
    """95% intervals of the mean over examples, where every example has the figure."""
    intervals = {}
    for figure in examples[0][condition]:
        values = [example[condition][figure] for example in examples]
        if None not in values:
            estimate = bootstrap(mean, values)
            intervals[figure] = [estimate.low, estimate.high]
    return intervals


def _ratios(examples: Sequence[dict[str, Any]], suffix: str) -> dict[str, float | None]:
    """How much lower the sink and how much higher the engagement is with bidirectional context."""
    ratios: dict[str, float | None] = {}
    for figure, above, below in (
        ("sink_mass", "causal", "bidirectional"),
        ("context_engagement", "bidirectional", "causal"),
    ):
        columns = [[e[mask + suffix][figure] for e in examples] for mask in (above, below)]
        for name, statistic in (("", ratio_of_means), ("_median", median_of_ratios)):
            # A ratio to nothing is none.
            estimate = bootstrap(statistic, *columns) if min(columns[1]) > 0 else None
            ratios |= _flat(figure + name, estimate)
    return ratios


def _flat(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    if estimate is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def differences(
    examples: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The second model minus the first, on the examples that both were measured on.

    Args:
        examples: Of the results of the first model.
        others: Of the results of the second.

    Raises:
        ConfigError: There is no such example.
    """
    by_where = {other["where"]: other for other in others}
    pairs = [(e, by_where[e["where"]]) for e in examples if e["where"] in by_where]
    if not pairs:
        raise ConfigError("compare: the two models share no example that fits max_length; raise it")
    found: dict[str, Any] = {"examples": len(pairs)}
    for condition in (name for name in examples[0] if name.startswith(MASKS)):
        found[condition] = {}
        for figure in examples[0][condition]:
            columns = [[pair[i][condition][figure] for pair in pairs] for i in (1, 0)]
            if None not in columns[0] + columns[1]:
                estimate = bootstrap(mean_difference, *columns)
                found[condition][figure] = asdict(estimate)
    return found
