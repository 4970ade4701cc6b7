"""Checkpoint folders that are whole or not there: written aside, checksummed, then renamed.

A checkpoint is `checkpoint-N` in the output folder. It is written below `.unfinished/`, gets a
manifest with the size and the SHA-256 of every file, is flushed to the disk, and only then takes
its name. Whatever kills a run leaves a complete `checkpoint-N` or none. Damage that comes later, a
file cut, changed or missing, shows against the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from focusft.errors import UserError

MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"
_NAME = re.compile(r"checkpoint-(\d+)")
_CHUNK = 1 << 20


class CheckpointError(UserError):
    """A checkpoint cannot be written, or none of those that are there can be used."""


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps behind a checkpoint, from its name."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise CheckpointError(f"{checkpoint}: not a checkpoint; give a folder checkpoint-N")
    return int(match[1])


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, damaged ones too, oldest first."""
    if not output_dir.is_dir():
        return []
    found = [path for path in output_dir.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def seal(folder: Path) -> None:
    """Flush every file of a folder to the disk and write the manifest.

    Raises:
        OSError: The disk is full or fails.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(max_workers=4) as pool:
        entries = list(pool.map(_entry, files))
    manifest = {
        "version": 1,
        "files": {
            path.relative_to(folder).as_posix(): entry
            for path, entry in zip(files, entries, strict=True)
        },
    }
    with open(folder / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
    for path in [*files, folder / MANIFEST, *filter(Path.is_dir, folder.rglob("*")), folder]:
        _flush(path)


def publish(staged: Path, output_dir: Path) -> Path:
    """Give a sealed folder its name in the output folder, in place of an older one of that name.

    Returns:
        The checkpoint.
    """
    checkpoint = output_dir / staged.name
    if checkpoint.exists():
        _remove(checkpoint)
    os.rename(staged, checkpoint)
    _flush(output_dir)
    return checkpoint


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, compared with its manifest; None if nothing is."""
    try:
        text = (checkpoint / MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, UnicodeDecodeError):
        return f"{MANIFEST} cannot be read"
    try:
        entries = [
            (name, int(entry["bytes"]), str(entry["sha256"]))
            for name, entry in json.loads(text)["files"].items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    for name, size, _ in entries:
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
    listed = {name for name, _, _ in entries} | {MANIFEST}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.relative_to(checkpoint).as_posix() not in listed:
            return f"{path.relative_to(checkpoint)} is not in {MANIFEST}"
    try:
        with ThreadPoolExecutor(max_workers=4) as pool:
            hashes = list(pool.map(_sha256, [checkpoint / name for name, _, _ in entries]))
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    for (name, _, expected), found in zip(entries, hashes, strict=True):
        if found != expected:
            return f"the content of {name} has changed"
    return None


def last_good_checkpoint(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run.

    Returns:
        The checkpoint, None if there is no checkpoint at all; and a line for each newer one that is
        damaged.

    Raises:
        CheckpointError: There are checkpoints, and all of them are damaged.
    """
    problems: list[str] = []
    for checkpoint in reversed(list_checkpoints(output_dir)):
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint, problems
        problems.append(f"{checkpoint} is damaged and not used: {damage}")
    if problems:
        raise CheckpointError(
            f"no checkpoint is whole: {'; '.join(problems)}; restore one, or start anew in another "
            "output_dir"
        )
    return None, []


def rotate(output_dir: Path, limit: int | None, newest: Path, best: str | None) -> None:
    """Delete the oldest checkpoints beyond a number.

    Never deleted are the newest, which was just written and checked, the best, and any of a later
    step, which another run left.

    Args:
        output_dir: Folder of the run.
        limit: Checkpoints to keep; None or 0 keeps all.
        newest: The checkpoint that was just published.
        best: The checkpoint with the best validation loss, if there is one.
    """
    if not limit or limit < 0:
        return
    kept = {newest} | ({output_dir / Path(best).name} if best else set())
    older = [
        path
        for path in list_checkpoints(output_dir)
        if path not in kept and step_of(path) < step_of(newest)
    ]
    for path in older[: max(0, len(older) + len(kept) - max(limit, len(kept)))]:
        _remove(path)


def clear_unfinished(output_dir: Path) -> None:
    """Remove what a killed run was writing or deleting."""
    shutil.rmtree(output_dir / UNFINISHED, ignore_errors=True)


@contextmanager
def storage_errors(output_dir: Path, what: str) -> Iterator[None]:
    """Turn a full or failing disk into one line that says what is still there.

    Args:
        output_dir: Folder of the run.
        what: What is being written, for the message.

    Raises:
        CheckpointError: It could not be written.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save reports a full disk as RuntimeError, naming its writer.
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        clear_unfinished(output_dir)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        checkpoints = list_checkpoints(output_dir)
        then = (
            f"and run the same command again, it goes on from {checkpoints[-1]}"
            if checkpoints
            else "and run the same command again, it starts anew"
        )
        raise CheckpointError(
            f"{output_dir}: {what} cannot be written ({' '.join(reason.split())[:200]}); "
            f"free some space {then}"
        ) from error


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint; killed half-way, it leaves nothing that looks like one."""
    bin_folder = checkpoint.parent / UNFINISHED
    bin_folder.mkdir(exist_ok=True)
    doomed = bin_folder / f"deleted-{checkpoint.name}"
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(checkpoint, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _entry(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
