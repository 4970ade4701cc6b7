"""Where the answers look: the first token or the context, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from focusft.analysis.report.figures import Chart, heat_map
from focusft.analysis.report.numbers import percent
from focusft.analysis.report.reading import Result

_MASKS = {"causal": "causal (SFT)", "bidirectional": "bidirectional (FocuSFT)"}
_FIGURES = {
    "sink_mass": (
        "Sink mass by layer",
        "Share of the answers' attention on the very first token, which says nothing. Dark is "
        "good: little is wasted.",
    ),
    "context_engagement": (
        "Context engagement by layer",
        "Share of the answers' attention on the rest of the context. Bright is good: the content "
        "is read.",
    ),
    "needle_mass": (
        "Attention on the facts by layer",
        "Share of the answers' attention on the tokens that hold the asked facts. Bright is good.",
    ),
}


def attention_charts(probes: Sequence[Result]) -> list[Chart]:
    """A heat map of each figure: a row for each model and mask, a column for each layer."""
    return [chart for figure in _FIGURES if (chart := _by_layer(probes, figure))]


def _by_layer(probes: Sequence[Result], figure: str) -> Chart | None:
    rows, values = [], []
    for mask, title in _MASKS.items():
        for probe in probes:
            layers = probe.content[mask]["per_layer"]
            if all(layer.get(figure) is not None for layer in layers):
                rows.append(title if len(probes) == 1 else f"{probe.label}, {mask}")
                values.append([float(layer[figure]) for layer in layers])
    if not rows:
        return None
    title, note = _FIGURES[figure]
    most = max(max(row) for row in values)
    columns = [str(number) for number in range(1, max(map(len, values)) + 1)]
    hover = [
        [f"{row}, layer {number}: {percent(value, 2)}" for number, value in enumerate(line, 1)]
        for row, line in zip(rows, values, strict=True)
    ]
    drawn = heat_map(rows, columns, values, hover=hover, most=most, column_title="layer")
    return Chart(title, drawn, note, wide=True)
