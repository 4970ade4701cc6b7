"""`focusft eval` with a tiny random model: files, going on, comparing, one-line errors."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from focusft.cli import main
from tests.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), seed=0)


def save_model(folder, seed):
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", seed=seed, vocab_size=len(tokenizer), max_position_embeddings=8192)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def arguments(model, out, *more):
    return [
        "eval", str(model), "--suite", "ruler", "--tasks", "niah_single_1,niah_single_2",
        "--lengths", "1k,1.5k", "--samples", "2", "--batch_size", "2", "--max_new_tokens", "4",
        "--out", str(out), *more,
    ]  # fmt: skip


def test_a_run_and_a_comparison(model_folder, tmp_path, capsys):
    out = tmp_path / "one"
    assert main(arguments(model_folder, out)) == 0
    said = capsys.readouterr().out
    assert "niah_single_2*" in said
    assert "stand-in" in said
    results = json.loads((out / "results.json").read_text())
    assert results["config"] == {
        "model": str(model_folder), "suite": "ruler", "tasks": ["niah_single_1", "niah_single_2"],
        "lengths": [1024, 1536], "samples": 2, "seed": 42, "dtype": "auto", "batch_size": 2,
        "prefill": "causal", "chat": True, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 4,
        "thinking_budget": None, "server": None, "server_model": None, "concurrency": 16,
        "api": None, "server_timeout": 600, "prose": [], "squad": None, "hotpotqa": None,
        "babilong_data": None,
    }  # fmt: skip
    assert results["generator"]["dtype"] == "float32"
    assert results["versions"]["torch"]
    cell = results["tasks"]["niah_single_1"]["1024"]
    assert cell["n"] == 2
    assert cell["counted_otherwise"] == 0
    assert cell["fill"]["least"] > 0.9
    assert len((out / "items.jsonl").read_text().splitlines()) == 8
    assert "Plotly.newPlot" in (out / "figures.html").read_text()

    other = tmp_path / "other"
    assert (
        main(arguments(model_folder, other, "--prefill", "bidirectional", "--compare", str(out)))
        == 0
    )
    assert "difference in points" in capsys.readouterr().out
    comparison = json.loads((other / "comparison.json").read_text())
    assert comparison["overall"]["n"] == 8
    # Without running anything.
    (other / "comparison.json").unlink()
    assert main(["eval", "--out", str(other), "--compare", str(out)]) == 0
    assert json.loads((other / "comparison.json").read_text()) == comparison


def test_other_weights_at_the_same_place_are_noticed(tmp_path, capsys):
    model = save_model(tmp_path / "model", seed=0)
    # Brackets are no markup.
    out = tmp_path / "[lr=1e-4][" / "y]"
    assert main(arguments(model, out)) == 0
    assert f"figures: {out}\n" in capsys.readouterr().out
    save_model(model, seed=1)
    assert main(arguments(model, out)) == 2
    assert "generator.weights_sha256" in capsys.readouterr().err


BAD = {
    "no model": (["--suite", "ruler"], "MODEL: none is given"),
    "no suite": (["MODEL"], "--suite: none is given"),
    "suite": (["MODEL", "--suite", "glue"], "--suite: 'glue' is none of"),
    "tasks": (["MODEL", "--suite", "ruler", "--tasks", "qa1"], "--tasks: 'qa1' is none of"),
    "lengths": (["MODEL", "--suite", "ruler", "--lengths", "1x"], "--lengths: '1x' is no length"),
    "short": (["MODEL", "--suite", "ruler", "--tasks", "cwe", "--lengths", "512"], "too short"),
    "prose": (["MODEL", "--suite", "ruler", "--prose", "nowhere.txt"], "nowhere.txt: cannot be"),
    "top_p": (["MODEL", "--suite", "ruler", "--top_p", "2"], "--top_p: 2.0"),
    "temperature": (["MODEL", "--suite", "ruler", "--temperature", "nan"], "--temperature: nan is"),
    "dtype": (["MODEL", "--suite", "ruler", "--dtype", "int8"], "'int8' is none of"),
    "server": (["MODEL", "--suite", "ruler", "--server", "http://x"], "--server_model belong"),
    "batches of a server": (
        [
            "MODEL",
            "--suite",
            "ruler",
            "--server",
            "http://x",
            "--server_model",
            "m",
            "--batch_size",
            "2",
        ],
        "--batch_size: a server decides",
    ),
    "no server": (
        ["MODEL", "--suite", "ruler", "--server", "nowhere", "--server_model", "m"],
        "--server: 'nowhere' is no URL",
    ),
    "compare": (["--compare", "nowhere"], "--compare: nowhere: no finished run"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_line_and_exit_code_2(name, model_folder, tmp_path, capsys):
    given, said = BAD[name]
    given = [part.replace("MODEL", str(model_folder)) for part in given]
    assert main(["eval", *given, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("focusft: error: ")
    assert said in error


def test_what_to_compare_with_is_checked_before_the_model_loads(
    model_folder, tmp_path, monkeypatch, capsys
):
    from focusft.cli import evaluate

    def load(*_, **__):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(evaluate, "_generator", load)
    assert main(arguments(model_folder, tmp_path / "out", "--compare", "nowhere")) == 2
    assert "--compare: nowhere: no finished run" in capsys.readouterr().err
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "results.json").write_text("{}")
    more = ("--compare", str(tmp_path / "trained"))
    assert main(arguments(model_folder, tmp_path / "out", *more)) == 2
    assert "trained: is not of 'focusft eval --suite babilong or ruler'" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_at_any_moment(model_folder, tmp_path):
    """The real command with a real model and batches that memory decides about."""

    def start(out):
        command = arguments(model_folder, out, "--samples", "40", "--lengths", "1k,2k,4k")
        command.remove("--batch_size")
        command.remove("2")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.Popen([sys.executable, "-m", "focusft", *command], env=environment)

    def number_of_lines(out):
        file = out / "items.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    assert start(tmp_path / "whole").wait() == 0
    cut = tmp_path / "cut"
    rng = random.Random(0)
    for goal in (0, 1, 40, 120):
        process = start(cut)
        while process.poll() is None and not (
            (cut / "manifest.json").exists() and number_of_lines(cut) >= goal
        ):
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert start(cut).wait() == 0
    for name in ("prompts.jsonl", "manifest.json", "items.jsonl", "settings.json"):
        assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    found, expected = (
        json.loads((folder / "results.json").read_text()) | {"seconds": 0}
        for folder in (cut, tmp_path / "whole")
    )
    assert found == expected
