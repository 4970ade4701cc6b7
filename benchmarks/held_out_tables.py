"""The tables of benchmarks.held_out, from its committed files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from focusft.statistics.scores import mean_of_means, score_interval


def held_out_section(folder: Path) -> list[str]:
    """The lines of the section; none without a file.

    Args:
        folder: Files of `benchmarks.held_out` on the same data.
    """
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    if not files:
        return []
    data = files[0]["data"]
    if any(file["data"] != data for file in files):
        raise ValueError(f"{folder}: its files are not of the same data")
    models = {name: scores for file in files for name, scores in file["scores"].items()}
    lines = [
        "### Held-out conversations in the format of the training",
        "",
        "The right place and no other, or the share of the words or variables that are named; with "
        "95% intervals over the conversations. BABILong's and RULER's prompts look different from "
        "those trained on, these do not. `python -m benchmarks.held_out`",
        "",
    ]
    for source, facts in data.items():
        lines += [
            f"Contexts of {facts['shortest']} to {facts['longest']} tokens, "
            f"{facts['conversations']} conversations:",
            "",
            *_table(source, models),
            "",
        ]
    return lines


def _table(source: str, models: dict[str, Any]) -> list[str]:
    tasks = sorted({task for runs in models.values() for task in runs["causal"][source]})
    return [
        f"| model | prefill | {' | '.join(tasks)} | mean |",
        f"| --- | --- |{' --- |' * (len(tasks) + 1)}",
        *(
            f"| {name} | {prefill} | "
            + " | ".join(_score([scores[source][task]]) for task in tasks)
            + f" | {_score(list(scores[source].values()))} |"
            for name, runs in models.items()
            for prefill, scores in runs.items()
        ),
    ]


def _score(groups: Sequence[Sequence[float]]) -> str:
    low, high = score_interval(groups)
    return f"{100 * mean_of_means(groups):.1f} [{100 * low:.0f}, {100 * high:.0f}]"
