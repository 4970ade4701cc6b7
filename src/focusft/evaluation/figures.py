"""Pictures of a run: task by length, and RULER by category."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from focusft.evaluation.items import length_name

FIGURES_FILE = "figures.html"

# From no score to full score; single hue, so that it reads without colour vision too.
_EMPTY, _FULL = (233, 240, 248), (8, 69, 148)
_CELL_WIDTH, _CELL_HEIGHT = 64, 26
_TOP, _LABEL_WIDTH_PER_LETTER, _MARGIN = 44, 7, 8
_CAPTION_WIDTH = 190
# Readable on white and on black.
_GREY = "#8b949e"


def write_figures(results: dict[str, Any], folder: Path) -> Path:
    """Write one HTML page that needs nothing else: the heat map, and for ruler the categories.

    Args:
        results: What `results.json` holds.
        folder: Folder of the run.

    Returns:
        The page.
    """
    figures = [heat_map(results)]
    if "categories" in results:
        figures.append(category_bars(results))
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=number == 0)
        for number, figure in enumerate(figures)
    ]
    page = folder / FIGURES_FILE
    page.write_text(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(_title(results))}</title></head>\n<body>{''.join(parts)}</body></html>\n",
        encoding="utf-8",
    )
    return page


def heat_map(results: dict[str, Any]) -> Any:
    """Score of each task (downwards) and length as a plotly figure."""
    rows = _rows(results)
    lengths = list(results["mean"])
    figure = go.Figure(
        go.Heatmap(
            x=[length_name(int(length)) for length in lengths],
            y=[name for name, _ in rows],
            z=[[100 * row[length]["score"] for length in lengths] for _, row in rows],
            text=[[f"{100 * row[length]['score']:.1f}" for length in lengths] for _, row in rows],
            customdata=[
                [_details(row[length]).replace("\n", "<br>") for length in lengths]
                for _, row in rows
            ],
            texttemplate="%{text}",
            hovertemplate="%{y}, %{x}<br>%{customdata}<extra></extra>",
            colorscale=[[0, f"rgb{_EMPTY}"], [1, f"rgb{_FULL}"]],
            zmin=0,
            zmax=100,
            xgap=2,
            ygap=2,
            colorbar={"title": "%"},
        )
    )
    figure.update_layout(
        title=_title(results),
        xaxis={"title": "length in tokens", "type": "category", "side": "top"},
        yaxis={"autorange": "reversed", "type": "category"},
        height=180 + 34 * len(rows),
    )
    return figure


def category_bars(results: dict[str, Any]) -> Any:
    """Mean score of each RULER category, a bar for each length, as a plotly figure."""
    categories = results["categories"]
    figure = go.Figure()
    for length in results["mean"]:
        cells = [row[length] for row in categories.values()]
        figure.add_bar(
            name=length_name(int(length)),
            x=list(categories),
            y=[100 * cell["score"] for cell in cells],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [100 * (cell["high"] - cell["score"]) for cell in cells],
                "arrayminus": [100 * (cell["score"] - cell["low"]) for cell in cells],
            },
            customdata=[_details(cell).replace("\n", "<br>") for cell in cells],
            hovertemplate="%{x}, %{fullData.name}<br>%{customdata}<extra></extra>",
        )
    figure.update_layout(
        title="by category, with 95% intervals",
        barmode="group",
        yaxis={"title": "%", "range": [0, 100]},
        legend={"title": "length"},
    )
    return figure


def heat_map_svg(results: dict[str, Any]) -> str:
    """The heat map as a small SVG picture, for a page in Markdown, light or dark."""
    rows = _rows(results)
    lengths = list(results["mean"])
    left = _MARGIN + _LABEL_WIDTH_PER_LETTER * max(len(name) for name, _ in rows) + _MARGIN
    width = left + max(_CELL_WIDTH * len(lengths), _CAPTION_WIDTH) + _MARGIN
    height = _TOP + _CELL_HEIGHT * len(rows) + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" role="img" '
        f'aria-label="{escape(_title(results))}: score by task and length">',
        f'<text x="{left}" y="16" fill="{_GREY}">score in %, by length in tokens</text>',
    ]
    for column, length in enumerate(lengths):
        x = left + _CELL_WIDTH * (column + 0.5)
        parts.append(
            f'<text x="{x:g}" y="{_TOP - 8}" text-anchor="middle" fill="{_GREY}">'
            f"{length_name(int(length))}</text>"
        )
    for line, (name, row) in enumerate(rows):
        y = _TOP + _CELL_HEIGHT * line
        baseline = y + _CELL_HEIGHT / 2 + 4
        parts.append(
            f'<text x="{left - _MARGIN}" y="{baseline:g}" text-anchor="end" fill="{_GREY}">'
            f"{escape(name)}</text>"
        )
        for column, length in enumerate(lengths):
            score = row[length]["score"]
            x = left + _CELL_WIDTH * column
            parts.append(
                f'<rect x="{x}" y="{y}" width="{_CELL_WIDTH - 2}" height="{_CELL_HEIGHT - 2}" '
                f'fill="{_colour(score)}"><title>{escape(name)}, {length_name(int(length))}: '
                f"{escape(_details(row[length]))}</title></rect>"
                f'<text x="{x + _CELL_WIDTH / 2 - 1:g}" y="{baseline - 1:g}" '
                f'text-anchor="middle" fill="{"#fff" if score > 0.45 else "#111"}">'
                f"{100 * score:.1f}</text>"
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _rows(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Tasks, and their mean where there are several."""
    rows = list(results["tasks"].items())
    return [*rows, ("mean", results["mean"])] if len(rows) > 1 else rows


def _title(results: dict[str, Any]) -> str:
    return f"{results['suite']}, {results['config']['model']}"


def _details(figures: dict[str, Any]) -> str:
    score, low, high = (f"{100 * figures[name]:.1f}" for name in ("score", "low", "high"))
    lines = [f"{score} [{low}, {high}]", f"n = {figures['n']}"]
    if "score_lenient" in figures:
        lines.append(f"lenient {100 * figures['score_lenient']:.1f}")
    if "truncated" in figures:
        lines.append(f"truncated {figures['truncated']:.0%}, no answer {figures['no_answer']:.0%}")
    return "\n".join(lines)


def _colour(share: float) -> str:
    red, green, blue = (
        round(empty + share * (full - empty)) for empty, full in zip(_EMPTY, _FULL, strict=True)
    )
    return f"#{red:02x}{green:02x}{blue:02x}"
