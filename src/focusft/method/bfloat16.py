"""How fast this CPU multiplies matrices in bfloat16, measured.

What the CPU says it can do does not tell: with AVX512-BF16 and without AMX, one of AMD (Zen 5)
does 2 to 4 times what it does in float32, one of Intel (Sapphire Rapids) half of it.
"""

from __future__ import annotations

import logging
import time
from functools import cache

import torch

# Large enough for the rate, small enough for a CPU that has to emulate bfloat16.
_SIZE = 256
_ROUNDS = 5

logger = logging.getLogger(__name__)


@cache
def bfloat16_speedup() -> float:
    """How many times faster a product of matrices is in bfloat16 than in float32 on this CPU.

    Measured once in a process, in a few milliseconds. The best of a few rounds counts, in turn,
    so that other work on the machine changes little.
    """
    seconds = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    factors = {dtype: torch.ones(_SIZE, _SIZE, dtype=dtype) for dtype in seconds}
    # The first product of a kind makes its kernel.
    for _ in range(1 + _ROUNDS):
        for dtype, factor in factors.items():
            started = time.perf_counter()
            torch.mm(factor, factor)
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - started)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def warn_if_bfloat16_is_slow(option: str, mend: str) -> None:
    """Say so where bfloat16 costs time on this CPU instead of saving it.

    Args:
        option: Name of the option that asked for bfloat16.
        mend: What to do.
    """
    if (speedup := bfloat16_speedup()) < 1:
        logger.warning(
            "%s: this CPU multiplies matrices %.1f times slower in bfloat16 than in float32; %s",
            option,
            1 / speedup,
            mend,
        )
