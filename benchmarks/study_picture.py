"""A picture of the differences of a study: a dot with its interval for every arm and length."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

_ROW, _LEFT, _PLOT, _MARGIN = 18, 250, 320, 30
# Readable on white and on black.
_GREY, _LINE, _DOT = "#8b949e", "#8b949e", "#2f81f7"


@dataclass(frozen=True)
class Bar:
    """One line: a difference in points and its interval."""

    label: str
    value: float
    low: float
    high: float


def differences_svg(title: str, bars: list[Bar]) -> str:
    """Draw the bars below each other, with a line at zero."""
    reach = max(5.0, *(max(abs(bar.low), abs(bar.high)) for bar in bars))
    scale = _PLOT / (2 * reach)
    middle = _LEFT + _PLOT / 2
    height = _ROW * len(bars) + 2 * _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _PLOT + _MARGIN}" '
        f'height="{height}" font-family="sans-serif" font-size="11" fill="{_GREY}">',
        f'<text x="4" y="14" font-weight="bold">{escape(title)}</text>',
        f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{_MARGIN - 6}" y2="{height - _MARGIN}" '
        f'stroke="{_LINE}" stroke-dasharray="3 3"/>',
    ]
    for number, bar in enumerate(bars):
        y = _MARGIN + _ROW * number + _ROW / 2
        low, dot, high = (middle + scale * x for x in (bar.low, bar.value, bar.high))
        parts += [
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(bar.label)}</text>',
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_DOT}"/>',
            f'<circle cx="{dot:.1f}" cy="{y:.1f}" r="3.5" fill="{_DOT}"/>',
        ]
    for value in (-reach, 0.0, reach):
        parts.append(
            f'<text x="{middle + scale * value:.1f}" y="{height - 10}" text-anchor="middle">'
            f"{value:+.0f}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])
