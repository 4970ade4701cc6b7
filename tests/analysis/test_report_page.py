"""Reading runs and writing the page, without a browser."""

import json
import re
from html import unescape

import pytest

from focusft.analysis.report import write_report
from focusft.analysis.report.comparison import compare_suites
from focusft.analysis.report.examples import SHOWN, suite_examples
from focusft.analysis.report.reading import read_runs
from focusft.analysis.report.redaction import HIDDEN, redact
from focusft.cli import main
from tests.analysis import report_runs
from tests.tiny_models import tiny_model, tiny_tokenizer


def page_without_plotly(report):
    """The page's text without the library, which is the longest script."""
    html = report.path.read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    return html.replace(max(scripts, key=len), "")


def labels(runs):
    return [(result.kind, result.label, result.method) for result in runs.results]


def test_results_are_told_apart_by_content(tmp_path):
    focusft, sft = report_runs.full_comparison(tmp_path / "runs")
    demo = report_runs.demo(tmp_path / "demo")
    benchmarks = report_runs.benchmarks(tmp_path / "benchmarks")
    found = labels(read_runs([focusft, sft, demo, *benchmarks]))
    for method in ("FocuSFT", "SFT"):
        for kind in ("training", "babilong", "ruler", "agent", "probe"):
            assert (kind, method.lower(), method) in found
    assert ("demo", "demo", "FocuSFT") in found
    assert ("probe", "demo, before training", "untrained") in found
    assert ("probe", "demo, after training", "FocuSFT") in found
    assert {kind for kind, _, _ in found} >= {"step", "throughput", "length"}


def test_one_folder_may_hold_several_runs(tmp_path):
    report_runs.comparison(tmp_path / "runs", samples=1)
    together = labels(read_runs([tmp_path / "runs"]))
    assert sorted(together) == sorted(
        labels(read_runs([tmp_path / "runs" / "focusft", tmp_path / "runs" / "sft"]))
    )


def test_equal_folder_names_get_longer_names(tmp_path):
    runs = [report_runs.training(tmp_path / name / "run") for name in ("a", "b")]
    assert [label for _, label, _ in labels(read_runs(runs))] == ["a/run", "b/run"]


def test_an_evaluation_elsewhere_belongs_to_the_model_that_it_is_about(tmp_path):
    model = report_runs.training(tmp_path / "sft", "sft")
    apart = report_runs.suite(tmp_path / "scores", "babilong", str(model), 0.5, samples=1)
    assert labels(read_runs([apart])) == [("babilong", "sft", "SFT")]


def test_a_measurement_of_the_model_before_training_is_no_result_of_the_method(tmp_path):
    run = report_runs.training(tmp_path / "run")
    report_runs.probe(run / "before", "smollm2")
    report_runs.probe(run / "after", str(run))
    found = labels(read_runs([run]))
    assert ("probe", "run, before training", "untrained") in found
    assert ("probe", "run", "FocuSFT") in found


def test_only_a_training_s_own_model_counts_as_its_method(tmp_path):
    run = report_runs.training(tmp_path / "run", model_name_or_path="/models/Qwen2.5-7B")
    report_runs.suite(run / "before", "babilong", "Qwen/Qwen2.5-7B", 0.5, samples=1)
    report_runs.suite(run / "other", "babilong", "/models/Llama", 0.5, samples=1)
    report_runs.suite(run / "after", "babilong", str(run), 0.5, samples=1)
    found = read_runs([run])
    assert set(labels(found)) == {
        ("training", "run", "FocuSFT"),
        ("babilong", "run", "FocuSFT"),
        ("babilong", "run, Qwen2.5-7B", "unknown"),
        ("babilong", "run, Llama", "unknown"),
    }
    assert not any(result.aside for result in found.results)


def test_merged_adapters_are_the_model_of_the_run(tmp_path):
    run = report_runs.training(tmp_path / "run")
    report_runs.suite(run / "after", "babilong", str(run / "merged"), 0.5, samples=1)
    found = [result for result in read_runs([run]).results if result.kind == "babilong"]
    assert [(result.method, result.aside) for result in found] == [("FocuSFT", "")]


def test_a_model_in_the_folder_of_its_training_may_be_the_one_it_began_with(tmp_path):
    run = report_runs.training(tmp_path / "run", model_name_or_path=str(tmp_path / "run/base"))
    report_runs.suite(run / "before", "babilong", str(run / "base"), 0.5, samples=1)
    assert ("babilong", "run, before training", "untrained") in labels(read_runs([run]))


@pytest.mark.parametrize("output_dir", ["runs/focusft", "/gone/runs/focusft"])
def test_a_report_made_elsewhere_knows_the_models(tmp_path, monkeypatch, output_dir):
    """Paths in the files count from the folder that the commands ran in, as it was then."""
    run = report_runs.training(
        tmp_path / "runs" / "focusft", output_dir=output_dir, model_name_or_path="runs/base"
    )
    (run / "checkpoint-5").mkdir()
    report_runs.suite(run / "after", "babilong", output_dir, 0.5, samples=1)
    report_runs.suite(run / "relative", "ruler", "runs/focusft", 0.5, samples=1)
    report_runs.agent(run / "early", "runs/focusft/checkpoint-5", 0.5)
    report_runs.probe(run / "hub", "runs/focusft-7b")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder in (elsewhere, run):
        monkeypatch.chdir(folder)
        found = {result.kind: (result.method, result.aside) for result in read_runs([run]).results}
        assert found == {
            "training": ("FocuSFT", ""),
            "babilong": ("FocuSFT", ""),
            "ruler": ("FocuSFT", ""),
            "agent": ("FocuSFT", "checkpoint-5"),
            "probe": ("unknown", ""),
        }
    # After a move of the run, only what the training was told is left of its place.
    moved = run.rename(tmp_path / "moved")
    (found,) = read_runs([moved]).of("babilong")
    assert found.method == "FocuSFT"


def test_a_run_that_another_one_starts_from_is_still_trained(tmp_path):
    first = report_runs.training(tmp_path / "first")
    report_runs.agent(first / "agent", str(first), 0.5)
    second = report_runs.training(tmp_path / "second", "sft", model_name_or_path=str(first))
    assert ("agent", "first", "FocuSFT") in labels(read_runs([first, second]))


def test_evaluations_of_one_run_at_several_lengths_count_as_one_run(tmp_path):
    runs = []
    for method in ("focusft", "sft"):
        runs.append(report_runs.training(tmp_path / method, method))
        for length in (1024, 2048):
            folder = runs[-1] / f"b{length}"
            report_runs.suite(folder, "babilong", str(runs[-1]), 0.5, lengths=(length,), samples=3)
    found = read_runs(runs)
    assert ("babilong", "focusft/b1024", "FocuSFT") in labels(found)
    (comparison,) = compare_suites(found)
    assert comparison.overall.runs == (1, 1)
    assert comparison.overall.questions == 2 * 5 * 3
    assert list(comparison.lengths) == ["1024", "2048"]


def test_other_ways_to_use_a_model_decide_nothing(tmp_path):
    focusft, sft = report_runs.comparison(tmp_path, samples=2)
    ordinary = compare_suites(read_runs([focusft, sft]))
    prefilled = report_runs.suite(focusft / "prefill", "babilong", str(focusft), 0.99, samples=2)
    content = report_runs.read(prefilled)
    content["generator"]["prefill"] = "bidirectional"
    (prefilled / "results.json").write_text(json.dumps(content))
    earlier = focusft / "checkpoint-5"
    earlier.mkdir()
    report_runs.suite(focusft / "earlier", "babilong", str(earlier), 0.99, samples=2)
    found = read_runs([focusft, sft])
    assert {result.aside for result in found.results} == {
        "", "bidirectional prefill", "checkpoint-5"
    }  # fmt: skip
    assert compare_suites(found) == ordinary
    html = page_without_plotly(write_report([focusft, sft], tmp_path / "report.html"))
    assert "not in the verdict: focusft/earlier (checkpoint-5)" in html


def test_a_probe_of_two_models_is_two_results(tmp_path):
    runs = [report_runs.training(tmp_path / m, m) for m in ("focusft", "sft")]
    folder = report_runs.probe(tmp_path / "both", str(runs[0]))
    content = report_runs.read(folder)
    content["compare"] = content | {"model": str(runs[1])}
    content["config"]["compare"] = str(runs[1])
    report_runs.write(folder, content)
    found = labels(read_runs([*runs, folder]))
    assert ("probe", "focusft", "FocuSFT") in found
    assert ("probe", "sft", "SFT") in found


@pytest.mark.parametrize(
    ("options", "method"),
    [
        ({"num_inner_steps": 0}, "bidirectional SFT"),
        ({"num_inner_steps": 0, "context_attention": "causal"}, "SFT"),
        ({}, "FocuSFT"),
    ],
)
def test_the_method_is_what_the_options_amount_to(tmp_path, options, method):
    run = report_runs.training(tmp_path / "run", **options)
    assert labels(read_runs([run])) == [("training", "run", method)]


def test_secrets_and_home_folders_are_left_out(tmp_path):
    token = "hf_" + "a1B2" * 8
    run = report_runs.training(
        tmp_path / "run",
        output_dir="/home/lovelace/runs/x",
        model_name_or_path="/Users/lovelace/models/m",
        hub_token="plain-words",
        train_data=f"https://lovelace:pass@example.org/{token}.jsonl",
    )
    html = page_without_plotly(write_report([run], tmp_path / "report.html"))
    for secret in ("/home/", "/Users/", "lovelace", "plain-words", token, "pass@"):
        assert secret not in html
    assert "~/runs/x" in html


def test_redaction_keeps_what_is_no_secret():
    value = {"pad_token_id": 0, "tokens": ["a"], "max_tokens": 5, "path": "/data/home/x", "n": None}
    assert redact(value) == value
    assert redact({"api_key": "x", "hub_token": None}) == {"api_key": HIDDEN, "hub_token": None}


def test_the_page_holds_everything_and_loads_nothing(tmp_path):
    runs = report_runs.comparison(tmp_path, samples=2)
    report = write_report(runs, tmp_path / "deep" / "report.html")
    html = report.path.read_text(encoding="utf-8")
    assert html.count("plotly.js v") == 1
    own = unescape(page_without_plotly(report))
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", own)
    assert "default-src 'none'" in own
    assert "@import" not in own


def test_the_same_runs_give_the_same_bytes(tmp_path):
    runs = report_runs.comparison(tmp_path, samples=4)
    pages = [write_report(runs, tmp_path / name).path.read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]


def test_what_is_missing_is_listed_with_its_command(tmp_path):
    run = report_runs.training(tmp_path / "run")
    html = page_without_plotly(write_report([run], tmp_path / "report.html"))
    assert "focusft train --config C.yaml --method sft --output_dir RUN" in html
    assert "focusft probe RUN" in html
    assert "BABILong: facts hidden" not in html


def test_each_question_is_shown_once_with_one_answer_of_each_run(tmp_path):
    found = read_runs(report_runs.comparison(tmp_path, samples=3))
    examples = suite_examples(found.of("babilong"))
    assert examples.total == 5 * 3 * 3
    assert len(examples.shown) == SHOWN
    for one in examples.shown:
        assert [answer.label for answer in one.answers] == ["focusft", "sft"]
    # Those that tell the runs apart come first.
    differ = [len({answer.right for answer in one.answers}) > 1 for one in examples.shown]
    assert differ == sorted(differ, reverse=True)
    assert sum(differ) == min(SHOWN, examples.differing)


def test_questions_under_a_licence_are_not_shown(tmp_path):
    run = report_runs.training(tmp_path / "run")
    report_runs.agent(run / "agent", str(run), 0.5)
    html = page_without_plotly(write_report([run], tmp_path / "report.html"))
    assert "Tool use" in html
    assert "a question under a licence" not in html


def test_a_file_without_a_view_is_named(tmp_path, capsys):
    folder = tmp_path / "benchmarks"
    report_runs.benchmarks(folder)
    (folder / "other.json").write_text('{"something": 1}')
    assert main(["report", str(folder), "--out", str(tmp_path / "report.html")]) == 0
    assert "other.json" in capsys.readouterr().out
    assert "other.json" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing"], "missing: no such file or folder"),
        (["empty"], "empty: no results.json in it"),
        (["torn"], "results.json: cannot be read as JSON"),
        (["strange"], "none is of a kind that the report knows"),
        (["run", "run"], "run: given twice"),
        (["run", "--out", "."], "--out: . is a folder"),
        (["bad_items"], "items.jsonl: line 2 is no JSON"),
    ],
)
def test_mistakes_give_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    report_runs.training(tmp_path / "run")
    bad = report_runs.suite(tmp_path / "bad_items", "babilong", "m", 0.5, samples=1)
    items = (bad / "items.jsonl").read_text().splitlines()
    (bad / "items.jsonl").write_text(items[0] + "\n" + items[1][:20] + "\n")
    for name, content in (("torn", "{"), ("strange", "[1]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(content)
    (tmp_path / "empty").mkdir()
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_real_runs_are_read(tmp_path):
    """What the commands write, not what these tests believe they write."""
    tokenizer = tiny_tokenizer()
    model = tmp_path / "model"
    tiny_model(
        "llama", vocab_size=len(tokenizer), max_position_embeddings=2048, num_hidden_layers=2
    ).save_pretrained(model)
    tokenizer.save_pretrained(model)
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "a"}]}
        for n in range(4)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = []
    for method in ("focusft", "sft"):
        run = str(tmp_path / method)
        runs.append(run)
        for arguments in (
            f"train --model_name_or_path {model} --train_data {data} --val_data {data} --use_cpu "
            f"--output_dir {run} --method {method} --inner_lr 0.1 --inner_rank 2 "
            "--num_train_epochs 1 --logging_steps 1 --report_to none",
            f"eval {run} --suite ruler --tasks niah_single_1 --lengths 1k --samples 1 "
            f"--max_new_tokens 2 --out {run}/ruler",
            f"probe {run} --data {data} --samples 2 --out {run}/probe",
        ):
            assert main(arguments.split()) == 0
    assert main(["report", *runs, "--out", str(tmp_path / "report.html")]) == 0
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    for title in (
        "Loss in training", "Loss on validation data", "Inner loop: focusft", "Speed",
        "RULER by kind of task", "FocuSFT minus SFT", "Sink mass by layer", "Some answers",
        "sft, bidirectional", "While training: sink mass",
    ):  # fmt: skip
        assert f"<h3>{title}</h3>" in html
