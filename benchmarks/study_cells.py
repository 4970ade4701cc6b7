"""The committed cells of a study, and figures of its arms: means and paired differences."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from focusft.statistics.paired import (
    Average,
    Difference,
    Question,
    Scores,
    average,
    difference,
    only,
)

BASELINE = "sft"
MASKS = ("causal", "bidirectional")


@dataclass(frozen=True)
class Row:
    """What is shown in one line: an evaluation of an arm.

    Attributes:
        arm: Name of the arm.
        evaluation: Name of the evaluation.
        prompts: Hash of the items; rows with the same one are paired.
        runs: Scores by training seed.
    """

    arm: str
    evaluation: str
    prompts: str
    runs: dict[int, Scores]

    def average(self, keep: Callable[[Question], bool]) -> Average | None:
        """Mean of some questions."""
        return average(only(list(self.runs.values()), keep))


@dataclass
class Cells:
    """The cells of a study by arm and seed.

    Attributes:
        name: Of the study.
        by_arm: What the file of each cell holds.
        tuning: What tuning.json holds.
    """

    name: str
    by_arm: dict[str, dict[int, dict[str, Any]]]
    tuning: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """Every evaluation of every arm; an arm's seeds that have other items are rows apart."""
        found: dict[tuple[str, str, str], dict[int, Scores]] = {}
        for arm, seeds in self.by_arm.items():
            for seed, cell in seeds.items():
                for name, evaluation in cell["evaluations"].items():
                    key = (arm, name, evaluation["prompts_sha256"])
                    found.setdefault(key, {})[seed] = _scores(evaluation)
        return [Row(*key, runs) for key, runs in found.items()]

    def trained(self) -> list[str]:
        """Arms that are trained and are not the baseline."""
        return [
            arm
            for arm, seeds in self.by_arm.items()
            if arm != BASELINE and next(iter(seeds.values()))["train"] is not None
        ]

    def probed(self, arm: str) -> dict[int, dict[str, Any]]:
        """The probe of each seed of an arm."""
        seeds = self.by_arm.get(arm, {})
        return {seed: cell["probe"] for seed, cell in seeds.items() if cell["probe"] is not None}


def read_cells(folder: Path) -> Cells:
    """Read the results of a study; an unfinished one has fewer."""
    by_arm: dict[str, dict[int, dict[str, Any]]] = {}
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*-*.json"))]
    for cell in sorted(cells, key=lambda cell: (cell["arm"] != "base", cell["arm"] != BASELINE)):
        by_arm.setdefault(cell["arm"], {})[cell["seed"]] = cell
    tuning = folder / "tuning.json"
    return Cells(folder.name, by_arm, json.loads(tuning.read_text()) if tuning.is_file() else {})


def baseline_of(row: Row, rows: list[Row]) -> Row | None:
    """The baseline on the same items: in the same evaluation if it was run there, else another."""
    on_same = [other for other in rows if other.arm == BASELINE and other.prompts == row.prompts]
    return min(on_same, key=lambda other: other.evaluation != row.evaluation, default=None)


def compare(row: Row, baseline: Row, keep: Callable[[Question], bool]) -> Difference | None:
    """A row minus the baseline; the seeds that both have are paired."""
    shared = [seed for seed in row.runs if seed in baseline.runs]
    # The base has no training seed: its single run stands beside all of the baseline's.
    if not shared or row.arm == "base":
        first, second = list(row.runs.values()), list(baseline.runs.values())
        return difference(only(first, keep), only(second, keep))
    first = [row.runs[seed] for seed in shared]
    second = [baseline.runs[seed] for seed in shared]
    return difference(only(first, keep), only(second, keep), paired_runs=True)


def probe_runs(probes: dict[int, dict[str, Any]], mask: str, figure: str) -> list[Scores]:
    """A figure of every probed example, for each seed; examples that lack it are left out."""
    return [
        {
            Question(figure, "", str(index), ""): value
            for index, value in enumerate(probe["examples"][mask].get(figure, []))
            if value is not None
        }
        for probe in probes.values()
    ]


def _scores(evaluation: dict[str, Any]) -> Scores:
    return {
        Question(task, length, str(index), ""): score
        for task, row in evaluation["scores"].items()
        for length, scores in row.items()
        for index, score in enumerate(scores)
    }
