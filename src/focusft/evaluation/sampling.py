"""How the next token is picked.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from focusft.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: Draw from the likeliest tokens that together have this probability.
        seed: Seed of all draws.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not math.isfinite(self.temperature):
            raise ConfigError(f"--temperature: {self.temperature} is not finite; 0 is greedy")
        if self.temperature < 0:
            raise ConfigError(f"--temperature: {self.temperature} is negative; 0 is greedy")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top_p: {self.top_p} is not above 0 and at most 1")

    @property
    def is_greedy(self) -> bool:
        """Nothing is drawn."""
        return self.temperature == 0

    def pick(self, logits_BV: Tensor, draws: Sequence[random.Random]) -> list[int]:
        """Pick a token for each row.

        Args:
            logits_BV: Logits [B, V].
            draws: A source of random numbers for each row.
        """
        if self.is_greedy:
            picked: list[int] = logits_BV.argmax(dim=-1).tolist()
            return picked
        probabilities_BV, tokens_BV = (
            (logits_BV.double() / self.temperature).softmax(dim=-1).sort(dim=-1, descending=True)
        )
        sums_BV = probabilities_BV.cumsum(dim=-1)
        # The nucleus: every token before which the sum is below top_p.
        nucleus_B = ((sums_BV - probabilities_BV) < self.top_p).sum(dim=-1)
        mass_B1 = sums_BV.gather(1, nucleus_B[:, None] - 1)
        numbers_B1 = torch.tensor(
            [[draw.random()] for draw in draws], dtype=torch.double, device=logits_BV.device
        )
        places_B1 = torch.searchsorted(sums_BV, numbers_B1 * mass_B1, right=True)
        places_B1 = places_B1.minimum(nucleus_B[:, None] - 1)
        picked = tokens_BV.gather(1, places_B1).squeeze(1).tolist()
        return picked
