r"""GPQA (arXiv 2311.12022) from the user's own copy.

The set is gated and its authors ask that it not be put online in plain text, so it is never
shipped: name a CSV or parquet file, or a hub id that your account may read.
"""

from __future__ import annotations

import csv
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from focusft.data.hub import is_hub_name, load_hub
from focusft.data.multiple_choice import Question
from focusft.errors import DataError

_OPTIONS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
_DOMAIN = "High-level domain"
COLUMNS = ("Question", *_OPTIONS, _DOMAIN)


def load_gpqa(source: str | Path, *, seed: int = 0) -> list[Question]:
    """Read the questions and shuffle the options of each.

    Args:
        source: A .csv or .parquet file with the columns of GPQA, or a hub id `org/set:config`,
            for instance `Idavidrein/gpqa:gpqa_diamond`.
        seed: Seed of the options' order. The order of a question depends on the seed and its
            text alone, not on its place in the file.

    Raises:
        DataError: The source cannot be read, or is not in GPQA's form: one line with the file, the
            row and the mend.
    """
    questions = []
    for number, row in enumerate(_read(str(source)), 1):
        cells = {name: _cell(row, name, f"{source}: row {number}") for name in COLUMNS[:-1]}
        options = [cells[name] for name in _OPTIONS]
        order = list(range(len(options)))
        random.Random(f"{seed}\n{cells['Question']}").shuffle(order)
        questions.append(
            Question(
                id=f"gpqa-{number}",
                text=cells["Question"],
                options=tuple(options[place] for place in order),
                answer="ABCD"[order.index(0)],
                domain=str(row[_DOMAIN] or "").strip(),
            )
        )
    if not questions:
        raise DataError(f"{source}: has no rows; name a file with questions")
    return questions


def _cell(row: dict[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    text = "" if value is None else str(value).strip()
    if not text:
        raise DataError(f"{where}: the column {name!r} is empty; fill it in or remove the row")
    return text


def _read(source: str) -> Iterator[dict[str, Any]]:
    file = Path(source)
    if file.is_dir():
        raise DataError(f"{source}: is a folder; name the .csv or .parquet file in it")
    if file.suffix.lower() == ".csv":
        rows = _read_csv(file)
    elif file.suffix.lower() == ".parquet":
        rows = _read_parquet(file)
    elif is_hub_name(source):
        rows = _read_hub(source)
    else:
        raise DataError(
            f"{source}: neither a .csv or .parquet file nor a hub id org/set:config; name one"
        )
    yield from rows


def _read_csv(file: Path) -> Iterator[dict[str, Any]]:
    # Some cells hold more text than the reader's own limit.
    csv.field_size_limit(1 << 27)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            _check_columns(reader.fieldnames or (), file)
            for number, row in enumerate(reader, 1):
                if None in row:
                    raise DataError(
                        f"{file}: row {number}: has more cells than the header; quote its commas"
                    )
                yield row
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text ({error}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{file}: not a readable CSV file ({error}); write it again") from error
    except OSError as error:
        raise _unreadable(file, error) from error


def _read_parquet(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            _check_columns(parquet.schema_arrow.names, file)
            for batch in parquet.iter_batches(batch_size=64, columns=list(COLUMNS)):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{file}: not a readable parquet file ({reason}); write it again"
        ) from error
    except OSError as error:
        raise _unreadable(file, error) from error


def _read_hub(source: str) -> Iterator[dict[str, Any]]:
    name, _, config = source.partition(":")
    rows = load_hub(name, config or None, split="train")
    _check_columns(rows.column_names, source)
    yield from rows


def _check_columns(found: Any, source: object) -> None:
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        wanted = ", ".join(repr(name) for name in missing)
        has = ", ".join(repr(name) for name in list(found)[:8]) or "none"
        raise DataError(
            f"{source}: not in GPQA's form: lacks the columns {wanted} (found: {has}); name the "
            "file as the authors publish it"
        )


def _unreadable(file: Path, error: OSError) -> DataError:
    reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
    return DataError(f"{file}: cannot be read ({reason}); check the path")
