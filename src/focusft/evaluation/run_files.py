"""Files of a run that can be interrupted: finished lines are kept, whole files are replaced."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from focusft.errors import DataError

RESULTS_FILE = "results.json"

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def finished_lines(
    file: Path, read: Callable[[Any], tuple[Key, Value]], unit: str
) -> dict[Key, Value]:
    """What an earlier start finished; a line that was cut off by its end is removed.

    Args:
        file: JSON lines; no file is no line.
        read: Makes a key and a value of a line's JSON; a ValueError, KeyError or TypeError says
            that the line is damaged.
        unit: What a line stands for, as messages name it.

    Raises:
        DataError: A whole line is damaged.
    """
    finished: dict[Key, Value] = {}
    if not file.exists():
        return finished
    whole = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            try:
                key, value = read(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{file}: line {number} is damaged ({error}); delete the line to run its "
                    f"{unit} again"
                ) from error
            finished[key] = value
    os.truncate(file, whole)
    return finished


def json_line(row: Mapping[str, Any]) -> str:
    """A row as a line of a JSON lines file."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def replace_file(file: Path, lines: Iterable[str]) -> None:
    """Write a file completely, or leave the old one."""
    unfinished = file.with_name(file.name + ".unfinished")
    with unfinished.open("w", encoding="utf-8", newline="\n") as text:
        text.writelines(lines)
    unfinished.replace(file)


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Write what a finished run says of itself."""
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    replace_file(folder / RESULTS_FILE, [text])
