"""Paired differences between two runs of the agent suite over the same questions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from focusft.data import multiple_choice
from focusft.errors import ConfigError, DataError
from focusft.evaluation.agent_run import EPISODES_FILE, RULES, Mode, question_means
from focusft.evaluation.compare import read_baseline, read_results
from focusft.evaluation.questions import describe
from focusft.evaluation.settings import differences
from focusft.statistics.paired import Question, Scores, difference

# Options that may explain a difference as well as the models do.
_TELLING = (
    "samples",
    "seed",
    "temperature",
    "top_p",
    "max_new_tokens",
    "thinking_budget",
    "turns",
    "max_context",
    "output_characters",
    "prefill",
    "dtype",
)

_Answer = dict[str, Any]


def compare_agent_runs(run: Path, baseline: Path) -> dict[str, Any]:
    """pass@1 of a run minus that of another one, question by question.

    Every question weighs the same, however often it was answered. Intervals are percentile
    bootstraps over questions.

    Args:
        run: Folder of a finished run.
        baseline: Folder of the finished run that is subtracted.

    Returns:
        "modes": {mode: {"strict": figures, "lenient": figures}} of the modes that both have;
        "tasks": {kind: {mode: strict figures}}; "settings": {option: [run's, baseline's]} where
        they differ. Figures: "score", "baseline", "difference", "low" and "high" (None where all
        differences are alike), "relative" (difference over baseline; None over 0), "n", and how
        many questions are "better" and "worse".

    Raises:
        ConfigError: The runs do not have the same questions, or no mode in common.
        DataError: A run is not finished, or a file of it cannot be read.
    """
    others, results = read_baseline(baseline, ("agent",)), read_results(run)
    modes = [mode for mode in results["modes"] if mode in others["modes"]]
    _check(baseline, others, results["questions"], modes)
    asked = results["questions"]["n"]
    ours, theirs = (_read_answers(folder, modes, asked) for folder in (run, baseline))
    kinds = list(dict.fromkeys(answer["kind"] for answer in ours))
    return {
        "run": str(run),
        "baseline": str(baseline),
        "modes": {
            mode: {
                rule: _figures(_only(ours, mode, kinds), _only(theirs, mode, kinds), rule)
                for rule in RULES
            }
            for mode in modes
        },
        "tasks": {
            kind: {
                mode: _figures(_only(ours, mode, [kind]), _only(theirs, mode, [kind]), "strict")
                for mode in modes
            }
            for kind in kinds
        },
        "settings": {
            name: [own, other]
            for name, own, other in differences(results["config"], others["config"])
            if name in _TELLING
        },
    }


def check_agent_baseline(
    baseline: Path, questions: Sequence[multiple_choice.Question], modes: Sequence[Mode]
) -> None:
    """Check, before a run, that its results can be compared with those of a finished one.

    Args:
        baseline: Folder of the finished run.
        questions: Those of the run to come.
        modes: Its modes.

    Raises:
        ConfigError: The finished run has other questions, or no mode in common.
        DataError: The folder holds no finished run of the agent suite.
    """
    others = read_baseline(baseline, ("agent",))
    shared = [mode for mode in modes if mode in others["modes"]]
    _check(baseline, others, describe(questions), shared)


def comparison_table(comparison: dict[str, Any]) -> Table:
    """The differences for a terminal, run minus baseline; bold where the interval leaves out 0."""
    table = Table("", title="pass@1 in percent, difference in points [95%]")
    for name in ("run", "baseline", "difference", "relative"):
        table.add_column(name, justify="right", no_wrap=True)
    for mode, rules in comparison["modes"].items():
        for rule, figures in rules.items():
            table.add_row(f"{_words(mode)}, {rule}", *_shown(figures))
    for mode in comparison["modes"]:
        table.add_section()
        for kind, figures in comparison["tasks"].items():
            # The user has named the kind: brackets in it are no markup.
            table.add_row(Text(f"{_words(mode)}, {kind}"), *_shown(figures[mode]))
    caption = f"{comparison['run']} minus {comparison['baseline']}"
    for name, (own, other) in comparison["settings"].items():
        caption += f"\n--{name}: {own}, baseline {other}"
    table.caption = Text(caption)
    return table


def _check(
    baseline: Path, others: dict[str, Any], questions: dict[str, Any], modes: Sequence[str]
) -> None:
    if questions != others["questions"]:
        there, here = others["questions"]["n"], questions["n"]
        problem = "they differ" if there == here else f"{there} there, {here} here"
        raise ConfigError(
            f"--compare: {baseline} has not the questions of this run ({problem}); run both with "
            "the same --questions, --tasks and --seed"
        )
    if not modes:
        only = " and ".join(map(_words, others["modes"]))
        raise ConfigError(
            f"--compare: {baseline} has {only} only, and this run has not; run both with --both"
        )


def _only(answers: list[_Answer], mode: str, kinds: list[str]) -> list[_Answer]:
    return [answer for answer in answers if answer["mode"] == mode and answer["kind"] in kinds]


def _figures(ours: list[_Answer], theirs: list[_Answer], rule: str) -> dict[str, Any]:
    own, other = _scores(ours, rule), _scores(theirs, rule)
    found = difference([own], [other])
    assert found is not None  # both have every question
    return {
        "score": found.first,
        "baseline": found.second,
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "relative": found.mean / found.second if found.second else None,
        "n": found.questions,
        "better": sum(own[question] > other[question] for question in own),
        "worse": sum(own[question] < other[question] for question in own),
    }


def _scores(answers: list[_Answer], rule: str) -> Scores:
    means = question_means(answers, rule)
    return {Question("", "", question, ""): mean for question, mean in means.items()}


def _read_answers(folder: Path, modes: Sequence[str], asked: int) -> list[_Answer]:
    file = folder / EPISODES_FILE
    names = ("mode", "kind", "question", "right")
    try:
        with file.open(encoding="utf-8", newline="\n") as lines:
            answers = [{name: row[name] for name in names} for row in map(json.loads, lines)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); run it again") from error
    for mode in modes:
        answered = {answer["question"] for answer in answers if answer["mode"] == mode}
        if len(answered) != asked:
            raise DataError(
                f"{file}: {len(answered)} of {asked} questions are answered; run it again"
            )
    return answers


def _words(mode: str) -> str:
    return mode.replace("_", " ")


def _shown(figures: dict[str, Any]) -> list[str]:
    low, high, relative = figures["low"], figures["high"], figures["relative"]
    points = f"{100 * figures['difference']:+.1f}"
    if low is not None and high is not None:
        points += f" \\[{100 * low:+.0f}, {100 * high:+.0f}]"
        points = f"[bold]{points}[/bold]" if low > 0 or high < 0 else points
    return [
        f"{100 * figures['score']:.1f}",
        f"{100 * figures['baseline']:.1f}",
        points,
        "-" if relative is None else f"{100 * relative:+.0f}%",
    ]
