"""Crossed bootstrap over runs and questions, against loops that look every score up."""

import random
from statistics import fmean, quantiles

import pytest

from focusft.statistics.paired import Question, average, difference

TASKS, STORIES, LENGTHS = ("qa1", "cwe"), 12, ("512", "1024")


def made_runs(seed, offsets):
    """A run for each offset, the first group's and the second's seeds sharing their luck."""
    rng = random.Random(seed)
    return [
        {
            Question(task, length, str(story), ""): rng.choice([0.0, 0.5, 1.0]) + offset
            for task in TASKS
            for story in range(STORIES)
            for length in LENGTHS
        }
        for offset in offsets
    ]


def naive_draws(groups, paired, draws=3000):
    """Means of each group in each draw: seeds are drawn, then the stories of each task."""
    rng = random.Random(3)
    found = []
    for _ in range(draws):
        chosen = [rng.choices(range(len(group)), k=len(group)) for group in groups]
        if paired:
            chosen = [chosen[0]] * len(groups)
        stories = {task: rng.choices(range(STORIES), k=STORIES) for task in TASKS}
        found.append(
            [
                fmean(
                    group[run][Question(task, length, str(story), "")]
                    for run in runs
                    for task in TASKS
                    for story in stories[task]
                    for length in LENGTHS
                )
                for group, runs in zip(groups, chosen, strict=True)
            ]
        )
    return found


def ends(values):
    cuts = quantiles(values, n=40)
    return cuts[0], cuts[-1]


def test_the_average_is_that_of_the_naive_bootstrap():
    runs = made_runs(1, [0, 0.3, 0.1])
    found = average(runs)
    assert found.mean == pytest.approx(fmean(fmean(run.values()) for run in runs))
    assert (found.questions, found.runs) == (48, 3)
    low, high = ends([means[0] for means in naive_draws([runs], paired=False)])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)


@pytest.mark.parametrize("paired", [True, False])
def test_the_difference_is_that_of_the_naive_bootstrap(paired):
    # Seeds differ more than arms: pairing them narrows the interval a great deal.
    first, second = made_runs(1, [0.1, 1.1, 2.1]), made_runs(2, [0, 1, 2])
    found = difference(first, second, paired_runs=paired)
    draws = naive_draws([first, second], paired)
    low, high = ends([one - other for one, other in draws])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.06)
    assert (found.high - found.low < 0.7) is paired


def test_what_does_not_vary_has_no_interval():
    runs = [dict.fromkeys(run, 1.0) for run in made_runs(1, [0, 0])]
    assert (average(runs).mean, average(runs).low) == (1.0, None)
    assert difference(runs, runs, paired_runs=True).sign is None


def test_nothing_in_common_is_no_figure():
    one, other = made_runs(1, [0, 0])
    elsewhere = {Question("vt", "512", "0", ""): 1.0}
    assert average([one, elsewhere]) is None
    assert difference([one], [elsewhere]) is None
    with pytest.raises(ValueError, match="2 runs cannot be paired with 1"):
        difference([one, other], [one], paired_runs=True)
