"""Memory and FLOPs of a training step, from a model's config alone: nothing is loaded or run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from focusft.method.config import FocusConfig
from focusft.training.plan.flops import Flops, step_flops
from focusft.training.plan.memory import memory_moments, memory_terms
from focusft.training.plan.setup import ModelShape, Setup


@dataclass(frozen=True)
class Plan:
    """What one optimizer step takes.

    Attributes:
        shape: The model.
        focus: Options of the method.
        setup: How it is trained.
        memory: Bytes on one device, by term.
        moments: Bytes alive on one device at the moments that can be the peak.
        flops: Of one micro-batch on one device, by phase.
        tflops: Assumed or measured matmul rate of one device, in 10^12 per second.
        utilisation: Assumed fraction of it over a whole step.
    """

    shape: ModelShape
    focus: FocusConfig
    setup: Setup
    tflops: float | None = None
    utilisation: float = 1.0
    memory: dict[str, int] = field(init=False)
    moments: dict[str, int] = field(init=False)
    flops: dict[str, Flops] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "flops", step_flops(self.shape, self.focus, self.setup))
        object.__setattr__(self, "memory", memory_terms(self.shape, self.focus, self.setup))
        object.__setattr__(self, "moments", memory_moments(self.memory, self.setup))

    @property
    def peak(self) -> int:
        """Bytes at the worst moment."""
        return max(self.moments.values())

    @property
    def peak_moment(self) -> str:
        """The worst moment."""
        return max(self.moments, key=lambda moment: self.moments[moment])

    @cached_property
    def total_flops(self) -> int:
        """Of one micro-batch on one device."""
        return sum(flops.total for flops in self.flops.values())

    @property
    def seconds(self) -> float | None:
        """Of one optimizer step: matrix products only, at the assumed rate and utilisation."""
        if self.tflops is None:
            return None
        return self.total_flops * self.setup.accumulation / (self.tflops * 1e12 * self.utilisation)

    @property
    def over_sft(self) -> float:
        """FLOPs over those of K = 0 under the same mask."""
        baseline = step_flops(
            self.shape, dataclasses.replace(self.focus, num_inner_steps=0), self.setup
        )
        return self.total_flops / sum(flops.total for flops in baseline.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "model": dataclasses.asdict(self.shape),
            "setup": dataclasses.asdict(self.setup),
            "memory_bytes": self.memory,
            "moments_bytes": self.moments,
            "peak_bytes": self.peak,
            "peak_moment": self.peak_moment,
            "flops": {phase: dataclasses.asdict(flops) for phase, flops in self.flops.items()},
            "total_flops": self.total_flops,
            "flops_over_k0": self.over_sft,
            "tflops": self.tflops,
            "utilisation": self.utilisation,
            "step_seconds": self.seconds,
        }
