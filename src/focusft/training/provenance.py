"""What a result was made with: versions, commit, and files written at once or not at all."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("focusft", "torch", "transformers", "accelerate", "datasets", "peft", "trl")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide about a result, and the git commit."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = _git_commit()
    return found | ({"commit": commit} if commit else {})


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file completely, or leave the old one."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def _git_commit() -> str | None:
    """The commit of the source tree; none for an installed package."""
    here = Path(__file__)
    try:
        # An environment may lie inside a repository of the user's, which does not hold this file.
        _git(["ls-files", "--error-unmatch", here.name], here.parent)
        return _git(["rev-parse", "HEAD"], here.parent)
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(arguments: list[str], folder: Path) -> str:
    result = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()
