"""How much of the machine's matmul rate a FocuSFT step reaches outside attention.

python -m benchmarks.efficiency --length 1024
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import focusft
from benchmarks.flop_counter import flop_counter
from focusft.training.checkpointing import checkpoint_selectively
from focusft.training.models import load_model
from focusft.training.plan.report import measured_tflops
from focusft.training.provenance import versions, write_json


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--response", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = efficiency(options.model, options.length, options.response)
    for name, value in result.items():
        print(f"{name}: {value}")
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        settings["threads"] = torch.get_num_threads()
        write_json(options.json, result | {"settings": settings, "versions": versions()})


def efficiency(model_name: str, length: int, response: int) -> dict[str, Any]:
    """One step's forward and backward, B = 1, K = 2, float32, without the optimizer.

    Returns:
        FLOPs of attention and of the rest, seconds of a step, of attention in it and of its
        matrix products, the machine's peak, the fraction of it that the rest reaches, and the
        seconds of the operations that take longest.
    """
    model = load_model(model_name, dtype="float32").train()
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(model.config.vocab_size, (1, length), generator=generator)
    labels = input_ids.clone()
    labels[:, :-response] = -100
    checkpoint_selectively(model)
    engine = focusft.attach(model, focusft.FocusConfig(inner_lr=0.1))
    engine.checkpoints_inner_attention = False

    def step() -> float:
        model.zero_grad(set_to_none=True)
        started = time.perf_counter()
        model(input_ids=input_ids, labels=labels).loss.backward()
        return time.perf_counter() - started

    step()
    with flop_counter() as counter:
        step()
    flops = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    attention_flops = sum(count for op, count in flops.items() if "attention" in op)
    peak = measured_tflops()
    seconds, attention, products = [], [], []
    operations: dict[str, list[float]] = {}
    for _ in range(3):
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            step()
        # The profiler costs time; the shares it finds are applied to steps without it.
        times = {row.key: row.self_cpu_time_total / 1e6 for row in profiler.key_averages()}
        total = sum(times.values())
        seconds.append(step())
        attention.append(sum(t for op, t in times.items() if "attention" in op) / total)
        for op, spent in times.items():
            operations.setdefault(op, []).append(spent / total)
        names = ("aten::mm", "aten::addmm", "aten::bmm", "aten::addmm_")
        products.append(sum(times.get(name, 0.0) for name in names) / total)
    engine.detach()
    step_seconds = statistics.median(seconds)
    attention_seconds = step_seconds * statistics.median(attention)
    shares = {op: statistics.median(found) for op, found in operations.items()}
    longest = sorted(shares, key=lambda op: -shares[op])[:14]
    other_flops = sum(flops.values()) - attention_flops
    peak = 1e12 * max(peak, measured_tflops())
    return {
        "attention_flops": attention_flops,
        "other_flops": other_flops,
        "seconds": step_seconds,
        "attention_seconds": attention_seconds,
        "product_seconds": step_seconds * statistics.median(products),
        "peak_flops_per_second": peak,
        "fraction_of_peak": other_flops / (step_seconds - attention_seconds) / peak,
        "operations": {op.removeprefix("aten::"): step_seconds * shares[op] for op in longest},
    }


if __name__ == "__main__":
    main()
