"""The compact result of a cell: all that tables and paired statistics need, and no texts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from focusft.errors import DataError
from focusft.evaluation.run import ITEMS_FILE
from focusft.evaluation.run_files import replace_file
from focusft.study.cells import PROBE, TRAIN, Cell, Stage
from focusft.study.config import Study
from focusft.training.probe_results import MASKS
from focusft.training.provenance import versions

# What differs between two runs that computed the same.
_TIMES = ("per_second", "runtime", "seconds")
_NUMBERS = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s+\]")


def cell_results(study: Study, cell: Cell) -> dict[str, Any]:
    """Gather what the finished stages of a cell wrote.

    Returns:
        JSON values (docs/study.md, "What a cell holds").

    Raises:
        DataError: A file of a stage is damaged.
    """
    found: dict[str, Any] = {
        "study": study.name,
        "arm": cell.arm,
        "seed": cell.seed,
        "tuned": cell.tuned,
        "train": None,
        "evaluations": {},
        "probe": None,
    }
    for stage in cell.stages:
        if stage.name == TRAIN:
            found["train"] = _train(stage)
        elif stage.name == PROBE:
            found["probe"] = _probe(stage)
        else:
            found["evaluations"][stage.name] = _evaluation(stage)
    return found | {"settings": cell.settings, "versions": versions()}


def write_result(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with each list of numbers in one line, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = _NUMBERS.sub(
        lambda match: "[" + " ".join(match[1].split()) + "]", json.dumps(content, indent=1)
    )
    replace_file(path, [text + "\n"])


def mean_score(evaluations: dict[str, Any]) -> float:
    """Mean over evaluations of the mean over tasks and lengths."""
    means = []
    for evaluation in evaluations.values():
        cells = [sum(s) / len(s) for row in evaluation["scores"].values() for s in row.values()]
        means.append(sum(cells) / len(cells))
    return sum(means) / len(means)


def _train(stage: Stage) -> dict[str, Any]:
    results = stage.results()
    return {
        "seconds": round(results["seconds"], 1),
        # The seconds of a run that went on from a checkpoint are those since then.
        "resumed": results["resumed_from"] is not None,
        "metrics": _timeless(results["metrics"]),
        "inner_steps_watched": results["inner_steps_watched"],
        "inner_steps_raised": results["inner_steps_raised"],
        "attention_backend": results["attention_backend"],
        "data": results["data"],
        "log": [_timeless(line) for line in results["log"]],
        "versions": results["versions"],
    }


def _timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {
        name: float(f"{value:.6g}") if isinstance(value, float) else value
        for name, value in line.items()
        if not any(part in name for part in _TIMES)
    }


def _evaluation(stage: Stage) -> dict[str, Any]:
    results = stage.results()
    scores: dict[str, dict[str, list[float]]] = {}
    lenient: dict[str, dict[str, list[float]]] = {}
    no_answer: dict[str, dict[str, int]] = {}
    file = stage.folder / ITEMS_FILE
    try:
        # A line separator of Unicode may stand in an output.
        for line in file.read_text(encoding="utf-8").split("\n")[:-1]:
            row = json.loads(line)
            task, length = row["task"], str(row["length"])
            scores.setdefault(task, {}).setdefault(length, []).append(round(row["score"], 6))
            if row["score_lenient"] is not None:
                by_length = lenient.setdefault(task, {})
                by_length.setdefault(length, []).append(round(row["score_lenient"], 6))
            counts = no_answer.setdefault(task, {})
            counts[length] = counts.get(length, 0) + bool(row["no_answer"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: cannot be read ({error}); delete {stage.folder} to run it again"
        ) from error
    return {
        "suite": results["suite"],
        # The same for every cell: the items are paired.
        "prompts_sha256": results["items"]["prompts_sha256"],
        "scores": scores,
        "lenient": lenient,
        "no_answer": no_answer,
        "seconds": results["seconds"],
        "generator": results["generator"],
        "stand_in": results["items"]["stand_in"],
        "versions": results["versions"],
    }


def _probe(stage: Stage) -> dict[str, Any]:
    results = stage.results()
    return {
        **{
            mask: {name: v for name, v in results[mask].items() if isinstance(v, float)}
            for mask in MASKS
        },
        "ratios": results["ratios"],
        # The examples are paired over the cells, as the items are.
        "examples": {
            mask: {
                figure: [_rounded(example[mask][figure]) for example in results["examples"]]
                for figure in results["examples"][0][mask]
            }
            for mask in MASKS
        },
        "seconds": round(results["seconds"], 1),
        "versions": results["versions"],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
