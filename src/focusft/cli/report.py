"""`focusft report`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from focusft.cli.shared import add_command, make_console


def add_to(commands: Any) -> None:
    """Add the command."""
    report = add_command(commands, "report", "one HTML page that says whether FocuSFT helped")
    report.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folder of focusft train, demo, eval or probe, or a benchmark's JSON file",
    )
    report.add_argument("--out", type=Path, default=Path("report.html"), help="file of the page")
    report.set_defaults(run=_report)


def _report(options: argparse.Namespace, _: list[str]) -> None:
    from focusft.analysis.report import write_report

    console = make_console()
    report = write_report(options.runs, options.out)
    console.print(report.verdict.headline, markup=False)
    for name in report.unknown:
        console.print(f"not shown, a kind of file without a view: {name}", markup=False)
    console.print(f"report: {report.path} (open it in a browser)", markup=False, soft_wrap=True)
