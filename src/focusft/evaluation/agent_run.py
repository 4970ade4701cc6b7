"""Run questions with and without a tool, keep every transcript, and go on from where it stopped.

`episodes.jsonl` gets a line for each answer as the run goes: mode, question, sample, what was
found, and the whole conversation. At the end it is put into the order of the questions, and
`transcripts.md` shows some right and some wrong answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from focusft.data.multiple_choice import Question, ask
from focusft.evaluation.agent import Budget, Tool, evaluate, pass_at_k_estimate, summarise
from focusft.evaluation.agent_backend import GeneratorBackend
from focusft.evaluation.agent_transcripts import transcripts
from focusft.evaluation.questions import describe
from focusft.evaluation.run_files import (
    RESULTS_FILE,
    finished_lines,
    json_line,
    replace_file,
    write_results,
)
from focusft.evaluation.settings import check_settings, note_settings
from focusft.statistics.scores import bootstrap_interval

Mode = Literal["tools", "no_tools"]

EPISODES_FILE = "episodes.jsonl"
TRANSCRIPTS_FILE = "transcripts.md"
RULES = ("strict", "lenient")
_Key = tuple[str, str, int]


def run_agent_suite(
    questions: Sequence[Question],
    backend: GeneratorBackend,
    tool: Tool,
    out: Path,
    console: Console,
    *,
    modes: Sequence[Mode],
    samples: int,
    budget: Budget,
    batch_size: int,
    config: Mapping[str, Any],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """Let a model answer questions, and write down all that it did.

    Args:
        questions: The questions.
        backend: The model.
        tool: The tool of the mode `tools`.
        out: Folder of the run. If it holds an unfinished run with the same settings, only what is
            missing is run.
        console: Where the progress bar goes.
        modes: With the tool, without, or both.
        samples: Answers to each question in each mode.
        budget: What each answer may use.
        batch_size: Conversations that go on at one time.
        config: Resolved options, named like those of the command line.
        versions: What the run is made with.

    Returns:
        What `results.json` holds: `modes` with the summary of each (`agent.summarise`); `tasks`
        with pass@1 of each kind of question and mode; `mean` with that of all questions of a mode;
        `scores` with the share of strictly right answers to each question in each mode;
        with both modes `difference`, tools minus none, paired over questions.

    Raises:
        ConfigError: The run in `out` was begun with other settings.
        DataError: A file in `out` is damaged.
        UserError: The sandbox or the model does not work.
    """
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        "config": dict(config),
        "generator": backend.generator.describe(),
        "questions": describe(questions),
    }
    check_settings(out, settings)
    keys = [(m, q.id, s) for m in modes for q in questions for s in range(samples)]
    records = _read_episodes(out / EPISODES_FILE, set(keys))
    asked_with = _versions_of_finished(out) if len(records) == len(keys) else None
    if asked_with is None:
        (out / RESULTS_FILE).unlink(missing_ok=True)
    kinds = {question.id: question.kind or question.domain or "all" for question in questions}
    with (
        Progress(console=console) as progress,
        (out / EPISODES_FILE).open("a", encoding="utf-8", newline="\n") as lines,
    ):
        bar = progress.add_task("answers", total=len(keys), completed=len(records))
        for mode in modes:
            tools = [tool] if mode == "tools" else []
            schemas = [tool.schema for tool in tools]
            calls = backend.calls_per_turn(schemas, budget.calls_per_turn)
            answers = evaluate(
                questions,
                backend,
                prompt=partial(ask, with_tools=mode == "tools"),
                samples=samples,
                done={(question, sample) for m, question, sample in records if m == mode},
                tools=tools,
                budget=replace(budget, calls_per_turn=calls),
                batch_size=batch_size,
                error_role=backend.error_role(schemas),
            )
            for answer in answers:
                record = {"mode": mode, "kind": kinds[answer["question"]], **answer}
                if not records:
                    # Only now is it known that the model takes these conversations: until then, no
                    # setting is fixed.
                    note_settings(out, settings)
                lines.write(json_line(record))
                lines.flush()
                records[_key(record)] = record
                progress.advance(bar)
    ordered = [records[key] for key in keys]
    replace_file(out / EPISODES_FILE, map(json_line, ordered))
    results = {
        "suite": "agent",
        **_figures(ordered, modes, samples),
        **settings,
        "versions": asked_with or dict(versions),
        "seconds": round(sum(record["seconds"] for record in ordered), 3),
    }
    replace_file(out / TRANSCRIPTS_FILE, [transcripts(ordered)])
    write_results(out, results)
    return results


def _versions_of_finished(out: Path) -> dict[str, str] | None:
    """What the answers of a finished run were made with, which is not this start."""
    try:
        results = json.loads((out / RESULTS_FILE).read_text(encoding="utf-8"))
        versions: dict[str, str] = results["versions"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return versions


def results_table(results: Mapping[str, Any]) -> Table:
    """The figures of a run for a terminal."""
    table = Table("", *results["modes"], title="agent, in percent [95%]")
    modes = results["modes"].values()
    for rule in RULES:
        for name in next(iter(modes))[rule]:
            table.add_row(f"{name} {rule}", *(_shown(mode[rule][name]) for mode in modes))
    table.add_section()
    for name in next(iter(modes))["rates"]:
        label = name.replace("_", " ")
        table.add_row(label, *(f"{100 * mode['rates'][name]:.1f}" for mode in modes))
    if len(results["tasks"]) > 1:
        table.add_section()
        for task, row in results["tasks"].items():
            # The user has named the task: brackets in it are no markup.
            table.add_row(Text(f"pass@1 {task}"), *(_shown(figures) for figures in row.values()))
    if "difference" in results:
        strict = results["difference"]["strict"]
        table.caption = f"tools minus no tools, pass@1 strict: {_shown(strict)}"
    return table


def _shown(figures: Mapping[str, Any]) -> str:
    if figures["low"] is None:
        return f"{100 * figures['score']:.1f}, the same for every question"
    score, low, high = (100 * figures[name] for name in ("score", "low", "high"))
    return f"{score:.1f} \\[{low:.1f}, {high:.1f}]"


def _figures(
    records: Sequence[dict[str, Any]], modes: Sequence[Mode], samples: int
) -> dict[str, Any]:
    by_mode = {mode: [r for r in records if r["mode"] == mode] for mode in modes}
    kinds = dict.fromkeys(record["kind"] for record in records)
    figures: dict[str, Any] = {
        "tasks": {
            kind: {
                mode: _cell([r for r in answers if r["kind"] == kind])
                for mode, answers in by_mode.items()
            }
            for kind in kinds
        },
        "mean": {mode: _cell(answers) for mode, answers in by_mode.items()},
        "modes": {mode: summarise(answers, _ks(samples)) for mode, answers in by_mode.items()},
        "scores": {mode: question_means(answers, "strict") for mode, answers in by_mode.items()},
    }
    if len(modes) == 2:
        figures["difference"] = {
            rule: _difference(by_mode["tools"], by_mode["no_tools"], rule) for rule in RULES
        }
    return figures


def _cell(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """pass@1 over questions, strict and lenient."""
    cell: dict[str, Any] = {}
    for rule, suffix in zip(RULES, ("", "_lenient"), strict=True):
        right = _right(records, rule).values()
        estimate = pass_at_k_estimate([(len(answers), sum(answers)) for answers in right], 1)
        cell |= {
            f"score{suffix}": estimate.score,
            f"low{suffix}": estimate.low,
            f"high{suffix}": estimate.high,
            "n": estimate.n,
        }
    return cell


def _difference(
    with_tool: Sequence[dict[str, Any]], without: Sequence[dict[str, Any]], rule: str
) -> dict[str, Any]:
    """pass@1 with the tool minus pass@1 without, question by question."""
    own, other = question_means(with_tool, rule), question_means(without, rule)
    differences = [own[question] - other[question] for question in own]
    score = sum(differences) / len(differences)
    # Where each question gave the same difference, a bootstrap would claim certainty.
    varies = len(set(differences)) > 1
    low, high = bootstrap_interval([differences]) if varies else (None, None)
    return {"score": score, "low": low, "high": high, "n": len(differences)}


def question_means(records: Sequence[dict[str, Any]], rule: str) -> dict[str, float]:
    """The share of right answers to each question, by its id."""
    return {question: fmean(right) for question, right in _right(records, rule).items()}


def _right(records: Sequence[dict[str, Any]], rule: str) -> dict[str, list[bool]]:
    right: dict[str, list[bool]] = {}
    for record in records:
        right.setdefault(record["question"], []).append(record["right"][rule])
    return right


def _ks(samples: int) -> list[int]:
    """1, 2, 4, .. and the number of samples."""
    powers = (1 << power for power in range(samples.bit_length()))
    return sorted({*powers, samples})


def _read_episodes(file: Path, known: set[_Key]) -> dict[_Key, dict[str, Any]]:
    """The answers of an earlier start."""

    def read(record: Any) -> tuple[_Key, dict[str, Any]]:
        key = _key(record)
        if key not in known:
            raise ValueError(f"no answer {key} in this run")
        return key, record

    return finished_lines(file, read, "question")


def _key(record: Mapping[str, Any]) -> _Key:
    return record["mode"], record["question"], record["sample"]
