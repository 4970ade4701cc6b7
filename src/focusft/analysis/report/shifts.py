"""How attention moves from the causal mask to FocuSFT's, for each model that was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from focusft.analysis.report.reading import Runs

FIGURES = ("sink_mass", "context_engagement")


@dataclass(frozen=True)
class Shift:
    """A figure under both masks.

    Attributes:
        causal: Under SFT's mask.
        bidirectional: Under FocuSFT's mask.
        low: Lower end of the 95% interval of the larger over the smaller that the paper claims;
            None where it was not measured.
        high: Its upper end.
        median: Median of the conversations' own ratios; None where it was not measured.
    """

    causal: float
    bidirectional: float
    low: float | None = None
    high: float | None = None
    median: float | None = None


@dataclass(frozen=True)
class ModelShifts:
    """The shifts of one model.

    Attributes:
        label: The model.
        figures: sink_mass and context_engagement.
        examples: How many conversations were measured; None where it is not recorded.
    """

    label: str
    figures: dict[str, Shift]
    examples: int | None


def attention_shifts(runs: Runs) -> list[ModelShifts]:
    """The shifts that probes and demos measured."""
    found = [
        ModelShifts(
            result.label,
            {name: _probed(result.content, name) for name in FIGURES},
            len(result.content["examples"]) if "examples" in result.content else None,
        )
        for result in runs.of("probe")
    ]
    # Demos of earlier versions hold the means alone.
    for demo in (demo for demo in runs.of("demo") if "probes" not in demo.content):
        for when in ("before", "after"):
            figures = demo.content[when]
            shifts = {
                name: Shift(figures[name], figures[f"{name}_bidirectional"]) for name in FIGURES
            }
            probed = demo.content["settings"].get("probed_examples")
            found.append(ModelShifts(f"{demo.label}, {when} training", shifts, probed))
    return found


def _probed(content: Mapping[str, Any], name: str) -> Shift:
    ratios = content["ratios"]
    return Shift(
        content["causal"][name],
        content["bidirectional"][name],
        ratios.get(f"{name}_low"),
        ratios.get(f"{name}_high"),
        ratios.get(f"{name}_median"),
    )
