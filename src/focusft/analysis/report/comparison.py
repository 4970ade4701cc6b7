"""FocuSFT against plain SFT on each benchmark that both were put through."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from focusft.analysis.report.differences import Difference, Question, Scores, difference, only
from focusft.analysis.report.reading import Kind, Result, Runs

# In the order in which they decide the verdict: the paper's main benchmark first.
SUITES: tuple[tuple[Kind, str], ...] = (
    ("babilong", "BABILong"),
    ("ruler", "RULER"),
    ("agent", "Questions with a Python tool"),
)


@dataclass(frozen=True)
class SuiteComparison:
    """FocuSFT minus SFT on a benchmark.

    Attributes:
        suite: Kind of its results.
        title: Its name.
        overall: Over all tasks and lengths.
        cells: For each task and length; empty for a benchmark without them.
        lengths: For each length over all tasks.
        focusft: Labels of the runs that were compared.
        sft: Labels of the runs that they were compared with.
        paired: Whether the answers to single questions were there to compare.
    """

    suite: Kind
    title: str
    overall: Difference
    cells: dict[tuple[str, str], Difference]
    lengths: dict[str, Difference]
    focusft: tuple[str, ...]
    sft: tuple[str, ...]
    paired: bool


def compare_suites(runs: Runs) -> list[SuiteComparison]:
    """A comparison for each benchmark with results of both methods on the same questions."""
    compared = (_compare(runs.of(kind), kind, title) for kind, title in SUITES)
    return [comparison for comparison in compared if comparison]


def cell_name(task: str, length: str) -> str:
    """Name of a task at a length."""
    return f"{task} @ {length}"


def _compare(results: list[Result], suite: Kind, title: str) -> SuiteComparison | None:
    focusft = [result for result in results if result.method == "FocuSFT"]
    sft = [result for result in results if result.method == "SFT"]
    if not focusft or not sft:
        return None
    paired = all(result.items for result in (*focusft, *sft))
    first, second = (
        [_scores(result) if paired else _cell_scores(result) for result in group]
        for group in (focusft, sft)
    )

    def compare(keep: Callable[[str], bool]) -> Difference | None:
        found = difference(only(first, keep), only(second, keep))
        # Without single answers the cells' means say nothing about chance.
        return found if paired or found is None else replace(found, low=None, high=None)

    overall = compare(lambda _: True)
    if overall is None:
        return None
    tasks = focusft[0].content.get("tasks", {})
    lengths = list(dict.fromkeys(length for cells in tasks.values() for length in cells))
    by_cell = {
        (task, length): compare(lambda name, cell=cell_name(task, length): name == cell)  # type: ignore[misc]
        for task in tasks
        for length in lengths
    }
    by_length = {
        length: compare(lambda name, end=cell_name("", length): name.endswith(end))  # type: ignore[misc]
        for length in lengths
    }
    return SuiteComparison(
        suite,
        title,
        overall,
        {key: found for key, found in by_cell.items() if found},
        {key: found for key, found in by_length.items() if found},
        tuple(result.label for result in focusft),
        tuple(result.label for result in sft),
        paired,
    )


def _scores(result: Result) -> Scores:
    if result.kind != "agent":
        return {
            (cell_name(item["task"], str(item["length"])), _identity(item)): float(item["score"])
            for item in result.items
        }
    answers: dict[Question, list[bool]] = {}
    for item in result.items:
        answers.setdefault(("", str(item["question"])), []).append(item["right"]["strict"])
    return {question: sum(right) / len(right) for question, right in answers.items()}


def _identity(item: dict[str, object]) -> str:
    """The same only for the same question: ids alone repeat from one set of items to the next."""
    return json.dumps([item["id"], item.get("question"), item["references"]])


def _cell_scores(result: Result) -> Scores:
    if result.kind == "agent":
        return {("", ""): result.content["strict"]["pass@1"]["score"]}
    return {
        (cell_name(task, length), ""): figures["score"]
        for task, cells in result.content["tasks"].items()
        for length, figures in cells.items()
    }
