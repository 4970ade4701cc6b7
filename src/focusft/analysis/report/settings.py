"""Options, data and versions of runs: what differs first, what they share behind it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from focusft.analysis.report.numbers import plain
from focusft.analysis.report.reading import Result

# Name and values: one value, or one for each group of runs that share it.
Rows = list[tuple[str, list[str]]]


def options(results: Sequence[Result]) -> tuple[Rows, Rows]:
    """(options that differ, options that all share) of results of one kind."""
    return _split(
        {
            result.label: {
                **dict(_flat(result.content.get("config", {}))),
                **dict(_flat(result.content.get("settings", {}))),
                **dict(_flat(result.content.get("generator", {}), "generator.")),
                **dict(_flat(result.content.get("data", {}), "data.")),
            }
            for result in results
        }
    )


def versions(results: Sequence[Result]) -> Rows:
    """Versions of Python, the packages and the code; where they differ, of each run."""
    different, alike = _split(
        {
            f"{result.label} ({result.kind})": dict(_flat(result.content.get("versions", {})))
            for result in results
        }
    )
    return different + alike


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield prefix + name, json.dumps(value, ensure_ascii=False)
        else:
            yield prefix + name, plain(value)


def _split(by_label: Mapping[str, Mapping[str, str]]) -> tuple[Rows, Rows]:
    different: Rows = []
    alike: Rows = []
    for name in dict.fromkeys(name for values in by_label.values() for name in values):
        found: dict[str, list[str]] = {}
        for label, values in by_label.items():
            found.setdefault(values.get(name, "not recorded"), []).append(label)
        if len(found) == 1:
            alike.append((name, list(found)))
        else:
            different.append(
                (name, [f"{', '.join(labels)}: {value}" for value, labels in found.items()])
            )
    return different, alike
