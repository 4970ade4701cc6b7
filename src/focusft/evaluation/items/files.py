"""Items as JSON lines with a manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from focusft.errors import DataError
from focusft.evaluation.items.item import Item, ItemSet

PROMPTS_FILE = "prompts.jsonl"
MANIFEST_FILE = "manifest.json"


def write_items(
    items: ItemSet, folder: str | Path, advance: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Write the items and then their manifest.

    Args:
        items: From `make_items`.
        folder: Where `prompts.jsonl` and `manifest.json` go; it is made if it is not there.
        advance: Called after each item, for a progress bar.

    Returns:
        The manifest: the header, and under "cells" the true token counts and fill rates of each
        task and length.

    Raises:
        ConfigError: A length is too short.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    digest = hashlib.sha256()
    cells: dict[str, dict[str, _Cell]] = {}
    with (folder / PROMPTS_FILE).open("wb") as file:
        for item in items:
            line = (json.dumps(asdict(item), ensure_ascii=False) + "\n").encode()
            file.write(line)
            digest.update(line)
            cells.setdefault(item.task, {}).setdefault(str(item.length), _Cell()).add(item)
            advance()
    manifest = items.header | {
        "prompts_sha256": digest.hexdigest(),
        "cells": {
            task: {length: cell.to_dict() for length, cell in row.items()}
            for task, row in cells.items()
        },
    }
    # Written last: where there is a manifest, the items are complete.
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8", newline="\n")
    return manifest


def read_items(folder: str | Path) -> tuple[list[Item], dict[str, Any]]:
    """Read what `write_items` wrote.

    Raises:
        DataError: Something is missing, or the items are not those of the manifest.
    """
    folder = Path(folder)
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        content = (folder / PROMPTS_FILE).read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no complete set of items ({error}); make them again") from error
    if hashlib.sha256(content).hexdigest() != manifest.get("prompts_sha256"):
        raise DataError(
            f"{folder / PROMPTS_FILE}: not the items of {MANIFEST_FILE}; make them again"
        )
    items = []
    for line in content.decode().split("\n")[:-1]:
        row = json.loads(line)
        items.append(Item(**row | {"references": tuple(row["references"])}))
    return items, manifest


class _Cell:
    """Figures of one task at one length."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.fills: list[float] = []
        self.passed_over = 0
        self.reduced: set[str] = set()
        self.over_length = 0

    def add(self, item: Item) -> None:
        self.tokens.append(item.tokens)
        self.fills.append(item.fill)
        self.passed_over += item.metadata.get("stories_passed_over", 0)
        self.passed_over += item.metadata.get("questions_passed_over", 0)
        self.reduced.update(item.metadata.get("reduced", ()))
        self.over_length += item.tokens + item.max_new_tokens > item.length

    def to_dict(self) -> dict[str, Any]:
        number = len(self.tokens)
        return {
            "items": number,
            "prompt_tokens": {
                "least": min(self.tokens),
                "mean": round(sum(self.tokens) / number, 1),
                "most": max(self.tokens),
            },
            "fill": {"least": min(self.fills), "mean": round(sum(self.fills) / number, 4)},
            "over_length": self.over_length,
            "passed_over": self.passed_over,
            "reduced": sorted(self.reduced),
        }
