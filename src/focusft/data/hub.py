"""Data sets of the hub; code that comes with one is never run."""

from __future__ import annotations

import re
from pathlib import Path

import datasets

from focusft.errors import DataError

# `org/set`, and after a colon a split or whatever the caller takes it for.
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.\-+\[\]%:]+)?")
_FILE_SUFFIXES = (
    *(".parquet", ".jsonl", ".json", ".csv", ".tsv", ".txt", ".arrow", ".pkl", ".pickle"),
    *(".gz", ".zst", ".xz", ".zip", ".yaml"),
)


def is_hub_name(source: str) -> bool:
    """Whether a source can only be a data set of the hub: no file here, and not named like one."""
    if not _HUB_NAME.fullmatch(source) or Path(source).exists():
        return False
    return not source.lower().endswith(_FILE_SUFFIXES) and not source.startswith(("./", "../"))


def load_hub(name: str, config: str | None = None, *, split: str) -> datasets.Dataset:
    """Load a split of a data set of the hub.

    Args:
        name: `org/set`.
        config: Which of its configurations; the only one if None.
        split: Such as train, or train[:100].

    Raises:
        DataError: One line with the hub's reason: there is no such set, no network, no permission.
    """
    try:
        return datasets.load_dataset(name, config, split=split)
    except Exception as error:
        # The hub client raises many unrelated types, for a wrong name as for a missing network.
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{name} is neither a file here nor a data set that the hub gives ({reason}); check "
            "the name, and accept the set's terms with your account if it has some"
        ) from error


def source_name(source: str | Path) -> str:
    """A hub id as it is, a file without its folders."""
    return str(source) if is_hub_name(str(source)) else Path(source).name
