"""Differences against a naive bootstrap, and what the page concludes from them."""

import random
import shutil
from statistics import fmean, quantiles

import pytest

from focusft.analysis.report.claims import check_claims
from focusft.analysis.report.comparison import compare_suites
from focusft.analysis.report.numbers import TIMES
from focusft.analysis.report.reading import read_runs
from focusft.analysis.report.verdict import judge
from focusft.errors import ConfigError
from focusft.statistics.paired import Question, difference
from tests.analysis import report_runs


def scores(seed, *, share, tasks=("qa1", "qa2"), stories=30, lengths=("1024", "2048")):
    rng = random.Random(seed)
    return {
        Question(task, length, str(story), ""): float(rng.random() < share)
        for task in tasks
        for story in range(stories)
        for length in lengths
    }


def naive_interval(first, second, draws=4000):
    """Draw stories task by task, look every score up, average, sort."""
    rng = random.Random(1)
    tasks = sorted({question.task for question in first})
    found = []
    for _ in range(draws):
        means = []
        for task in tasks:
            stories = sorted({q.story for q in first if q.task == task})
            drawn = rng.choices(stories, k=len(stories))
            means.append(
                fmean(
                    first[q] - second[q]
                    for story in drawn
                    for q in (Question(task, "1024", story, ""), Question(task, "2048", story, ""))
                )
            )
        found.append(fmean(means))
    cuts = quantiles(found, n=40)
    return cuts[0], cuts[-1]


def test_the_interval_is_that_of_a_naive_bootstrap_over_stories():
    first, second = scores(1, share=0.7), scores(2, share=0.5)
    found = difference([first], [second])
    assert found.mean == pytest.approx(fmean(first.values()) - fmean(second.values()))
    low, high = naive_interval(first, second)
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)


def test_tasks_weigh_the_same_however_many_questions_they_have():
    first = {Question("few", "1", "0", ""): 1.0} | {
        Question("many", "1", str(story), ""): 0.0 for story in range(99)
    }
    second = dict.fromkeys(first, 0.0)
    assert difference([first], [second]).mean == pytest.approx(0.5)


def test_more_runs_widen_the_interval_by_their_own_spread():
    even = [scores(1, share=0.6)] * 2
    uneven = [scores(1, share=0.3), scores(1, share=0.9)]
    baseline = [scores(2, share=0.6)] * 2
    same = difference(even, baseline)
    spread = difference(uneven, baseline)
    assert spread.runs == (2, 2)
    assert spread.high - spread.low > 1.3 * (same.high - same.low)


def test_other_questions_are_not_compared():
    first = scores(1, share=0.5)
    other = {Question(q.task, q.length, q.story, "another prompt"): s for q, s in first.items()}
    assert difference([first], [other]) is None


def test_questions_that_one_run_lacks_are_counted(tmp_path):
    focusft, sft = report_runs.comparison(tmp_path, samples=4)
    items = (sft / "babilong" / "items.jsonl").read_text().splitlines(keepends=True)
    (sft / "babilong" / "items.jsonl").write_text("".join(items[:-3]))
    found = read_runs([focusft, sft])
    comparisons = compare_suites(found)
    assert comparisons[0].overall.questions == 5 * 3 * 4 - 3
    assert any("3 more questions" in reason for reason in judge(found, comparisons).reasons)


def test_equal_differences_give_no_interval():
    first = dict.fromkeys(scores(1, share=0.5), 1.0)
    found = difference([first], [dict.fromkeys(first, 0.0)])
    assert (found.mean, found.low, found.sign) == (1.0, None, None)


@pytest.mark.parametrize(
    ("skills", "answer", "words"),
    [
        ((0.8, 0.5), "yes", "Yes: FocuSFT beat plain SFT on BABILong."),
        ((0.5, 0.8), "no", "No: plain SFT beat FocuSFT on BABILong."),
        ((0.6, 0.6), "unclear", "No clear difference"),
    ],
)
def test_the_verdict_follows_the_interval(tmp_path, skills, answer, words):
    runs = read_runs(report_runs.comparison(tmp_path, skills=skills))
    verdict = judge(runs, compare_suites(runs))
    assert verdict.answer == answer
    assert verdict.headline.startswith(words)


def test_a_small_difference_is_called_chance(tmp_path):
    runs = []
    for method, skill in (("focusft", 0.62), ("sft", 0.58)):
        run = report_runs.training(tmp_path / method, method)
        report_runs.suite(run / "b", "babilong", str(run), skill, samples=4)
        runs.append(run)
    found = read_runs(runs)
    verdict = judge(found, compare_suites(found))
    assert verdict.answer == "unclear"
    assert any("may be chance" in reason for reason in verdict.reasons)


def test_without_single_answers_there_is_no_interval(tmp_path):
    runs = report_runs.comparison(tmp_path)
    for run in runs:
        (run / "babilong" / "items.jsonl").unlink()
    found = read_runs(runs)
    (babilong, *_) = compare_suites(found)
    assert babilong.overall.low is None
    verdict = judge(found, [babilong])
    assert verdict.answer == "unclear"
    assert any("items.jsonl" in reason for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("method", "words"),
    [("focusft", "no run of plain SFT was given"), ("sft", "no run of FocuSFT was given")],
)
def test_one_method_alone_cannot_be_judged(tmp_path, method, words):
    runs = read_runs([report_runs.training(tmp_path / method, method)])
    verdict = judge(runs, compare_suites(runs))
    assert verdict.answer == "untested"
    assert words in verdict.headline


def test_other_questions_cannot_be_judged(tmp_path):
    runs = []
    for seed, method in enumerate(("focusft", "sft")):
        run = report_runs.training(tmp_path / method, method)
        report_runs.suite(run / "b", "babilong", str(run), 0.6, samples=3, seed=seed)
        runs.append(run)
    found = read_runs(runs)
    assert compare_suites(found) == []


def test_losses_alone_are_no_verdict(tmp_path):
    found = read_runs([report_runs.training(tmp_path / m, m) for m in ("focusft", "sft")])
    verdict = judge(found, compare_suites(found))
    assert verdict.answer == "untested"
    assert "no benchmark was run on both" in verdict.headline
    assert "lower for FocuSFT" in verdict.reasons[0]


def test_the_demo_says_what_it_does_not_show(tmp_path):
    found = read_runs([report_runs.demo(tmp_path / "demo")])
    verdict = judge(found, [])
    assert verdict.headline.startswith("The training worked.")
    assert "was not tested" in verdict.headline


def test_claims_stand_beside_what_was_measured(tmp_path):
    runs = read_runs(report_runs.full_comparison(tmp_path, skills=(0.8, 0.4)))
    claims = check_claims(runs, compare_suites(runs))
    assert len(claims) == 5
    babilong, _, agent, sink, engagement = claims
    assert [row.standing for row in babilong.measured] == ["as large or larger"] * 2
    assert "600 questions" in babilong.measured[0].basis
    assert agent.measured[0].standing == "as large or larger"
    assert sink.measured[0].value == f"31.0% → 0.050%, 620{TIMES}"
    assert sink.measured[0].basis == f"95% interval 540{TIMES} to 700{TIMES}, 100 conversations"
    assert sink.measured[0].standing == "as large or larger"
    assert engagement.measured[0].standing == "same direction, smaller"


def test_claims_without_data_name_the_command(tmp_path):
    runs = read_runs([report_runs.training(tmp_path / "focusft")])
    for claim in check_claims(runs, []):
        assert claim.measured == []
        assert claim.command.startswith(("focusft eval", "focusft probe"))


def test_two_evaluations_of_the_same_questions_are_an_error(tmp_path):
    focusft, sft = report_runs.comparison(tmp_path, samples=4)
    shutil.copytree(focusft / "babilong", focusft / "babilong_again")
    with pytest.raises(ConfigError, match=r"babilong and .*babilong_again: answer the same"):
        compare_suites(read_runs([focusft, sft]))


def test_another_spelling_of_the_model_that_training_began_with_is_untrained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = report_runs.training(tmp_path / "f", model_name_or_path="start")
    (tmp_path / "start").mkdir()
    report_runs.suite(run / "before", "babilong", "./start", 0.5, samples=2)
    (found,) = read_runs([run]).of("babilong")
    assert found.method == "untrained"


def test_two_models_of_one_probe_have_two_labels(tmp_path):
    folder = report_runs.probe(tmp_path / "p", "org/A")
    results = report_runs.read(folder)
    results["compare"] = {**results, "model": "org/B"}
    report_runs.write(folder, results)
    labels = [result.label for result in read_runs([folder]).of("probe")]
    assert len(labels) == len(set(labels)) == 2


def test_runs_without_a_benchmark_are_said_to_be_so(tmp_path):
    runs = []
    for method in ("focusft", "sft"):
        folder = report_runs.training(tmp_path / method, method)
        results = report_runs.read(folder)
        results["metrics"] = {}
        results["log"] = [line for line in results["log"] if "eval_loss" not in line]
        runs.append(report_runs.write(folder, results))
    found = read_runs(runs)
    assert judge(found, compare_suites(found)).headline.endswith("no benchmark was run.")
