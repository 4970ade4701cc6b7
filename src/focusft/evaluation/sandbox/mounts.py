"""The file system of the bubblewrap sandbox: programs, libraries and a Python, all read-only."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from focusft.evaluation.sandbox.interface import SandboxError


@dataclass(frozen=True)
class Interpreter:
    """A Python, and the mounts that it needs beside /usr/bin and /usr/lib."""

    path: str
    mounts: tuple[str, ...]


@lru_cache
def find_interpreter(python: str | None) -> Interpreter:
    """The interpreter at a path, or the system's, or this process's own.

    Raises:
        SandboxError: There is no working interpreter.
    """
    system = "/usr/bin/python3"
    if python is None and os.access(system, os.X_OK):
        return Interpreter(system, ())
    own: str = getattr(sys, "_base_executable", sys.executable)
    path = os.path.abspath(python or own)
    question = "import sys; print(sys.prefix, sys.base_prefix, sep='\\n')"
    try:
        answer = subprocess.run(
            [path, "-I", "-c", question], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SandboxError(f"{path}: not a working Python interpreter ({error})") from error
    mounts: list[str] = []
    for prefix in dict.fromkeys(answer.stdout.split("\n")[:2]):
        if prefix != "/usr":
            for part in ("bin", "lib", "lib64", "pyvenv.cfg"):
                place = os.path.join(prefix, part)
                if os.path.exists(place):
                    mounts += ["--ro-bind", place, place]
    return Interpreter(path, tuple(mounts))


def file_system(python_mounts: tuple[str, ...], disk_bytes: int) -> list[str]:
    """Options of bubblewrap: the read-only mounts, /proc, /dev, and private temporary folders.

    Args:
        python_mounts: What the interpreter needs.
        disk_bytes: Size of /tmp and of /dev/shm.
    """
    return [
        # Before the mounts: the interpreter may live below the host's /tmp.
        *("--size", str(disk_bytes), "--perms", "1777", "--tmpfs", "/tmp"),
        *_folders((*_system_mounts(), *python_mounts)),
        *_system_mounts(),
        *python_mounts,
        *("--proc", "/proc", "--dev", "/dev"),
        *("--size", str(disk_bytes), "--perms", "1777", "--tmpfs", "/dev/shm"),
        *("--remount-ro", "/dev", "--remount-ro", "/"),
    ]


@lru_cache
def _system_mounts() -> tuple[str, ...]:
    """Read-only programs and libraries; nothing of /etc but what the loader and the clock need."""
    mounts: list[str] = []
    for name in ("bin", "lib", "lib32", "lib64"):
        mounts += ["--ro-bind-try", f"/usr/{name}", f"/usr/{name}"]
        if os.path.islink(f"/{name}"):
            mounts += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        else:
            mounts += ["--ro-bind-try", f"/{name}", f"/{name}"]
    files = ("/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives", "/usr/share/zoneinfo")
    for file in files:
        mounts += ["--ro-bind-try", file, file]
    return tuple(mounts)


@lru_cache
def _folders(mounts: tuple[str, ...]) -> tuple[str, ...]:
    """Folders that hold the mounts; bubblewrap would make them for their owner's eyes only."""
    places = (mounts[index + 2] for index, word in enumerate(mounts) if word.startswith("--"))
    folders = {str(parent) for place in places for parent in Path(place).parents[:-1]}
    return tuple(word for folder in sorted(folders) for word in ("--dir", folder))
