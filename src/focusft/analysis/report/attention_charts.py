"""Where the answers look: the first token or the context, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from focusft.analysis.report.figures import SEQUENTIAL, Chart, layout, run_name
from focusft.analysis.report.reading import Result

# Conditions of a probe; those with fast weights only where they were asked for.
CONDITIONS = {
    "causal": "causal",
    "bidirectional": "bidirectional",
    "causal_fast_weights": "causal, fast weights",
    "bidirectional_fast_weights": "bidirectional, fast weights",
}
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
    for condition, name in CONDITIONS.items():
        for probe in probes:
            layers = probe.content.get(condition, {}).get("per_layer", [])
            if layers and all(layer.get(figure) is not None for layer in layers):
                # A part of the name on each line, for narrow pages.
                parts = [run_name(part) for part in (*probe.label.split(", "), name)]
                rows.append("<br>".join(parts))
                values.append([float(layer[figure]) for layer in layers])
    if not rows:
        return None
    title, note = _FIGURES[figure]
    drawn = go.Figure(
        go.Heatmap(
            x=list(range(1, max(map(len, values)) + 1)),
            y=rows,
            z=values,
            zmin=0,
            zmax=max(max(row) for row in values),
            colorscale=SEQUENTIAL,
            hovertemplate="%{y}, layer %{x}: %{z:.2%}<extra></extra>",
            colorbar={"thickness": 10, "nticks": 4, "tickformat": ".1~%", "outlinewidth": 0},
            ygap=2,
        )
    )
    drawn.update_yaxes(autorange="reversed", type="category", showgrid=False, ticks="")
    drawn.update_xaxes(title_text="layer", showgrid=False, zeroline=False)
    lines = 1 + max(row.count("<br>") for row in rows)
    height = 80 + len(rows) * (8 + 15 * lines)
    return Chart(title, layout(drawn, height=height), note, wide=True)
