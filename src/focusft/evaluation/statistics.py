"""Intervals for the figures that are reported."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(right: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a proportion (Wilson 1927), sound near 0 and 1 too.

    Args:
        right: Number of successes.
        total: Number of trials, at least 1.
        confidence: Coverage.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = (
        z
        / (1 + z * z / total)
        * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    )
    return max(0.0, centre - half), min(1.0, centre + half)
