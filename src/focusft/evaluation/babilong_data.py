"""Read the published BABILong data (hub id `RMT-team/babilong`) from local files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from focusft.errors import DataError

FIELDS = ("input", "question", "target")
_SUFFIXES = (".json", ".jsonl", ".parquet")


def read_rows(source: str | Path, task: str, length: str) -> tuple[list[dict[str, str]], Path]:
    """The rows of one task at one length.

    Args:
        source: A file with the rows, or a folder: then the file whose path inside the folder
            names both, such as `data/qa1/4k.json` or `qa1_4k.jsonl`.
        task: Such as qa1.
        length: Such as 4k.

    Returns:
        Rows with `input`, `question` and `target`, and the file that they come from.

    Raises:
        DataError: No file or several match, or the file does not hold such rows.
    """
    file = _find(Path(source), task, length)
    rows = _read(file)
    if not rows:
        raise DataError(f"{file}: no rows in it; download it again")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in FIELDS):
            raise DataError(
                f"{file}: row {number} has not the texts {', '.join(FIELDS)}; "
                "give the data in BABILong's schema"
            )
    return rows, file


def _find(source: Path, task: str, length: str) -> Path:
    if not source.is_dir():
        if source.suffix not in _SUFFIXES or not source.is_file():
            raise DataError(
                f"{source}: no folder, and no file ending in {', '.join(_SUFFIXES)}; "
                "check the path of --babilong_data"
            )
        return source
    wanted = {task.lower(), length.lower()}
    files = [
        path
        for path in sorted(source.rglob("*"))
        if path.suffix in _SUFFIXES
        and wanted <= set(re.split(r"[^a-z0-9]+", str(path.relative_to(source)).lower()))
    ]
    if len(files) != 1:
        found = "no file names" if not files else f"{len(files)} files name"
        raise DataError(
            f"{source}: {found} both {task} and {length}; name the one file {task}_{length}.jsonl"
        )
    return files[0]


def _read(file: Path) -> list[Any]:
    try:
        if file.suffix == ".parquet":
            rows: list[Any] = pyarrow.parquet.read_table(file).to_pylist()
            return rows
        text = file.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("["):
            return list(json.loads(text))
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file}: cannot be read ({reason}); download it again") from error
