"""Each claim of the paper beside what these runs measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from focusft.analysis.report.comparison import SuiteComparison
from focusft.analysis.report.differences import Difference
from focusft.analysis.report.numbers import (
    difference_interval,
    length_name,
    percent,
    points,
    times,
)
from focusft.analysis.report.reading import Runs
from focusft.analysis.report.verdict import attention_figures

Standing = Literal["as large", "smaller", "no clear difference", "opposite", "not measured"]


@dataclass(frozen=True)
class Measurement:
    """One figure measured here.

    Attributes:
        label: What it was measured on.
        value: The figure.
        basis: Its 95% interval and what it rests on.
        standing: How it compares with the claim.
    """

    label: str
    value: str
    basis: str
    standing: Standing


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        title: What is claimed, in plain words.
        paper: The paper's figure.
        measured: What was measured here; empty where nothing was.
        command: What measures it.
    """

    title: str
    paper: str
    measured: list[Measurement]
    command: str


def check_claims(runs: Runs, comparisons: Sequence[SuiteComparison]) -> list[Claim]:
    """The paper's five claims and what these runs say to each."""
    by_suite = {comparison.suite: comparison for comparison in comparisons}
    babilong, ruler, agent = (by_suite.get(suite) for suite in ("babilong", "ruler", "agent"))
    return [
        Claim(
            "Finds more facts hidden in long texts (BABILong, 4K to 32K tokens)",
            "up to +14 points over SFT",
            _babilong(babilong) if babilong else [],
            _both("babilong"),
        ),
        Claim(
            "Counts words better in long lists (RULER, task CWE, 16K tokens)",
            "SFT 72.9 \N{RIGHTWARDS ARROW} FocuSFT 81.1 (+8.2 points)",
            _common_words(ruler) if ruler else [],
            _both("ruler --tasks cwe"),
        ),
        Claim(
            "Answers more science questions with a Python tool (GPQA, first try)",
            "+24% relative to SFT",
            _tool_use(agent) if agent else [],
            _both("agent"),
        ),
        Claim(
            "Wastes less attention on the first token while training (sink mass)",
            "529\N{MULTIPLICATION SIGN} lower",
            _ratios(runs, "sink_mass", 529, lambda causal, bidirectional: causal / bidirectional),
            "focusft probe MODEL --data val.jsonl --out RUN/probe",
        ),
        Claim(
            "Pays more attention to the content of the context (context engagement)",
            "3\N{MULTIPLICATION SIGN} higher",
            _ratios(
                runs, "context_engagement", 3, lambda causal, bidirectional: bidirectional / causal
            ),
            "focusft probe MODEL --data val.jsonl --out RUN/probe",
        ),
    ]


def _both(suite: str) -> str:
    return f"focusft eval RUN --suite {suite} --out RUN/{suite.split()[0]}, for an SFT and a FocuSFT run"


def _babilong(comparison: SuiteComparison) -> list[Measurement]:
    rows = [("all lengths", comparison.overall)]
    if len(comparison.lengths) > 1:
        rows += [(length_name(length), found) for length, found in comparison.lengths.items()]
    return [_points_row(label, found, comparison.paired, 0.14) for label, found in rows]


def _common_words(comparison: SuiteComparison) -> list[Measurement]:
    return [
        _points_row(length_name(length), found, comparison.paired, 0.082)
        for (task, length), found in comparison.cells.items()
        if task == "cwe"
    ]


def _points_row(label: str, found: Difference, paired: bool, claimed: float) -> Measurement:
    return Measurement(
        label,
        f"{percent(found.second)} \N{RIGHTWARDS ARROW} {percent(found.first)}, "
        f"{points(found.mean)} points",
        _basis(found, paired),
        _standing(found.mean, found.low, found.high, claimed, none=0),
    )


def _tool_use(comparison: SuiteComparison) -> list[Measurement]:
    found = comparison.overall
    if found.second == 0:
        value, standing = "SFT answered none: no relative gain", "no clear difference"
    else:
        gain = found.mean / found.second
        value = f"{points(gain, 0)}%"
        ends = [end / found.second if end is not None else None for end in (found.low, found.high)]
        standing = _standing(gain, *ends, 0.24, none=0)
    return [
        Measurement(
            "first try (pass@1)",
            f"{percent(found.second)} \N{RIGHTWARDS ARROW} {percent(found.first)}, {value}",
            _basis(found, comparison.paired),
            standing,  # type: ignore[arg-type]
        )
    ]


def _ratios(
    runs: Runs, figure: str, claimed: float, ratio: Callable[[float, float], float]
) -> list[Measurement]:
    return [
        Measurement(
            label,
            f"{_share(causal[figure])} \N{RIGHTWARDS ARROW} {_share(bidirectional[figure])}, "
            f"{times(ratio(causal[figure], bidirectional[figure]))}",
            "",
            _standing(ratio(causal[figure], bidirectional[figure]), None, None, claimed, none=1),
        )
        for label, causal, bidirectional in attention_figures(runs)
    ]


def _share(share: float) -> str:
    return percent(share, 1 if share >= 0.01 else 3)


def _basis(found: Difference, paired: bool) -> str:
    if not paired:
        return "no interval: items.jsonl is missing"
    if found.low is None or found.high is None:
        return f"no interval: all {found.questions:,} questions gave the same difference"
    return (
        f"95% interval {difference_interval(found.low, found.high)} points, "
        f"{found.questions:,} questions"
    )


def _standing(
    value: float, low: float | None, high: float | None, claimed: float, *, none: float
) -> Standing:
    """How a figure compares with the claim; `none` is the figure where there is no effect."""
    if low is not None and high is not None and low <= none <= high:
        return "no clear difference"
    if value >= claimed:
        return "as large"
    return "smaller" if value > none else "opposite"
