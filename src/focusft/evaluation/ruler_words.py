"""RULER's word lists: common words (`cwe`) and frequent coded words (`fwe`)."""

from __future__ import annotations

import math
import random
import string
from dataclasses import asdict, dataclass

from focusft.evaluation.haystack import CountTokens, Draft, fit, rng_for
from focusft.evaluation.word_lists import WordList

_CWE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the {number} most common words in the above list?"
)
_CWE_PREFIX = " Answer: The top {number} words that appear most often in the list are:"
_FWE = (
    "Read the following coded text and track the frequency of each coded word. Find the three most "
    "frequently appeared coded words. {context}\nQuestion: Do not provide any explanation. Please "
    "ignore the dots '....'. What are the three most frequently appeared words in the above coded "
    "text?"
)
_FWE_PREFIX = (
    " Answer: According to the coded text above, the three most frequently appeared words are:"
)
_ALPHA = 2.0
_ZETA_ALPHA = math.pi**2 / 6
_CODED_LETTERS = 6
# Counts of the ranks 2 to 5 are apart from this many words on, so that the answer is unique.
_LEAST_CODED_WORDS = 60


@dataclass(frozen=True)
class Counts:
    """Parameters of `cwe`.

    Attributes:
        common: Number of common words, which are the answer.
        common_repeats: How often each of them is listed.
        other_repeats: How often every other word is listed.
        example_words: Number of different words in the example.
        example_common_repeats: As above, in the example.
        example_other_repeats: As above, in the example.
    """

    common: int
    common_repeats: int
    other_repeats: int
    example_words: int
    example_common_repeats: int
    example_other_repeats: int


_OFFICIAL = Counts(10, 30, 3, 40, 10, 3)
_OFFICIAL_BELOW_4096 = Counts(10, 6, 1, 20, 3, 1)
# Ours: the published parameters need about 900 tokens.
_BELOW_1024 = Counts(5, 3, 1, 8, 2, 1)


def draft_common_words(
    key: str, length: int, budget: int, words: WordList, count: CountTokens
) -> Draft:
    """Make a numbered list of words, some of them common, after a solved example.

    Args:
        key: Seed of this item.
        length: Most tokens of prompt and answer; decides about the parameters.
        budget: Most tokens of the whole prompt.
        words: Words to list.
        count: Tokens of a whole prompt.

    Raises:
        DoesNotFitError: The shortest list is longer.
    """
    small = length < 1024
    counts = _BELOW_1024 if small else _OFFICIAL_BELOW_4096 if length < 4096 else _OFFICIAL
    rng = rng_for(key)
    drawn = _Drawn(words, rng)
    example_words = drawn.take(counts.example_words)
    example = _listing(
        example_words,
        counts.common,
        counts.example_common_repeats,
        counts.example_other_repeats,
        rng_for(key, "example"),
    )
    solved = " ".join(f"{n}. {word}" for n, word in enumerate(example_words[: counts.common], 1))
    prefix = _CWE_PREFIX.format(number=counts.common)
    shot = f"{_CWE.format(context=example, number=counts.common)}{prefix} {solved}\n"

    def build(units: int) -> Draft:
        listed = drawn.take(units, start=counts.example_words)
        context = _listing(
            listed,
            counts.common,
            counts.common_repeats,
            counts.other_repeats,
            rng_for(key, "list", units),
        )
        return Draft(
            prompt=shot + _CWE.format(context=context, number=counts.common),
            references=tuple(listed[: counts.common]),
            answer_prefix=prefix,
            metadata={
                "words": units,
                "counts": asdict(counts),
                "paired_words": drawn.paired,
                "reduced": ["counts"] if small else [],
            },
        )

    return fit(build, count, budget, least=counts.common + 1)


def draft_frequent_words(key: str, budget: int, count: CountTokens) -> Draft:
    """Make a coded text whose word counts follow a zeta distribution with alpha 2.

    Args:
        key: Seed of this item.
        budget: Most tokens of the whole prompt; there are a fiftieth as many coded words, and the
            one of rank 1 is "...".
        count: Tokens of a whole prompt.

    Raises:
        DoesNotFitError: The shortest text with a unique answer is longer.
    """
    rng = rng_for(key)
    vocabulary: list[str] = ["..."]
    taken: set[str] = set()
    while len(vocabulary) < max(budget // 50, 5):
        word = "".join(rng.choices(string.ascii_lowercase, k=_CODED_LETTERS))
        if word not in taken:
            taken.add(word)
            vocabulary.append(word)

    def build(units: int) -> Draft:
        text = [
            word
            for rank, word in enumerate(vocabulary, 1)
            for _ in range(int(units * rank**-_ALPHA / _ZETA_ALPHA))
        ]
        rng_for(key, "text", units).shuffle(text)
        return Draft(
            prompt=_FWE.format(context=" ".join(text)),
            references=tuple(vocabulary[1:4]),
            answer_prefix=_FWE_PREFIX,
            metadata={"coded_words": len(text), "vocabulary": len(vocabulary)},
        )

    return fit(build, count, budget, least=_LEAST_CODED_WORDS)


def _listing(
    words: list[str], common: int, common_repeats: int, other_repeats: int, rng: random.Random
) -> str:
    listed = words[:common] * common_repeats + words[common:] * other_repeats
    rng.shuffle(listed)
    return " ".join(f"{number}. {word}" for number, word in enumerate(listed, 1))


class _Drawn:
    """Different words in a random order; pairs such as "tall-tree" when single ones run out."""

    def __init__(self, words: WordList, rng: random.Random) -> None:
        self._words = words
        self._rng = rng
        self._drawn = rng.sample(words.single, len(words.single))
        self._known = set(self._drawn)
        self.paired = 0

    def take(self, number: int, start: int = 0) -> list[str]:
        while len(self._drawn) < start + number:
            pair = f"{self._rng.choice(self._words.first)}-{self._rng.choice(self._words.second)}"
            if pair not in self._known:
                self._known.add(pair)
                self._drawn.append(pair)
        self.paired = max(0, start + number - len(self._words.single))
        return self._drawn[start : start + number]
