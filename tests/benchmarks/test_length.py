"""The benchmark of lengths keeps what failed, goes no further, and can be resumed."""

import json
import sys

import pytest

from benchmarks import length
from benchmarks.workers import WorkerDiedError


@pytest.fixture
def asked(monkeypatch):
    """What was measured; the published procedure dies at 2,048 tokens."""
    asked = []

    def step(name, tokens, options):
        asked.append((name, tokens))
        if name == "published" and tokens == 2048:
            raise WorkerDiedError(1, "not enough memory")
        return {"seconds": 1.0, "peak_gb": 1.0 + tokens / 1024, "resident_gb": 1.0}

    monkeypatch.setattr(length, "_second_step", step)
    return asked


def run(monkeypatch, out, *options):
    arguments = ["length", "--lengths", "1024,2048,4096", "--response=0", f"--json={out}"]
    monkeypatch.setattr(sys, "argv", [*arguments, *options])
    length.main()
    return json.loads(out.read_text())


def test_a_length_that_does_not_fit_is_in_the_file(tmp_path, monkeypatch, asked):
    steps = run(monkeypatch, tmp_path / "out.json")["steps"]
    assert list(steps["ours"]) == ["1024", "2048", "4096"]
    assert steps["ours"]["2048"]["above_model_gb"] == 2
    assert steps["published"]["2048"] == {"failed": "exit code 1: not enough memory"}
    assert ("published", 4096) not in asked


def test_a_resumed_run_measures_what_is_missing(tmp_path, monkeypatch, asked):
    out = tmp_path / "out.json"
    whole = run(monkeypatch, out)
    partly = {name: dict(steps) for name, steps in whole["steps"].items()}
    del partly["ours"]["4096"]
    del partly["published"]["2048"]
    out.write_text(json.dumps(whole | {"steps": partly}))
    asked.clear()
    assert run(monkeypatch, out, "--resume") == whole
    assert asked == [("ours", 64), ("ours", 4096), ("published", 64), ("published", 2048)]
    asked.clear()
    assert run(monkeypatch, out, "--resume") == whole
    assert asked == []


def test_a_run_with_other_settings_is_not_resumed(tmp_path, monkeypatch, capsys, asked):
    out = tmp_path / "out.json"
    run(monkeypatch, out)
    with pytest.raises(SystemExit):
        run(monkeypatch, out, "--resume", "--layers=2")
    assert "has other settings or versions" in capsys.readouterr().err
