"""Paired differences between two runs over the same items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from focusft.errors import ConfigError, DataError
from focusft.evaluation.items import SUITES, ItemSet, length_name
from focusft.evaluation.run import ITEMS_FILE
from focusft.evaluation.run_files import RESULTS_FILE
from focusft.evaluation.settings import differences
from focusft.statistics.paired import Question, difference

# What a manifest says of the items after they are made.
_MADE = ("prompts_sha256", "cells")
# What it says before; items of two runs can agree only where these do.
_PLANNED = ("suite", "tasks", "lengths", "samples", "seed")


@dataclass(frozen=True)
class _Row:
    """The part of an item's line that a comparison needs."""

    question: Question
    score: float
    lenient: float | None


@dataclass(frozen=True)
class _Pair:
    row: _Row
    baseline: _Row

    @property
    def task(self) -> str:
        return self.row.question.task

    @property
    def length(self) -> str:
        return self.row.question.length


def compare_runs(run: Path, baseline: Path) -> dict[str, Any]:
    """Score of a run minus that of another one, item by item.

    Intervals are percentile bootstraps over items. Over several lengths, an item is drawn with all
    its lengths, which share its story; over several tasks, items are drawn within their task, and
    every task weighs the same.

    Args:
        run: Folder of a finished run.
        baseline: Folder of the finished run that is subtracted.

    Returns:
        "cells": {task: {length: figures}}, "tasks": {task: figures}, "lengths": {length: figures},
        "overall": figures. Figures: "difference", "low" and "high" (None where all differences are
        alike), "n", and how many items are "better" and "worse"; for babilong the same with
        "_lenient".

    Raises:
        ConfigError: The runs do not have the same items.
        DataError: A run is not finished, or a file of it cannot be read.
    """
    pairs = _paired(run, baseline)
    tasks = list(dict.fromkeys(pair.task for pair in pairs))
    lengths = list(dict.fromkeys(pair.length for pair in pairs))
    return {
        "run": str(run),
        "baseline": str(baseline),
        "cells": {
            task: {
                length: _figures(p for p in pairs if (p.task, p.length) == (task, length))
                for length in lengths
            }
            for task in tasks
        },
        "tasks": {task: _figures(p for p in pairs if p.task == task) for task in tasks},
        "lengths": {length: _figures(p for p in pairs if p.length == length) for length in lengths},
        "overall": _figures(pairs),
    }


def check_baseline(baseline: Path, items: ItemSet) -> None:
    """Check, before a run, that its results can be compared with those of a finished one.

    Args:
        baseline: Folder of the finished run.
        items: Those of the run to come.

    Raises:
        ConfigError: The finished run has other items.
        DataError: The folder holds no finished run of babilong or ruler.
    """
    results, _ = _read_baseline(baseline)
    here, there = (
        {name: made_from[name] for name in _PLANNED}
        for made_from in (items.header, results["items"])
    )
    if items.published:
        # Published items follow no seed.
        there["seed"] = here["seed"]
    # In whatever order the tasks and lengths were named.
    for name in ("tasks", "lengths"):
        here[name], there[name] = sorted(here[name]), sorted(there[name])
    for name, other, own in differences(there, here):
        raise ConfigError(
            f"--compare: {baseline} has not the items of this run: {name} is {json.dumps(other)} "
            f"there and {json.dumps(own)} here; run both with the same options"
        )


def comparison_table(comparison: dict[str, Any]) -> Table:
    """The differences for a terminal, run minus baseline; bold where the interval leaves out 0."""
    lengths = list(comparison["lengths"])
    table = Table(
        "",
        title="difference in points [95%]",
    )
    for name in [*(length_name(int(length)) for length in lengths), "all"]:
        table.add_column(name, justify="right", no_wrap=True)
    for task, row in comparison["cells"].items():
        cells = [*(row[length] for length in lengths), comparison["tasks"][task]]
        table.add_row(task, *map(_shown, cells))
    table.add_section()
    # A path may look like markup.
    table.caption = Text(f"{comparison['run']} minus {comparison['baseline']}")
    table.add_row("mean", *map(_shown, [*comparison["lengths"].values(), comparison["overall"]]))
    return table


def _shown(figures: dict[str, Any]) -> str:
    low, high = figures["low"], figures["high"]
    if low is None or high is None:
        return f"{100 * figures['difference']:+.1f} -"
    text = f"{100 * figures['difference']:+.1f} \\[{100 * low:+.0f}, {100 * high:+.0f}]"
    return f"[bold]{text}[/bold]" if low > 0 or high < 0 else text


def _figures(pairs: Iterable[_Pair]) -> dict[str, Any]:
    pairs = list(pairs)
    figures = _of_rule([(p.row.question, p.row.score, p.baseline.score) for p in pairs])
    figures["n"] = len(pairs)
    lenient = [
        (pair.row.question, pair.row.lenient, pair.baseline.lenient or 0.0)
        for pair in pairs
        if pair.row.lenient is not None
    ]
    if lenient:
        figures |= {f"{name}_lenient": value for name, value in _of_rule(lenient).items()}
    return figures


def _of_rule(scores: list[tuple[Question, float, float]]) -> dict[str, Any]:
    found = difference(
        [{question: score for question, score, _ in scores}],
        [{question: baseline for question, _, baseline in scores}],
    )
    assert found is not None  # both have every question
    return {
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "better": sum(score > baseline for _, score, baseline in scores),
        "worse": sum(score < baseline for _, score, baseline in scores),
    }


def _paired(run: Path, baseline: Path) -> list[_Pair]:
    others, other_rows = _read_baseline(baseline)
    results, rows = read_results(run), _read_rows(run)
    if problem := _mismatch(rows, other_rows):
        made_from, others_made_from = (
            {name: value for name, value in r["items"].items() if name not in _MADE}
            for r in (results, others)
        )
        for name, here, there in differences(made_from, others_made_from):
            problem = f"{name} is {json.dumps(there)} there and {json.dumps(here)} here"
            break
        raise ConfigError(
            f"--compare: {baseline} has not the items of {run}: {problem}; "
            "run both with the same options"
        )
    return [_Pair(row, other_rows[name]) for name, row in rows.items()]


def _mismatch(rows: dict[str, _Row], others: dict[str, _Row]) -> str:
    for name in dict.fromkeys([*rows, *others]):
        if name not in rows or name not in others:
            return f"item {name} is in one only"
        if rows[name].question != others[name].question:
            return f"item {name} has another prompt"
    return ""


def _read_baseline(folder: Path) -> tuple[dict[str, Any], dict[str, _Row]]:
    results = read_baseline(folder, SUITES)
    try:
        return results, _read_rows(folder)
    except DataError as error:
        raise DataError(f"--compare: {error}") from error


def read_baseline(folder: Path, suites: Sequence[str]) -> dict[str, Any]:
    """The results of the finished run that another one is to be compared with.

    Raises:
        DataError: There are none, or they are of no such suite.
    """
    try:
        results = read_results(folder)
    except DataError as error:
        raise DataError(f"--compare: {error}") from error
    if results.get("suite") not in suites:
        raise DataError(
            f"--compare: {folder}: is not of 'focusft eval --suite {' or '.join(suites)}'; name "
            "the --out folder of such a run"
        )
    return results


def read_results(folder: Path) -> dict[str, Any]:
    """The results of a finished run.

    Raises:
        DataError: There are none.
    """
    file = folder / RESULTS_FILE
    try:
        results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{folder}: no finished run (no {RESULTS_FILE}); run it first") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); run it again") from error
    return results


def _read_rows(folder: Path) -> dict[str, _Row]:
    file = folder / ITEMS_FILE
    rows: dict[str, _Row] = {}
    try:
        with file.open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                row = json.loads(line)
                content = json.dumps([row["prompt"], row["answer_prefix"], row["references"]])
                rows[row["id"]] = _Row(
                    Question(
                        task=row["task"],
                        length=str(row["length"]),
                        # The same at another length is the same story, or the same needles.
                        story=row["id"].rpartition("/")[2],
                        content=hashlib.sha256(content.encode()).hexdigest(),
                    ),
                    score=row["score"],
                    lenient=row["score_lenient"],
                )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); run it again") from error
    return rows
