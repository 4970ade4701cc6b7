"""The worlds of bAbI tasks 1 to 5 (Weston et al. 2015, arXiv 1502.05698) as short stories.

qa1 to qa3 come from `focusft.data.synthetic` (only worlds that no training set holds); qa4 and qa5
are made here. Statements and questions are worded as in the published tasks.
"""

from __future__ import annotations

import random
from dataclasses import replace

from focusft.data.worlds import (
    GET_VERBS,
    LOCATIONS,
    MOVE_VERBS,
    OBJECTS,
    Fact,
    World,
    make_world,
    world_split,
)

TASKS = ("qa1", "qa2", "qa3", "qa4", "qa5")
GIVERS = ("Bill", "Fred", "Jeff", "Mary")
GIVE_VERBS = ("gave", "handed", "passed")

_OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}
_QUESTIONS_PER_WORLD = 5


def draw_world(task: str, rng: random.Random) -> World:
    """Draw a story with one question about it.

    Args:
        task: qa1, qa2, qa3, qa4 or qa5.
        rng: Source of every choice.
    """
    if task == "qa4":
        return _line_world(rng)
    if task == "qa5":
        return _gifts_world(rng)
    world = make_world(task, rng)
    while world_split(world) != "held_out":
        world = make_world(task, rng)
    return replace(world, facts=tuple(_maybe_there(fact, rng) for fact in world.facts))


def _maybe_there(fact: Fact, rng: random.Random) -> Fact:
    """BAbI often says where something was got or dropped: "got the milk there"."""
    if fact.action == "move" or rng.random() < 0.5:
        return fact
    return replace(fact, text=f"{fact.text[:-1]} there.")


def _line_world(rng: random.Random) -> World:
    """qa4: three places on a line; which one is on either side of the middle one?"""
    first, middle, last = rng.sample(LOCATIONS, 3)
    direction = rng.choice(("north", "east"))
    # first is north of middle, and middle is north of last.
    facts = [_relation(first, direction, middle, rng), _relation(middle, direction, last, rng)]
    before = rng.random() < 0.5
    answer, side = (first, direction) if before else (last, _OPPOSITE[direction])
    if rng.random() < 0.5:
        question = f"What is {side} of the {middle}?"
    else:
        question = f"What is the {middle} {_OPPOSITE[side]} of?"
    support = 0 if before else 1
    if rng.random() < 0.5:
        facts.reverse()
        support = 1 - support
    sentence = f"The {answer} is {side} of the {middle}."
    return World(tuple(facts), question, answer, sentence, (support,))


def _relation(one: str, direction: str, other: str, rng: random.Random) -> Fact:
    """One is north of the other, said from either end."""
    if rng.random() < 0.5:
        one, other, direction = other, one, _OPPOSITE[direction]
    return Fact(one, direction, other, f"The {one} is {direction} of the {other}.")


def _gifts_world(rng: random.Random) -> World:
    """qa5: who gave what to whom? Each question is about the last gift of one kind."""
    story = _Gifts(rng)
    asked = rng.randint(1, _QUESTIONS_PER_WORLD)
    questions = 0
    since_question = 0
    while True:
        gift = story.act()
        since_question += 1
        if gift is None or since_question < 2:
            continue
        index = len(story.facts) - 1
        for _ in range(rng.randint(0, 5)):
            story.act(leave_alone=gift)
        questions += 1
        since_question = 0
        if questions == asked:
            return _gift_question(story, gift, index, rng)


def _gift_question(
    story: _Gifts, gift: tuple[str, str, str], index: int, rng: random.Random
) -> World:
    giver, thing, recipient = gift
    question, answer = rng.choice(
        (
            # Twice, as in the published set, where this question is as frequent as two others.
            (f"What did {giver} give to {recipient}?", thing),
            (f"What did {giver} give to {recipient}?", thing),
            (f"Who did {giver} give the {thing} to?", recipient),
            (f"Who gave the {thing}?", giver),
            (f"Who gave the {thing} to {recipient}?", giver),
            (f"Who received the {thing}?", recipient),
        )
    )
    sentence = f"{giver} gave the {thing} to {recipient}."
    return World(tuple(story.facts), question, answer, sentence, (index,))


class _Gifts:
    """People who move, take things and give them to those in the same room."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.facts: list[Fact] = []
        self.actor_at = {actor: rng.choice(LOCATIONS) for actor in GIVERS}
        self.object_at = {thing: rng.choice(LOCATIONS) for thing in OBJECTS}
        self.holder: dict[str, str] = {}

    def act(self, leave_alone: tuple[str, str, str] | None = None) -> tuple[str, str, str] | None:
        """Perform one valid action, drawn evenly over kinds until one is possible.

        Args:
            leave_alone: A gift (giver, thing, recipient); the action does not touch its thing, and
                is no gift between the same two.

        Returns:
            The gift, if the action was one.
        """
        while True:
            kind = self.rng.choice(("get", "give", "move"))
            if kind == "move":
                actor = self.rng.choice(GIVERS)
                place = self.rng.choice([p for p in LOCATIONS if p != self.actor_at[actor]])
                self.actor_at[actor] = place
                self._tell(actor, kind, place, f"{self.rng.choice(MOVE_VERBS)} the {place}")
                return None
            if kind == "get":
                if gets := [
                    get for get in self._gets() if not leave_alone or get[1] != leave_alone[1]
                ]:
                    actor, thing = self.rng.choice(gets)
                    self.holder[thing] = actor
                    there = self.rng.choice(("", " there"))
                    self._tell(
                        actor, kind, thing, f"{self.rng.choice(GET_VERBS)} the {thing}{there}"
                    )
                    return None
            elif gifts := [gift for gift in self._gifts() if _apart(gift, leave_alone)]:
                actor, thing, recipient = gift = self.rng.choice(gifts)
                self.holder[thing] = recipient
                verb = self.rng.choice(GIVE_VERBS)
                self._tell(actor, kind, thing, f"{verb} the {thing} to {recipient}")
                return gift

    def _tell(self, actor: str, kind: str, target: str, said: str) -> None:
        self.facts.append(Fact(actor, kind, target, f"{actor} {said}."))

    def _gets(self) -> list[tuple[str, str]]:
        return [
            (actor, thing)
            for actor in GIVERS
            for thing in OBJECTS
            if thing not in self.holder and self.object_at[thing] == self.actor_at[actor]
        ]

    def _gifts(self) -> list[tuple[str, str, str]]:
        return [
            (giver, thing, recipient)
            for thing, giver in sorted(self.holder.items())
            for recipient in GIVERS
            if recipient != giver and self.actor_at[recipient] == self.actor_at[giver]
        ]


def _apart(gift: tuple[str, str, str], other: tuple[str, str, str] | None) -> bool:
    if other is None:
        return True
    return gift[1] != other[1] and (gift[0], gift[2]) != (other[0], other[2])
