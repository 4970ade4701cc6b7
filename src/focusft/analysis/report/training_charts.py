"""How the training went: losses, the inner loop, speed, and attention watched on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from focusft.analysis.report.figures import Chart, Style, layout, text
from focusft.analysis.report.reading import Result

LogLine = Mapping[str, Any]
_PROBE = "probe/"
_HEIGHT = 280
_WATCHED = {
    "sink_mass": ("sink mass", "On held-out conversations, without fast weights."),
    "context_engagement": (
        "context engagement",
        "On held-out conversations, without fast weights.",
    ),
    "needle_mass": ("attention on the asked facts", "On held-out conversations."),
    "entropy": ("entropy", "How widely attention is spread: higher is wider."),
    "batch_sink_mass": ("sink mass in the batch", "With the mask and fast weights of the step."),
    "batch_context_mass": ("context mass in the batch", "All of the context but the first token."),
    "batch_entropy": ("entropy in the batch", "With the mask and fast weights of the step."),
    "seconds": ("seconds of the probe", "What watching the held-out conversations cost."),
}
# Earlier inner steps lighter, the last one dark.
_STEP_COLOURS = ("#9ecae1", "#4292c6", "#08519c", "#6a51a3", "#3f007d")


def training_charts(results: Sequence[Result], style_of: Mapping[str, Style]) -> list[Chart]:
    """Charts of the logs of trainings and demos; only those with data."""
    plain = [result for result in results if _learns_from_responses(result)]
    left_out = len(results) - len(plain)
    charts = [
        _lines(
            "Loss in training",
            "How badly the model, without fast weights, predicts the answers of the batch: lower "
            "is better. FocuSFT's is taken under its own mask, SFT's under the causal one."
            + (f" {left_out} runs with another inner objective do not log it." if left_out else ""),
            plain,
            style_of,
            lambda line: line.get("inner_loss_0", line["loss"]) if "loss" in line else None,
        ),
        _lines(
            "Loss on validation data",
            "The model as it will be used: without fast weights, with ordinary causal attention. "
            "Lower is better.",
            results,
            style_of,
            lambda line: line.get("eval_loss"),
        ),
        *(_inner_loop(result) for result in results),
        _lines(
            "Inner steps that raised the loss",
            "Share of inner steps that made things worse. Zero is healthy; otherwise lower "
            "inner_lr or set inner_step=backtracking.",
            results,
            style_of,
            lambda line: line.get("inner_steps_raised"),
            tick_format=".1~%",
        ),
        _lines(
            "Speed",
            "Tokens per second; padding does not count.",
            results,
            style_of,
            lambda line: line.get("tokens_per_second"),
        ),
    ]
    return [chart for chart in charts if chart]


def _learns_from_responses(result: Result) -> bool:
    """Whether the first inner loss is the loss of the answers."""
    config = result.content.get("config", {})
    return bool(config.get("inner_objective", "response") == "response")


def watched_charts(results: Sequence[Result], style_of: Mapping[str, Style]) -> list[Chart]:
    """Attention while training: a chart of each figure, a line for each run and mask."""
    lines = [line for result in results for line in result.content["log"]]
    keys = sorted({key for line in lines for key in line if key.startswith(_PROBE)})
    charts = []
    found = dict.fromkeys(_figure_and_mask(key)[0] for key in keys)
    for figure in [*(name for name in _WATCHED if name in found), *(found - _WATCHED.keys())]:
        drawn = go.Figure()
        for key in (key for key in keys if _figure_and_mask(key)[0] == figure):
            mask = _figure_and_mask(key)[1]
            for result in results:
                style = style_of[result.label]
                _add_line(
                    drawn,
                    result,
                    ", ".join(filter(None, [style.label, mask])),
                    style.colour,
                    "dot" if mask == "causal" else style.dash,
                    lambda line, key=key: line.get(key),  # type: ignore[misc]
                )
        drawn.update_yaxes(rangemode="tozero")
        title, note = _WATCHED.get(figure, (figure.replace("_", " "), ""))
        charts.append(
            Chart(
                f"While training: {title}",
                _by_step(drawn, is_legend_shown=True, height=_HEIGHT + 60),
                note,
            )
        )
    return charts


def _figure_and_mask(key: str) -> tuple[str, str]:
    """probe/sink_mass_causal -> sink_mass, causal."""
    name = key.removeprefix(_PROBE)
    for mask in ("bidirectional", "causal"):
        if name.endswith(f"_{mask}"):
            return name.removesuffix(f"_{mask}"), mask
    return name, ""


def _lines(
    title: str,
    note: str,
    results: Sequence[Result],
    style_of: Mapping[str, Style],
    value: Callable[[LogLine], float | None],
    tick_format: str | None = None,
) -> Chart | None:
    figure = go.Figure()
    for result in results:
        style = style_of[result.label]
        _add_line(figure, result, style.label, style.colour, style.dash, value)
    if not figure.data:
        return None
    figure.update_yaxes(rangemode="tozero", tickformat=tick_format)
    return Chart(title, _by_step(figure, is_legend_shown=len(results) > 1), note)


def _inner_loop(result: Result) -> Chart | None:
    steps = sorted(
        {
            int(key.removeprefix("inner_loss_"))
            for line in result.content["log"]
            for key in line
            if key.startswith("inner_loss_")
        }
    )
    if len(steps) < 2:
        return None
    figure = go.Figure()
    for step in steps:
        _add_line(
            figure,
            result,
            "before the inner loop" if step == 0 else f"after step {step}",
            _STEP_COLOURS[min(step, len(_STEP_COLOURS) - 1)],
            "dot" if step == 0 else "solid",
            lambda line, key=f"inner_loss_{step}": line.get(key),  # type: ignore[misc]
        )
    figure.update_yaxes(rangemode="tozero")
    return Chart(
        f"Inner loop: {result.label}",
        _by_step(figure, is_legend_shown=True),
        "In each training step FocuSFT first adapts throw-away fast weights to the example. The "
        "further the later lines lie below the first, the more they help; a later line above an "
        "earlier one means that inner_lr is too large.",
    )


def _add_line(
    figure: go.Figure,
    result: Result,
    name: str,
    colour: str,
    dash: str,
    value: Callable[[LogLine], float | None],
) -> None:
    log = result.content["log"]
    points = [(line["step"], found) for line in log if (found := value(line)) is not None]
    if points:
        figure.add_scatter(
            x=[step for step, _ in points],
            y=[found for _, found in points],
            name=text(name),
            mode="lines" if len(points) > 30 else "lines+markers",
            line={"color": colour, "dash": dash, "width": 2},
            marker={"size": 5},
            hovertemplate="step %{x}: %{y:.4g}",
        )


def _by_step(figure: go.Figure, *, is_legend_shown: bool, height: int = _HEIGHT) -> go.Figure:
    figure.update_xaxes(title_text="training step", rangemode="tozero")
    return layout(figure, height=height, showlegend=is_legend_shown, hovermode="x unified")
