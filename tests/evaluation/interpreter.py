"""Answers a bAbI question from the text alone; knows nothing of how the worlds are made."""

from __future__ import annotations

import re

PLACES = "bedroom|kitchen|garden|hallway|bathroom|office"
THINGS = "apple|football|milk"
MOVE = re.compile(
    rf"(\w+) (?:went to|moved to|travelled to|journeyed to|went back to) the ({PLACES})"
)
GET = re.compile(rf"(\w+) (?:got|took|grabbed|picked up) the ({THINGS})(?: there)?")
DROP = re.compile(rf"(\w+) (?:dropped|discarded|put down|left) the ({THINGS})(?: there)?")
GIVE = re.compile(rf"(\w+) (?:gave|handed|passed) the ({THINGS}) to (\w+)")
SIDE = re.compile(rf"The ({PLACES}) is (north|south|east|west) of the ({PLACES})")
BACK = {"north": "south", "south": "north", "east": "west", "west": "east"}


def answers(text: str, question: str) -> set[str]:
    """Every answer that the statements allow; one if the question is sound."""
    statements = text.rstrip(".").split(". ")
    if match := re.fullmatch(r"Where is (\w+)\?", question):
        return {where_are(statements)[match[1]]}
    if match := re.fullmatch(r"Where is the (\w+)\?", question):
        return {where_was(statements, match[1])[-1]}
    if match := re.fullmatch(r"Where was the (\w+) before the (\w+)\?", question):
        known = where_was(statements, match[1])
        return {known[i - 1] for i, place in enumerate(known) if place == match[2] and i}
    if match := re.fullmatch(r"What is (\w+) of the (\w+)\?", question):
        return sides(statements, match[2], match[1])
    if match := re.fullmatch(r"What is the (\w+) (\w+) of\?", question):
        return sides(statements, match[1], BACK[match[2]])
    return gift(statements, question)


def where_are(statements):
    at = {}
    for statement in statements:
        if match := MOVE.fullmatch(statement):
            at[match[1]] = match[2]
    return at


def where_was(statements, thing):
    """Places where the thing is known to have been, in order, without repeats in a row."""
    known = []
    for end in range(1, len(statements) + 1):
        holder = None
        for statement in statements[:end]:
            if (match := GET.fullmatch(statement)) and match[2] == thing:
                assert holder is None, "it was free"
                holder = match[1]
            elif (match := DROP.fullmatch(statement)) and match[2] == thing:
                assert holder == match[1], "only the holder drops it"
                holder = None
        place = where_are(statements[:end]).get(holder)
        if place is not None and known[-1:] != [place]:
            known.append(place)
    return known


def sides(statements, middle, side):
    found = set()
    for statement in statements:
        one, direction, other = SIDE.fullmatch(statement).groups()
        if other == middle and direction == side:
            found.add(one)
        if one == middle and direction == BACK[side]:
            found.add(other)
    return found


def gift(statements, question):
    gifts = [match.groups() for s in statements if (match := GIVE.fullmatch(s))]
    patterns = (
        (r"What did (?P<a>\w+) give to (?P<c>\w+)\?", 1),
        (r"Who did (?P<a>\w+) give the (?P<b>\w+) to\?", 2),
        (r"Who gave the (?P<b>\w+)\?", 0),
        (r"Who gave the (?P<b>\w+) to (?P<c>\w+)\?", 0),
        (r"Who received the (?P<b>\w+)\?", 2),
    )
    for pattern, wanted in patterns:
        if match := re.fullmatch(pattern, question):
            asked = match.groupdict()
            fitting = [
                g for g in gifts if all(asked.get(k, v) == v for k, v in zip("abc", g, strict=True))
            ]
            return {fitting[-1][wanted]}
    raise AssertionError(f"unknown question: {question}")
