"""Small worlds in the manner of bAbI (Weston et al. 2015): stories, questions and answers.

People move between rooms, pick things up and put them down. The generators are our own.
"""

import random
from dataclasses import dataclass
from itertools import pairwise

from focusft.data.split import Split, split_of

ACTORS = ("John", "Mary", "Sandra", "Daniel")
LOCATIONS = ("bedroom", "kitchen", "garden", "hallway", "bathroom", "office")
OBJECTS = ("apple", "football", "milk")

MOVE_VERBS = ("went to", "moved to", "travelled to", "journeyed to", "went back to")
GET_VERBS = ("got", "took", "grabbed", "picked up")
DROP_VERBS = ("dropped", "discarded", "put down", "left")

_QUESTIONS_PER_WORLD = 5


@dataclass(frozen=True)
class Fact:
    """One statement: `actor` does `action` (move, get, drop) to a location or an object."""

    actor: str
    action: str
    target: str
    text: str


@dataclass(frozen=True)
class World:
    """A story with one question about it.

    Attributes:
        facts: the statements before the question, in order.
        question: the question.
        answer: the label, one of LOCATIONS.
        sentence: the answer as a full sentence.
        support: indices into `facts` of the statements that the answer follows from, ascending.
    """

    facts: tuple[Fact, ...]
    question: str
    answer: str
    sentence: str
    support: tuple[int, ...]


def make_world(task: str, rng: random.Random) -> World:
    """Draw a story and one of its first five questions, evenly.

    Args:
        task: qa1, qa2 or qa3.
        rng: source of every choice.
    """
    asked = rng.randint(1, _QUESTIONS_PER_WORLD)
    if task == "qa1":
        return _moves_world(asked, rng)
    return _objects_world(task, asked, rng)


def world_split(world: World) -> Split:
    """The split that a world belongs to, by a hash of what its facts say (verbs aside)."""
    story = "|".join(f"{fact.actor} {fact.action} {fact.target}" for fact in world.facts)
    return split_of(story)


def _moves_world(asked: int, rng: random.Random) -> World:
    """qa1: two moves before each question, which is about somebody with a stated location."""
    facts: list[Fact] = []
    place: dict[str, tuple[str, int]] = {}
    while len(facts) < 2 * asked:
        actor, location = rng.choice(ACTORS), rng.choice(LOCATIONS)
        if actor in place and place[actor][0] == location:
            continue
        place[actor] = (location, len(facts))
        facts.append(_fact(actor, "move", location, rng))
    actor = rng.choice(sorted(place))
    location, index = place[actor]
    return World(
        facts=tuple(facts),
        question=f"Where is {actor}?",
        answer=location,
        sentence=f"{actor} is in the {location}.",
        support=(index,),
    )


def _objects_world(task: str, asked: int, rng: random.Random) -> World:
    """qa2 and qa3: valid actions at random; a question with p = 1/2 after more than 2 of them."""
    story = _Story(rng)
    since_question = 0
    questions = 0
    while True:
        story.act()
        since_question += 1
        queries = story.where_is() if task == "qa2" else story.where_was_before()
        if since_question > 2 and queries and rng.random() < 0.5:
            questions += 1
            since_question = 0
            if questions == asked:
                return rng.choice(queries)


class _Story:
    """People and objects in rooms; knows what is true and what the statements so far tell."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.facts: list[Fact] = []
        self.actor_at = {actor: rng.choice(LOCATIONS) for actor in ACTORS}
        self.object_at = {thing: rng.choice(LOCATIONS) for thing in OBJECTS}
        self.holder: dict[str, str] = {}
        # Index of the fact that told each actor's place, and of the last get of each object.
        self.told: dict[str, int] = {}
        self.got: dict[str, int] = {}
        # Known places of each object, repeats collapsed, each with the facts that tell it.
        self.history: dict[str, list[tuple[str, tuple[int, ...]]]] = {t: [] for t in OBJECTS}

    def act(self) -> None:
        """Perform one valid action, drawn evenly over kinds until it is valid."""
        while True:
            kind = self.rng.choice(("get", "drop", "move"))
            actor = self.rng.choice(ACTORS)
            index = len(self.facts)
            if kind == "move":
                location = self.rng.choice(LOCATIONS)
                if self.actor_at[actor] == location:
                    continue
                self.actor_at[actor] = location
                self.told[actor] = index
                for thing, holder in self.holder.items():
                    if holder == actor:
                        self.object_at[thing] = location
                        self._learn(thing, actor)
                self.facts.append(_fact(actor, kind, location, self.rng))
                return
            thing = self.rng.choice(OBJECTS)
            if kind == "get":
                if thing in self.holder or self.object_at[thing] != self.actor_at[actor]:
                    continue
                self.holder[thing] = actor
                self.got[thing] = index
                self._learn(thing, actor)
            else:
                if self.holder.get(thing) != actor:
                    continue
                del self.holder[thing]
            self.facts.append(_fact(actor, kind, thing, self.rng))
            return

    def _learn(self, thing: str, holder: str) -> None:
        if holder not in self.told:
            return
        known = self.history[thing]
        location = self.actor_at[holder]
        if not known or known[-1][0] != location:
            known.append((location, tuple(sorted((self.got[thing], self.told[holder])))))

    def where_is(self) -> list[World]:
        """Questions about the place of an object that somebody with a known place holds."""
        return [
            World(
                facts=tuple(self.facts),
                question=f"Where is the {thing}?",
                answer=self.actor_at[holder],
                sentence=f"The {thing} is in the {self.actor_at[holder]}.",
                support=tuple(sorted((self.got[thing], self.told[holder]))),
            )
            for thing, holder in sorted(self.holder.items())
            if holder in self.told
        ]

    def where_was_before(self) -> list[World]:
        """Questions about the place before one that the object was known to be in just once."""
        queries = []
        for thing, known in self.history.items():
            locations = [location for location, _ in known]
            for before, after in pairwise(known):
                if locations.count(after[0]) == 1:
                    queries.append(
                        World(
                            facts=tuple(self.facts),
                            question=f"Where was the {thing} before the {after[0]}?",
                            answer=before[0],
                            sentence=f"The {thing} was in the {before[0]} before the {after[0]}.",
                            support=tuple(sorted({*before[1], *after[1]})),
                        )
                    )
        return queries


def _fact(actor: str, action: str, target: str, rng: random.Random) -> Fact:
    verb = rng.choice({"move": MOVE_VERBS, "get": GET_VERBS, "drop": DROP_VERBS}[action])
    return Fact(actor, action, target, f"{actor} {verb} the {target}.")
