"""Tables of what `focusft probe` measured."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

LABELS = {
    "sink_mass": "sink mass, first token",
    "sink_mass_first_four": "... first four tokens",
    "sink_mass_favoured": "... token that most queries favour",
    "favoured_share": "share of queries that favour it",
    "favoured_is_first": "heads where it is the first token",
    "context_mass": "context mass, all but the first token",
    "context_engagement": "context engagement, content only",
    "needle_mass": "needle mass, marked facts",
    "entropy": "entropy, nats",
}
CONDITIONS = ("causal", "bidirectional", "causal_fast_weights", "bidirectional_fast_weights")


def print_probe(results: dict[str, Any], console: Console) -> None:
    """Print the figures of one model: response queries, mean and 95% interval."""
    conditions = [name for name in CONDITIONS if name in results]
    examples = results[conditions[0]]["documents"]
    table = Table(title=f"{results['model']}: response queries of {examples} examples, mean [95%]")
    table.add_column("")
    for name in conditions:
        table.add_column(name.replace("_", " "), justify="right")
    for figure, label in LABELS.items():
        cells = [_cell(results[name], figure) for name in conditions]
        if any(cells):
            table.add_row(label, *cells)
    console.print(table)
    for key, suffix in (("ratios", ""), ("ratios_fast_weights", ", with fast weights")):
        if key in results:
            for figure, text in (
                ("sink_mass", "sink mass, causal / bidirectional"),
                ("context_engagement", "context engagement, bidirectional / causal"),
            ):
                console.print(
                    f"{text}{suffix}: {_ratio(results[key], figure)}, "
                    f"median of the examples {_ratio(results[key], figure + '_median')}",
                    soft_wrap=True,
                    markup=False,
                )


def print_differences(results: dict[str, Any], console: Console) -> None:
    """Print the second model minus the first."""
    differences = results["compare"]["differences"]
    conditions = [name for name in CONDITIONS if name in differences]
    table = Table(
        title=f"{results['compare']['model']} minus {results['model']}, "
        f"{differences['examples']} examples, mean [95%]"
    )
    table.add_column("")
    for name in conditions:
        table.add_column(name.replace("_", " "), justify="right")
    for figure, label in LABELS.items():
        found = [differences[name].get(figure) for name in conditions]
        if any(found):
            table.add_row(
                label,
                *(_interval(d["value"], d["low"], d["high"], "+") if d else "" for d in found),
            )
    console.print(table)


def _cell(condition: dict[str, Any], figure: str) -> str:
    value = condition[figure]
    if value is None:
        return ""
    if figure not in condition["intervals"]:
        return _short(value)
    return _interval(value, *condition["intervals"][figure])


def _ratio(ratios: dict[str, float | None], name: str) -> str:
    value, low, high = (ratios[name + end] for end in ("", "_low", "_high"))
    if value is None or low is None or high is None:
        return "not defined (nothing to divide by)"
    return _interval(value, low, high)


def _interval(value: float, low: float, high: float, sign: str = "") -> str:
    return f"{_short(value, sign)} [{_short(low, sign)}, {_short(high, sign)}]"


def _short(value: float, sign: str = "") -> str:
    if abs(value) >= 100:
        return f"{value:{sign}.0f}"
    return f"{value:{sign}.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:{sign}.1e}"
