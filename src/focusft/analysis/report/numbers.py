"""Figures as a reader expects to see them."""

from __future__ import annotations

import math
from typing import Any

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"


def percent(share: float, digits: int = 1) -> str:
    """0.473 -> 47.3%."""
    return f"{100 * share:.{digits}f}%".replace("-", MINUS)


def points(difference: float, digits: int = 1) -> str:
    """0.062 -> +6.2, a difference of percentages."""
    return f"{100 * difference:+.{digits}f}".replace("-", MINUS)


def over(above: float, below: float) -> float:
    """A ratio; to nothing it is infinite."""
    return above / below if below else math.inf


def times(ratio: float) -> str:
    """54.03 -> 54 times, 1.417 -> 1.42 times."""
    if math.isinf(ratio):
        return f"\N{INFINITY}{TIMES}"
    return (f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2f}") + TIMES


def interval(low: float, high: float) -> str:
    """A score's 95% interval in percent."""
    return f"{percent(low, 0)} to {percent(high, 0)}"


def difference_interval(low: float, high: float) -> str:
    """A difference's 95% interval in points."""
    return f"{points(low)} to {points(high)}"


def plain(value: Any) -> str:
    """An option's or a count's value."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", MINUS, 1) if value < 0 else f"{value:.4g}"
    return str(value)


def sentence_case(name: str) -> str:
    """A name with a capital at its start."""
    return name[:1].upper() + name[1:]


def length_name(length: str) -> str:
    """4096 -> 4K; other texts as they are."""
    if not length.isdigit():
        return length
    tokens = int(length)
    if tokens >= 1024 and tokens % 1024 == 0:
        return f"{tokens // 1024}K"
    if tokens >= 1000 and tokens % 1000 == 0:
        return f"{tokens // 1000}k"
    return length
