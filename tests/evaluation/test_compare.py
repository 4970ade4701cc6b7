"""Paired differences: what pairs up, what the intervals cover, and what is refused."""

import json
import random
import re
from dataclasses import replace
from statistics import fmean

import pytest

from focusft.errors import ConfigError, DataError
from focusft.evaluation.compare import check_baseline, compare_runs, comparison_table
from focusft.statistics.scores import bootstrap_interval, score_interval, wilson_interval
from tests.evaluation.scripted import Scripted, answers_by, make_once, perfect, run, shown


@pytest.fixture(scope="module")
def items(smollm2):
    return make_once(
        "babilong", tokenizer=smollm2, lengths=[512, 640], samples=5, tasks=["qa1", "qa4"]
    )


def right_on(items, numbers):
    """Right on these items of qa1, wrong on all others."""

    def answer(item):
        number = int(item.id[-4:])
        return perfect(item) if item.task == "qa1" and number in numbers[item.length] else ""

    return Scripted(answers_by(list(items), answer))


def test_differences_are_paired(items, tmp_path):
    run(items, tmp_path / "old", right_on(items, {512: {0, 1}, 640: {0}}))
    run(items, tmp_path / "new", right_on(items, {512: {1, 2, 3, 4}, 640: {0, 1, 2}}))
    found = compare_runs(tmp_path / "new", tmp_path / "old")
    cell = found["cells"]["qa1"]["512"]
    # Gained 2, 3 and 4, lost 0.
    assert (cell["difference"], cell["better"], cell["worse"], cell["n"]) == (0.4, 3, 1, 5)
    assert cell["low"] < 0.4 < cell["high"]
    assert cell["difference_lenient"] == 0.4
    assert found["cells"]["qa4"]["512"]["difference"] == 0
    assert found["tasks"]["qa1"]["difference"] == pytest.approx(0.4)
    assert found["tasks"]["qa1"]["n"] == 10
    assert found["lengths"]["640"]["difference"] == pytest.approx(0.2)
    assert found["overall"]["difference"] == pytest.approx(0.2)
    # Both lengths of an item are drawn together: the interval is that of five values.
    by_item = [-0.5, 0.5, 1.0, 0.5, 0.5]
    task = found["tasks"]["qa1"]
    assert (task["low"], task["high"]) == pytest.approx(bootstrap_interval([by_item]), abs=0.02)
    back = compare_runs(tmp_path / "old", tmp_path / "new")
    assert back["overall"]["difference"] == -found["overall"]["difference"]
    table = shown(comparison_table(found))
    assert re.search(r"qa1 .*\+40\.0 \[-40, .* \+40\.0 .* \+40\.0 \[", table)
    assert re.search(r"mean .* \+20\.0 \[-20, \+50\] .* \+20\.0 .* \+20\.0 ", table)


def test_a_run_beside_itself(items, tmp_path):
    run(items, tmp_path / "run", right_on(items, {512: {0, 1}, 640: {0}}))
    same = compare_runs(tmp_path / "run", tmp_path / "run")["overall"]
    assert (same["difference"], same["low"], same["high"]) == (0, None, None)
    assert (same["better"], same["worse"]) == (0, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": 43}, "seed is 43 there and 42 here"),
        ({"samples": 4}, "samples is 4 there and 5 here"),
        ({"lengths": [512]}, r"lengths is \[512\] there and \[512, 640\] here"),
    ],
)
def test_other_items_are_refused(items, smollm2, tmp_path, options, said):
    given = {"lengths": [512, 640], "samples": 5, "tasks": ["qa1", "qa4"]} | options
    others = make_once("babilong", tokenizer=smollm2, **given)
    run(items, tmp_path / "one", Scripted(lambda prompt: ""))
    run(others, tmp_path / "other", Scripted(lambda prompt: ""))
    with pytest.raises(ConfigError, match=said):
        compare_runs(tmp_path / "one", tmp_path / "other")
    with pytest.raises(ConfigError, match=f"^--compare: .*{said}"):
        check_baseline(tmp_path / "other", items)
    check_baseline(tmp_path / "one", items)


def test_published_items_follow_no_seed_and_tasks_no_order(items, tmp_path):
    run(items, tmp_path / "run", Scripted(lambda prompt: ""))
    header = items.header | {"seed": 43, "tasks": ["qa4", "qa1"]}
    check_baseline(tmp_path / "run", replace(items, header=header, published=True))


def test_edited_and_unfinished_runs_are_refused(items, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        run(items, folder, Scripted(lambda prompt: ""))
    text = (other / "items.jsonl").read_text()
    row = json.loads(text.splitlines()[0])
    (other / "items.jsonl").write_text(text.replace(row["prompt"][:40], "Something else", 1))
    with pytest.raises(ConfigError, match="item babilong/qa1/512/0000 has another prompt"):
        compare_runs(one, other)
    (other / "items.jsonl").write_text(text.split("\n", 1)[1])
    with pytest.raises(ConfigError, match="item babilong/qa1/512/0000 is in one only"):
        compare_runs(one, other)
    (other / "items.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="cannot be read"):
        compare_runs(one, other)
    (other / "results.json").unlink()
    with pytest.raises(DataError, match="no finished run"):
        compare_runs(one, other)


# --- intervals -----------------------------------------------------------------------------------


def test_the_bootstrap_is_that_of_drawing_item_by_item():
    rng = random.Random(1)
    groups = [[rng.choice([0, 0.25, 1]) for _ in range(20)] for _ in range(3)]
    means = sorted(
        fmean(fmean(rng.choices(values, k=len(values))) for values in groups) for _ in range(4000)
    )
    low, high = bootstrap_interval(groups)
    assert low == pytest.approx(means[100], abs=0.02)
    assert high == pytest.approx(means[3900], abs=0.02)


def test_the_bootstrap_covers_the_truth():
    rng = random.Random(2)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval([[rng.choice([0, 0.5, 1]) for _ in range(60)]])
        covered += low <= 0.5 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_which_interval():
    assert score_interval([[0, 1, 1]]) == wilson_interval(2, 3)
    assert score_interval([[0.5, 1, 1]]) == bootstrap_interval([[0.5, 1, 1]])
    assert score_interval([[0, 1], [1, 1]]) == bootstrap_interval([[0, 1], [1, 1]])
    # A bootstrap would claim certainty.
    assert score_interval([[0, 0], [0, 0]]) == wilson_interval(0, 4)
