"""What the runs lack, and the commands that make it."""

from __future__ import annotations

from collections.abc import Iterable

from focusft.analysis.report.reading import Kind, Runs
from focusft.analysis.report.section import Section


def missing_section(runs: Runs) -> Section | None:
    """The last part of the page; None where nothing is missing."""
    rows = list(_what_is_missing(runs))
    if not rows:
        return None
    return Section(
        "missing", "What is missing", "Missing", ["This report could also show:"], missing=rows
    )


def _what_is_missing(runs: Runs) -> Iterable[tuple[str, str]]:
    methods = {result.method for result in runs.results}
    for method, name in (("SFT", "sft"), ("FocuSFT", "focusft")):
        if method not in methods:
            yield (
                f"a run of {method} to compare with",
                f"focusft train --config C.yaml --method {name} --output_dir RUN",
            )
    if not runs.of("training", "demo"):
        yield "curves of training", "focusft train --config C.yaml --output_dir RUN"
    suites: tuple[tuple[Kind, str, str], ...] = (
        ("babilong", "scores of BABILong", ""),
        ("ruler", "scores of RULER", ""),
        ("agent", "tool use", " --questions Q.jsonl"),
    )
    for kind, name, more in suites:
        if not runs.of(kind):
            yield name, f"focusft eval RUN --suite {kind}{more} --out RUN/{kind}"
    if not runs.of("probe"):
        yield "attention by layer", "focusft probe RUN --data val.jsonl --out RUN/probe"
    if not runs.of("step", "throughput", "length"):
        yield (
            "speed and memory beside other trainers",
            "python -m benchmarks.step --length 2048 --json step.json",
        )
    for name in runs.unknown:
        yield f"{name}: a kind of file that this report has no view for", ""
