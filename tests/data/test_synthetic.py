"""Generated conversations: right answers, real gaps, disjoint splits, the same in every process."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from focusft.data.prose import FORBIDDEN, background_sentences
from focusft.data.synthetic import TASKS, build_prompt, make_conversations
from focusft.data.worlds import ACTORS, LOCATIONS, OBJECTS, make_world, world_split
from focusft.errors import ConfigError

SOURCE = Path(__file__).resolve().parents[2] / "src"


def count_words(text):
    return len(text.split())


# --- an independent solver that reads the text --------------------------------------------------

STATEMENT = re.compile(
    rf"({'|'.join(ACTORS)}) ([a-z ]+) the ({'|'.join((*LOCATIONS, *OBJECTS))})\.(?= |$)"
)


def read_statements(text):
    """(actor, is_get or None for a move, target) of every statement in the text."""
    found = []
    for actor, verb, target in STATEMENT.findall(text):
        if target in LOCATIONS:
            assert re.fullmatch(r"(went|moved|travelled|journeyed|went back) to", verb), verb
            found.append((actor, None, target))
        else:
            get = verb in ("got", "took", "grabbed", "picked up")
            assert get or verb in ("dropped", "discarded", "put down", "left"), verb
            found.append((actor, get, target))
    return found


def actor_place(statements, actor):
    places = [target for who, get, target in statements if who == actor and get is None]
    return places[-1] if places else None


def object_place(statements, thing):
    """Where the statements put the object, found anew from all of them (brute force)."""
    events = [i for i, (_, get, target) in enumerate(statements) if target == thing]
    if not events:
        return None
    actor, get, _ = statements[events[-1]]
    place = actor_place(statements if get else statements[: events[-1]], actor)
    # A holder whose place was never told has not moved: the object is where it lay before.
    return place or object_place(statements[: events[-1]], thing)


def solve(text, question):
    statements = read_statements(text)
    if match := re.fullmatch(r"Where is (\w+)\?", question):
        return actor_place(statements, match[1])
    if match := re.fullmatch(r"Where is the (\w+)\?", question):
        return object_place(statements, match[1])
    thing, after = re.fullmatch(r"Where was the (\w+) before the (\w+)\?", question).groups()
    history = []
    for end in range(len(statements) + 1):
        place = object_place(statements[:end], thing)
        if place and history[-1:] != [place]:
            history.append(place)
    assert history.count(after) == 1
    return history[history.index(after) - 1]


@pytest.mark.parametrize("task", TASKS)
def test_solver_agrees_on_500_worlds(task):
    rng = random.Random(task)
    answers = []
    for _ in range(500):
        world = make_world(task, rng)
        text = " ".join(fact.text for fact in world.facts)
        assert solve(text, world.question) == world.answer
        # The supporting facts alone are enough, and none is too many.
        support = [world.facts[i].text for i in world.support]
        assert list(world.support) == sorted(set(world.support))
        assert solve(" ".join(support), world.question) == world.answer
        assert world.answer in world.sentence
        answers.append(world.answer)
    # No label is a safe guess.
    assert set(answers) == set(LOCATIONS)
    assert max(map(answers.count, LOCATIONS)) < 500 / 3


@pytest.mark.parametrize("task", TASKS)
def test_every_action_is_valid(task):
    rng = random.Random(1)
    for _ in range(200):
        world = make_world(task, rng)
        holder, place = {}, {}
        for fact in world.facts:
            if fact.action == "move":
                assert place.get(fact.actor) != fact.target
                place[fact.actor] = fact.target
            elif fact.action == "get":
                assert fact.target not in holder
                holder[fact.target] = fact.actor
            else:
                assert holder.pop(fact.target) == fact.actor


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_rows(task, split):
    rows = make_conversations(
        task, split=split, count=100, context_tokens=400, seed=3, count_tokens=count_words
    )
    prose = set(background_sentences(split))
    positions = []
    for row in rows:
        user, assistant = row["messages"]
        meta = row["meta"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert assistant["content"] == meta["answer"] in LOCATIONS
        context, question = re.fullmatch(
            r".+\n\n<context>\n(.+)\n</context>\n\nQuestion: (.+)", user["content"], re.DOTALL
        ).groups()
        assert question == meta["question"]
        assert solve(context, question) == meta["answer"]
        assert 350 < count_words(context) == meta["context_tokens"] <= 400
        texts = [user["content"][start:end] for start, end in meta["needle_spans"]]
        assert texts == meta["needles"]
        assert solve(" ".join(meta["needles"]), question) == meta["answer"]
        # Take the facts out one by one: only prose of this split is left.
        rest = context
        for fact in meta["facts"]:
            assert fact in rest
            rest = rest.replace(fact, "", 1)
        assert not any(word in rest.lower() for word in FORBIDDEN)
        assert any(sentence in rest for sentence in prose)
        start = user["content"].index(context)
        positions += [(begin - start) / len(context) for begin, _ in meta["needle_spans"]]
        assert row == json.loads(json.dumps(row))
    # Needles lie all over the context.
    assert min(positions) < 0.15
    assert max(positions) > 0.85
    assert len({row["messages"][0]["content"] for row in rows}) == 100


def test_prose_is_clean_and_disjoint():
    train, held_out = background_sentences("train"), background_sentences("held_out")
    assert sum(map(count_words, train)) > 10_000
    assert sum(map(count_words, held_out)) > 2_000
    both = {sentence.lower() for sentence in train} & {sentence.lower() for sentence in held_out}
    assert not both
    for sentence in train + held_out:
        assert not any(word in sentence.lower() for word in FORBIDDEN)
        assert not any(mark in sentence for mark in ("::", "**", ">>>", '"', "`", "\n", "  "))
        assert sentence.endswith(".")


@pytest.mark.parametrize("task", TASKS)
def test_worlds_of_the_splits_are_disjoint(task):
    def stories(split):
        rows = []
        for seed in range(3):
            rows += make_conversations(
                task,
                split=split,
                count=150,
                context_tokens=200,
                seed=seed,
                count_tokens=count_words,
            )
        return {
            tuple((who, get, what) for who, get, what in read_statements(" ".join(facts)))
            for facts in (row["meta"]["facts"] for row in rows)
        }

    assert not stories("train") & stories("held_out")


def test_world_split_ignores_verbs():
    rng = random.Random(0)
    world = make_world("qa1", rng)
    facts = tuple(
        type(fact)(fact.actor, fact.action, fact.target, "other words") for fact in world.facts
    )
    assert world_split(type(world)(facts, "", "", "", ())) == world_split(world)


def test_same_in_another_process():
    code = (
        "import json; from focusft.data.synthetic import make_conversations as m; "
        "print(json.dumps([m(t, count=5, context_tokens=200, seed=7, "
        "count_tokens=lambda s: len(s.split())) for t in ('qa1', 'qa2', 'qa3')]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = [
        make_conversations(
            task, count=5, context_tokens=200, seed=7, count_tokens=lambda s: len(s.split())
        )
        for task in TASKS
    ]
    assert json.loads(run.stdout) == here


def test_seeds_differ():
    one, two = (
        make_conversations(count=3, context_tokens=200, seed=seed, count_tokens=count_words)
        for seed in (0, 1)
    )
    assert one != two


def test_sentence_style_names_the_answer_once():
    for task in TASKS:
        for row in make_conversations(
            task,
            count=20,
            context_tokens=300,
            seed=0,
            count_tokens=count_words,
            answer_style="sentence",
        ):
            reply = row["messages"][1]["content"]
            assert reply.endswith(".") and "sentence" in row["messages"][0]["content"]
            # As the scorer sees it: labels in the reply that are not in the question.
            found = {place for place in LOCATIONS if place in reply}
            asked = {place for place in LOCATIONS if place in row["meta"]["question"]}
            assert found - asked == {row["meta"]["answer"]}


def test_reasoning_gives_the_facts_and_one_answer():
    for task in TASKS:
        for row in make_conversations(
            task,
            count=20,
            context_tokens=300,
            seed=0,
            count_tokens=count_words,
            answer_style="reasoning",
        ):
            reply, meta = row["messages"][1]["content"], row["meta"]
            *facts, conclusion = reply.split("; ")
            assert [f"{fact}." for fact in facts] == meta["needles"]
            assert conclusion.startswith("so ") and meta["answer"] in conclusion
            # BABILong's rule: one sentence, and no other place that is not in the question.
            assert reply.count(".") == 1
            asked = {place for place in LOCATIONS if place in meta["question"]}
            named = {place for place in LOCATIONS if place in reply}
            assert named - asked == {meta["answer"]}


def test_long_context_gets_the_full_prompt_and_long_prose_repeats():
    (row,) = make_conversations(
        split="held_out", count=1, context_tokens=20_000, seed=0, count_tokens=count_words
    )
    assert row["messages"][0]["content"].count("<example>") == 2
    assert row["meta"]["context_tokens"] > 19_900
    (row,) = make_conversations(count=1, context_tokens=500, seed=0, count_tokens=count_words)
    assert "<example>" not in row["messages"][0]["content"]


@pytest.mark.parametrize("task", TASKS)
def test_examples_in_the_prompt_are_right(task):
    prompt = build_prompt(task, "C", "Q?", full=True)
    examples = re.findall(r"<example>\n(.+)\nQuestion: (.+)\nAnswer: (.+)\n</example>", prompt)
    assert len(examples) == 2
    for story, question, answer in examples:
        assert solve(story, question) == answer
    reasoned = build_prompt(task, "C", "Q?", full=True, answer_style="reasoning")
    for (story, question, label), reply in zip(
        examples, re.findall("Answer: (.+)", reasoned), strict=True
    ):
        *facts, conclusion = reply.split("; ")
        assert all(f"{fact}." in story for fact in facts)
        assert solve(" ".join(f"{fact}." for fact in facts), question) == label
        assert label in conclusion
    assert prompt.endswith("\n\n<context>\nC\n</context>\n\nQuestion: Q?")


def test_a_tokenizer_whose_counts_do_not_add_up_stays_within_the_limit():
    def count(text):  # more tokens than the sum over the sentences
        return len(text.split()) + len(text) // 50

    for row in make_conversations(count=20, context_tokens=300, seed=0, count_tokens=count):
        assert row["meta"]["context_tokens"] <= 300


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"task": "qa9"}, "task"),
        ({"split": "test"}, "split"),
        ({"answer_style": "long"}, "answer_style"),
        ({"count": 0}, "count"),
        ({"context_tokens": 5}, "context_tokens"),
        ({"task": "qa3", "context_tokens": 10}, "context_tokens"),
    ],
)
def test_wrong_arguments(wrong, named):
    arguments = {"count": 2, "context_tokens": 200, "seed": 0, "count_tokens": count_words}
    with pytest.raises(ConfigError, match=named) as caught:
        make_conversations(**(arguments | wrong))
    assert "\n" not in str(caught.value)
