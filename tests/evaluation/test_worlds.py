"""Each story of our worlds has one answer, which a reader of its text finds."""

import random
import re
from collections import Counter

import pytest

from focusft.data.worlds import world_split
from focusft.evaluation.worlds import TASKS, draw_world
from tests.evaluation.interpreter import GET, GIVE, MOVE, answers


@pytest.mark.parametrize("task", TASKS)
def test_a_reader_of_the_text_finds_the_answer(task):
    rng = random.Random(f"{task} 1")
    for _ in range(1000):
        world = draw_world(task, rng)
        text = " ".join(fact.text for fact in world.facts)
        assert answers(text, world.question) == {world.answer}, f"{text} {world.question}"


@pytest.mark.parametrize("task", TASKS)
def test_the_supporting_facts_say_the_answer(task):
    rng = random.Random(f"{task} 2")
    for _ in range(200):
        world = draw_world(task, rng)
        if task in ("qa1", "qa4", "qa5"):
            said = world.facts[world.support[0]].text
            assert world.answer in said
        assert list(world.support) == sorted(set(world.support))


@pytest.mark.parametrize("task", TASKS)
def test_every_label_and_question_comes_up(task):
    rng = random.Random(f"{task} 3")
    worlds = [draw_world(task, rng) for _ in range(600)]
    found = Counter(world.answer for world in worlds)
    labels = 7 if task == "qa5" else 6
    assert len(found) == labels
    assert max(found.values()) < 3 * min(found.values())
    words = r"\b(?:Bill|Fred|Jeff|Mary|John|Sandra|Daniel|apple|football|milk|bedroom|kitchen|"
    kinds = {re.sub(words + r"garden|hallway|bathroom|office)\b", "X", w.question) for w in worlds}
    assert len(kinds) == {"qa1": 1, "qa2": 1, "qa3": 1, "qa4": 8, "qa5": 5}[task]


@pytest.mark.parametrize("task", ["qa1", "qa2", "qa3"])
def test_no_training_set_holds_the_world(task):
    rng = random.Random(f"{task} 4")
    assert {world_split(draw_world(task, rng)) for _ in range(100)} == {"held_out"}


def test_gifts_are_possible():
    """Who gives has got it and is in the room of who receives, as far as the text tells."""
    rng = random.Random(5)
    for _ in range(300):
        at, holder = {}, {}
        for fact in draw_world("qa5", rng).facts:
            statement = fact.text.rstrip(".")
            if match := MOVE.fullmatch(statement):
                assert at.get(match[1]) != match[2]
                at[match[1]] = match[2]
            elif match := GET.fullmatch(statement):
                assert match[2] not in holder
                holder[match[2]] = match[1]
            else:
                giver, thing, recipient = GIVE.fullmatch(statement).groups()
                assert holder[thing] == giver != recipient
                if giver in at and recipient in at:
                    assert at[giver] == at[recipient]
                holder[thing] = recipient
