"""Each claim of the paper beside what these runs measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from focusft.analysis.report.comparison import SuiteComparison
from focusft.analysis.report.numbers import (
    TIMES,
    difference_interval,
    length_name,
    over,
    percent,
    points,
    times,
)
from focusft.analysis.report.reading import Runs
from focusft.analysis.report.shifts import attention_shifts
from focusft.statistics.paired import Difference

Standing = Literal[
    "as large or larger", "same direction, smaller", "no clear difference", "opposite direction"
]


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
        on_both: Whether it takes a run of each method.
    """

    title: str
    paper: str
    measured: list[Measurement]
    command: str
    on_both: bool = True


def check_claims(runs: Runs, comparisons: Sequence[SuiteComparison]) -> list[Claim]:
    """The paper's five claims and what these runs say to each."""
    by_suite = {comparison.suite: comparison for comparison in comparisons}
    babilong, ruler, agent = (by_suite.get(suite) for suite in ("babilong", "ruler", "agent"))
    return [
        Claim(
            "Finds more facts hidden in long texts (BABILong, 4K to 32K tokens)",
            "up to +14 points over SFT",
            _babilong(babilong) if babilong else [],
            "focusft eval RUN --suite babilong --out RUN/babilong",
        ),
        Claim(
            "Counts words better in long lists (RULER, task CWE, 16K tokens)",
            "SFT 72.9 → FocuSFT 81.1 (+8.2 points)",
            _common_words(ruler) if ruler else [],
            "focusft eval RUN --suite ruler --tasks cwe --out RUN/ruler",
        ),
        Claim(
            "Answers more science questions with a Python tool (GPQA, first try)",
            "+24% relative to SFT",
            _tool_use(agent, runs) if agent else [],
            "focusft eval RUN --suite agent --questions GPQA.csv --out RUN/agent",
        ),
        Claim(
            "Wastes less attention on the first token while training (sink mass)",
            f"529{TIMES} lower",
            _ratios(
                runs, "sink_mass", 529, lambda causal, bidirectional: over(causal, bidirectional)
            ),
            "focusft probe RUN --data val.jsonl --out RUN/probe",
            on_both=False,
        ),
        Claim(
            "Pays more attention to the content of the context (context engagement)",
            f"3{TIMES} higher",
            _ratios(
                runs,
                "context_engagement",
                3,
                lambda causal, bidirectional: over(bidirectional, causal),
            ),
            "focusft probe RUN --data val.jsonl --out RUN/probe",
            on_both=False,
        ),
    ]


def _babilong(comparison: SuiteComparison) -> list[Measurement]:
    rows = [("all lengths", comparison.overall)]
    if len(comparison.lengths) > 1:
        best = max(comparison.lengths, key=lambda length: comparison.lengths[length].mean)
        label = f"best of {len(comparison.lengths)} lengths, {length_name(best)}"
        rows.append((label, comparison.lengths[best]))
    return [_points_row(label, found, comparison.paired, 0.14) for label, found in rows]


def _common_words(comparison: SuiteComparison) -> list[Measurement]:
    lengths = [length for task, length in comparison.cells if task == "cwe"]
    if not lengths:
        return []
    longest = max(lengths, key=int)
    return [
        _points_row(
            f"{length_name(longest)}, the longest",
            comparison.cells["cwe", longest],
            comparison.paired,
            0.082,
        )
    ]


def _points_row(label: str, found: Difference, paired: bool, claimed: float) -> Measurement:
    return Measurement(
        label,
        f"{percent(found.second)} → {percent(found.first)}, {points(found.mean)} points",
        _basis(found, paired),
        _standing_of(found, found.mean, claimed),
    )


def _tool_use(comparison: SuiteComparison, runs: Runs) -> list[Measurement]:
    found = comparison.overall
    sources = {Path(run.content["config"]["questions"]).name for run in runs.of("agent")}
    # GPQA comes as .csv or .parquet; .jsonl is what `focusft data make` writes.
    generated = sorted(name for name in sources if name.endswith(".jsonl"))
    label = f"first try; not GPQA but {', '.join(generated)}" if generated else "first try"
    # Relative to nothing, any gain is endless.
    gain = found.mean / found.second if found.second else math.inf * (found.mean > 0)
    relative = f", {points(gain, 0)}%" if math.isfinite(gain) else ""
    return [
        Measurement(
            label,
            f"{percent(found.second)} → {percent(found.first)}{relative}",
            _basis(found, comparison.paired),
            _standing_of(found, gain, 0.24),
        )
    ]


def _ratios(
    runs: Runs, figure: str, claimed: float, ratio: Callable[[float, float], float]
) -> list[Measurement]:
    rows = []
    for model in attention_shifts(runs):
        shift = model.figures[figure]
        value = ratio(shift.causal, shift.bidirectional)
        basis = f"{model.examples:,} conversations" if model.examples else ""
        if shift.median is not None:
            basis = f"median {times(shift.median)}, {basis}"
        if shift.low is not None and shift.high is not None:
            basis = f"95% interval {times(shift.low)} to {times(shift.high)}, {basis}"
        rows.append(
            Measurement(
                model.label,
                f"{_share(shift.causal)} → {_share(shift.bidirectional)}, {times(value)}",
                basis,
                _standing(value, claimed, none=1),
            )
        )
    return rows


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


def _standing_of(found: Difference, value: float, claimed: float) -> Standing:
    return "no clear difference" if not found.sign else _standing(value, claimed, none=0)


def _standing(value: float, claimed: float, *, none: float) -> Standing:
    """How a figure compares with the claim; `none` is the figure where there is no effect."""
    if value >= claimed:
        return "as large or larger"
    return "same direction, smaller" if value > none else "opposite direction"
