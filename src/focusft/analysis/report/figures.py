"""What all charts share: colours that colour-blind readers can tell apart, themes, heat maps."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.colors import get_colorscale, sample_colorscale

from focusft.analysis.report.reading import Method, Result

GREY = "#6b7280"
# Okabe and Ito's palette: FocuSFT in blues and greens, plain SFT in oranges and pinks.
_COLOURS: dict[Method, tuple[str, ...]] = {
    "FocuSFT": ("#0072b2", "#009e73", "#56b4e9"),
    "SFT": ("#d55e00", "#e69f00", "#cc79a7"),
    "bidirectional SFT": ("#9467bd", "#c5b0d5"),
    "untrained": (GREY, "#a1a9b5"),
    "unknown": ("#8c6d31", "#bd9e39"),
}
# So that lines differ in more than colour.
_DASHES: dict[Method, str] = {
    "FocuSFT": "solid",
    "SFT": "dash",
    "bidirectional SFT": "dashdot",
    "untrained": "dot",
    "unknown": "dot",
}
SEQUENTIAL = get_colorscale("Viridis")
DIVERGING = [
    [0.0, "#b35806"],
    [0.25, "#f1a340"],
    [0.5, "#f7f7f7"],
    [0.75, "#67a9cf"],
    [1.0, "#2166ac"],
]
_ROW_HEIGHT = 30
_LONGEST_NAME = 24


@dataclass(frozen=True)
class Chart:
    """A chart of the page.

    Attributes:
        title: What it shows.
        figure: Drawn in the browser.
        note: How to read it.
        wide: Takes the full width of the page.
    """

    title: str
    figure: go.Figure
    note: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Style:
    """How a run is drawn in every chart."""

    label: str
    method: Method
    colour: str
    dash: str


def styles(results: Iterable[Result]) -> dict[str, Style]:
    """A style for each label; runs of one method get different shades."""
    found: dict[str, Style] = {}
    for result in results:
        if result.label not in found:
            colours = _COLOURS[result.method]
            used = sum(style.method == result.method for style in found.values())
            found[result.label] = Style(
                result.label, result.method, colours[used % len(colours)], _DASHES[result.method]
            )
    return found


def text(value: object) -> str:
    """A name from a file, for a chart: plotly reads its texts as HTML."""
    return html.escape(str(value), quote=False)


def run_name(label: str) -> str:
    """A run's name for an axis: long ones lose their middle; the pointer shows them whole."""
    if len(label) > _LONGEST_NAME:
        half = _LONGEST_NAME // 2
        label = f"{label[:half]}\N{HORIZONTAL ELLIPSIS}{label[-half:]}"
    return text(label)


def layout(figure: go.Figure, *, height: int, **options: Any) -> go.Figure:
    """The look that all charts share; colours that depend on the theme come from page.js."""
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 12, "t": 12, "b": 8},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"namelength": -1},
        template="none",
        **options,
    )
    figure.update_xaxes(automargin=True, title_standoff=8)
    figure.update_yaxes(automargin=True, title_standoff=8)
    return figure


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    cells: Sequence[Sequence[str]],
    hover: Sequence[Sequence[str]],
    most: float,
    diverging: bool = False,
) -> go.Figure:
    """A table of coloured cells with its first row on top.

    Args:
        rows: Names of the rows.
        columns: Names of the columns.
        values: Colour of each cell, from 0 (or -most) to most; None leaves it empty.
        cells: Text in each cell.
        hover: Text of each cell under the pointer.
        most: The end of the colour scale.
        diverging: Whether values below zero have a colour of their own.
    """
    least = -most if diverging else 0.0
    scale = DIVERGING if diverging else SEQUENTIAL
    figure = go.Figure(
        go.Heatmap(
            x=[text(column) for column in columns],
            y=[text(row) for row in rows],
            z=values,
            hovertext=hover,
            hoverinfo="text",
            zmin=least,
            zmax=most,
            colorscale=scale,
            showscale=False,
            xgap=1,
            ygap=1,
        )
    )
    # All at once: plotly checks every annotation again for each one that is added.
    figure.update_layout(
        annotations=[
            {
                "x": x,
                "y": y,
                "text": cells[y][x],
                "showarrow": False,
                "font": {"color": _ink_on(scale, (value - least) / (most - least)), "size": 12},
            }
            for y, line in enumerate(values)
            for x, value in enumerate(line)
            if value is not None
        ]
    )
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False, ticks="")
    figure.update_xaxes(type="category", showgrid=False, ticks="", tickangle=0)
    return layout(figure, height=50 + _ROW_HEIGHT * len(rows))


def _ink_on(scale: Sequence[Sequence[Any]], position: float) -> str:
    """Black or white, whichever stands out more from a colour (WCAG 2 contrast)."""
    (rgb,) = sample_colorscale(scale, [min(max(position, 0.0), 1.0)], colortype="tuple")
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#ffffff"
