"""One model output: what it scores, and whether it is an answer at all."""

from __future__ import annotations

from dataclasses import dataclass

from focusft.evaluation import babilong, ruler
from focusft.evaluation.items import Item


@dataclass(frozen=True)
class Score:
    """What an output is worth.

    Attributes:
        score: From 0 to 1 by the published rule.
        lenient: From 0 to 1 by the lenient rule; None for ruler, which has one rule.
        no_answer: babilong: the output names no label; ruler: the output is empty.
    """

    score: float
    lenient: float | None
    no_answer: bool


def score_output(item: Item, output: str) -> Score:
    """Score an output by the rules of the item's suite."""
    if item.suite == "ruler":
        score = ruler.score(item.task, item.references, output)
        return Score(score, None, no_answer=not output.strip())
    strict, lenient = (
        float(babilong.score(item.task, item.question, item.target, output, strict=strict))
        for strict in (True, False)
    )
    answers = babilong.gives_answer(item.task, item.question, output)
    return Score(strict, lenient, no_answer=not answers)
