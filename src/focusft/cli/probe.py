"""`focusft probe`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from focusft.cli.shared import add_command, make_console, quiet_libraries


def add_to(commands: Any) -> None:
    """Add the command."""
    probe = add_command(
        commands, "probe", "attention dilution of a model under causal and bidirectional context"
    )
    probe.add_argument("model", help="hub id, folder, GGUF file or smollm2")
    probe.add_argument("--data", required=True, help=".parquet, .jsonl or hub ids, comma-separated")
    probe.add_argument("--samples", type=int, default=100, help="examples, the first usable ones")
    probe.add_argument("--max_length", type=int, default=4096, help="longer examples are left out")
    probe.add_argument("--compare", metavar="MODEL2", help="measure a second model as well")
    probe.add_argument(
        "--context_queries", type=int, default=128, help="context queries of an example, at most"
    )
    probe.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    probe.add_argument(
        "--with_fast_weights",
        action="store_true",
        help="measure too with fast weights adapted on the example",
    )
    probe.add_argument("--inner_lr", type=float, default=0.1, help="step size of the inner loop")
    probe.add_argument("--num_inner_steps", type=int, default=2, help="steps of the inner loop")
    probe.add_argument("--out", type=Path, required=True, help="folder for results.json")
    probe.set_defaults(run=_probe)


def _probe(options: argparse.Namespace, _: list[str]) -> None:
    from focusft.training.probe import ProbeSettings, run_probe

    quiet_libraries()
    settings = ProbeSettings(
        data=options.data,
        samples=options.samples,
        max_length=options.max_length,
        context_queries=options.context_queries,
        dtype=options.dtype,
        with_fast_weights=options.with_fast_weights,
        inner_lr=options.inner_lr,
        num_inner_steps=options.num_inner_steps,
    )
    run_probe(options.model, options.compare, settings, options.out, make_console())
