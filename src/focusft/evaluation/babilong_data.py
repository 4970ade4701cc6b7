"""Read the published BABILong data from the hub (`RMT-team/babilong`) or from local files."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from focusft.data.hub import is_hub_name, load_hub
from focusft.errors import DataError

FIELDS = ("input", "question", "target")
_SUFFIXES = (".json", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Published:
    """Rows of one task at one length.

    Attributes:
        rows: Each with `input`, `question` and `target`.
        source: The file's name, or the hub id with its configuration and split.
        sha256: Hash of the file, or of the rows.
    """

    rows: list[dict[str, str]]
    source: str
    sha256: str


def read_rows(source: str | Path, task: str, length: str) -> Published:
    """The rows of one task at one length.

    Args:
        source: A hub id, whose configurations are lengths and whose splits are tasks; or a file
            with the rows, or a folder: then the file whose path inside the folder names both, such
            as `data/qa1/4k.json` or `qa1_4k.jsonl`.
        task: Such as qa1.
        length: Such as 4k.

    Raises:
        DataError: No file or several match, the hub does not give the set, or it does not hold
            such rows.
    """
    if is_hub_name(str(source)):
        where = f"{source}:{length}:{task}"
        name = where
        given = load_hub(str(source), length, split=task)
        rows = [{field: row.get(field) for field in FIELDS} for row in given]
        digest = hashlib.sha256(json.dumps(rows).encode())
    else:
        file = _find(Path(source), task, length)
        where, name = str(file), file.name
        rows = _read(file)
        digest = hashlib.sha256(file.read_bytes())
    if not rows:
        raise DataError(f"{where}: no rows in it; download it again")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not all(
            isinstance(row.get(field), str) for field in FIELDS
        ):
            raise DataError(
                f"{where}: row {number} has not the texts {', '.join(FIELDS)}; "
                "give the data in BABILong's schema"
            )
    return Published(rows, name, digest.hexdigest())


def _find(source: Path, task: str, length: str) -> Path:
    if not source.is_dir():
        if source.suffix not in _SUFFIXES or not source.is_file():
            raise DataError(
                f"{source}: no hub id, no folder, and no file ending in {', '.join(_SUFFIXES)}; "
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
