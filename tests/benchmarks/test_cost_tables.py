"""The README's costs are those of the committed steps; ratios are of trainers that step in turn."""

import json

import pytest

from benchmarks.cost_tables import (
    README_MARKS,
    measured_ratio,
    readme_cost,
    round_ratios,
    shortest_ratio,
)
from benchmarks.readme import README, between
from benchmarks.tables import RESULTS

STEP = {
    "rounds": [
        {"ours": [100.0, 100.0, 100.0], "sft": [1.0, 1.0, 1.0]},
        {"ours": [6.0, 4.0, 9.0], "k0": [2.0, 4.0, 3.0], "sft": [2.0, 2.0, 2.0]},
        {"ours": [5.0, 5.0, 5.0], "trl_sft": [9.0, 9.0, 9.0]},
    ]
}


def test_ratios_are_of_the_last_group_that_holds_both():
    assert round_ratios(STEP, "ours", "sft") == [3.0, 2.0, 4.5]


def test_a_ratio_comes_with_its_lowest_and_highest_round():
    assert measured_ratio(STEP, "ours_over_k0") == "3.00 (1.00 to 3.00)"


def test_the_shortest_steps_need_not_be_of_one_round():
    assert shortest_ratio(STEP, "ours_over_k0") == "2.00"


@pytest.mark.parametrize("readme", ["no marks", "<a> only one", "<a> <b> <a> <b>"])
def test_a_readme_without_its_marks_stays_as_it_is(readme):
    with pytest.raises(ValueError):
        between(readme, ("<a>", "<b>"), ["line"])


def test_the_readme_shows_the_committed_steps():
    steps = {n: json.loads((RESULTS / f"step_smollm2_{n}.json").read_text()) for n in (1024, 2048)}
    for step in steps.values():
        for name, ratio in step["ratios"].items():
            assert measured_ratio(step, name).startswith(f"{ratio:.2f} (")
    cost = readme_cost(steps)
    assert f"| {steps[1024]['ratios']['ours_over_k0']:.2f} |" in cost[4]
    readme = README.read_text(encoding="utf-8")
    assert readme == between(readme, README_MARKS, cost)
