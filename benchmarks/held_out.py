"""Greedy answers of models to held-out conversations in the format of their training.

python -m benchmarks.held_out --data F.jsonl --model NAME=FOLDER [NAME=FOLDER ..] --json out.json

The data is that of `focusft data make --split held_out --answer_style sentence`. A question about a
place counts where the answer names that place and no other but those in the question; of the words
or variables that are asked for counts the share that the answer names. Every model answers
causally; `--bidirectional` names those that answer once more with the prompt read under the mask of
training.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from focusft.data.worlds import LOCATIONS
from focusft.evaluation.generation import Prompt
from focusft.evaluation.generation.local import LocalGenerator, Prefill
from focusft.training.models import load_model, load_tokenizer
from focusft.training.provenance import versions, write_json


def main() -> None:
    """Answer, score, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--model", nargs="+", required=True, help="NAME=FOLDER")
    parser.add_argument("--bidirectional", nargs="*", default=[], help="NAME of a model")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    data = {path.stem: _rows(path) for path in options.data}
    scores: dict[str, dict[str, dict[str, dict[str, list[float]]]]] = {}
    answers: dict[str, dict[str, dict[str, list[str]]]] = {}
    for name, folder in (entry.split("=", 1) for entry in options.model):
        model = load_model(folder, dtype="bfloat16")
        tokenizer = load_tokenizer(folder)
        scores[name], answers[name] = {}, {}
        prefills: list[Prefill] = ["causal"]
        if name in options.bidirectional:
            prefills.append("bidirectional")
        for prefill in prefills:
            generator = LocalGenerator(model, tokenizer, prefill=prefill)
            written = {source: _answers(generator, rows) for source, rows in data.items()}
            answers[name][prefill] = written
            scores[name][prefill] = {
                source: by_task(rows, written[source]) for source, rows in data.items()
            }
            print(name, prefill, _means(scores[name][prefill]), flush=True)
        facts = {source: _facts(rows) for source, rows in data.items()}
        write_json(
            options.json,
            {"scores": scores, "answers": answers, "data": facts, "versions": versions()},
        )


def by_task(rows: list[dict[str, Any]], answers: list[str]) -> dict[str, list[float]]:
    """The score of each answer from 0 to 1, by task, in the order of the rows."""
    found: dict[str, list[float]] = {}
    for row, answer in zip(rows, answers, strict=True):
        found.setdefault(row["meta"]["task"], []).append(score(row["meta"], answer))
    return found


def score(meta: dict[str, Any], answer: str) -> float:
    """What an answer is worth, from 0 to 1.

    Args:
        meta: `meta` of a row of generated data.
        answer: What the model wrote.
    """
    if meta["task"].startswith("qa"):
        others = set(LOCATIONS) - {meta["answer"]}
        asked = {place for place in LOCATIONS if place in meta["question"]}
        named = {place for place in LOCATIONS if place in answer.casefold()}
        return float(meta["answer"] in named and not named & (others - asked))
    wanted = re.findall(r"[A-Za-z]+", meta["answer"])
    written = set(re.findall(r"[A-Za-z]+", answer))
    return sum(word in written for word in wanted) / len(wanted)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _answers(generator: LocalGenerator, rows: list[dict[str, Any]]) -> list[str]:
    answers = [""] * len(rows)
    prompts = [Prompt(tuple(row["messages"][:-1]), max_new_tokens=64) for row in rows]
    for index, completion in generator.complete(prompts):
        answers[index] = completion.text
    return answers


def _facts(rows: list[dict[str, Any]]) -> dict[str, int]:
    tokens = [row["meta"]["context_tokens"] for row in rows]
    return {"conversations": len(rows), "shortest": min(tokens), "longest": max(tokens)}


def _means(scores: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    return {
        source: {task: round(sum(one) / len(one), 3) for task, one in tasks.items()}
        for source, tasks in scores.items()
    }


if __name__ == "__main__":
    main()
