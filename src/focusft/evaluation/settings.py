"""What a run was begun with, so that no run goes on with other settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from focusft.errors import ConfigError, DataError
from focusft.evaluation.run_files import replace_file

SETTINGS_FILE = "settings.json"
# How a server is reached: a run may go on with the same model at another address, or more gently.
_NOT_COMPARED = frozenset(
    {
        "config.server",
        "config.concurrency",
        "config.api",
        "config.server_timeout",
        "generator.url",
        "generator.concurrency",
        "generator.api",
    }
)


def note_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write down what a run is begun with; JSON values."""
    replace_file(folder / SETTINGS_FILE, [json.dumps(settings, indent=1) + "\n"])


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Check that a run that was begun in the folder, if any, has these settings.

    How a server is reached makes no difference; which model it serves does.

    Args:
        folder: Folder of the run.
        settings: JSON values. Those under "config" are named like command-line options.

    Raises:
        ConfigError: The run was begun with other settings.
        DataError: The note of the run cannot be read.
    """
    file = folder / SETTINGS_FILE
    if not file.exists():
        return
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); delete {folder} to begin again") from (
            error
        )
    for name, before, now in differences(earlier, json.loads(json.dumps(settings))):
        if name in _NOT_COMPARED:
            continue
        option = f"--{name.removeprefix('config.')}" if name.startswith("config.") else name
        raise ConfigError(
            f"{option}: the run in {folder} was begun with {_shown(before)}, not {_shown(now)}; "
            "use the same, or another --out"
        )


def differences(one: Any, other: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two JSON values differ: dotted name and both values; None where there is none."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            inner = f"{name}.{key}" if name else key
            yield from differences(one.get(key), other.get(key), inner)
    elif one != other:
        yield name, one, other


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
