"""Intervals of the scores of one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean

import numpy as np

_DRAWS = 10_000


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


def bootstrap_interval(
    groups: Sequence[Sequence[float]], *, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of the mean of the groups' means.

    The values of each group are drawn anew from that group; every group weighs the same. It is
    zero wide where the values of each group are all alike.

    Args:
        groups: Values, such as the scores of each task; none of them empty.
        seed: Seed of the draws.
        confidence: Coverage.
    """
    rng = np.random.default_rng(seed)
    means = np.zeros(_DRAWS)
    for values in groups:
        # How often each distinct value is drawn: the same as drawing item by item, but faster.
        distinct, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
        drawn = rng.multinomial(len(values), counts / len(values), size=_DRAWS)
        means += drawn @ distinct / len(values)
    means /= len(groups)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def score_interval(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Interval of the mean of the groups' mean scores, each score from 0 to 1.

    Wilson's for a single group of zeros and ones, and where all scores are 0 or all are 1, so that
    a bootstrap would have nothing to vary; the bootstrap's otherwise.
    """
    scores = [score for group in groups for score in group]
    distinct = set(scores)
    if distinct <= {0, 1} and (len(groups) == 1 or len(distinct) == 1):
        return wilson_interval(round(sum(scores)), len(scores))
    return bootstrap_interval(groups)


def mean_of_means(groups: Sequence[Sequence[float]]) -> float:
    """The mean of the groups' means: every group weighs the same."""
    return fmean(fmean(values) for values in groups)
