"""The parts of README.md that are made from committed results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

README = Path("README.md")


def between(readme: str, marks: tuple[str, str], lines: Sequence[str]) -> str:
    """The README with these lines between its two marks.

    Raises:
        ValueError: A mark is not there exactly once.
    """
    start, end = marks
    before, rest = readme.split(start)
    _, after = rest.split(end)
    return "\n".join([f"{before}{start}", *lines, f"{end}{after}"])
