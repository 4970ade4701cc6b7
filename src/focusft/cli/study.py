"""`focusft study`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from focusft.cli.shared import add_command, make_console


def add_to(commands: Any) -> None:
    """Add the command."""
    study = add_command(
        commands, "study", "a grid of trained, evaluated and probed models; goes on after a kill"
    )
    study.add_argument("--config", type=Path, required=True, help="YAML file, see docs/study.md")
    study.add_argument("--only", nargs="+", metavar="ARM", help="these arms; all if not given")
    study.add_argument(
        "--max_hours", type=float, help="stop after that many hours; run again to go on"
    )
    study.add_argument(
        "--dry_run", action="store_true", help="print what is done and what is left, and stop"
    )
    study.set_defaults(run=_study)


def _study(options: argparse.Namespace, _: list[str]) -> None:
    from focusft.study.config import load_study
    from focusft.study.run import print_plan, run_study

    study = load_study(options.config)
    if options.dry_run:
        print_plan(study, make_console(), only=options.only)
    else:
        run_study(study, make_console(), only=options.only, max_hours=options.max_hours)
