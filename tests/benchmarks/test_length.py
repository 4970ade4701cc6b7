"""The benchmark of lengths keeps what failed, and goes no further."""

import json
import sys

from benchmarks import length
from benchmarks.workers import WorkerDiedError


def test_a_length_that_does_not_fit_is_in_the_file(tmp_path, monkeypatch):
    asked = []

    def step(name, tokens, options):
        asked.append((name, tokens))
        if name == "published" and tokens == 2048:
            raise WorkerDiedError(1, "not enough memory")
        return {"seconds": 1.0, "peak_gb": 1.0 + tokens / 1024}

    out = tmp_path / "out.json"
    monkeypatch.setattr(length, "_second_step", step)
    monkeypatch.setattr(
        sys, "argv", ["length", "--lengths", "1024,2048,4096", "--response=0", f"--json={out}"]
    )
    length.main()
    steps = json.loads(out.read_text())["steps"]
    assert list(steps["ours"]) == ["1024", "2048", "4096"]
    assert steps["ours"]["2048"]["above_model_gb"] == 2 - 64 / 1024
    assert steps["published"]["2048"] == {"failed": "exit code 1: not enough memory"}
    assert ("published", 4096) not in asked
