"""Intervals of statistics of columns by the bootstrap over examples (Efron 1979), for ratios.

What belongs to one example is drawn together, so intervals of ratios and differences are paired.

Shapes: N examples, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 10_000
# Resamples at a time, so that many examples need little memory.
_BLOCK = 1000
_SEED = 0

# Maps columns of shape [.., N] to values of shape [..].
Statistic = Callable[..., Any]


@dataclass(frozen=True)
class Estimate:
    """A statistic of all examples, and the interval that covers 95% of its resamples."""

    value: float
    low: float
    high: float


def mean(values: np.ndarray) -> Any:
    """Mean over the examples."""
    return values.mean(axis=-1)


def mean_difference(values: np.ndarray, others: np.ndarray) -> Any:
    """Mean of the differences."""
    return (values - others).mean(axis=-1)


def ratio_of_means(above: np.ndarray, below: np.ndarray) -> Any:
    """Ratio of the means: large values weigh more."""
    return above.mean(axis=-1) / below.mean(axis=-1)


def median_of_ratios(above: np.ndarray, below: np.ndarray) -> Any:
    """Median of the examples' own ratios: each example weighs the same."""
    return np.median(above / below, axis=-1)


def bootstrap(statistic: Statistic, *columns: Sequence[float]) -> Estimate:
    """Estimate a statistic with its 95% interval, the same at each call.

    Args:
        statistic: One of the functions above.
        columns: Values of the same N examples, at least one.
    """
    values_N = [np.asarray(column, dtype=np.float64) for column in columns]
    examples = len(values_N[0])
    rng = np.random.default_rng(_SEED)
    resampled = []
    for _ in range(RESAMPLES // _BLOCK):
        drawn_BN = rng.integers(examples, size=(_BLOCK, examples))
        resampled.append(statistic(*(column[drawn_BN] for column in values_N)))
    low, high = np.percentile(np.concatenate(resampled), [2.5, 97.5])
    return Estimate(float(statistic(*values_N)), float(low), float(high))
