"""The check of the items' lengths finds what is wrong, and runs."""

import json
import subprocess
import sys

import pytest

from benchmarks.fill import _cell, _failures


def failures(identical=True, **cells):
    tasks = {"vt": {length[1:]: _cell(int(length[1:]), used) for length, used in cells.items()}}
    return list(_failures({"identical": identical, "tasks": tasks}))


def test_what_counts_as_a_failure():
    assert failures(_512=[400], _1024=[1024, 994]) == []
    assert failures(identical=False) == ["two processes made different items"]
    assert failures(_1024=[1024, 1025]) == ["vt at 1024: 1025 tokens"]
    assert failures(_1024=[1024, 990]) == ["vt at 1024: only 96.7% filled"]


@pytest.mark.slow
def test_it_runs(tmp_path):
    subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.fill", "--lengths", "512", "1024"),
            *("--samples", "1", "--json", str(tmp_path / "fill.json")),
        ],
        check=True,
    )
    result = json.loads((tmp_path / "fill.json").read_text())
    assert result["identical"] and not result["failures"]
    assert len(result["tasks"]) == 18
