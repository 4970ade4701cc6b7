"""BABILong (Kuratov et al. 2024, arXiv 2406.10149): questions about facts hidden in long prose.

The facts are bAbI stories: our own worlds of tasks qa1 to qa5 at any length, or the published data
of qa1 to qa10 from files. Scores are those of the published evaluation code, or lenient.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from focusft.data.worlds import LOCATIONS, OBJECTS, World
from focusft.errors import ConfigError
from focusft.evaluation.babilong_data import Published, read_rows
from focusft.evaluation.babilong_prompts import build_prompt
from focusft.evaluation.haystack import (
    CountTokens,
    DoesNotFitError,
    Draft,
    Prose,
    fit,
    insert_at,
    rng_for,
)
from focusft.evaluation.worlds import GIVERS, TASKS, draw_world

MAX_NEW_TOKENS = 20
DATA_TASKS = tuple(f"qa{number}" for number in range(1, 11))

_LABELS = {
    **dict.fromkeys(("qa1", "qa2", "qa3", "qa4"), LOCATIONS),
    "qa5": (*GIVERS, *OBJECTS),
    "qa6": ("no", "yes"),
    "qa7": ("none", "one", "three", "two"),
    "qa8": (*OBJECTS, "nothing"),
    "qa9": ("no", "yes"),
    "qa10": ("maybe", "no", "yes"),
}

# A line that begins with "B." or "(B)": a list of choices is no answer.
_CHOICES = re.compile(r"^\s*\(?b[.:)]", re.MULTILINE)

# Stories of qa2 and qa3 have no largest length; a short prompt takes the first that fits.
_MAX_DRAWS = 200


def score(task: str, question: str, target: str, output: str, *, strict: bool = True) -> bool:
    """Whether an output answers the question.

    Labels are the words that can be an answer in the task. Right is an output that names the
    target (each part of a target with commas) and no other label; labels in the question do not
    count.

    Strict is the rule of the published code: everything in lower case; the output ends before the
    first full stop, "<context>" or "<example>"; a label counts wherever its letters stand, so that
    "i do not know" names the label "no", and "none" also names "one". (The published code also
    means to end the output before "Question", but looks for the capital in lower-case text.)

    Lenient differs in this: thinking up to "</think>" is left out; the output does end before
    "Question"; labels are whole words; and what counts is the first sentence or line that names a
    label (or the whole output, if it lists choices as "A." and "B.").

    Args:
        task: qa1 to qa10.
        question: The question.
        target: The right answer; parts with commas between them where it has several.
        output: What the model wrote.
        strict: Which of the two rules.

    Raises:
        ConfigError: There is no such task.
    """
    labels = {label.lower() for label in labels_of(task)}
    asked = question.lower()
    if strict:
        answer = re.split(r"\.|<context>|<example>", output.lower(), maxsplit=1)[0]
        named = {label for label in labels if label in answer and label not in asked}
        # Like the published code, which takes "n,w" of a later task for one label.
        several = "," in target and len(target) > 3
        wanted = set(target.lower().split(",")) if several else {target.lower()}
        return named == wanted
    answer = output.rpartition("</think>")[2]
    answer = re.split(r"<context>|<example>|Question", answer, maxsplit=1)[0].lower()
    labels -= _words(asked)
    for sentence in [answer] if _CHOICES.search(answer) else re.split(r"[.\n]", answer):
        if named := labels & _words(sentence):
            return named == {part.strip() for part in target.lower().split(",")}
    return False


def labels_of(task: str) -> tuple[str, ...]:
    """The words that can be an answer in a task.

    Raises:
        ConfigError: There is no such task.
    """
    if task not in _LABELS:
        raise ConfigError(f"--tasks: babilong has no '{task}'; use some of {', '.join(_LABELS)}")
    return _LABELS[task]


def gives_answer(task: str, question: str, output: str) -> bool:
    """Whether an output names any label, right or wrong, that the question does not name.

    Raises:
        ConfigError: There is no such task.
    """
    labels = {label.lower() for label in labels_of(task)}
    return bool((labels - _words(question)) & _words(output.rpartition("</think>")[2]))


def draft_item(
    task: str, index: int, *, seed: int, budget: int, prose: Prose, count: CountTokens
) -> Draft:
    """Hide one of our own stories in prose that fills the budget.

    The same index gives the same story at every length, unless the story alone is too long: then
    the next one that fits, and `metadata` says how many were passed over.

    Args:
        task: qa1 to qa5.
        index: Number of the item.
        seed: Seed of the whole set.
        budget: Most tokens of the whole prompt.
        prose: The background, without words that could be answers.
        count: Tokens of a whole prompt.

    Raises:
        ConfigError: There is no such task.
        DoesNotFitError: No story was found that is short enough.
    """
    if task not in TASKS:
        raise ConfigError(
            f"--tasks: babilong makes no '{task}' items; use some of {', '.join(TASKS)}, or give "
            "the published data with --babilong_data"
        )
    rng = rng_for("babilong", task, seed, index)
    haystack = prose.from_random_start(rng)
    shortest: DoesNotFitError | None = None
    for passed_over in range(_MAX_DRAWS):
        world = draw_world(task, rng)
        places = sorted(rng.random() for _ in world.facts)

        def build(
            words: int,
            world: World = world,
            places: list[float] = places,
            passed_over: int = passed_over,
        ) -> Draft:
            background = haystack.words(words)
            # Gaps with replacement: two facts may share one.
            gaps = [int(place * (len(background) + 1)) for place in places]
            facts = [fact.text for fact in world.facts]
            context = " ".join(insert_at(background, facts, gaps))
            return Draft(
                prompt=build_prompt(task, context, world.question),
                references=(world.answer,),
                question=world.question,
                metadata={
                    "facts": facts,
                    "supporting": list(world.support),
                    "depths": [round(places[index], 4) for index in world.support],
                    "words": words,
                    "stories_passed_over": passed_over,
                },
            )

        try:
            return fit(build, count, budget)
        except DoesNotFitError as error:
            if shortest is None or error.tokens < shortest.tokens:
                shortest = error
    assert shortest is not None
    raise shortest


def published_drafts(
    source: str | Path, task: str, length: str, *, samples: int, count: CountTokens
) -> tuple[Sequence[Draft], Published]:
    """Items from the published data; nothing is added or cut.

    Args:
        source: A file, a folder with files for several tasks and lengths, or a hub id.
        task: qa1 to qa10.
        length: Length as the data names it, such as "4k".
        samples: How many, from the first on.
        count: Tokens of a whole prompt.

    Returns:
        The items, and the rows that they come from.

    Raises:
        ConfigError: There is no such task, or not as many rows.
        DataError: There is no file for the task and the length, or it cannot be used.
    """
    if task not in DATA_TASKS:
        raise ConfigError(f"--tasks: babilong has no '{task}'; use some of {', '.join(DATA_TASKS)}")
    published = read_rows(source, task, length)
    if len(published.rows) < samples:
        raise ConfigError(
            f"--samples: {samples} are more than the {len(published.rows)} rows of "
            f"{published.source}; ask for fewer"
        )
    drafts = []
    for row in published.rows[:samples]:
        prompt = build_prompt(task, row["input"], row["question"])
        drafts.append(
            Draft(
                prompt=prompt,
                references=(row["target"],),
                question=row["question"].strip(),
                tokens=count(prompt, ""),
            )
        )
    return drafts, published


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))
