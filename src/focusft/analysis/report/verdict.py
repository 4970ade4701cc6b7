"""The answer at the top of the page: did FocuSFT beat plain SFT in these runs?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from focusft.analysis.report.comparison import SuiteComparison
from focusft.analysis.report.numbers import (
    difference_interval,
    interval,
    over,
    percent,
    points,
    sentence_case,
    times,
)
from focusft.analysis.report.reading import Result, Runs
from focusft.analysis.report.shifts import attention_shifts

Answer = Literal["yes", "no", "unclear", "untested"]


HOW_TO_TEST = (
    "To find out, train with FocuSFT and with plain SFT on the same data, run a benchmark on both, "
    'and give both runs to this report; the commands are under "What is missing" at the end.'
)


@dataclass(frozen=True)
class Verdict:
    """The answer in plain words.

    Attributes:
        answer: untested where there is nothing to compare.
        headline: One sentence.
        figures: (figure, what it is), the most telling first.
        reasons: Sentences below the figures.
    """

    answer: Answer
    headline: str
    figures: list[tuple[str, str]]
    reasons: list[str]


def judge(runs: Runs, comparisons: list[SuiteComparison]) -> Verdict:
    """Say whether FocuSFT beat SFT, by how much, and how sure that is."""
    if comparisons:
        return _judge_benchmarks(runs, comparisons)
    losses = _validation_losses(runs)
    if losses:
        return _judge_losses(runs, *losses)
    return _nothing_to_compare(runs)


def _judge_benchmarks(runs: Runs, comparisons: list[SuiteComparison]) -> Verdict:
    main, *others = comparisons
    found = main.overall
    answer: Answer = {1: "yes", -1: "no", 0: "unclear", None: "unclear"}[found.sign]  # type: ignore[assignment]
    headline = {
        "yes": f"Yes: FocuSFT beat plain SFT on {main.title}.",
        "no": f"No: plain SFT beat FocuSFT on {main.title}.",
        "unclear": f"No clear difference between FocuSFT and plain SFT on {main.title}.",
    }[answer]
    figures = [
        (f"{points(found.mean)} points", "FocuSFT minus SFT"),
        (
            f"{percent(found.second)} → {percent(found.first)}",
            "SFT → FocuSFT",
        ),
    ]
    reasons = []
    if found.low is not None and found.high is not None:
        figures.append(
            (difference_interval(found.low, found.high), "95% interval of the difference")
        )
        if answer == "unclear":
            reasons.append(
                "The interval holds zero: with this many questions the difference may be chance. "
                "More questions (samples) or more training seeds would narrow it."
            )
    elif main.paired:
        reasons.append(
            "Each question gave the same difference, so chance cannot be judged; run more of them."
        )
    else:
        reasons.append(
            "No interval can be given: items.jsonl, the single answers, is missing beside a "
            "results.json."
        )
    if main.paired:
        figures.append((f"{found.questions:,}", "questions, the same for both"))
    if found.left_out:
        reasons.append(
            f"{found.left_out:,} more questions were not answered by every run and do not count."
        )
    reasons += [_other(comparison) for comparison in others]
    trainings = max(found.runs)
    reasons.append(
        "One training run of each: the interval says how other questions would change the "
        "difference, not how another training seed would."
        if trainings == 1
        else f"Averaged over {found.runs[0]} FocuSFT and {found.runs[1]} SFT runs; the interval "
        "covers other questions and, roughly, other runs."
    )
    return Verdict(answer, headline, figures, reasons + _attention(runs))


def _other(comparison: SuiteComparison) -> str:
    found = comparison.overall
    words = {1: "FocuSFT better", -1: "SFT better", 0: "no clear difference", None: "unclear"}
    text = (
        f"{sentence_case(comparison.title)}: {words[found.sign]}, "
        f"{percent(found.second)} → {percent(found.first)}, {points(found.mean)} points"
    )
    if found.low is not None and found.high is not None:
        text += f" (95% interval {difference_interval(found.low, found.high)})"
    return text + "."


def _validation_losses(runs: Runs) -> tuple[float, float] | None:
    losses: dict[str, list[float]] = {"FocuSFT": [], "SFT": []}
    for result in runs.of("training"):
        if result.method in losses and "eval_loss" in result.content["metrics"]:
            losses[result.method].append(result.content["metrics"]["eval_loss"])
    if not all(losses.values()):
        return None
    focusft, sft = (sum(values) / len(values) for values in losses.values())
    return focusft, sft


def _judge_losses(runs: Runs, focusft: float, sft: float) -> Verdict:
    better = "FocuSFT" if focusft < sft else "plain SFT"
    return Verdict(
        "untested",
        "Whether FocuSFT beat plain SFT cannot be told yet: no benchmark was run on both.",
        [
            (
                f"{sft:.3f} → {focusft:.3f}",
                "validation loss, SFT → FocuSFT",
            ),
        ],
        [
            f"The loss on validation data is lower for {better}; a lower loss does not have to "
            "mean better answers, and one number each has no interval.",
            *_attention(runs),
        ],
    )


def _nothing_to_compare(runs: Runs) -> Verdict:
    methods = {
        result.method for result in runs.of("training", "demo", "babilong", "ruler", "agent")
    }
    missing = [name for name in ("SFT", "FocuSFT") if name not in methods]
    if missing == ["SFT"]:
        why = "no run of plain SFT was given to compare with"
    elif missing == ["FocuSFT"]:
        why = "no run of FocuSFT was given"
    elif missing:
        why = "no training run was given"
    else:
        evaluated = runs.of("babilong", "ruler", "agent")
        why = (
            "the runs did not answer the same questions of any benchmark"
            if evaluated
            else "no benchmark was run"
        )
    demos = runs.of("demo")
    if len(demos) == 1 and missing == ["SFT"]:
        return _judge_demo(runs, demos[0])
    return Verdict(
        "untested",
        f"Whether FocuSFT beats plain SFT cannot be told: {why}.",
        [],
        [HOW_TO_TEST, *_attention(runs)],
    )


def _judge_demo(runs: Runs, demo: Result) -> Verdict:
    before, after = demo.content["before"], demo.content["after"]
    learned = after["accuracy_low"] > before["accuracy_high"]
    got = "The training worked" if learned else "The training changed little"
    return Verdict(
        "untested",
        f"{got}. Whether FocuSFT beats plain SFT was not tested: the demo trains FocuSFT only.",
        [
            (
                f"{percent(before['accuracy'], 0)} → {percent(after['accuracy'], 0)}",
                "right answers to new questions, before → after training",
            ),
            (
                interval(after["accuracy_low"], after["accuracy_high"]),
                f"95% interval after training ({after['examples']} questions)",
            ),
        ],
        [HOW_TO_TEST, *_attention(runs)],
    )


def _attention(runs: Runs) -> list[str]:
    """What FocuSFT's mask does to attention, from the first model it was measured on."""
    shifts = attention_shifts(runs)
    if not shifts:
        return []
    shift = shifts[0]
    sink, engagement = shift.figures["sink_mass"], shift.figures["context_engagement"]
    less = times(over(sink.causal, sink.bidirectional))
    return [
        f"Attention ({shift.label}): where SFT's mask spends {percent(sink.causal, 0)} of the "
        "answers' attention on the very first token, which says nothing, FocuSFT's mask spends "
        f"{percent(sink.bidirectional, 2)} ({less} less), and the share for the content of the "
        f"context goes from {percent(engagement.causal, 0)} to "
        f"{percent(engagement.bidirectional, 0)}. This is the paper's explanation; the report "
        "shows the shift, not that it causes the scores."
    ]
