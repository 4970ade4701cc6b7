"""Scores of BABILong, RULER and tool use, run by run and as differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from focusft.analysis.report.comparison import SuiteComparison
from focusft.analysis.report.figures import GREY, Chart, Style, heat_map, layout, text
from focusft.analysis.report.numbers import (
    difference_interval,
    interval,
    length_name,
    percent,
    points,
    sentence_case,
)
from focusft.analysis.report.reading import Result
from focusft.statistics.paired import Difference

_TASKS = {
    "qa1": "qa1, one fact",
    "qa2": "qa2, two facts",
    "qa3": "qa3, three facts",
    "qa4": "qa4, two roles",
    "qa5": "qa5, three roles",
}
_COLOUR_OF_SIGN = {1: "#2166ac", -1: "#b35806", 0: GREY, None: GREY}


def overview(comparisons: Sequence[SuiteComparison]) -> Chart | None:
    """FocuSFT minus SFT with intervals: each benchmark, and each length of it."""
    rows: list[tuple[str, Difference]] = []
    for comparison in comparisons:
        rows.append((sentence_case(comparison.title), comparison.overall))
        if len(comparison.lengths) > 1:
            rows += [
                (f"{comparison.title} {length_name(length)}", found)
                for length, found in comparison.lengths.items()
            ]
    if not rows:
        return None
    names = [text(name) for name, _ in rows]
    found = [difference for _, difference in rows]
    figure = go.Figure(
        go.Scatter(
            x=[100 * d.mean for d in found],
            y=names,
            mode="markers",
            marker={"size": 9, "color": [_COLOUR_OF_SIGN[d.sign] for d in found]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [100 * (d.high - d.mean) if d.high is not None else 0 for d in found],
                "arrayminus": [100 * (d.mean - d.low) if d.low is not None else 0 for d in found],
                "thickness": 2,
                "width": 0,
            },
            hovertext=[_hover(name, d) for name, d in rows],
            hoverinfo="text",
        )
    )
    figure.add_vline(x=0, line_width=1, line_color=GREY)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(title_text="points")
    return Chart(
        "FocuSFT minus SFT",
        layout(figure, height=90 + 26 * len(rows), showlegend=False),
        "To the right of zero FocuSFT is better, to the left SFT. Dots are differences in points, "
        "bars their 95% intervals; where a bar crosses zero the dot is grey: it may be chance.",
        wide=True,
    )


def suite_charts(results: Sequence[Result], comparison: SuiteComparison | None) -> list[Chart]:
    """A heat map of task and length for each run, and one of the differences."""
    charts = [_scores(result) for result in results]
    if comparison:
        charts.append(_differences(comparison))
    return charts


def categories(results: Sequence[Result], style_of: Mapping[str, Style]) -> Chart | None:
    """RULER's four kinds of tasks, each at every length, run by run."""
    figure = go.Figure()
    for result in results:
        cells = [
            (f"{category} {length_name(length)}", figures)
            for category, lengths in result.content.get("categories", {}).items()
            for length, figures in lengths.items()
        ]
        if cells:
            _add_bars(figure, style_of[result.label], cells)
    if not figure.data:
        return None
    return _bars(
        "RULER by kind of task",
        figure,
        "Retrieval: find a needle. Tracing: follow a chain of variables. Aggregation: count words. "
        "Question answering: find the paragraph that answers. Bars: mean score with 95% interval.",
    )


def tool_use(results: Sequence[Result], style_of: Mapping[str, Style]) -> Chart:
    """pass@k with intervals, run by run; and without the tool, where that was asked."""
    figure = go.Figure()
    for result in results:
        modes = result.content["modes"]
        cells = [
            (name if rule == "strict" else f"{name}, lenient", estimate)
            for rule in ("strict", "lenient")
            for name, estimate in modes["tools"][rule].items()
        ]
        if "no_tools" in modes:
            cells.append(("pass@1, no tool", modes["no_tools"]["strict"]["pass@1"]))
        _add_bars(figure, style_of[result.label], cells)
    return _bars(
        "Questions with a Python tool",
        figure,
        "pass@k: chance that one of k answers is right. Lenient also counts answers in another "
        "form than the one asked for. Bars with 95% intervals over questions.",
    )


def before_and_after(demo: Result) -> Chart:
    """The demo's accuracy with intervals."""
    figure = go.Figure()
    for when, colour in (("before", GREY), ("after", "#0072b2")):
        figures = demo.content[when]
        estimate = {
            "score": figures["accuracy"],
            "low": figures["accuracy_low"],
            "high": figures["accuracy_high"],
            "n": figures["examples"],
        }
        _add_bars(figure, Style("", "FocuSFT", colour, "solid"), [(f"{when} training", estimate)])
    chart = _bars("Right answers", figure, "With the 95% interval.")
    figure.update_layout(showlegend=False)
    return chart


def _scores(result: Result) -> Chart:
    tasks: dict[str, Any] = result.content["tasks"]
    lengths = list(dict.fromkeys(length for cells in tasks.values() for length in cells))
    values = [
        [cells.get(length, {}).get("score") for length in lengths] for cells in tasks.values()
    ]
    drawn = heat_map(
        [_TASKS.get(task, task) for task in tasks],
        [length_name(length) for length in lengths],
        values,
        cells=[["" if v is None else f"{100 * v:.0f}" for v in row] for row in values],
        hover=[
            [_cell_hover(task, length, cells.get(length)) for length in lengths]
            for task, cells in tasks.items()
        ],
        most=1,
    )
    about = ", ".join(filter(None, [result.method, result.aside]))
    return Chart(f"{result.label} ({about})", drawn, "Score in percent.")


def _cell_hover(task: str, length: str, figures: dict[str, Any] | None) -> str:
    if figures is None:
        return "not run"
    return text(
        f"{task} at {length_name(length)}: {percent(figures['score'])}, 95% interval "
        f"{interval(figures['low'], figures['high'])}, {figures['n']} questions"
    )


def _differences(comparison: SuiteComparison) -> Chart:
    tasks = list(dict.fromkeys(task for task, _ in comparison.cells))
    lengths = list(dict.fromkeys(length for _, length in comparison.cells))
    found = [[comparison.cells.get((task, length)) for length in lengths] for task in tasks]
    most = max(abs(d.mean) for row in found for d in row if d) or 0.01
    drawn = heat_map(
        [_TASKS.get(task, task) for task in tasks],
        [length_name(length) for length in lengths],
        [[d.mean if d else None for d in row] for row in found],
        cells=[[_difference_cell(d) for d in row] for row in found],
        hover=[
            [
                _hover(f"{task} at {length_name(length)}", d) if d else "not run for both"
                for length, d in zip(lengths, row, strict=True)
            ]
            for task, row in zip(tasks, found, strict=True)
        ],
        most=most,
        diverging=True,
    )
    return Chart(
        "FocuSFT minus SFT",
        drawn,
        "In points: blue where FocuSFT is better, orange where SFT is. A star marks a difference "
        "whose 95% interval leaves zero out.",
    )


def _difference_cell(found: Difference | None) -> str:
    if found is None:
        return ""
    return points(found.mean, 0) + ("*" if found.sign else "")


def _hover(name: str, found: Difference) -> str:
    words = f"{name}: {points(found.mean)} points"
    if found.low is not None and found.high is not None:
        words += f", 95% interval {difference_interval(found.low, found.high)}"
    return text(words)


def _add_bars(figure: go.Figure, style: Style, cells: Sequence[tuple[str, Any]]) -> None:
    figures = [estimate for _, estimate in cells]
    figure.add_bar(
        y=[text(name) for name, _ in cells],
        x=[f["score"] for f in figures],
        orientation="h",
        name=text(style.label),
        marker={"color": style.colour},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [f["high"] - f["score"] for f in figures],
            "arrayminus": [f["score"] - f["low"] for f in figures],
            "thickness": 1.5,
            "width": 3,
        },
        hovertext=[
            text(f"{name}: {percent(f['score'])}, 95% interval {interval(f['low'], f['high'])}")
            for name, f in cells
        ],
        hoverinfo="text",
    )


def _bars(title: str, figure: go.Figure, note: str) -> Chart:
    groups = len({name for trace in figure.data for name in trace.y})
    figure.update_xaxes(range=[0, 1.04], dtick=0.25, tickformat=".0%")
    figure.update_yaxes(autorange="reversed", showgrid=False)
    height = 80 + groups * (14 + 16 * min(len(figure.data), 6))
    return Chart(title, layout(figure, height=height, showlegend=len(figure.data) > 1), note, True)
