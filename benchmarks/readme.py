"""The parts of README.md that are made from committed results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

README = Path("README.md")


def between(readme: str, marks: tuple[str, str], lines: Sequence[str]) -> str:
    """The README with these lines between its two marks."""
    start, end = marks
    before, _, rest = readme.partition(start)
    _, _, after = rest.partition(end)
    return "\n".join([f"{before}{start}", *lines, f"{end}{after}"])
