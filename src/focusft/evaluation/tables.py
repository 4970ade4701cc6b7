"""The figures of a run as a table for a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from focusft.evaluation.items import length_name


def results_table(results: dict[str, Any]) -> Table:
    """Scores in percent with their intervals, and what went wrong at any length.

    Args:
        results: What `results.json` holds.
    """
    lengths = list(results["mean"])
    lenient = "score_lenient" in results["mean"][lengths[0]]
    table = Table(
        "", title=f"{results['suite']}: % [95%]" + (", strict | lenient" if lenient else "")
    )
    for length in lengths:
        table.add_column(length_name(int(length)), justify="right", no_wrap=True)
    table.add_column("truncated", justify="right")
    table.add_column("no answer", justify="right")
    for task, row in results["tasks"].items():
        cells = [row[length] for length in lengths]
        mark = "*" if any(cell["stand_in"] for cell in cells) else ""
        table.add_row(
            task + mark,
            *map(_score, cells),
            _most(cells, "truncated"),
            _most(cells, "no_answer"),
        )
    table.add_section()
    table.add_row("mean", *(_score(results["mean"][length]) for length in lengths))
    for category, row in results.get("categories", {}).items():
        table.add_row(f"  {category}", *(_score(row[length]) for length in lengths))
    notes = []
    if results["items"]["stand_in"]:
        notes.append("* with a built-in stand-in for the benchmark's corpus")
    others = sum(
        cell["counted_otherwise"] for row in results["tasks"].values() for cell in row.values()
    )
    if others:
        notes.append(f"{others} prompts had another number of tokens than they were made for")
    table.caption = "\n".join(notes) or None
    return table


def _score(figures: dict[str, Any]) -> str:
    text = (
        f"{100 * figures['score']:.1f} \\[{100 * figures['low']:.0f}, {100 * figures['high']:.0f}]"
    )
    if "score_lenient" in figures:
        text += f" | {100 * figures['score_lenient']:.1f}"
    return text


def _most(cells: list[dict[str, Any]], rate: str) -> str:
    return f"{max(cell[rate] for cell in cells):.0%}"
