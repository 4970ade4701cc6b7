"""What a step of FocuSFT costs beside others: tables from the JSON of `benchmarks.step`."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from benchmarks.step import RATIOS

# Where the README shows the cost.
README_MARKS = ("<!-- cost, by python -m benchmarks.tables -->", "<!-- end of cost -->")
# FocuSFT, in its defaults, beside these in theirs.
_OTHERS = {
    "trl_sft_checkpointed": "plain SFT in TRL's SFTTrainer",
    "sft": "plain SFT in this trainer",
    "k0": "this trainer without an inner loop (K = 0)",
    "published_checkpointed": "the published FocuSFT procedure",
}


def round_ratios(step: Mapping[str, Any], above: str, below: str) -> list[float]:
    """The ratio of two trainers in each round of the last group that holds both.

    Args:
        step: What `benchmarks.step` wrote.
        above: Name of a trainer.
        below: Name of the one it is compared with.
    """
    return [a / b for a, b in zip(*_rounds(step, above, below), strict=True)]


def _rounds(step: Mapping[str, Any], above: str, below: str) -> tuple[list[float], list[float]]:
    """The seconds of both in the last group that holds both."""
    *_, rounds = (r for r in step["rounds"] if above in r and below in r)
    return rounds[above], rounds[below]


def measured_ratio(step: Mapping[str, Any], name: str) -> str:
    """The median ratio of the name, with the lowest and the highest of a round."""
    found = round_ratios(step, *RATIOS[name])
    return f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def shortest_ratio(step: Mapping[str, Any], name: str) -> str:
    """The ratio of the name, of the shortest steps of both: what other load adds least to."""
    above, below = _rounds(step, *RATIOS[name])
    return f"{min(above) / min(below):.2f}"


def readme_cost(steps: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Lines for the README: time and memory of a step, FocuSFT over others.

    Args:
        steps: What `benchmarks.step` wrote, by length in tokens.
    """
    lengths = [f"{length:,} tokens" for length in steps]
    heads = [f"{what}, {length}" for what in ("time", "peak memory") for length in lengths]
    lines = [f"| FocuSFT over | {' | '.join(heads)} |", "| --- " * (1 + len(heads)) + "|"]
    for other, title in _OTHERS.items():
        times = [round_ratios(step, "ours", other) for step in steps.values()]
        cells = [f"{median(ratios):.2f}" for ratios in times]
        cells += [f"{s['peak_gb']['ours'] / s['peak_gb'][other]:.2f}" for s in steps.values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines
