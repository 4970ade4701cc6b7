"""`focusft demo`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from focusft.cli.shared import add_command, make_console, quiet_libraries


def add_to(commands: Any) -> None:
    """Add the command."""
    demo = add_command(commands, "demo", "train SmolLM2-135M on generated data, before and after")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the results")
    demo.add_argument("--model", default="smollm2", help="hub id, folder, GGUF file or smollm2")
    demo.set_defaults(run=_demo)


def _demo(options: argparse.Namespace, _: list[str]) -> None:
    from focusft.demo import DemoSettings, run_demo

    quiet_libraries()
    run_demo(options.out, options.model, DemoSettings(), make_console())
