"""Data files -> a tokenised data set on disk: parallel, cached, every row accounted for."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from focusft.data.chat import IGNORED, encode_row
from focusft.data.lengths import LengthPolicy, check_length_options, fit_length
from focusft.data.report import DataReport
from focusft.data.sources import fingerprint, path_list, raise_bad_rows, read_records
from focusft.errors import ConfigError, DataError

# Raise this when the tokenisation changes, so that nobody trains on rows of an older version.
_CACHE_VERSION = 3
_EXAMPLE = ("input_ids", "labels", "turn_ids")
_COUNTS = (
    "tokens_read",
    "tokens",
    "response_tokens",
    "turns",
    "responses",
    "removed",
    "rewritten",
    "untrained",
    "tools_as_text",
)
_ROWS = datasets.Features(
    {
        "where": datasets.Value("string"),
        "row": datasets.Value("large_string"),
        "error": datasets.Value("string"),
    }
)
_TOKENISED = datasets.Features(
    {name: datasets.List(datasets.Value("int32")) for name in _EXAMPLE}
    | {name: datasets.Value("int64") for name in _COUNTS}
    | {name: datasets.Value("string") for name in ("where", "error", "dropped")}
)
# Long rows: a small batch keeps the memory of a worker to a few hundred MB at 128k tokens.
_WRITER_BATCH = 64


def prepare_dataset(
    paths: str | Path | Sequence[str | Path],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    length_policy: LengthPolicy = "drop",
    num_proc: int = 1,
    cache_dir: str | Path | None = None,
) -> tuple[datasets.Dataset, DataReport]:
    """Read, check and tokenise data files, and apply the length policy.

    The result is cached by the content of the files, the tokenizer with its chat template, and the
    options; a second call loads it from disk.

    Args:
        paths: Files or hub names, see `focusft.data.sources.read_records`.
        tokenizer: A fast tokenizer; with a chat template unless all rows are plain text.
        max_length: Largest number of tokens of a row; None for any.
        length_policy: What to do with longer rows: "drop", "error" or "truncate_context".
        num_proc: Number of processes that tokenise.
        cache_dir: Folder of the cache; `focusft` in the cache of `datasets` if None.

    Returns:
        The data set with the columns `input_ids`, `labels`, `turn_ids`, in the order of the files,
        and the report with `rows == used + dropped`.

    Raises:
        DataError: Lists the first bad rows; or no row is left.
        ConfigError: An option is out of range.
        UserError: The tokenizer cannot be used.
    """
    check_length_options(max_length, length_policy)
    if isinstance(num_proc, bool) or not isinstance(num_proc, int) or num_proc < 1:
        raise ConfigError(f"num_proc: {num_proc!r} is not a positive number of processes")
    sources = path_list(paths)
    root = Path(cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "focusft")
    folder = root / _cache_key(sources, tokenizer, max_length, length_policy)
    if not (folder / "report.json").is_file():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix="unfinished-") as scratch:
            dataset, report = _tokenise(
                sources, tokenizer, max_length, length_policy, num_proc, scratch
            )
            _store(dataset, report, Path(scratch) / "done", folder)
        return datasets.load_from_disk(str(folder / "rows")), report
    report = DataReport(**json.loads((folder / "report.json").read_text()))
    return datasets.load_from_disk(str(folder / "rows")), replace(report, cached=True)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of everything of a tokenizer that decides about ids and labels."""
    digest = hashlib.sha256(type(tokenizer).__name__.encode())
    if tokenizer.is_fast:
        # The saved form holds the padding and truncation of the last call: this one has none.
        tokenizer("a", add_special_tokens=False)
        digest.update(tokenizer.backend_tokenizer.to_str().encode())
    state = [tokenizer.chat_template, {k: str(v) for k, v in tokenizer.special_tokens_map.items()}]
    digest.update(json.dumps(state, sort_keys=True).encode())
    return digest.hexdigest()


def _cache_key(
    sources: list[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    length_policy: str,
) -> str:
    parts = [
        _CACHE_VERSION,
        [fingerprint(source) for source in sources],
        tokenizer_fingerprint(tokenizer),
        max_length,
        length_policy,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _tokenise(
    sources: list[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    length_policy: LengthPolicy,
    num_proc: int,
    scratch: str,
) -> tuple[datasets.Dataset, DataReport]:
    with _no_library_bars():
        rows = datasets.Dataset.from_generator(
            _row_strings,
            features=_ROWS,
            gen_kwargs={"sources": sources},
            cache_dir=scratch,
        )
    raise_bad_rows(_bad_rows(rows), len(rows))
    tokenised = rows.map(
        _tokenise_row,
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length, "policy": length_policy},
        features=_TOKENISED,
        remove_columns=["row"],
        num_proc=min(num_proc, len(rows)) if num_proc > 1 else None,
        cache_file_name=str(Path(scratch) / "tokenised.arrow"),
        new_fingerprint="tokenised",  # the key of the folder says more than a hash of this step
        writer_batch_size=_WRITER_BATCH,
        desc="Tokenising",
    )
    raise_bad_rows(_bad_rows(tokenised), len(tokenised))
    if length_policy == "error":
        raise_bad_rows(_too_long(tokenised, max_length), len(tokenised))
    report = DataReport.from_columns({name: tokenised[name][:] for name in (*_COUNTS, "dropped")})
    if report.used == 0:
        raise DataError(f"{', '.join(sources)}: {report.no_row_left()}")
    kept = [index for index, reason in enumerate(tokenised["dropped"]) if not reason]
    return tokenised.select_columns(list(_EXAMPLE)).select(kept), report


@contextmanager
def _no_library_bars() -> Iterator[None]:
    """Hide the bar of a step that has no name of ours."""
    were_shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_shown:
            datasets.enable_progress_bars()


def _row_strings(sources: list[str]) -> Iterator[dict[str, str]]:
    # Rows travel as JSON: as Arrow structs their messages would get each other's keys.
    for record in read_records(sources):
        row = json.dumps(record.row, ensure_ascii=False) if record.row is not None else ""
        yield {"where": record.where, "row": row, "error": record.error}


def _tokenise_row(
    record: dict[str, str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    policy: LengthPolicy,
) -> dict[str, Any]:
    result: dict[str, Any] = dict.fromkeys(_COUNTS, 0) | {name: [] for name in _EXAMPLE}
    result |= {"error": "", "dropped": ""}
    try:
        encoded = encode_row(tokenizer, json.loads(record["row"]))
    except DataError as error:
        return result | {"error": str(error)}
    result["tokens_read"] = len(encoded.input_ids)
    fitted = fit_length(encoded, max_length, policy)
    if fitted.encoded is None:
        return result | {"dropped": fitted.dropped}
    turns = set(fitted.encoded.turn_ids)
    labels = zip(fitted.encoded.labels, fitted.encoded.turn_ids, strict=True)
    trained = {turn for label, turn in labels if label != IGNORED}
    return (
        result
        | fitted.encoded.example()
        | {
            "tokens": len(fitted.encoded.input_ids),
            "response_tokens": sum(label != IGNORED for label in fitted.encoded.labels),
            "turns": len(turns),
            "responses": sum(turn < 0 for turn in turns),
            "removed": fitted.removed,
            "rewritten": encoded.rewritten,
            "untrained": sum(turn < 0 for turn in turns - trained),
            "tools_as_text": int(encoded.tools_as_text),
        }
    )


def _bad_rows(rows: datasets.Dataset) -> list[tuple[str, str]]:
    errors = list(enumerate(rows["error"]))
    return [(rows["where"][index], error) for index, error in errors if error]


def _too_long(rows: datasets.Dataset, max_length: int | None) -> list[tuple[str, str]]:
    problem = (
        f"tokens exceed max_length {max_length}; raise it, or set length_policy to drop or "
        "truncate_context"
    )
    return [
        (rows["where"][index], f"{rows['tokens_read'][index]} {problem}")
        for index, reason in enumerate(rows["dropped"])
        if reason == "too_long"
    ]


def _store(dataset: datasets.Dataset, report: DataReport, done: Path, folder: Path) -> None:
    """Write everything aside and move it into place, so that a killed run leaves no half cache."""
    dataset.save_to_disk(str(done / "rows"))
    (done / "report.json").write_text(json.dumps(report.to_dict()))
    try:
        os.rename(done, folder)
    except OSError:
        # Another process was faster, or an old folder has no report.
        if not (folder / "report.json").is_file():
            shutil.rmtree(folder)
            os.rename(done, folder)
