"""Background prose, and fitting a prompt into a number of tokens.

Prose comes from the user's files, or from the Python documentation (`pydoc_data.topics`), a
stand-in for the books of BABILong and the essays of RULER. A prompt is described by a function
from a number of units (words, needles, documents) to a `Draft`; `fit` looks for the number that
fills the budget, and never gives a draft that it has not counted whole.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from focusft.data.hub import is_hub_name, load_hub, source_name
from focusft.data.prose import FORBIDDEN, background_sentences
from focusft.errors import DataError

# Tokens of a prompt, all of them: chat template, prompt, answer prefix, special tokens.
CountTokens = Callable[[str, str], int]

# A prompt that leaves less than this part of the budget empty is full enough to stop.
_TOLERANCE = 1000
_FIRST_STEP = 16


class DoesNotFitError(Exception):
    """The smallest prompt has more tokens than the budget.

    Attributes:
        tokens: How many it has.
        budget: How many it may have.
    """

    def __init__(self, tokens: int, budget: int) -> None:
        super().__init__(f"{tokens} tokens exceed {budget}")
        self.tokens = tokens
        self.budget = budget


@dataclass(frozen=True)
class Draft:
    """A prompt with what it is scored by.

    Attributes:
        prompt: The user's turn.
        references: The right answers, as the suite's score takes them.
        answer_prefix: Raw text after the chat template that the answer goes on from.
        question: The question alone.
        metadata: Whatever else a reader of the item may want, as JSON values.
        tokens: Tokens of the whole prompt; 0 until `fit` has counted them.
    """

    prompt: str
    references: tuple[str, ...]
    answer_prefix: str = ""
    question: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    tokens: int = 0


def fit(
    build: Callable[[int], Draft],
    count: CountTokens,
    budget: int,
    *,
    least: int = 0,
    most: int | None = None,
) -> Draft:
    """Find a number of units whose prompt fills the budget.

    The tokens of a unit are estimated from the drafts counted so far, the number of units for the
    budget is interpolated, and each guess is counted whole. It ends: the bracket between a number
    that fits and one that does not gets smaller with every draft, by half at each third one.

    Args:
        build: The draft with a number of units; the same number must give the same draft. More
            units should give more tokens, but an exception here and there does no harm.
        count: Tokens of a whole prompt.
        budget: Most tokens of a whole prompt.
        least: Smallest number of units.
        most: Largest number of units; if None, as many as there may be tokens.

    Returns:
        The fullest draft found that fits; less than a thousandth of the budget is empty, or one
        unit more does not fit.

    Raises:
        DoesNotFitError: `least` units are too many.
    """

    def measure(units: int) -> Draft:
        draft = build(units)
        return replace(draft, tokens=count(draft.prompt, draft.answer_prefix))

    first = best = measure(least)
    if best.tokens > budget:
        raise DoesNotFitError(best.tokens, budget)
    low, low_tokens = least, best.tokens
    # The smallest number known not to fit; its tokens are not known while nothing was too large.
    high, high_tokens = (least + 2 * budget if most is None else most) + 1, 0
    rounds = 0
    while high - low > 1 and (budget - low_tokens) * _TOLERANCE >= budget:
        slack = budget - low_tokens
        if low == least and not high_tokens:
            guess = low + _FIRST_STEP
        elif not high_tokens:
            per_unit = max(low_tokens - first.tokens, 1) / (low - least)
            guess = low + int(slack / per_unit)
        elif (rounds := rounds + 1) % 3 == 0:
            guess = (low + high) // 2
        else:
            guess = low + int((high - low) * slack / max(high_tokens - low_tokens, 1))
        units = min(max(guess, low + 1), high - 1)
        draft = measure(units)
        if draft.tokens <= budget:
            low, low_tokens = units, draft.tokens
            best = draft if draft.tokens > best.tokens else best
        else:
            high, high_tokens = units, draft.tokens
    return best


def rng_for(*parts: object) -> random.Random:
    """A source of random choices that depends on the parts alone, in every process alike."""
    key = "/".join(str(part) for part in parts)
    return random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest(), "big"))


@dataclass(frozen=True)
class Prose:
    """Background sentences without end: after the last one it starts again.

    Attributes:
        parts: Sentences in reading order; an earlier part is used up before the next begins.
        source: Where they come from.
        stand_in: Whether they stand in for a corpus that the benchmark names.
        dropped: Number of sentences left out because they could corrupt an answer.
    """

    parts: tuple[tuple[str, ...], ...]
    source: str
    stand_in: bool = False
    dropped: int = 0

    @property
    def sentences(self) -> tuple[str, ...]:
        """All sentences, part after part."""
        return tuple(sentence for part in self.parts for sentence in part)

    def digest(self) -> str:
        """Hash of the sentences and their order."""
        return hashlib.sha256("\n".join(self.sentences).encode()).hexdigest()

    def from_random_start(self, rng: random.Random) -> Haystack:
        """The prose with each part begun at a random sentence and wrapped around."""
        sentences: list[str] = []
        for part in self.parts:
            start = rng.randrange(len(part))
            sentences += part[start:] + part[:start]
        return Haystack(sentences)


class Haystack:
    """A cycle of sentences that can be cut after any number of words."""

    def __init__(self, sentences: Sequence[str]) -> None:
        self._sentences = sentences
        self._ends = list(accumulate(len(sentence.split()) for sentence in sentences))

    def words(self, number: int) -> list[str]:
        """Sentences with `number` words in all; the last may be cut and ends with a full stop."""
        cycles, rest = divmod(number, self._ends[-1])
        whole = bisect_right(self._ends, rest)
        taken = [*self._sentences] * cycles + [*self._sentences[:whole]]
        over = rest - (self._ends[whole - 1] if whole else 0)
        if over:
            words = self._sentences[whole].split()[:over]
            taken.append(" ".join(words).rstrip(",;:.(") + ".")
        return taken


def built_in_prose() -> Prose:
    """Plain sentences of the Python documentation; what no training set holds comes first."""
    parts = (background_sentences("held_out"), background_sentences("train"))
    return Prose(parts, source="pydoc_data.topics", stand_in=True)


def read_prose(paths: Sequence[str | Path]) -> Prose:
    """Read prose from the user's files or the hub.

    Args:
        paths: UTF-8 text files; JSON files with an object that has a `text` (as RULER's
            PaulGrahamEssays.json), or a list of such objects or of texts; hub ids `org/set` (its
            split `train`) or `org/set:split` of sets with a column `text`.

    Raises:
        DataError: A file or set cannot be read, or holds no sentence.
    """
    texts = [text for path in paths for text in _read_texts(path)]
    sentences = tuple(sentence for text in texts for sentence in split_sentences(text))
    names = ", ".join(map(source_name, paths))
    if not sentences:
        raise DataError(f"{names}: no sentence in it; give prose with full stops")
    return Prose((sentences,), source=names)


def without_answer_words(prose: Prose) -> Prose:
    """The prose without the sentences that hold a person, place or object of the bAbI worlds.

    Raises:
        DataError: No sentence is left.
    """
    clean = [tuple(s for s in part if not _has_answer_word(s)) for part in prose.parts]
    kept = tuple(part for part in clean if part)
    if not kept:
        raise DataError(
            f"{prose.source}: every sentence holds a word that could be an answer "
            f"({', '.join(FORBIDDEN[:4])}, ..); give other prose"
        )
    dropped = len(prose.sentences) - sum(len(part) for part in kept)
    return replace(prose, parts=kept, dropped=prose.dropped + dropped)


_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]\u201d\u2019]*\s+(?=[\"'(\[\u201c\u2018]?[A-Z0-9])")
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Prof|Gen|Col|Capt|Rev|Hon|Jr|Sr|vs|etc|No|Vol|Fig|e\.g|i\.e)"
    r"|\b[A-Z])\.$"
)


def split_sentences(text: str) -> list[str]:
    """Split English prose after full stops, question and exclamation marks.

    Titles and initials ("Mr. Knightley", "J. Smith") end no sentence; white space is made single.
    """
    sentences: list[str] = []
    start = 0
    text = " ".join(text.split())
    for match in _SENTENCE_END.finditer(text):
        if not _ABBREVIATION.search(text, start, match.start()):
            sentences.append(text[start : match.end()].strip())
            start = match.end()
    sentences.append(text[start:].strip())
    return [sentence for sentence in sentences if any(char.isalpha() for char in sentence)]


def insert_at(sentences: Sequence[str], inserts: Sequence[str], gaps: Sequence[int]) -> list[str]:
    """Put insert i before sentence gaps[i], or after the last one; the order of inserts stays.

    Args:
        sentences: The background.
        inserts: What is hidden in it.
        gaps: Ascending numbers from 0 to len(sentences), one per insert.
    """
    merged: list[str] = []
    done = 0
    for insert, gap in zip(inserts, gaps, strict=True):
        merged += sentences[done:gap]
        merged.append(insert)
        done = gap
    merged += sentences[done:]
    return merged


def _has_answer_word(sentence: str) -> bool:
    lower = sentence.lower()
    return any(word in lower for word in FORBIDDEN)


def _read_texts(source: str | Path) -> list[str]:
    if is_hub_name(str(source)):
        return _hub_texts(str(source))
    path = Path(source)
    try:
        content = path.read_text(encoding="utf-8-sig")
        if path.suffix != ".json":
            return [content]
        data = json.loads(content)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise DataError(f"{path}: not UTF-8 text or not JSON ({error}); save it again") from error
    rows = data if isinstance(data, list) else [data]
    texts = [row.get("text") if isinstance(row, dict) else row for row in rows]
    good = [text for text in texts if isinstance(text, str)]
    if len(good) < len(texts):
        raise DataError(f"{path}: a row has no text; give objects with the field 'text'")
    return good


def _hub_texts(source: str) -> list[str]:
    name, _, split = source.partition(":")
    rows = load_hub(name, split=split or "train")
    texts: list[Any] = list(rows["text"]) if "text" in rows.column_names else [None]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(
            f"{source}: not every row has a text in the column 'text' "
            f"(columns: {', '.join(rows.column_names)}); name a set of prose"
        )
    return texts
