"""RULER's needles in haystacks (`niah_*`) and chains of assignments (`vt`)."""

from __future__ import annotations

import random
import string
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from focusft.evaluation.haystack import (
    CountTokens,
    Draft,
    Haystack,
    Prose,
    fit,
    insert_at,
    rng_for,
)
from focusft.evaluation.word_lists import WordList

Kind = Literal["words", "numbers", "uuids"]

NOISE = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
# Needles lie at some of 40 depths, evenly from the beginning to the end of an essay.
_DEPTHS = tuple(round(100 * step / 39) / 100 for step in range(40))

_NIAH = (
    "{some} special magic {values} {be} hidden within the following text. Make sure to memorize "
    "it. I will quiz you about the {values} afterwards.\n{context}\n"
    "What {be_all} the special magic {values} for {query} mentioned in the provided text?"
)
_NIAH_PREFIX = " The special magic {values} for {query} mentioned in the provided text {be}"
_VT = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    "{context}\nQuestion: Find all variables that are assigned the value {value} in the text above."
)
_VT_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {number} "
    "variables are assigned the value {value}, they are: "
)
_HOPS = 4
# The one-shot example of `vt` has at most this many tokens, in the published code 500.
_EXAMPLE_TOKENS = 500
# A haystack whose units are large is filled up with noise when more than this part stays empty.
_MOST_EMPTY = 0.02


@dataclass(frozen=True)
class NeedleTask:
    """Parameters of a needle task.

    Attributes:
        haystack: What the needles are hidden in; "needle" is other needles.
        keys: Kind of the keys.
        values: Kind of the values.
        num_keys: Needles with different keys, at least `num_queries`.
        num_values: Values per key.
        num_queries: Keys that the question is about.
    """

    haystack: Literal["noise", "essay", "needle"]
    keys: Kind = "words"
    values: Kind = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1


NEEDLE_TASKS = {
    "niah_single_1": NeedleTask("noise"),
    "niah_single_2": NeedleTask("essay"),
    "niah_single_3": NeedleTask("essay", values="uuids"),
    "niah_multikey_1": NeedleTask("essay", num_keys=4),
    "niah_multikey_2": NeedleTask("needle"),
    "niah_multikey_3": NeedleTask("needle", keys="uuids", values="uuids"),
    "niah_multivalue": NeedleTask("essay", num_values=4),
    "niah_multiquery": NeedleTask("essay", num_keys=4, num_queries=4),
}


def draft_needles(
    task: NeedleTask, key: str, budget: int, essays: Prose, words: WordList, count: CountTokens
) -> Draft:
    """Hide needles in noise, in essays or among other needles.

    Args:
        task: The task's parameters.
        key: Seed of this item.
        budget: Most tokens of the whole prompt.
        essays: The haystack of the essay tasks, from its beginning.
        words: Words of the keys.
        count: Tokens of a whole prompt.

    Raises:
        DoesNotFitError: The prompt without a haystack is longer.
    """
    rng = rng_for(key)
    keys: list[str] = []
    while len(keys) < task.num_keys:
        drawn = _draw(task.keys, words, rng)
        if drawn not in keys:
            keys.append(drawn)
    values = {k: [_draw(task.values, words, rng) for _ in range(task.num_values)] for k in keys}
    needles = [_needle(task, k, value) for k in keys for value in values[k]]
    rng.shuffle(needles)
    asked = rng.sample(keys, task.num_queries)
    depths = sorted(rng.sample(_DEPTHS, len(needles)))
    places = sorted(rng.random() for _ in needles)
    lines = _lines(task, key, set(keys), words)
    haystack = Haystack(essays.sentences)

    def build(units: int, padding: int = 0) -> Draft:
        if task.haystack == "essay":
            sentences = haystack.words(units)
            gaps = [int(len(sentences) * depth) for depth in depths]
            context = " ".join(insert_at(sentences, needles, gaps))
        else:
            gaps = [int((units + 1) * place) for place in places]
            hidden = insert_at(lines(units), needles, gaps)
            context = "\n".join([*hidden, *_noise(padding)])
        return _ask(task, context, asked, values, {"haystack_units": units, "padding": padding})

    return _fill(build, budget, count)


def draft_chain(key: str, length: int, budget: int, count: CountTokens) -> Draft:
    """Hide a chain of assignments in noise, after a solved example.

    Args:
        key: Seed of this item.
        length: Most tokens of prompt and answer; below 1024 the example has no noise.
        budget: Most tokens of the whole prompt.
        count: Tokens of a whole prompt.

    Raises:
        DoesNotFitError: The prompt without noise is longer.
    """
    rng = rng_for(key)
    small = length < 1024
    example = _example(rng, 0 if small else _EXAMPLE_TOKENS, count)
    variables = _variables(rng, letters=5)
    value = str(rng.randint(10000, 99998))
    places = sorted(rng.random() for _ in variables)
    reduced = ["example_without_noise"] if small else []

    def build(units: int, padding: int = 0) -> Draft:
        noise = [" ".join(NOISE)] * units
        gaps = [int((units + 1) * place) for place in places]
        context = "\n".join([*insert_at(noise, _chain(variables, value), gaps), *_noise(padding)])
        return Draft(
            prompt=f"{example}\n{_VT.format(context=context, value=value)}",
            references=tuple(variables),
            answer_prefix=_VT_PREFIX.format(number=len(variables), value=value),
            metadata={"haystack_units": units, "padding": padding, "reduced": reduced},
        )

    return _fill(build, budget, count)


def _fill(build: Callable[..., Draft], budget: int, count: CountTokens) -> Draft:
    """Fit whole units, then sentences of noise where a unit is too large to fill what is left."""
    draft = fit(build, count, budget)
    if budget - draft.tokens <= _MOST_EMPTY * budget:
        return draft
    units = draft.metadata["haystack_units"]
    return fit(lambda padding: build(units, padding), count, budget)


def _lines(
    task: NeedleTask, key: str, taken: set[str], words: WordList
) -> Callable[[int], list[str]]:
    """The first lines of a haystack of noise or of needles that nobody asks about."""
    if task.haystack != "needle":
        return lambda units: [" ".join(NOISE)] * units
    rng = rng_for(key, "haystack")
    drawn: list[str] = []

    def lines(units: int) -> list[str]:
        while len(drawn) < units:
            other = _draw(task.keys, words, rng)
            if other not in taken:
                drawn.append(_needle(task, other, _draw(task.values, words, rng)))
        return drawn[:units]

    return lines


def _ask(
    task: NeedleTask,
    context: str,
    asked: list[str],
    values: dict[str, list[str]],
    metadata: dict[str, int],
) -> Draft:
    one = task.num_queries * task.num_values == 1
    named = {
        "some": "A" if one else "Some",
        "be": "is" if one else "are",
        "be_all": "is" if one else "are all",
        "values": task.values[:-1] if one else task.values,
        "query": asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}",
    }
    return Draft(
        prompt=_NIAH.format(context=context, **named),
        references=tuple(value for key in asked for value in values[key]),
        answer_prefix=_NIAH_PREFIX.format(**named),
        metadata=dict(metadata),
    )


def _needle(task: NeedleTask, key: str, value: str) -> str:
    return f"One of the special magic {task.values} for {key} is: {value}."


def _draw(kind: Kind, words: WordList, rng: random.Random) -> str:
    if kind == "numbers":
        return str(rng.randint(1_000_000, 9_999_999))
    if kind == "uuids":
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    return f"{rng.choice(words.first)}-{rng.choice(words.second)}"


def _noise(sentences: int) -> list[str]:
    """One more line of noise with so many sentences."""
    line = " ".join(NOISE[index % len(NOISE)] for index in range(sentences))
    return [line] if line else []


def _variables(rng: random.Random, letters: int) -> list[str]:
    names: list[str] = []
    while len(names) < _HOPS + 1:
        name = "".join(rng.choices(string.ascii_uppercase, k=letters))
        if name not in names:
            names.append(name)
    return names


def _chain(variables: list[str], value: str) -> list[str]:
    first = f"VAR {variables[0]} = {value}"
    return [first, *(f"VAR {b} = VAR {a}" for a, b in pairwise(variables))]


def _example(rng: random.Random, tokens: int, count: CountTokens) -> str:
    """A solved problem with three-letter variables and as much noise as fits into `tokens`."""
    variables = _variables(rng, letters=3)
    value = str(rng.randint(10000, 99998))
    places = sorted(rng.random() for _ in variables)

    def build(units: int) -> Draft:
        noise = [" ".join(NOISE)] * units
        gaps = [int((units + 1) * place) for place in places]
        context = "\n".join(insert_at(noise, _chain(variables, value), gaps))
        prompt = _VT.format(context=context, value=value)
        prefix = _VT_PREFIX.format(number=len(variables), value=value)
        return Draft(f"{prompt}{prefix} {' '.join(variables)}\n", tuple(variables))

    return fit(build, count, tokens).prompt if tokens else build(0).prompt
