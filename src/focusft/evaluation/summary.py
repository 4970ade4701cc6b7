"""From scored items to the figures of a run: cells, means over tasks, categories."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from focusft.evaluation import ruler
from focusft.evaluation.items import Item
from focusft.evaluation.scoring import Score
from focusft.statistics.scores import mean_of_means, score_interval


@dataclass(frozen=True)
class Outcome:
    """What became of an item.

    Attributes:
        output: What the model wrote.
        thinking: What it thought before that.
        score: What it is worth.
        prompt_tokens: Tokens of the whole prompt, as the generator counted them.
        output_tokens: Tokens generated, those of the thinking included.
        truncated: Whether the output ended because it had no tokens left.
        seconds: Its share of the time of its batch.
    """

    output: str
    thinking: str
    score: Score
    prompt_tokens: int
    output_tokens: int
    truncated: bool
    seconds: float


Pairs = Sequence[tuple[Item, Outcome]]


def summarise(pairs: Pairs, manifest: dict[str, Any]) -> dict[str, Any]:
    """Figures of each task and length, and means over tasks.

    Args:
        pairs: Every item of the run with its outcome.
        manifest: The manifest of the items.

    Returns:
        "tasks": {task: {length: figures}}; "mean": {length: figures}; for ruler "categories":
        {category: {length: figures}}.
    """
    stand_ins = {
        task
        for corpus in manifest["corpora"].values()
        if corpus["stand_in"]
        for task in corpus["tasks"]
    }
    cells: dict[str, dict[str, list[tuple[Item, Outcome]]]] = {}
    for item, outcome in pairs:
        cells.setdefault(item.task, {}).setdefault(str(item.length), []).append((item, outcome))
    lengths = list(dict.fromkeys(length for row in cells.values() for length in row))

    def means(tasks: Iterable[str]) -> dict[str, Any]:
        return {
            length: _figures([[outcome for _, outcome in cells[task][length]] for task in tasks])
            for length in lengths
        }

    summary = {
        "tasks": {
            task: {
                length: _cell(row[length]) | {"stand_in": task in stand_ins} for length in lengths
            }
            for task, row in cells.items()
        },
        "mean": means(cells),
    }
    if manifest["suite"] == "ruler":
        summary["categories"] = {
            category: means(present)
            for category, members in ruler.CATEGORIES.items()
            if (present := [task for task in members if task in cells])
        }
    return summary


def _cell(pairs: Pairs) -> dict[str, Any]:
    items = [item for item, _ in pairs]
    outcomes = [outcome for _, outcome in pairs]
    prompt_tokens = [outcome.prompt_tokens for outcome in outcomes]
    fills = [
        (tokens + item.max_new_tokens) / item.length
        for tokens, item in zip(prompt_tokens, items, strict=True)
    ]
    return _figures([outcomes]) | {
        "truncated": _share(outcome.truncated for outcome in outcomes),
        "no_answer": _share(outcome.score.no_answer for outcome in outcomes),
        "prompt_tokens": {
            "least": min(prompt_tokens),
            "mean": round(fmean(prompt_tokens), 1),
            "most": max(prompt_tokens),
        },
        "fill": {"least": round(min(fills), 4), "mean": round(fmean(fills), 4)},
        "output_tokens": round(fmean(outcome.output_tokens for outcome in outcomes), 1),
        # A server may wrap the prompt in another way than the tokenizer that it was fitted with.
        "counted_otherwise": sum(
            tokens != item.tokens for tokens, item in zip(prompt_tokens, items, strict=True)
        ),
    }


def _figures(groups: Sequence[Sequence[Outcome]]) -> dict[str, Any]:
    """Mean score over the groups' means with its interval, by the lenient rule too if any."""
    figures = _mean(groups, lambda score: score.score)
    figures["n"] = sum(len(group) for group in groups)
    if groups[0][0].score.lenient is not None:
        lenient = _mean(groups, lambda score: score.lenient or 0.0)
        figures |= {f"{name}_lenient": value for name, value in lenient.items()}
    return figures


def _mean(groups: Sequence[Sequence[Outcome]], part: Callable[[Score], float]) -> dict[str, Any]:
    scores = [[part(outcome.score) for outcome in group] for group in groups]
    low, high = score_interval(scores)
    return {"score": mean_of_means(scores), "low": low, "high": high}


def _share(flags: Iterable[bool]) -> float:
    return fmean(map(float, flags))
