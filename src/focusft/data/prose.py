"""Background prose: plain sentences of the Python documentation, split in two.

They differ a little between Python versions.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from pydoc_data.topics import topics

from focusft.data.split import Split, split_of
from focusft.data.worlds import ACTORS, LOCATIONS, OBJECTS

# Background sentences hold none of these, also not inside a longer word: the scorer looks for
# substrings. Bill, Fred and Jeff appear in the published qa5.
FORBIDDEN = tuple(word.lower() for word in (*ACTORS, "Bill", "Fred", "Jeff", *LOCATIONS, *OBJECTS))

# Letters and light punctuation, and dots inside a name or number; one full stop, at the end.
_SENTENCE = re.compile(r"[A-Z](?:[A-Za-z0-9 ,;:'()_/-]|\.(?=\w))*\.")
_SENTENCE_END = re.compile(r"(?<=[a-z0-9)]\.)\s+(?=[A-Z])")
_BULLET = re.compile(r"^(?:[*+-]|\d+\.)\s+")
_FOOTNOTE = re.compile(r"\s?\[\d+\]")
_BROKEN_HYPHEN = re.compile(r"(?<=[a-z]-) (?=[a-z])")
_PLAIN = str.maketrans({'"': None, "*": None, "`": None, "\u2019": "'"})
_UNDERLINE = re.compile(r"[*=\-~^\"]{3,}")
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|etc|vs|cf|resp)\.", re.IGNORECASE)


@lru_cache(maxsize=2)
def background_sentences(split: Split) -> tuple[str, ...]:
    """Plain English sentences of the Python documentation, in reading order, without repeats.

    Topics are split by a hash of their name; a sentence that stands in several topics belongs to
    the first. No sentence holds a word of FORBIDDEN.
    """
    taken: set[str] = set()
    chosen = []
    for name in sorted(topics):
        wanted = split_of(name) == split
        for sentence in _plain_sentences(topics[name]):
            key = sentence.lower()
            if key not in taken:
                taken.add(key)
                if wanted and not any(word in key for word in FORBIDDEN):
                    chosen.append(sentence)
    return tuple(chosen)


def _plain_sentences(text: str) -> Iterator[str]:
    """Sentences of ordinary words: no headings, grammar, code or reference markup."""
    for block in re.split(r"\n\s*\n", text):
        lines = block.strip("\n").split("\n")
        if any(_UNDERLINE.fullmatch(line.strip()) for line in lines) or "::=" in block:
            continue  # a heading or a grammar rule
        # List items are indented like code, but start with a bullet; other indented blocks of the
        # text are code, or go on with an item. Code does not pass the sentence pattern.
        paragraph = _BULLET.sub("", " ".join(line.strip() for line in lines).strip())
        paragraph = _FOOTNOTE.sub("", paragraph).translate(_PLAIN)
        paragraph = _BROKEN_HYPHEN.sub("", " ".join(paragraph.split()))
        for sentence in _SENTENCE_END.split(paragraph):
            words = sentence.split()
            if (
                _SENTENCE.fullmatch(sentence)
                and not _ABBREVIATION.search(sentence)
                and sentence.count("(") == sentence.count(")")
                and 6 <= len(words) <= 40
                and sum(word.strip("(),;:'.").isalpha() for word in words) >= 0.8 * len(words)
            ):
                yield sentence
