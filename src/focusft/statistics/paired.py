"""How well runs do, and how much better one group of runs is than another on the same questions.

The one paired bootstrap of the package (Efron 1979): questions are drawn anew within their task,
with all their lengths and the same ones for every run, and where there are several runs (training
seeds), runs are drawn anew too. Runs and questions are crossed: each run answers all questions.
With few runs their part of the interval is too narrow, by a factor of sqrt(1 - 1/runs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

DRAWS = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Question:
    """Names a question.

    Attributes:
        task: Tasks weigh the same in a mean.
        length: Of its text, as named in the results.
        story: The same at several lengths for questions on the same facts: they vary together.
        content: Differs where the prompts differ.
    """

    task: str
    length: str
    story: str
    content: str


# The scores of one run.
Scores = Mapping[Question, float]


@dataclass(frozen=True)
class Average:
    """Mean score of a group of runs, over the questions that all of them answered.

    Attributes:
        mean: Mean over tasks and runs.
        low: Lower end of its 95% interval; None where it cannot be told.
        high: Its upper end.
        questions: How many questions all runs have in common.
        runs: Number of runs.
    """

    mean: float
    low: float | None
    high: float | None
    questions: int
    runs: int


@dataclass(frozen=True)
class Difference:
    """The first group's mean score minus the second's, on the questions that all runs answered.

    Attributes:
        first: Mean score of the first group.
        second: Mean score of the second group.
        low: Lower end of the 95% interval of the difference; None where it cannot be told.
        high: Its upper end.
        questions: How many questions all runs have in common.
        left_out: How many other questions some of the runs answered.
        runs: Number of runs in each group.
    """

    first: float
    second: float
    low: float | None
    high: float | None
    questions: int
    left_out: int
    runs: tuple[int, int]

    @property
    def mean(self) -> float:
        """First minus second."""
        return self.first - self.second

    @property
    def sign(self) -> int | None:
        """1 or -1 where the interval leaves 0 out, 0 where it does not, None without one."""
        if self.low is None or self.high is None:
            return None
        return int(self.low > 0) - int(self.high < 0)


def average(runs: Sequence[Scores], *, seed: int = 0) -> Average | None:
    """Mean over tasks and runs, with its percentile bootstrap interval.

    Args:
        runs: Scores of each run.
        seed: Seed of the draws.

    Returns:
        None where the runs have no question in common. No interval where nothing varies: a
        bootstrap would claim certainty.
    """
    common = _common(runs)
    if not common:
        return None
    rng = np.random.default_rng(seed)
    means, drawn = _draw_questions(runs, common, rng)
    low, high = _interval(_mean_of_drawn(drawn, _draw_runs(len(runs), rng)))
    return Average(float(means.mean()), low, high, len(common), len(runs))


def difference(
    first: Sequence[Scores],
    second: Sequence[Scores],
    *,
    paired_runs: bool = False,
    seed: int = 0,
) -> Difference | None:
    """Paired difference of the means over tasks, with its percentile bootstrap interval.

    Args:
        first: Scores of each run of the first group.
        second: Scores of each run of the second group.
        paired_runs: The runs of both groups belong together one by one, such as those of one
            training seed: they are drawn together.
        seed: Seed of the draws.

    Returns:
        None where the runs have no question in common. No interval where each story gave the same
        difference: a bootstrap would have nothing to vary and would claim certainty.

    Raises:
        ValueError: Paired groups of different size.
    """
    if paired_runs and len(first) != len(second):
        raise ValueError(f"{len(first)} runs cannot be paired with {len(second)}")
    runs = [*first, *second]
    common = _common(runs)
    if not common:
        return None
    rng = np.random.default_rng(seed)
    means, drawn = _draw_questions(runs, common, rng)
    split = len(first)
    weights = _draw_runs(split, rng)
    other_weights = weights if paired_runs else _draw_runs(len(second), rng)
    low, high = _interval(
        _mean_of_drawn(drawn[:, :split], weights) - _mean_of_drawn(drawn[:, split:], other_weights)
    )
    return Difference(
        float(means[:split].mean()),
        float(means[split:].mean()),
        low,
        high,
        len(common),
        len(set().union(*runs)) - len(common),
        (len(first), len(second)),
    )


def only(runs: Sequence[Scores], keep: Callable[[Question], bool]) -> list[Scores]:
    """The scores of some questions."""
    return [{q: score for q, score in scores.items() if keep(q)} for scores in runs]


def _common(runs: Sequence[Scores]) -> list[Question]:
    return [question for question in runs[0] if all(question in run for run in runs)]


def _draw_questions(
    runs: Sequence[Scores], common: Sequence[Question], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mean over tasks of each run [R], and of each draw of the stories [DRAWS, R]."""
    tasks: dict[str, dict[str, list[Question]]] = {}
    for question in common:
        tasks.setdefault(question.task, {}).setdefault(question.story, []).append(question)
    means, drawn = np.zeros(len(runs)), np.zeros((DRAWS, len(runs)))
    for stories in tasks.values():
        count = len(stories)
        scores = np.array(
            [[fmean(run[q] for q in questions) for questions in stories.values()] for run in runs]
        )
        weights = rng.multinomial(count, [1 / count] * count, size=DRAWS) / count
        means += scores.mean(axis=1) / len(tasks)
        drawn += weights @ scores.T / len(tasks)
    return means, drawn


def _draw_runs(runs: int, rng: np.random.Generator) -> np.ndarray:
    """Weights of the runs in each draw [DRAWS, R]."""
    return rng.multinomial(runs, [1 / runs] * runs, size=DRAWS) / runs


def _mean_of_drawn(drawn: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (drawn * weights).sum(axis=1)


def _interval(values: np.ndarray) -> tuple[float | None, float | None]:
    if np.ptp(values) < 1e-12:
        return None, None
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
