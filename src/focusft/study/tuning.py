"""Choose options of an arm by validation scores, from the results of the cells that tried them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from focusft.errors import ConfigError
from focusft.study.cells import candidate_cells, read_json
from focusft.study.config import Study, Tuning
from focusft.study.results import mean_score, write_result

CHOICES_FILE = "tuning.json"


@dataclass
class Choices:
    """What was chosen so far.

    Attributes:
        options: Chosen values, by arm and option.
        scores: Validation score of every value that was tried, by arm and option; None where
            the run failed, for instance because it diverged.
        open: Choices that lack results, in words.
    """

    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The choices for a terminal."""
        lines = []
        for arm, options in self.scores.items():
            for option, scores in options.items():
                shown = ", ".join(
                    f"{value}: {'failed' if score is None else format(score, '.3f')}"
                    for value, score in scores.items()
                )
                chosen, note = self.options[arm][option], ""
                if len(scores) > 2 and str(chosen) in (next(iter(scores)), list(scores)[-1]):
                    note = "; the best is at the end of the list: try values beyond it"
                lines.append(f"{arm}: {option} = {chosen} ({shown}){note}")
        return lines


def choose(study: Study, arms: tuple[str, ...], tunings: Sequence[Tuning]) -> Choices:
    """Choose the value with the best mean score; of equals, the one that is listed first.

    Args:
        study: The study.
        arms: Names of the arms.
        tunings: Those to look at, in order: each builds on the choices before it.

    Raises:
        ConfigError: Every value of an option failed.
    """
    choices = Choices()
    for tuning in tunings:
        for arm in (name for name in tuning.arms if name in arms):
            cells = list(candidate_cells(study, tuning, (arm,), choices.options))
            if not all(cell.is_done() for cell in cells):
                choices.open.append(f"{arm}: {tuning.option}")
                continue
            scores = {cell.candidate: _score(read_json(cell.result)) for cell in cells}
            best = max(scores, key=lambda value: _or_least(scores[value]))
            if scores[best] is None:
                raise ConfigError(
                    f"{study.path}: tune: {tuning.option}: every value failed for {arm}; see "
                    f"{cells[0].result}, and try others"
                )
            choices.options.setdefault(arm, {})[tuning.option] = best
            by_text = {str(value): score for value, score in scores.items()}
            choices.scores.setdefault(arm, {})[tuning.option] = by_text
    return choices


def write_choices(study: Study, choices: Choices) -> None:
    """Write the choices and their scores beside the results of the cells."""
    content = {
        arm: {
            option: {"chosen": choices.options[arm][option], "scores": scores}
            for option, scores in options.items()
        }
        for arm, options in choices.scores.items()
    }
    write_result(study.results / CHOICES_FILE, content)


def _score(result: dict[str, Any]) -> float | None:
    return None if "failed" in result else mean_score(result["evaluations"])


def _or_least(score: float | None) -> float:
    return -math.inf if score is None else score
