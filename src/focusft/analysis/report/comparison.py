"""FocuSFT against plain SFT on each benchmark that both were put through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean

from focusft.analysis.report.reading import Kind, Result, Runs
from focusft.errors import ConfigError
from focusft.statistics.paired import Difference, Question, Scores, difference, only

# In the order in which they decide the verdict: the paper's main benchmark first.
SUITES: tuple[tuple[Kind, str], ...] = (
    ("babilong", "BABILong"),
    ("ruler", "RULER"),
    ("agent", "tool use"),
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
        paired: Whether the answers to single questions were there to compare.
    """

    suite: Kind
    title: str
    overall: Difference
    cells: dict[tuple[str, str], Difference]
    lengths: dict[str, Difference]
    paired: bool


def compare_suites(runs: Runs) -> list[SuiteComparison]:
    """A comparison for each benchmark with results of both methods on the same questions."""
    compared = (_compare(runs.of(kind), kind, title) for kind, title in SUITES)
    return [comparison for comparison in compared if comparison]


def _compare(results: list[Result], suite: Kind, title: str) -> SuiteComparison | None:
    results = [r for r in results if r.method in ("FocuSFT", "SFT") and not r.aside]
    if suite == "agent":
        results = [result for result in results if "tools" in result.content["modes"]]
    paired = all(result.items for result in results)
    focusft, sft = (_by_run(results, method, paired) for method in ("FocuSFT", "SFT"))
    if not focusft or not sft:
        return None
    first, second = list(focusft.values()), list(sft.values())

    def compare(keep: Callable[[Question], bool]) -> Difference | None:
        found = difference(only(first, keep), only(second, keep))
        # Without single answers the cells' means say nothing about chance.
        return found if paired or found is None else replace(found, low=None, high=None)

    overall = compare(lambda _: True)
    if overall is None:
        return None
    cells = dict.fromkeys((q.task, q.length) for q in first[0] if q.length)
    lengths = dict.fromkeys(length for _, length in cells)
    by_cell = {cell: compare(lambda q, cell=cell: (q.task, q.length) == cell) for cell in cells}  # type: ignore[misc]
    by_length = {length: compare(lambda q, length=length: q.length == length) for length in lengths}  # type: ignore[misc]
    return SuiteComparison(
        suite,
        title,
        overall,
        {cell: found for cell, found in by_cell.items() if found},
        {length: found for length, found in by_length.items() if found},
        paired,
    )


def _by_run(results: list[Result], method: str, paired: bool) -> dict[str, Scores]:
    """The scores of each run of a method, from all its evaluations, such as several lengths.

    Raises:
        ConfigError: Two evaluations of a run answer the same question: which one counts?
    """
    runs: dict[str, dict[Question, float]] = {}
    sources: dict[str, list[str]] = {}
    for result in results:
        if result.method == method:
            scores = _scores(result) if paired else _cell_scores(result)
            known = runs.setdefault(result.run, {})
            earlier = sources.setdefault(result.run, [])
            if not known.keys().isdisjoint(scores):
                raise ConfigError(
                    f"{', '.join(earlier)} and {result.label}: answer the same questions of "
                    f"{result.kind}; name only the evaluations that are to be compared"
                )
            known.update(scores)
            earlier.append(result.label)
    return dict(runs)


def _scores(result: Result) -> Scores:
    if result.kind != "agent":
        return {
            Question(
                item["task"], str(item["length"]), item["id"].rpartition("/")[2], item["content"]
            ): float(item["score"])
            for item in result.items
        }
    answers: dict[Question, list[bool]] = {}
    for item in result.items:
        question = Question("", "", item["question"], result.content["questions"]["sha256"])
        answers.setdefault(question, []).append(item["right"]["strict"])
    return {question: fmean(right) for question, right in answers.items()}


def _cell_scores(result: Result) -> Scores:
    if result.kind == "agent":
        return {Question("", "", "", ""): result.content["mean"]["tools"]["score"]}
    return {
        Question(task, length, "", ""): figures["score"]
        for task, cells in result.content["tasks"].items()
        for length, figures in cells.items()
    }
