"""RULER's words where its word list is installed, words of the built-in prose elsewhere."""

import importlib.util

import pytest

from focusft.evaluation import word_lists


@pytest.fixture(autouse=True)
def _fresh():
    word_lists.load_words.cache_clear()
    yield
    word_lists.load_words.cache_clear()


def test_the_words_are_those_of_ruler():
    """RULER takes the sorted union of nouns, adjectives and verbs, and keys of the first two."""
    wonderwords = pytest.importorskip("wonderwords")
    kinds = wonderwords.RandomWord()._categories
    words = word_lists.load_words()
    assert list(words.single) == sorted(
        {w for k in ("noun", "adjective", "verb") for w in kinds[k]}
    )
    assert list(words.first) == sorted(set(kinds["adjective"]))
    assert list(words.second) == sorted(set(kinds["noun"]))
    assert (words.source, words.stand_in) == ("wonderwords", False)


def test_without_the_package_the_words_are_a_marked_stand_in(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wonderwords" else real(name)
    )
    words = word_lists.load_words()
    assert words.stand_in and len(words.single) > 1000
    assert list(words.single) == sorted(set(words.single))
