"""Prose is clean and cut where asked; fitting ends, fills and never exceeds."""

import json
import random

import pytest

from focusft.data.prose import FORBIDDEN
from focusft.errors import DataError
from focusft.evaluation.haystack import (
    DoesNotFitError,
    Draft,
    Haystack,
    Prose,
    built_in_prose,
    fit,
    insert_at,
    read_prose,
    rng_for,
    split_sentences,
    without_answer_words,
)


def fitted(sizes, budget, **options):
    """Fit with given tokens per number of units; the last size goes on for ever."""
    calls = []

    def count(prompt, _):
        calls.append(int(prompt))
        return sizes(int(prompt))

    return fit(lambda units: Draft(str(units), ()), count, budget, **options), calls


@pytest.mark.parametrize("seed", range(40))
def test_fit_finds_the_fullest_whatever_the_units(seed):
    rng = random.Random(seed)
    largest = rng.choice((1, 3, 30, 900))
    steps = [rng.randint(1, largest) for _ in range(3000)]
    totals = [rng.randint(0, 50)]
    for step in steps:
        totals.append(totals[-1] + step)
    budget = rng.randint(totals[0], totals[-1] - largest)
    draft, calls = fitted(lambda units: totals[min(units, 3000)], budget)
    assert draft.tokens == totals[int(draft.prompt)] <= budget
    one_more = totals[int(draft.prompt) + 1]
    assert one_more > budget or budget - draft.tokens < budget / 1000
    assert len(calls) <= 40
    assert len(set(calls)) == len(calls)


@pytest.mark.parametrize("seed", range(20))
def test_fit_ends_when_more_units_may_be_fewer_tokens(seed):
    rng = random.Random(seed)
    noise = [rng.randint(-30, 30) for _ in range(5000)]
    draft, _ = fitted(lambda n: max(0, 3 * n + (noise[n] if n else 0)), 2000, most=4999)
    assert draft.tokens <= 2000
    assert draft.tokens > 1900


def test_fit_ends_when_units_are_empty():
    draft, calls = fitted(lambda units: 7, 1000)
    assert draft.tokens == 7
    assert len(calls) < 100


def test_fit_takes_no_more_than_there_is():
    draft, _ = fitted(lambda units: 10 * units, 1000, most=12)
    assert draft.tokens == 120


def test_fit_says_how_long_the_shortest_is():
    with pytest.raises(DoesNotFitError) as caught:
        fitted(lambda units: 50 + units, 40)
    assert (caught.value.tokens, caught.value.budget) == (50, 40)


@pytest.mark.parametrize("number", [0, 1, 2, 3, 5, 6, 7, 11, 12, 13, 61])
def test_a_haystack_has_as_many_words_as_asked(number):
    taken = Haystack(["One two three.", "Four, five six."]).words(number)
    text = " ".join(taken).replace(",", "").split()
    assert len(text) == number
    assert [word.strip(".").lower() for word in text] == (
        ["one", "two", "three", "four", "five", "six"] * 11
    )[:number]
    assert all(sentence.endswith(".") and ",." not in sentence for sentence in taken)


def test_inserts_keep_their_order():
    assert insert_at(["a", "b"], ["1", "2", "3"], [0, 1, 1]) == ["1", "a", "2", "3", "b"]
    assert insert_at(["a", "b"], ["1"], [2]) == ["a", "b", "1"]
    assert insert_at([], ["1", "2"], [0, 0]) == ["1", "2"]


def test_sentences_are_split_where_a_reader_would():
    text = 'Mr. Knightley came. "Who is it?" she said.\n\nIt was J. Smith! He had 3.5 pounds. A'
    assert split_sentences(text) == [
        "Mr. Knightley came.",
        '"Who is it?" she said.',
        "It was J. Smith!",
        "He had 3.5 pounds.",
        "A",
    ]
    assert split_sentences(" \n ") == []


def test_no_background_sentence_holds_an_answer():
    for sentence in without_answer_words(built_in_prose()).sentences:
        assert not any(word in sentence.lower() for word in FORBIDDEN)
    prose = Prose((("It rained.", "The officer slept.", "MARY left.", "So it was."),), "x")
    clean = without_answer_words(prose)
    assert clean.sentences == ("It rained.", "So it was.")
    assert clean.dropped == 2
    with pytest.raises(DataError, match="every sentence"):
        without_answer_words(Prose((("Mary left.",),), "x"))


def test_prose_from_files(tmp_path):
    (tmp_path / "a.txt").write_text("It rained. It did.\nSo what?")
    (tmp_path / "b.json").write_text(json.dumps({"text": "An essay. It ends."}))
    (tmp_path / "c.json").write_text(json.dumps([{"text": "One."}, "Two."]))
    prose = read_prose([tmp_path / name for name in ("a.txt", "b.json", "c.json")])
    assert prose.sentences == (
        *("It rained.", "It did.", "So what?"),
        *("An essay.", "It ends.", "One.", "Two."),
    )
    assert (prose.source, prose.stand_in) == ("a.txt, b.json, c.json", False)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("no.txt", None, "check the path"),
        ("empty.txt", " \n", "no sentence"),
        ("bad.json", "{", "not JSON"),
        ("other.json", '{"body": "x"}', "field 'text'"),
    ],
)
def test_prose_that_cannot_be_used(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said) as caught:
        read_prose([tmp_path / name])
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_starts_are_random_but_parts_keep_their_order():
    prose = Prose((("a a.", "b b."), ("c c.", "d d.")), "x")
    seen = {tuple(prose.from_random_start(rng_for("starts", n)).words(8)) for n in range(40)}
    assert len(seen) == 4
    assert all(set(words[:2]) == {"a a.", "b b."} for words in seen)
