"""pass@k: the probability that one of k answers is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from focusft.errors import ConfigError
from focusft.statistics.scores import wilson_interval


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k answers is right (Chen et al. 2021, arXiv 2107.03374).

    The unbiased estimate 1 - C(n - c, k) / C(n, k).

    Args:
        n: Answers that were sampled.
        c: Right ones among them.
        k: Answers that one may give, at most `n`.

    Raises:
        ValueError: The numbers do not fit together.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


@dataclass(frozen=True)
class Estimate:
    """A mean over questions with its confidence interval, and the number of questions."""

    score: float
    low: float
    high: float
    n: int


def pass_at_k_estimate(
    counts: Sequence[tuple[int, int]],
    k: int,
    *,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Estimate:
    """pass@k over questions, with an interval that says how other questions would change it.

    The interval is the percentile bootstrap over questions. Where all questions have the same
    value, a bootstrap has nothing to vary and would claim certainty: there it is Wilson's interval
    of that many questions.

    Args:
        counts: For each question the answers sampled and the right ones among them.
        k: See `pass_at_k`.
        confidence: Coverage.
        resamples: Bootstrap draws.
        seed: Their seed.

    Raises:
        ConfigError: There is no question, or one with fewer than k answers.
    """
    if not counts:
        raise ConfigError("pass@k: there are no answered questions to average over")
    fewest = min(n for n, _ in counts)
    if not 1 <= k <= fewest:
        raise ConfigError(f"pass@{k}: a question has {fewest} answers; set k from 1 to {fewest}")
    values = np.array([pass_at_k(n, c, k) for n, c in counts])
    count, mean = len(values), float(values.mean())
    if values.min() == values.max():
        return Estimate(mean, *wilson_interval(round(mean * count), count, confidence), count)
    draws = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=resamples)
    means = draws @ values / count
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(mean, float(low), float(high), count)
