"""Count the FLOPs of a step of every trainer: what times would be if nothing else took any.

python -m benchmarks.flops --length 2048 --json out.json
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.step import RATIOS, TRAINERS, settings, shared_arguments, step_parser
from benchmarks.workers import Worker
from focusft.training.provenance import versions, write_json


def main() -> None:
    """Count, print and write."""
    options = step_parser(__doc__).parse_args()

    flops = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shared = [*shared_arguments(options, folder), "--count_flops"]
        for trainer, own in TRAINERS.items():
            with Worker([*own, *shared], folder / f"{trainer}.log") as worker:
                flops[trainer] = worker.step()["flops"]
            print(f"{trainer}: {flops[trainer] / 1e12:.2f} TFLOP", flush=True)
    for ratio, (above, below) in RATIOS.items():
        print(f"{ratio}: {flops[above] / flops[below]:.2f}")
    if options.json:
        write_json(
            options.json, {"flops": flops, "settings": settings(options), "versions": versions()}
        )


if __name__ == "__main__":
    main()
