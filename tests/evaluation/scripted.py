"""A generator that answers by a script, for tests of what is done with answers."""

import dataclasses
import functools
import io
import time

from rich.console import Console

from focusft.evaluation.generation import Completion
from focusft.evaluation.items import make_items
from focusft.evaluation.run import run_suite

QUIET = Console(file=io.StringIO(), width=150)


def make_once(suite, **options):
    """Items of which each is made once, however often they are iterated over."""
    items = make_items(suite, **options)
    return dataclasses.replace(items, draft=functools.cache(items.draft))


class Scripted:
    """Answers prompt after prompt with what `answer` says, `pause` seconds each."""

    def __init__(self, answer, *, name="scripted", pause=0.0):
        self.answer = answer
        self.name = name
        self.pause = pause
        self.asked = []

    def describe(self):
        return {"backend": self.name}

    def batches(self, prompts):
        # Backwards: the order of answers is free.
        order = list(reversed(range(len(prompts))))
        return [order[start : start + 3] for start in range(0, len(order), 3)]

    def complete(self, prompts, batches=None):
        for batch in self.batches(prompts) if batches is None else batches:
            for index in batch:
                time.sleep(self.pause)
                self.asked.append(index)
                text = self.answer(prompts[index])
                tokens = len(prompts[index].messages[0]["content"])
                yield index, Completion(text, tokens, len(text), not text, 0.5)


def answers_by(items, answer):
    """A script that finds the item of a prompt."""
    by_prompt = {item.prompt: item for item in items}
    return lambda prompt: answer(by_prompt[prompt.messages[0]["content"]])


def perfect(item):
    return ", ".join(item.references)


def run(items, out, generator, **config):
    return run_suite(
        items, generator, out, QUIET, config={"seed": 42} | config, versions={"focusft": "0"}
    )


def shown(table):
    """A table as text."""
    console = Console(file=io.StringIO(), width=150)
    console.print(table)
    return console.file.getvalue()
