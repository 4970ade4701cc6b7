"""Single answers and single tokens: what the figures are made of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from focusft.analysis.report.attention_charts import CONDITIONS
from focusft.analysis.report.numbers import percent
from focusft.analysis.report.reading import Result, Runs

SHOWN = 6
_LONGEST = 300
# Shades of attention: 0 is none, the last is _STRONGEST times an even share or more.
SHADES = 8
_STRONGEST = 16


@dataclass(frozen=True)
class Answer:
    """What one model wrote; `right` is None where the answer is right in part."""

    label: str
    output: str
    right: bool | None


@dataclass(frozen=True)
class Answered:
    """A question with the answers of several models."""

    task: str
    where: str
    question: str
    reference: str
    answers: list[Answer]


@dataclass(frozen=True)
class Examples:
    """Some of the questions.

    Attributes:
        shown: At most SHOWN of them, those with answers of different worth first, task by task.
        total: How many there are.
        differing: How many have answers of different worth.
    """

    shown: list[Answered]
    total: int
    differing: int


def demo_examples(demo: Result) -> Examples | None:
    """The demo's first questions with the answers before and after training."""
    questions = demo.content.get("questions", [])
    answered = [
        Answered(
            "",
            "",
            question["question"],
            question["answer"],
            [
                Answer(
                    when,
                    _cut(demo.content[when]["answers"][index]),
                    demo.content[when]["right"][index],
                )
                for when in ("before", "after")
            ],
        )
        for index, question in enumerate(questions)
    ]
    return _choose(answered)


def suite_examples(results: Sequence[Result]) -> Examples | None:
    """Questions that the most runs answered, those where runs differ first."""
    asked: dict[tuple[str, str], list[tuple[Result, dict[str, Any]]]] = {}
    for result in results:
        for item in result.items:
            asked.setdefault((item["id"], item["content"]), []).append((result, item))
    most = max(map(len, asked.values()), default=0)
    return _choose([_answered(same) for same in asked.values() if len(same) == most])


def _answered(same: Sequence[tuple[Result, dict[str, Any]]]) -> Answered:
    _, item = same[0]
    return Answered(
        item["task"],
        f"{item['task']}, {item['length']} tokens",
        item.get("question") or _end(item["prompt"]),
        ", ".join(map(str, item["references"])),
        [
            Answer(result.label, _cut(other["output"]), _is_right(other["score"]))
            for result, other in same
        ],
    )


def _choose(answered: list[Answered]) -> Examples | None:
    if not answered:
        return None
    differing = [one for one in answered if len({answer.right for answer in one.answers}) > 1]
    alike = [one for one in answered if len({answer.right for answer in one.answers}) == 1]
    return Examples(
        (_task_by_task(differing) + _task_by_task(alike))[:SHOWN], len(answered), len(differing)
    )


def _task_by_task(answered: list[Answered]) -> list[Answered]:
    """The first of each task, then the second of each, and so on."""
    seen: Counter[str] = Counter()
    ranked = []
    for one in answered:
        ranked.append((seen[one.task], one))
        seen[one.task] += 1
    return [one for _, one in sorted(ranked, key=lambda pair: pair[0])]


def _is_right(score: float) -> bool | None:
    return bool(score) if score in (0, 1) else None


def _cut(output: str) -> str:
    output = output.strip()
    if len(output) <= _LONGEST:
        return output or "(nothing)"
    return (
        f"{output[:_LONGEST]} \N{HORIZONTAL ELLIPSIS} ({len(output) - _LONGEST:,} more characters)"
    )


def _end(prompt: str) -> str:
    return "\N{HORIZONTAL ELLIPSIS} " + prompt[-160:].strip()


@dataclass(frozen=True)
class Token:
    """A token and the attention that it receives.

    Attributes:
        text: As the model reads it.
        shade: From 0 to SHADES.
        share: Its share of all attention, for the pointer.
        is_needle: It belongs to a fact that the question asks for.
    """

    text: str
    shade: int
    share: str
    is_needle: bool


@dataclass(frozen=True)
class TokenView:
    """One example's tokens under one mask."""

    title: str
    tokens: list[Token]


def token_views(runs: Runs) -> list[TokenView]:
    """The first example of each probe, under each condition."""
    return [
        TokenView(f"{result.label}, {name}", _shaded(example, example["received"][condition]))
        for result in runs.of("probe")
        if (example := result.content.get("tokens_of_first_example"))
        for condition, name in CONDITIONS.items()
        if condition in example["received"]
    ]


def _shaded(example: Mapping[str, Any], shares: Sequence[float]) -> list[Token]:
    tokens = example["text"]
    return [
        Token(
            token.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n"),
            shade(share * len(tokens)),
            percent(share, 2),
            is_needle,
        )
        for token, share, is_needle in zip(tokens, shares, example["is_needle"], strict=True)
    ]


def shade(times_even: float) -> int:
    """Shade of a token by its attention in multiples of an even share, on a log scale."""
    return min(SHADES, round(SHADES * math.log1p(times_even) / math.log1p(_STRONGEST)))
