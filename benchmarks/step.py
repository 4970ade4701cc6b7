"""Time a training step: FocuSFT beside K = 0 and plain SFT, alternating in one process.

python -m benchmarks.step --model smollm2 --length 1024 --json out.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

import focusft
from focusft.method.loss import PredictedRows, plain_response_loss
from focusft.training.models import load_model
from focusft.training.provenance import versions, write_json


def main() -> None:
    """Measure and print medians and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--length", type=int, default=1024, help="tokens of the example")
    parser.add_argument("--response", type=int, default=64, help="labelled tokens at its end")
    parser.add_argument("--num_inner_steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds after one warm-up")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    model = load_model(options.model, dtype="float32").train()
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(
        model.config.vocab_size, (1, options.length), generator=generator, dtype=torch.long
    )
    labels = input_ids.clone()
    labels[:, : -options.response] = -100
    batch = {"input_ids": input_ids, "labels": labels}

    def attached_step(num_inner_steps: int) -> None:
        config = focusft.FocusConfig(num_inner_steps=num_inner_steps, inner_lr=0.1)
        engine = focusft.attach(model, config)
        started = time.perf_counter()
        model(**batch).loss.backward()
        seconds[f"k{num_inner_steps}"].append(time.perf_counter() - started)
        engine.detach()

    def sft_step() -> None:
        started = time.perf_counter()
        rows = PredictedRows.of(labels, focusft.TurnLayout.from_labels(labels))
        total, count = plain_response_loss(model, {"input_ids": input_ids}, rows)
        (total / count).backward()
        seconds["sft"].append(time.perf_counter() - started)

    ours = f"k{options.num_inner_steps}"
    seconds: dict[str, list[float]] = {"sft": [], "k0": [], ours: []}
    for round_number in range(options.rounds + 1):
        sft_step()
        attached_step(0)
        attached_step(options.num_inner_steps)
        print(
            f"round {round_number}: "
            + ", ".join(f"{name} {times[-1]:.2f} s" for name, times in seconds.items()),
            flush=True,
        )
    # The first round touches fresh memory.
    timed = {name: times[1:] for name, times in seconds.items()}
    paired = {
        "ours_over_k0": [a / b for a, b in zip(timed[ours], timed["k0"], strict=True)],
        "ours_over_sft": [a / b for a, b in zip(timed[ours], timed["sft"], strict=True)],
    }
    result = {
        "ratios": {name: statistics.median(values) for name, values in paired.items()},
        "seconds": {name: statistics.median(values) for name, values in timed.items()},
        "rounds": timed,
        "settings": {name: value for name, value in vars(options).items() if name != "json"},
        "versions": versions(),
    }
    for name, value in result["ratios"].items():
        print(f"{name}: {value:.2f}")
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
