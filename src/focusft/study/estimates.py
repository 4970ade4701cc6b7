"""How long the rest of a study takes, from the cells that are done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from focusft.study.cells import PROBE, TRAIN, Stage, read_json
from focusft.study.config import Study


@dataclass
class Estimates:
    """Seconds of finished stages.

    Attributes:
        by_arm: By arm and stage.
        by_stage: By stage, of all arms.
    """

    by_arm: dict[tuple[str, str], list[float]]
    by_stage: dict[str, list[float]]

    @classmethod
    def of(cls, study: Study) -> Estimates:
        """Read them from the results."""
        found = cls({}, {})
        for path in [*study.results.glob("*-*.json"), *study.results.glob("tuning/*.json")]:
            cell = read_json(path)
            if "failed" in cell:
                continue
            # Validation has fewer items than the evaluation of the same name.
            seconds = {} if path.parent.name == "tuning" else dict(_seconds(cell["evaluations"]))
            if cell["train"] is not None and not cell["train"]["resumed"]:
                seconds[TRAIN] = cell["train"]["seconds"]
            if cell["probe"] is not None:
                seconds[PROBE] = cell["probe"]["seconds"]
            for stage, value in seconds.items():
                found.by_arm.setdefault((cell["arm"], stage), []).append(value)
                found.by_stage.setdefault(stage, []).append(value)
        return found

    def of_stages(self, arm: str, stages: Iterable[Stage]) -> float | None:
        """Seconds of some stages; None where one of them was never run."""
        total = 0.0
        for stage in stages:
            values = self.by_arm.get((arm, stage.name)) or self.by_stage.get(stage.name)
            if values is None:
                return None
            total += fmean(values)
        return total


def duration(seconds: float | None) -> str:
    """Time for people: "2.5 h", "12 min", "?"."""
    if seconds is None:
        return "?"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def _seconds(evaluations: dict[str, dict[str, float]]) -> Iterable[tuple[str, float]]:
    return ((name, evaluation["seconds"]) for name, evaluation in evaluations.items())
