"""Read rows from parquet, JSON lines, JSON, or a data set of the hub.

Every row is checked. A bad row never disappears: all of them are collected and reported together,
each with its file and line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from focusft.data.hub import is_hub_name, load_hub
from focusft.data.rows import check_row, without_nulls
from focusft.errors import DataError

SUFFIXES = (".parquet", ".jsonl", ".json")
_PACKED = (".gz", ".zst", ".xz", ".zip", ".bz2")
_SHOWN_ERRORS = 5


@dataclass(frozen=True)
class Record:
    """One row of a source.

    Attributes:
        where: File and line (or row, counted from 1), or the hub name and row.
        row: The row as `check_row` returns it; None if it is bad.
        error: What is wrong with it; empty if nothing is.
    """

    where: str
    row: dict[str, Any] | None
    error: str = ""


def read_records(paths: str | Path | Sequence[str | Path]) -> Iterator[Record]:
    """Read and check the rows of one or several sources.

    Args:
        paths: Files ending in .parquet, .jsonl or .json, or hub names `org/set` or
            `org/set:split` (`train` without a split). A JSON file holds a list of rows, or one
            row per line.

    Yields:
        A record for each row, good or bad; and for a file that cannot be read one with its error.
    """
    for path in path_list(paths):
        kind = ""
        for where, raw, error in _read(path):
            if error:
                yield Record(where, None, error)
                continue
            try:
                row = check_row(raw)
                own = "messages" if "messages" in row else "prompt and completion"
                kind = kind or own
                if own != kind:
                    raise DataError(
                        f"has {own}, but the first row of the file has {kind}; "
                        "split the file in two"
                    )
                yield Record(where, row)
            except DataError as problem:
                # The message may quote half a surrogate pair, which no file or terminal takes.
                text = str(problem).encode(errors="backslashreplace").decode()
                yield Record(where, None, text)


def load_rows(paths: str | Path | Sequence[str | Path]) -> list[dict[str, Any]]:
    """Read and check all rows at once.

    Args:
        paths: As in `read_records`.

    Returns:
        The rows, as `check_row` returns them.

    Raises:
        DataError: Lists the first bad rows and how many there are.
    """
    records = list(read_records(paths))
    raise_bad_rows(((r.where, r.error) for r in records if r.error), len(records))
    return [record.row for record in records if record.row is not None]


def raise_bad_rows(bad: Iterable[tuple[str, str]], total: int) -> None:
    """Raise one error that lists the first bad rows, if there are any.

    Args:
        bad: Pairs of place and problem.
        total: Number of rows read.

    Raises:
        DataError: There is a bad row.
    """
    listed = [f"{where}: {error}" for where, error in bad]
    if not listed:
        return
    if len(listed) == 1:
        raise DataError(_one_line(listed[0]))
    shown = "; ".join(listed[:_SHOWN_ERRORS])
    rest = len(listed) - _SHOWN_ERRORS
    more = f"; and {rest} more" if rest > 0 else ""
    raise DataError(_one_line(f"{len(listed)} of {total} rows cannot be used: {shown}{more}"))


def path_list(paths: str | Path | Sequence[str | Path]) -> list[str]:
    """One or several paths as a list of strings.

    Raises:
        DataError: There is none.
    """
    listed = [str(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
    if not listed:
        raise DataError("no data file is given; name at least one")
    return listed


def fingerprint(path: str) -> str:
    """Hash of the content of a source; "missing" where there is none (reading it says why)."""
    if is_hub_name(path):
        try:
            return str(_load_hub(path)._fingerprint)
        except DataError:
            return "missing"
    if not Path(path).is_file():
        return "missing"
    digest = hashlib.sha256(Path(path).suffix.encode())
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


_Raw = tuple[str, Any, str]


def _read(path: str) -> Iterator[_Raw]:
    file = Path(path)
    if is_hub_name(path):
        yield from _read_hub(path)
    elif file.is_dir():
        yield path, None, "is a folder; name the .parquet, .jsonl or .json files in it"
    elif file.suffix.lower() in _PACKED:
        yield path, None, f"is packed ({file.suffix}); unpack it and name the unpacked file"
    elif file.suffix.lower() not in SUFFIXES:
        yield path, None, f"unsupported extension {file.suffix!r}; use .parquet, .jsonl or .json"
    elif not file.is_file():
        yield path, None, "no such file; check the path"
    elif file.stat().st_size == 0:
        yield path, None, "the file is empty; write one row per line"
    else:
        is_parquet = file.suffix.lower() == ".parquet"
        rows = _read_parquet(file) if is_parquet else _read_text(file)
        count = 0
        for raw in rows:
            count += 1
            yield raw
        if count == 0:
            yield path, None, "the file has no rows"


def _read_text(file: Path) -> Iterator[_Raw]:
    try:
        if mend := _other_kind(file):
            yield str(file), None, mend
            return
        with file.open(encoding="utf-8-sig") as lines:
            if _first_character(lines) == "[":
                if file.suffix.lower() == ".json":
                    yield from _read_list(file, lines.read())
                    return
                if _is_json(lines.read()):
                    yield str(file), None, "is one JSON list, not one row per line; name it .json"
                    return
                lines.seek(0)
            for number, line in enumerate(lines, 1):
                where = f"{file}: line {number}"
                if not line.strip():
                    continue
                if line.strip() == "{":
                    yield where, None, "an object goes over several lines; write each row on one"
                    return
                try:
                    yield where, json.loads(line), ""
                except (ValueError, RecursionError) as error:
                    yield where, None, f"not valid JSON ({error}); write one JSON object per line"
    except UnicodeDecodeError as error:
        yield str(file), None, f"not UTF-8 text ({error}); save it as UTF-8"
    except OSError as error:
        yield str(file), None, f"cannot be read ({error.strerror})"


def _other_kind(file: Path) -> str:
    """What a file is by its first bytes, and the mend, if it is no text."""
    with file.open("rb") as content:
        start = content.read(4)
    if start == b"PAR1":
        return "is a parquet file; name it .parquet"
    if start.startswith(b"\x1f\x8b"):
        return "is packed with gzip; name it .gz and unpack it with gunzip"
    return ""


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _first_character(lines: Any) -> str:
    first = ""
    while (char := lines.read(1)) and not (first := char.strip()):
        pass
    lines.seek(0)
    return first


def _read_list(file: Path, text: str) -> Iterator[_Raw]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        yield str(file), None, f"not valid JSON ({error}); write a list of rows, or use .jsonl"
        return
    for number, row in enumerate(rows, 1):
        yield f"{file}: row {number}", row, ""


def _read_parquet(file: Path) -> Iterator[_Raw]:
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}: row {number}", without_nulls(row), ""
    except (pyarrow.ArrowException, OSError) as error:
        yield str(file), None, f"not a readable parquet file ({error}); write it again"


def _read_hub(path: str) -> Iterator[_Raw]:
    try:
        rows = _load_hub(path)
    except DataError as error:
        yield path, None, str(error)
        return
    for number, row in enumerate(rows, 1):
        yield f"{path}: row {number}", without_nulls(row), ""


def _load_hub(path: str) -> Any:
    name, _, split = path.partition(":")
    return load_hub(name, split=split or "train")


def _one_line(text: str) -> str:
    return " ".join(text.split())
