"""Aggregation and tracing for training: right answers, sizes, splits, and nothing of RULER's."""

import re
from collections import Counter
from itertools import islice
from random import Random

import pytest

from focusft.data import long_context
from focusft.data.contexts import ANSWER_STYLES
from focusft.data.long_context import TASKS, made_up_words, make_long_context
from focusft.errors import ConfigError
from focusft.evaluation.word_lists import load_words


def count_words(text):
    return len(text.split())


def make(task, **options):
    given = {"count": 20, "context_tokens": 200, "seed": 0, "count_tokens": count_words} | options
    return make_long_context(task, **given)


def parts(row):
    return re.fullmatch(
        r".+\n\n<context>\n(.+)\n</context>\n\nQuestion: (.+)",
        row["messages"][0]["content"],
        re.DOTALL,
    ).groups()


@pytest.mark.parametrize("style", ANSWER_STYLES)
def test_common_words_are_the_most_frequent(style):
    for row in make("cwe", answer_style=style):
        context, question = parts(row)
        entries = re.findall(r"(\d+)\. (\w+)", context)
        assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
        counts = Counter(word for _, word in entries)
        wanted = int(re.search(r"\d+", question)[0])
        common = counts.most_common(wanted)
        assert min(count for _, count in common) > counts.most_common(wanted + 1)[-1][1]
        reply = row["messages"][1]["content"]
        assert set(re.findall(r"\d+\. (\w+)", reply)) == {word for word, _ in common}
        if style == "reasoning":
            said = re.findall(r"(\w+) appears (\d+) times", reply)
            assert {word: int(count) for word, count in said} == dict(common)


@pytest.mark.parametrize("style", ANSWER_STYLES)
def test_variables_are_those_with_the_value(style):
    chains = 0
    for row in make("vt", answer_style=style):
        context, question = parts(row)
        values = {}
        for name, value in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", context):
            values[name] = values.get(value, value)
        asked = re.search(r"\d{5}", question)[0]
        chains += len(set(values.values()))
        reply = row["messages"][1]["content"]
        listed = reply.rpartition(": ")[2].split()
        assert listed == [name for name, value in values.items() if value == asked]
        assert [needle in context for needle in row["meta"]["needles"]] == [True] * len(listed)
    assert 20 < chains < 40


@pytest.mark.parametrize("task", [*TASKS, "mixed"])
def test_sizes_and_spans(task):
    rows = make(
        task, context_tokens=200, min_context_tokens=120, answer_style="mixed", count=25,
    )  # fmt: skip
    sizes = [row["meta"]["context_tokens"] for row in rows]
    assert all(80 < size <= 200 for size in sizes)
    assert max(sizes) - min(sizes) > 40
    assert len({row["messages"][0]["content"] for row in rows}) == 25
    for row in rows:
        prompt = row["messages"][0]["content"]
        spans = row["meta"]["needle_spans"]
        assert [prompt[start:end] for start, end in spans] == row["meta"]["needles"] != []
    lengths = {len(row["messages"][1]["content"].split()) for row in rows}
    assert len(lengths) > 2


def test_a_mixture_has_as_many_of_each():
    rows = make("mixed", count=25)
    assert Counter(row["meta"]["task"] for row in rows) == dict.fromkeys(TASKS, 5)
    tasks = [row["meta"]["task"] for row in rows]
    assert tasks != sorted(tasks)
    assert make("mixed", count=25) == rows != make("mixed", count=25, seed=1)


def test_splits_and_evaluation_share_no_words():
    train, held_out = (
        set(islice(made_up_words(split, Random(1)), 5000)) for split in ("train", "held_out")
    )
    assert not train & held_out
    assert not train & set(load_words().single)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"task": "fwe"}, "task"),
        ({"split": "test"}, "split"),
        ({"answer_style": "long"}, "answer_style"),
        ({"min_context_tokens": 300}, "min_context_tokens"),
        ({"context_tokens": 10}, "context_tokens"),
        ({"task": "vt", "context_tokens": 5}, "context_tokens"),
    ],
)
def test_wrong_arguments(wrong, named):
    with pytest.raises(ConfigError, match=named) as caught:
        make(**({"task": "cwe"} | wrong))
    assert "\n" not in str(caught.value)


def test_words_get_longer_when_those_of_three_syllables_are_taken(monkeypatch):
    monkeypatch.setattr(long_context, "_CONSONANTS", "b")
    words = list(islice(made_up_words("held_out", Random(0)), 40))
    assert len(set(words)) == 40
    assert {len(word) for word in words} > {6, 8}
