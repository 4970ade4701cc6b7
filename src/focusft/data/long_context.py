"""Training conversations for aggregation and tracing, and a mixture with facts in prose.

`cwe` asks for the words that a list holds most often, `vt` for the variables of a text that have a
value: the kinds of tasks that RULER (Hsieh et al. 2024, arXiv 2404.06654) has under these names,
from generators and in words of our own. Words are made up of syllables and variables have four
letters, where RULER's are English and have five, so that training and evaluation share none.

Every result depends only on the arguments.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count as numbers
from itertools import pairwise
from typing import Any

from focusft.data import synthetic
from focusft.data.contexts import (
    AnswerStyle,
    Sentences,
    check_options,
    conversation_row,
    draw_style,
    draw_tokens,
    fill_context,
    joined,
)
from focusft.data.prose import background_sentences
from focusft.data.split import Split, split_of
from focusft.data.synthetic import make_conversations
from focusft.errors import ConfigError

LIST_TASKS = ("cwe", "vt")
MIXED = "mixed"
TASKS = (*synthetic.TASKS, *LIST_TASKS)

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_COMMON_WORDS = (3, 10)
_COMMON_REPEATS = (3, 6)
_CHAIN_VARIABLES = (2, 5)
_MAX_DRAWS = 1000
_HEAD = {
    "cwe": "The list below holds some words more often than the others. Find them.",
    "vt": "The text below assigns values to variables. Follow them and answer the question.",
}


def make_long_context(
    task: str,
    *,
    split: Split = "train",
    count: int,
    context_tokens: int,
    seed: int,
    count_tokens: Callable[[str], int],
    answer_style: AnswerStyle = "short",
    min_context_tokens: int | None = None,
) -> list[dict[str, Any]]:
    """Make conversations with one question about a long context.

    Args:
        task: qa1, qa2, qa3 (see `make_conversations`), cwe, vt, or mixed: as many of each, in
            random order.
        split: Which prose, worlds and words to use; the two splits share none.
        count: Number of conversations, all different.
        context_tokens: Most tokens between `<context>` and `</context>`.
        seed: Seed of the whole set.
        count_tokens: Number of tokens of a text, without special tokens.
        answer_style: `short`, `sentence`, `reasoning` (what the answer follows from, and then the
            answer), or `mixed`.
        min_context_tokens: Draw the size of each context between this and context_tokens.

    Returns:
        Rows as from `make_conversations`.

    Raises:
        ConfigError: An argument has no such value, or context_tokens is too small.
    """
    if task not in (*TASKS, MIXED):
        raise ConfigError(f"task: '{task}' is none of {', '.join((*TASKS, MIXED))}")
    check_options(split, answer_style, count, context_tokens, min_context_tokens)

    def make(name: str, number: int) -> list[dict[str, Any]]:
        if name in synthetic.TASKS:
            return make_conversations(
                name,
                split=split,
                count=number,
                context_tokens=context_tokens,
                seed=seed,
                count_tokens=count_tokens,
                answer_style=answer_style,
                min_context_tokens=min_context_tokens,
            )
        rows: dict[str, dict[str, Any]] = {}
        rng = random.Random(f"{name}/{split}/{seed}")
        draws = 0
        while len(rows) < number:
            draws += 1
            if draws > _MAX_DRAWS:
                raise ConfigError(
                    f"context_tokens: {context_tokens} is too small for {number} different "
                    f"conversations of {name} (found {len(rows)}); raise it"
                )
            tokens = draw_tokens(context_tokens, min_context_tokens, rng)
            style = draw_style(answer_style, rng)
            draft = _common_words if name == "cwe" else _variables
            row = draft(split, tokens, style, rng, count_tokens)
            if row is not None and row["messages"][0]["content"] not in rows:
                rows[row["messages"][0]["content"]] = row
                draws = 0
        return list(rows.values())

    if task != MIXED:
        return make(task, count)
    shares = [count // len(TASKS) + (i < count % len(TASKS)) for i in range(len(TASKS))]
    rows = [
        row for name, share in zip(TASKS, shares, strict=True) if share for row in make(name, share)
    ]
    random.Random(f"mixed/{split}/{seed}").shuffle(rows)
    return rows


def made_up_words(split: Split, rng: random.Random) -> Iterator[str]:
    """Different words without end, such as "lumaku", of one split.

    They end in u, as next to no English word of three such syllables does. Where nearly all of
    that length are taken, they get longer.
    """
    taken: set[str] = set()
    syllables, failures = 3, 0
    while True:
        vowels = (*(rng.choice(_VOWELS) for _ in range(syllables - 1)), "u")
        word = "".join(rng.choice(_CONSONANTS) + vowel for vowel in vowels)
        if word not in taken and split_of(word) == split:
            taken.add(word)
            failures = 0
            yield word
        elif (failures := failures + 1) == _MAX_DRAWS:
            syllables, failures = syllables + 1, 0


def _common_words(
    split: Split,
    tokens: int,
    style: AnswerStyle,
    rng: random.Random,
    count_tokens: Callable[[str], int],
) -> dict[str, Any] | None:
    """A list of words; None where the common ones do not fit."""
    words = made_up_words(split, rng)
    common = {
        next(words): rng.randint(*_COMMON_REPEATS) for _ in range(rng.randint(*_COMMON_WORDS))
    }
    listed = [word for word, repeats in common.items() for _ in range(repeats)]
    if count_tokens(_listing(listed)) > tokens:
        return None
    # Other words stand once. Their sizes do not add up exactly: they are added a few at a time.
    while (left := tokens - count_tokens(_listing(listed))) > 0:
        more = [next(words) for _ in range(max(1, left // 16))]
        if count_tokens(_listing(listed + more)) > tokens:
            break
        listed += more
    rng.shuffle(listed)
    # Another order may have a few tokens more.
    while count_tokens(_listing(listed)) > tokens:
        others = [word for word in listed if word not in common]
        if not others:
            return None
        listed.remove(others[-1])
    answer_words = [word for word in dict.fromkeys(listed) if word in common]
    entries = [f"{number}. {word}" for number, word in enumerate(listed, 1)]
    question = f"Which {len(common)} words stand in the list most often?"
    numbered = _listing(answer_words)
    sentence = f"the {len(common)} words that appear most often in the list are: {numbered}"
    counted = "; ".join(f"{word} appears {common[word]} times" for word in answer_words)
    sentences: Sentences = [
        (entry, 0 if word in common else None) for entry, word in zip(entries, listed, strict=True)
    ]
    return _row(
        "cwe",
        split,
        sentences,
        (0,),
        question,
        _styled(style, numbered, sentence, counted),
        answer=numbered,
        count_tokens=count_tokens,
    )


def _variables(
    split: Split,
    tokens: int,
    style: AnswerStyle,
    rng: random.Random,
    count_tokens: Callable[[str], int],
) -> dict[str, Any] | None:
    """Assignments in prose; None where they do not fit."""
    names = _variable_names(split, rng)
    chains = [[next(names) for _ in range(rng.randint(*_CHAIN_VARIABLES))]]
    if rng.random() < 0.5:
        chains.append([next(names) for _ in range(len(chains[0]))])
    values = rng.sample(range(10_000, 100_000), len(chains))
    waiting = [_assignments(c, value) for c, value in zip(chains, values, strict=True)]
    asked = waiting[0].copy()
    facts: list[str] = []
    while any(waiting):
        facts.append(rng.choice([chain for chain in waiting if chain]).pop(0))
    if count_tokens(" ".join(facts)) > tokens:
        return None
    sentences = fill_context(
        facts,
        background_sentences(split),
        tokens,
        rng,
        lambda sentence: count_tokens(" " + sentence),
        count_tokens,
    )
    listed = " ".join(chains[0])
    sentence = f"{len(chains[0])} variables are assigned the value {values[0]}, they are: {listed}"
    reasons = "; ".join(fact.rstrip(".") for fact in asked)
    return _row(
        "vt",
        split,
        sentences,
        tuple(facts.index(fact) for fact in asked),
        f"Which variables are assigned the value {values[0]}?",
        _styled(style, listed, sentence, reasons),
        answer=listed,
        count_tokens=count_tokens,
    )


def _row(
    task: str,
    split: Split,
    sentences: Sentences,
    support: tuple[int, ...],
    question: str,
    reply: str,
    *,
    answer: str,
    count_tokens: Callable[[str], int],
) -> dict[str, Any]:
    context = joined(sentences)
    prompt = f"{_HEAD[task]}\n\n<context>\n{context}\n</context>\n\nQuestion: {question}"
    return conversation_row(
        task,
        split,
        prompt,
        sentences,
        support,
        question=question,
        answer=answer,
        reply=reply,
        count_tokens=count_tokens,
    )


def _styled(style: AnswerStyle, short: str, sentence: str, reasons: str) -> str:
    if style == "short":
        return short
    if style == "sentence":
        return sentence[0].upper() + sentence[1:]
    return f"{reasons}; so {sentence}"


def _listing(words: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in zip(numbers(1), words))


def _assignments(chain: list[str], value: int) -> list[str]:
    first = f"VAR {chain[0]} = {value}."
    return [first, *(f"VAR {after} = VAR {before}." for before, after in pairwise(chain))]


def _variable_names(split: Split, rng: random.Random) -> Iterator[str]:
    taken: set[str] = set()
    while True:
        name = "".join(rng.choices(_LETTERS, k=4))
        if name not in taken and split_of(name) == split:
            taken.add(name)
            yield name
