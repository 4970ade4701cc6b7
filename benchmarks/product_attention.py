"""Attention by plain matrix products beside torch's fused kernel, in bfloat16 on this CPU.

python -m benchmarks.product_attention --json out.json

Both run in turn on the same tensors; seconds are medians. Heads are those of SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from focusft.method.product_attention import Segment, product_attention, products_are_faster
from focusft.training.provenance import versions, write_json

HEADS, KEY_HEADS, FEATURES = 9, 3, 64


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for length in options.lengths:
        for is_causal in (True, False):
            rows.append(compare(length, is_causal, options.rounds))
            print(rows[-1], flush=True)
    taken = products_are_faster(torch.zeros(1, dtype=torch.bfloat16))
    print(f"taken by default on this machine: {taken}")
    if options.json:
        settings = {"lengths": options.lengths, "rounds": options.rounds}
        settings |= {"heads": HEADS, "key_heads": KEY_HEADS, "features": FEATURES}
        settings |= {"threads": torch.get_num_threads(), "cpu": dict(torch.cpu.get_capabilities())}
        result = {"rows": rows, "taken": taken, "settings": settings, "versions": versions()}
        write_json(options.json, result)


def compare(length: int, is_causal: bool, rounds: int) -> dict[str, Any]:
    """Seconds of a forward and of a backward by both, and the ratios of the medians."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, length, FEATURES, generator=generator).bfloat16().requires_grad_()
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    grad = torch.randn(query.shape, generator=generator).bfloat16()

    def fused() -> Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=is_causal, enable_gqa=True
        )

    def products() -> Tensor:
        return product_attention(query, key, value, [Segment(0, length, length, is_causal)])

    seconds: dict[str, list[tuple[float, float]]] = {"fused": [], "products": []}
    for number in range(rounds + 1):
        for name, attend in (("fused", fused), ("products", products)):
            output, forward = _timed(attend)
            _, backward = _timed(lambda o=output: torch.autograd.grad(o, (query, key, value), grad))
            if number > 0:
                seconds[name].append((forward, backward))
    medians = {
        name: [statistics.median(times) for times in zip(*pairs, strict=True)]
        for name, pairs in seconds.items()
    }
    return {
        "length": length,
        "is_causal": is_causal,
        "seconds": medians,
        "forward_ratio": medians["fused"][0] / medians["products"][0],
        "backward_ratio": medians["fused"][1] / medians["products"][1],
    }


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


if __name__ == "__main__":
    main()
