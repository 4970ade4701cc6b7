"""Hold `focusft plan` against measurement: peak memory of a process, and counted FLOPs.

python -m benchmarks.plan_check --json out.json

The plan counts tensors. glibc's heap keeps the memory of freed ones, so the process is measured
twice: as it is, and with a setting that gives the memory of every tensor above 1 MiB back at once.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.efficiency import efficiency
from benchmarks.step import example
from benchmarks.workers import Worker
from focusft.method.config import FocusConfig
from focusft.training.checkpointing import Checkpointing
from focusft.training.models import meta_model
from focusft.training.plan import Plan
from focusft.training.plan.setup import ModelShape, Setup
from focusft.training.provenance import versions, write_json

RESPONSE = 64
# Layers (None: all of them), tokens, checkpointing.
CASES: tuple[tuple[int | None, int, Checkpointing], ...] = (
    (None, 1024, "selective"),
    (None, 2048, "none"),
    (None, 2048, "selective"),
    (None, 2048, "all_but_attention"),
    (None, 2048, "full"),
    (4, 4096, "selective"),
    (4, 8192, "none"),
    (4, 8192, "selective"),
    (4, 8192, "all_but_attention"),
    (4, 8192, "full"),
)

NOTHING_KEPT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    memory = []
    for layers, length, checkpointing in CASES:
        planned = _plan(options.model, layers, length, checkpointing).peak / 1024**3
        case = {"layers": layers, "length": length, "checkpointing": checkpointing}
        tensors = _measured_gb(options.model, layers, length, checkpointing, NOTHING_KEPT)
        process = _measured_gb(options.model, layers, length, checkpointing, {})
        memory.append(
            case | {"planned_gb": planned, "measured_gb": tensors, "with_heap_gb": process}
        )
        print(
            f"{case}: planned {planned:.2f} GB, measured {tensors:.2f}, "
            f"with what the heap keeps {process:.2f}",
            flush=True,
        )
    counted = efficiency(options.model, 1024, RESPONSE)
    flops = _plan(options.model, None, 1024, "selective").flops.values()
    attention = sum(phase.attention for phase in flops)
    result = {
        "memory": memory,
        "flops": {
            "planned": {
                "attention": attention,
                "other": sum(phase.total for phase in flops) - attention,
            },
            "counted": {
                "attention": counted["attention_flops"],
                "other": counted["other_flops"],
            },
        },
        "settings": {"model": options.model, "response": RESPONSE},
        "versions": versions(),
    }
    print(result["flops"])
    if options.json:
        write_json(options.json, result)


def _plan(name: str, layers: int | None, length: int, checkpointing: Checkpointing) -> Plan:
    model: Any = meta_model(name)
    if layers is not None:
        config = AutoConfig.for_model(**model.config.to_dict())
        config.num_hidden_layers = layers
        config.layer_types = None
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    focus = FocusConfig()
    setup = Setup(length=length, response_tokens=RESPONSE, checkpointing=checkpointing)
    return Plan(ModelShape.of(model, focus), focus, setup)


def _measured_gb(
    name: str,
    layers: int | None,
    length: int,
    checkpointing: Checkpointing,
    environment: dict[str, str],
) -> float:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = folder / "rows.json"
        rows.write_text(json.dumps([example(name, length, RESPONSE)]))
        arguments = ["--variant=ours", f"--model={name}", f"--rows={rows}", f"--out={folder}/out"]
        arguments += [f"--layers={layers}"] if layers else []
        arguments += [f"--checkpointing={checkpointing}"]
        with Worker(arguments, folder / "log", environment) as worker:
            # The optimizer's state is there from the second step on.
            worker.step()
            return worker.step()["peak_gb"] - worker.interpreter_gb


if __name__ == "__main__":
    main()
