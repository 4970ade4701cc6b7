"""Time and memory of a training step beside other trainers."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from focusft.analysis.report.figures import GREY, Chart, layout, text
from focusft.analysis.report.reading import Result, Runs

_TRAINERS = {
    "sft": "plain SFT, here",
    "k0": "FocuSFT without inner steps",
    "ours": "FocuSFT",
    "ours_packed": "FocuSFT, packed",
    "ours_kept": "FocuSFT, not checkpointed",
    "ours_checkpointed": "FocuSFT, checkpointed",
    "published": "published code's procedure",
    "published_checkpointed": "published, checkpointed",
    "trl_sft": "plain SFT, TRL",
    "trl_sft_checkpointed": "plain SFT, TRL, checkpointed",
}


def speed_charts(runs: Runs) -> list[Chart]:
    """Charts of the benchmarks that were given."""
    charts: list[Chart] = []
    for result in runs.of("step"):
        settings = result.content["settings"]
        what = f"{settings['length']} tokens, {settings['model']}"
        charts += [
            _bars(f"Seconds a step: {what}", result.content["seconds"], "Less is better.", "s"),
            _bars(f"Peak memory: {what}", result.content["peak_gb"], "Less is better.", "GB"),
        ]
    charts += [
        _bars(
            f"Tokens per second, mixed lengths: {result.content['settings']['model']}",
            result.content["tokens_per_second"],
            "More is better; padding does not count.",
            "tokens/s",
        )
        for result in runs.of("throughput")
    ]
    return charts + [chart for result in runs.of("length") for chart in _by_length(result)]


def _bars(title: str, values: Mapping[str, float], note: str, unit: str) -> Chart:
    names = [name for name in _TRAINERS if name in values]
    names += [name for name in values if name not in _TRAINERS]
    figure = go.Figure(
        go.Bar(
            x=[values[name] for name in names],
            y=[text(_TRAINERS.get(name, name)) for name in names],
            orientation="h",
            marker={"color": ["#0072b2" if n.startswith("ours") else GREY for n in names]},
            text=[f"{values[name]:.3g}" for name in names],
            textposition="auto",
            hoverinfo="skip",
        )
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(title_text=unit, rangemode="tozero")
    return Chart(title, layout(figure, height=80 + 30 * len(names)), note)


def _by_length(result: Result) -> list[Chart]:
    figure = go.Figure()
    for name, colour, dash in (("ours", "#0072b2", "solid"), ("published", "#d55e00", "dash")):
        steps = {
            int(length): step
            for length, step in result.content["steps"].get(name, {}).items()
            if "failed" not in step
        }
        figure.add_scatter(
            x=list(steps),
            y=[step["above_model_gb"] for step in steps.values()],
            name=_TRAINERS[name],
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 2},
            hovertemplate="%{x} tokens: %{y:.2f} GB",
        )
    figure.update_xaxes(
        title_text="tokens",
        type="log",
        tickvals=sorted({x for t in figure.data for x in t.x}),
        tickformat="d",
    )
    # Of its own, plotly writes 0.5 as a 5 below the 1.
    ticks = [digit * 10.0**power for power in range(-2, 4) for digit in (1, 2, 5)]
    figure.update_yaxes(title_text="GB", type="log", tickvals=ticks, tickformat="~g")
    return [
        Chart(
            "Memory of a step by length",
            layout(figure, height=300),
            "Above what weights and optimizer hold between steps. A line that ends ran out of "
            "memory or was not tried.",
        )
    ]
