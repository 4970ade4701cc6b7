"""English words for RULER's keys and word lists."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from focusft.evaluation.haystack import built_in_prose


@dataclass(frozen=True)
class WordList:
    """Words to draw from, sorted.

    Attributes:
        single: All words.
        first: Words that may come first in a key such as "tall-tree".
        second: Words that may come second.
        source: Where they come from.
        stand_in: Whether they stand in for the list that RULER uses.
    """

    single: tuple[str, ...]
    first: tuple[str, ...]
    second: tuple[str, ...]
    source: str
    stand_in: bool

    def digest(self) -> str:
        """Hash of the words."""
        return hashlib.sha256(
            "\n".join((*self.first, *self.second, *self.single)).encode()
        ).hexdigest()


@lru_cache(maxsize=1)
def load_words() -> WordList:
    """The words of the package `wonderwords`, as in RULER, else those of the built-in prose."""
    if importlib.util.find_spec("wonderwords") is None:
        words = {
            word
            for sentence in built_in_prose().sentences
            for word in re.findall(r"\b[a-z]{4,12}\b", sentence)
        }
        prose_words = tuple(sorted(words))
        return WordList(prose_words, prose_words, prose_words, "pydoc_data.topics", stand_in=True)
    nouns, adjectives, verbs = (_wonderwords(kind) for kind in ("noun", "adjective", "verb"))
    everything = tuple(sorted({*nouns, *adjectives, *verbs}))
    return WordList(everything, adjectives, nouns, "wonderwords", stand_in=False)


def _wonderwords(kind: str) -> tuple[str, ...]:
    text = (files("wonderwords") / "assets" / f"{kind}list.txt").read_text(encoding="utf-8")
    return tuple(sorted({line.strip() for line in text.splitlines() if line.strip()}))
