"""How much better one group of runs is than another on the same questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

DRAWS = 4000
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


def difference(
    first: Sequence[Scores], second: Sequence[Scores], *, seed: int = 0
) -> Difference | None:
    """Paired difference of the means over tasks, with its percentile bootstrap interval.

    Stories are drawn anew within each task, with all their lengths and the same ones for all runs;
    where a group has several runs (training seeds), those are drawn anew too.

    Args:
        first: Scores of each run of the first group.
        second: Scores of each run of the second group.
        seed: Seed of the draws.

    Returns:
        None where the runs have no question in common. No interval where each story gave the same
        difference: a bootstrap would have nothing to vary and would claim certainty.
    """
    runs = [*first, *second]
    common = [question for question in runs[0] if all(question in run for run in runs)]
    if not common:
        return None
    tasks: dict[str, dict[str, list[Question]]] = {}
    for question in common:
        tasks.setdefault(question.task, {}).setdefault(question.story, []).append(question)
    rng = np.random.default_rng(seed)
    means, drawn = np.zeros(len(runs)), np.zeros((DRAWS, len(runs)))
    for stories in tasks.values():
        count = len(stories)
        scores = np.array(
            [[fmean(run[q] for q in questions) for questions in stories.values()] for run in runs]
        )
        weights = rng.multinomial(count, [1 / count] * count, size=DRAWS) / count
        means += scores.mean(axis=1) / len(tasks)
        drawn += weights @ scores.T / len(tasks)
    split = len(first)
    differences = _mean_over_drawn_runs(drawn[:, :split], rng) - _mean_over_drawn_runs(
        drawn[:, split:], rng
    )
    low: float | None
    high: float | None
    low, high = np.quantile(differences, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    if np.ptp(differences) < 1e-12:
        low = high = None
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


def _mean_over_drawn_runs(drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    runs = drawn.shape[1]
    weights = rng.multinomial(runs, [1 / runs] * runs, size=len(drawn)) / runs
    return (drawn * weights).sum(axis=1)
