"""Contexts of generated conversations: facts among other sentences, and the row made of them."""

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Literal

from focusft.data.split import SPLITS, Split
from focusft.errors import ConfigError

AnswerStyle = Literal["short", "sentence", "reasoning", "mixed"]
# What "mixed" draws from, evenly.
ANSWER_STYLES: tuple[AnswerStyle, ...] = ("short", "sentence", "reasoning")

# Sentences of a context in order, each with the index of the fact that it is, or None.
Sentences = list[tuple[str, int | None]]


def check_options(
    split: str, answer_style: str, count: int, context_tokens: int, min_context_tokens: int | None
) -> None:
    """Check what all tasks share.

    Raises:
        ConfigError: An argument has no such value.
    """
    if split not in SPLITS:
        raise ConfigError(f"split: '{split}' is none of {', '.join(SPLITS)}")
    if answer_style not in (*ANSWER_STYLES, "mixed"):
        styles = ", ".join((*ANSWER_STYLES, "mixed"))
        raise ConfigError(f"answer_style: '{answer_style}' is none of {styles}")
    if count < 1:
        raise ConfigError(f"count: {count} is less than 1; ask for at least one conversation")
    if min_context_tokens is not None and not 0 < min_context_tokens <= context_tokens:
        raise ConfigError(
            f"min_context_tokens: {min_context_tokens} is not between 1 and context_tokens, "
            f"{context_tokens}"
        )


def draw_tokens(context_tokens: int, min_context_tokens: int | None, rng: random.Random) -> int:
    """The size of a context."""
    if min_context_tokens is None:
        return context_tokens
    return rng.randint(min_context_tokens, context_tokens)


def draw_style(answer_style: AnswerStyle, rng: random.Random) -> AnswerStyle:
    """The style of an answer."""
    return rng.choice(ANSWER_STYLES) if answer_style == "mixed" else answer_style


def fill_context(
    facts: list[str],
    prose: tuple[str, ...],
    context_tokens: int,
    rng: random.Random,
    size: Callable[[str], int],
    count_tokens: Callable[[str], int],
) -> Sentences:
    """Hide facts in prose.

    Args:
        facts: Sentences that keep their order.
        prose: Sentences of the background.
        context_tokens: Most tokens of the context.
        rng: Source of every choice.
        size: Tokens of a sentence within a text.
        count_tokens: Tokens of a text.

    Returns:
        Sentences of the context in order, each with its index in facts or None.
    """
    used = sum(size(fact) for fact in facts)
    start = rng.randrange(len(prose))
    background: list[str] = []
    while True:
        sentence = prose[(start + len(background)) % len(prose)]
        used += size(sentence)
        if used > context_tokens:
            break
        background.append(sentence)
    # Gaps with replacement, kept in order: two facts may share one, as in BABILong.
    gaps = sorted(rng.randint(0, len(background)) for _ in facts)
    sentences = _interleave(facts, background, gaps)
    # Sizes do not add up exactly for every tokenizer.
    while background and count_tokens(" ".join(text for text, _ in sentences)) > context_tokens:
        background.pop()
        gaps = [min(gap, len(background)) for gap in gaps]
        sentences = _interleave(facts, background, gaps)
    return sentences


def _interleave(facts: list[str], background: list[str], gaps: list[int]) -> Sentences:
    """Put fact i before background sentence gaps[i] (after the last one for gaps[i] == len)."""
    sentences: Sentences = []
    done = 0
    for position, sentence in enumerate([*background, None]):
        upto = bisect_right(gaps, position)
        sentences += [(facts[index], index) for index in range(done, upto)]
        done = upto
        if sentence is not None:
            sentences.append((sentence, None))
    return sentences


def joined(sentences: Sentences) -> str:
    """The text of a context."""
    return " ".join(text for text, _ in sentences)


def conversation_row(
    task: str,
    split: Split,
    prompt: str,
    sentences: Sentences,
    support: Sequence[int],
    *,
    question: str,
    answer: str,
    reply: str,
    count_tokens: Callable[[str], int],
) -> dict[str, Any]:
    """The row of a data set.

    Args:
        task: Name of the task.
        split: Of the prose, worlds and words.
        prompt: The user turn, with the context between `<context>` and `</context>`.
        sentences: The context.
        support: Indices of the facts that the answer follows from.
        question: The question.
        answer: The label.
        reply: The assistant turn.
        count_tokens: Tokens of a text.
    """
    spans = _needle_spans(prompt, sentences, support)
    return {
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": reply},
        ],
        "meta": {
            "task": task,
            "split": split,
            "question": question,
            "answer": answer,
            "needles": [prompt[start:end] for start, end in spans],
            "needle_spans": spans,
            "facts": [text for text, index in sentences if index is not None],
            "context_tokens": count_tokens(joined(sentences)),
        },
    }


def _needle_spans(prompt: str, sentences: Sentences, support: Sequence[int]) -> list[list[int]]:
    """Where supporting facts stand in a prompt: [start, end) of each."""
    opening = "<context>\n"
    offset = prompt.rindex(opening) + len(opening)
    starts = [0, *accumulate(len(text) + 1 for text, _ in sentences)]
    return [
        [offset + start, offset + start + len(text)]
        for start, (text, index) in zip(starts, sentences, strict=False)
        if index in support
    ]
