"""Time and memory of a training step on a GPU, beside the plan, the published procedure and TRL.

python -m benchmarks.cuda --json out.json

Two shapes: SmolLM2, which is small enough that launching kernels takes part of the time, and eight
layers as wide as those of a 7B model, whose matrix products fill a GPU. Weights are float32,
computation is bfloat16. Memory is the most that torch's allocator had given out at once.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from benchmarks.scaling import QWEN_7B
from benchmarks.step import TRAINERS, example
from benchmarks.worker import make_trainer, parser
from focusft.method.config import FocusConfig
from focusft.training.models import load_model, meta_model
from focusft.training.plan import Plan
from focusft.training.plan.setup import ModelShape, Setup
from focusft.training.provenance import versions, write_json

GIB = 1024**3
RESPONSE = 64
# Tied, so that eight layers and their optimizer state leave room in 80 GB.
WIDE_LAYERS = 8
MODELS = ("smollm2", "wide")


def main() -> None:
    """Measure, print and write after each trainer."""
    arguments = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    arguments.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    arguments.add_argument("--lengths", nargs="+", type=int, default=[8192, 32_768])
    arguments.add_argument("--trainers", nargs="+", choices=TRAINERS, default=list(TRAINERS))
    arguments.add_argument("--steps", type=int, default=3, help="timed, after one warm-up")
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    if not torch.cuda.is_available():
        arguments.error("there is no GPU here")

    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "product_tflops": product_tflops(),
        "steps": [],
        "versions": versions(),
    }
    print(f"{result['device']}: {result['product_tflops']:.0f} TFLOP/s in bfloat16", flush=True)
    for name in options.models:
        for length in options.lengths:
            for trainer in options.trainers:
                case = {"model": name, "length": length, "trainer": trainer}
                result["steps"].append(case | measure(name, length, trainer, options.steps))
                print(result["steps"][-1], flush=True)
                if options.json:
                    write_json(options.json, result)


def product_tflops(size: int = 8192, rounds: int = 10) -> float:
    """Rate of a square bfloat16 product, in 10^12 operations per second."""
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        started = time.perf_counter()
        torch.mm(left, right)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds) / 1e12


def measure(name: str, length: int, trainer: str, steps: int) -> dict[str, Any]:
    """Seconds of each step and peak memory, or how it failed; for ours, the plan beside it."""
    found = _plan(name, length, trainer)
    # What is garbage only after the collector ran would count for the next one.
    gc.collect()
    torch.cuda.empty_cache()
    try:
        clock = _train(name, length, trainer, steps)
    except torch.OutOfMemoryError as error:
        return found | {"failed": str(error).split(". ")[0]}
    return found | {"seconds": clock.seconds, "peak_gb": clock.peak_gb}


def _train(name: str, length: int, trainer: str, steps: int) -> Clock:
    clock = Clock(steps)
    with tempfile.TemporaryDirectory() as temporary:
        words = [*TRAINERS[trainer], "--model=smollm2", "--autocast", f"--out={temporary}"]
        options = parser().parse_args([*words, f"--rows={temporary}/rows.json"])
        row = example("smollm2", length, RESPONSE)
        run = make_trainer(options, _model(name), [row] * (steps + 1))
        run.add_callback(clock)
        run.train()
    return clock


class Clock(TrainerCallback):
    """Times every step but the first, and ends the training."""

    def __init__(self, steps: int) -> None:
        self.seconds: list[float] = []
        self.peak_gb = 0.0
        self._steps = steps
        self._started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the GPU, then start the clock."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the GPU, then read it."""
        torch.cuda.synchronize()
        if state.global_step > 1:
            self.seconds.append(time.perf_counter() - self._started)
            self.peak_gb = max(self.peak_gb, torch.cuda.max_memory_allocated() / GIB)
        control.should_training_stop = len(self.seconds) >= self._steps


def _model(name: str) -> Any:
    if name == "smollm2":
        return load_model(name, dtype="float32")
    torch.manual_seed(0)
    return _wide_model("cuda")


def _wide_model(device: str) -> Any:
    config = deepcopy(QWEN_7B)
    config.num_hidden_layers = WIDE_LAYERS
    config.layer_types = config.layer_types[:WIDE_LAYERS]
    config.tie_word_embeddings = True
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _plan(name: str, length: int, trainer: str) -> dict[str, Any]:
    options = parser().parse_args([*TRAINERS[trainer], "--model=", "--rows=", "--out="])
    if options.variant not in ("sft", "k0", "ours"):
        return {}
    model: Any = meta_model(name) if name == "smollm2" else _wide_model("meta")
    steps = options.num_inner_steps if options.variant == "ours" else 0
    attention: Any = "causal" if options.variant == "sft" else "bidirectional"
    focus = FocusConfig(num_inner_steps=steps, context_attention=attention)
    setup = Setup(
        length=length,
        response_tokens=RESPONSE,
        precision="bf16_mixed",
        checkpointing=options.checkpointing,
        device="cuda",
    )
    plan = Plan(ModelShape.of(model, focus), focus, setup)
    return {"planned_gb": plan.peak / GIB, "tflop": plan.total_flops / 1e12}


if __name__ == "__main__":
    main()
