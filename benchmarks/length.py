"""Time and memory of a step from 1K to 32K tokens, on a model of four layers.

python -m benchmarks.length --json out.json [--resume]

Memory is the peak of the process in a step, above what it holds between steps of 128 tokens: the
weights and the optimizer's state. (A short step has its own peak in the optimizer, whose temporary
tensors a long step's peak lacks.) Each process makes two steps, and the second is measured: the
optimizer makes its state in the first. A process that asks for more than the limit is stopped and
counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.step import example
from benchmarks.workers import Worker, WorkerDiedError
from focusft.training.provenance import versions, write_json

TRAINERS = {
    "ours": ["--variant=ours", "--checkpointing=selective"],
    "published": ["--variant=published", "--checkpointing=full"],
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lengths", default="1024,2048,4096,8192,16384,32768")
    parser.add_argument("--response", type=int, default=64)
    parser.add_argument("--limit_gb", type=float, default=21.0, help="memory of one process")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--resume", action="store_true", help="measure what --json lacks")
    options = parser.parse_args()

    shared = {
        "settings": {k: v for k, v in vars(options).items() if k not in ("json", "resume")},
        "versions": versions(),
    }
    lengths = [int(length) for length in options.lengths.split(",")]
    result: dict[str, dict[str, dict[str, float | str]]] = {name: {} for name in TRAINERS}
    if options.resume:
        if options.json is None or not options.json.is_file():
            parser.error(f"--resume: there is no file --json {options.json} to go on with")
        earlier = json.loads(options.json.read_text())
        if any(earlier[key] != value for key, value in shared.items()):
            parser.error(f"--resume: {options.json} has other settings or versions; leave it out")
        result = earlier["steps"]
    for name in TRAINERS:
        missing = [length for length in lengths if str(length) not in result[name]]
        if not missing or any("failed" in step for step in result[name].values()):
            continue
        between_steps_gb = _second_step(name, 64 + options.response, options)["resident_gb"]
        for length in missing:
            found: dict[str, float | str]
            try:
                step = _second_step(name, length, options)
                above = step["peak_gb"] - between_steps_gb
                found = {"seconds": step["seconds"], "above_model_gb": above}
                said = f"{step['seconds']:.1f} s, {above:.2f} GB above the model"
            except WorkerDiedError as error:
                found, said = {"failed": str(error).splitlines()[0]}, str(error)
            result[name][str(length)] = found
            print(f"{name} {length}: {said}", flush=True)
            if options.json:
                write_json(options.json, {"steps": result, **shared})
            if "failed" in found:
                break


def _second_step(name: str, length: int, options: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = folder / "rows.json"
        rows.write_text(json.dumps([example(options.model, length, options.response)]))
        arguments = [
            *TRAINERS[name],
            f"--model={options.model}",
            f"--layers={options.layers}",
            f"--limit_gb={options.limit_gb}",
            f"--rows={rows}",
            f"--out={folder / 'out'}",
        ]
        with Worker(arguments, folder / "log") as worker:
            worker.step()
            return worker.step()


if __name__ == "__main__":
    main()
