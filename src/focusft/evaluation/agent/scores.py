"""Questions to scored answers, and scored answers to rates."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from focusft.data.multiple_choice import Question
from focusft.data.rows import Message
from focusft.evaluation.agent.episodes import run_episodes
from focusft.evaluation.agent.interface import Backend, Budget, Tool
from focusft.evaluation.agent.letters import extract_lenient, extract_strict
from focusft.evaluation.agent.pass_rate import pass_at_k_estimate


def evaluate(
    questions: Sequence[Question],
    backend: Backend,
    *,
    prompt: Callable[[Question], list[Message]],
    samples: int = 1,
    done: Container[tuple[str, int]] = (),
    tools: Sequence[Tool] = (),
    budget: Budget | None = None,
    batch_size: int = 8,
    error_role: str = "tool",
) -> Iterator[dict[str, Any]]:
    """Let the model answer each question several times, and score the answers.

    Args:
        questions: The questions.
        backend: The model.
        prompt: Messages that ask a question.
        samples: Answers to each question.
        done: Pairs of question id and sample number to leave out, when a run is resumed.
        tools: As in `run_episodes`, like `budget`, `batch_size` and `error_role`.
        budget: See there.
        batch_size: See there.
        error_role: See there.

    Yields:
        A record for each answer as it ends, ready for JSON: `question`, `sample` (from 0),
        `reference`, what `strict` and `lenient` extraction found, whether that is `right`, the
        fields of the episode, and its `messages`.
    """
    tasks = [
        (question, sample)
        for question in questions
        for sample in range(samples)
        if (question.id, sample) not in done
    ]
    episodes = run_episodes(
        [prompt(question) for question, _ in tasks],
        backend,
        tools=tools,
        budget=budget,
        batch_size=batch_size,
        error_role=error_role,
        samples=[sample for _, sample in tasks],
    )
    for index, episode in episodes:
        question, sample = tasks[index]
        found = {
            "strict": extract_strict(episode.answer),
            "lenient": extract_lenient(episode.answer, question.options),
        }
        yield {
            "question": question.id,
            "sample": sample,
            "reference": question.answer,
            **found,
            "right": {name: letter == question.answer for name, letter in found.items()},
            **asdict(episode),
        }


def summarise(records: Sequence[dict[str, Any]], ks: Sequence[int] = (1,)) -> dict[str, Any]:
    """Scores and rates of a set of answers.

    Args:
        records: As `evaluate` yields them.
        ks: For which k to give pass@k.

    Returns:
        `strict` and `lenient`, each with `pass@k` as {score, low, high, n}; `rates`: `tool_use`
        (answers with a call that was made), `tool_error` (calls that failed or could not be made,
        of all calls), `no_answer` (strict and lenient) and `truncation` (answers that a budget
        ended); `answers`, and the mean `turns` and `tokens`.

    Raises:
        ConfigError: There are no records, or too few for a k.
    """
    summary: dict[str, Any] = {}
    for rule in ("strict", "lenient"):
        by_question: dict[str, list[bool]] = {}
        for record in records:
            by_question.setdefault(record["question"], []).append(record["right"][rule])
        counts = [(len(right), sum(right)) for right in by_question.values()]
        summary[rule] = {f"pass@{k}": asdict(pass_at_k_estimate(counts, k)) for k in ks}
    total = len(records)
    broken = sum(record["broken_calls"] for record in records)
    tried = broken + sum(record["calls"] for record in records)
    failed = broken + sum(record["failed_calls"] for record in records)
    summary["rates"] = {
        "tool_use": sum(record["calls"] > 0 for record in records) / total,
        "tool_error": failed / tried if tried else 0.0,
        "no_answer_strict": sum(record["strict"] is None for record in records) / total,
        "no_answer_lenient": sum(record["lenient"] is None for record in records) / total,
        "truncation": sum(record["ended"] != "answer" for record in records) / total,
    }
    summary["answers"] = total
    summary["mean_turns"] = sum(record["turns"] for record in records) / total
    summary["mean_tokens"] = sum(record["tokens"] for record in records) / total
    return summary
