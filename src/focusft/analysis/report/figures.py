"""What all charts share: colours that colour-blind readers can tell apart, themes, heat maps."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from focusft.analysis.report.reading import Method, Result

# Okabe and Ito's palette: FocuSFT in blues and greens, plain SFT in oranges and pinks.
_COLOURS: dict[Method, tuple[str, ...]] = {
    "FocuSFT": ("#0072b2", "#009e73", "#56b4e9"),
    "SFT": ("#d55e00", "#e69f00", "#cc79a7"),
    "bidirectional SFT": ("#9467bd", "#c5b0d5"),
    "untrained": ("#8a8f98", "#b4b8bf"),
    "unknown": ("#5f6b7a", "#a1a9b5"),
}
# So that lines differ in more than colour.
_DASHES: dict[Method, str] = {
    "FocuSFT": "solid",
    "SFT": "dash",
    "bidirectional SFT": "dashdot",
    "untrained": "dot",
    "unknown": "dot",
}
SEQUENTIAL = "Cividis"
DIVERGING = [[0, "#b35806"], [0.25, "#f1a340"], [0.5, "#f7f7f7"], [0.75, "#67a9cf"], [1, "#2166ac"]]
_ROW_HEIGHT = 30


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
    cells: Sequence[Sequence[str]] | None = None,
    hover: Sequence[Sequence[str]],
    most: float,
    diverging: bool = False,
    column_title: str = "",
) -> go.Figure:
    """A heat map with its first row on top.

    Args:
        rows: Names of the rows.
        columns: Names of the columns.
        values: Colour of each cell, from 0 (or -most) to most; None leaves it empty.
        cells: Text in each cell.
        hover: Text of each cell under the pointer.
        most: The end of the colour scale.
        diverging: Whether values below zero have a colour of their own.
        column_title: What the columns are.
    """
    figure = go.Figure(
        go.Heatmap(
            x=[text(column) for column in columns],
            y=[text(row) for row in rows],
            z=values,
            text=cells,
            texttemplate="%{text}" if cells else None,
            hovertext=hover,
            hoverinfo="text",
            zmin=-most if diverging else 0,
            zmax=most,
            colorscale=DIVERGING if diverging else SEQUENTIAL,
            showscale=cells is None,
            colorbar={"thickness": 10, "tickformat": ".2~f", "outlinewidth": 0},
            xgap=1,
            ygap=1,
        )
    )
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False, ticks="")
    figure.update_xaxes(
        title_text=column_title, type="category", showgrid=False, ticks="", tickangle=0
    )
    return layout(figure, height=70 + _ROW_HEIGHT * max(len(rows), 2))
