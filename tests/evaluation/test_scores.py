"""Scores of a table of outputs, each with the rule that decides about it."""

import json
from pathlib import Path

import pytest

from focusft.errors import ConfigError
from focusft.evaluation import babilong, ruler

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parent / "score_cases.jsonl").read_text().splitlines()
]


def test_babilong_scores():
    wrong = [
        (row, strict)
        for row in ROWS
        if row["suite"] == "babilong"
        for strict in (True, False)
        if babilong.score(row["task"], row["question"], row["target"], row["output"], strict=strict)
        != row["strict" if strict else "lenient"]
    ]
    assert not wrong


def test_ruler_scores():
    wrong = [
        row
        for row in ROWS
        if row["suite"] == "ruler"
        and ruler.score(row["task"], row["references"], row["output"])
        != pytest.approx(row["score"])
    ]
    assert not wrong


def test_the_table_is_large_and_covers_every_task():
    assert len(ROWS) >= 300
    tasks = {(row["suite"], row["task"]) for row in ROWS}
    assert {task for suite, task in tasks if suite == "babilong"} == set(babilong.DATA_TASKS)
    assert {task for suite, task in tasks if suite == "ruler"} == set(ruler.TASKS)


def test_unknown_tasks_are_named():
    with pytest.raises(ConfigError, match="'qa11'"):
        babilong.score("qa11", "", "", "")
    with pytest.raises(ConfigError, match="'niah'"):
        ruler.score("niah", ["1"], "1")
    with pytest.raises(ConfigError, match="references"):
        ruler.score("vt", [], "1")
