"""What the processes of a sandbox use together, as /proc tells it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def exceeds_memory(root_pid: int | None, limit: int) -> bool:
    """Whether a process and its descendants hold more memory than the limit together."""
    if root_pid is None:
        return False
    pids = _descendants(root_pid)
    if sum(_resident_bytes(pid) for pid in pids) <= limit:
        return False
    # Forks share pages, which the plain sum counts once for each.
    return sum(_own_share_bytes(pid) for pid in pids) > limit


def exceeds_files(root_pid: int | None, limit: int) -> bool:
    """Whether a private folder holds more files than the limit; empty ones cost memory too."""
    if root_pid is None:
        return False
    for folder in ("tmp", "dev/shm"):
        with contextlib.suppress(OSError):
            state = os.statvfs(Path("/proc", str(root_pid), "root", folder))
            if state.f_files - state.f_ffree > limit:
                return True
    return False


def _descendants(root_pid: int) -> list[int]:
    found = [root_pid]
    for pid in found:
        for thread in _threads(pid):
            with contextlib.suppress(OSError), open(f"{thread}/children") as file:
                found += map(int, file.read().split())
    return found


def _threads(pid: int) -> list[str]:
    """Folders of the threads of a process.

    Each tells of the memory that all of them share, but not one that has ended: a process may let
    its first thread, whose folder is that of the process, end before the others.
    """
    try:
        return [f"/proc/{pid}/task/{thread}" for thread in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def _resident_bytes(pid: int) -> int:
    pages = 0
    for thread in _threads(pid):
        with contextlib.suppress(OSError), open(f"{thread}/statm") as file:
            pages = max(pages, int(file.read().split()[1]))
    return pages * os.sysconf("SC_PAGE_SIZE")


def _own_share_bytes(pid: int) -> int:
    for thread in _threads(pid):
        with contextlib.suppress(OSError), open(f"{thread}/smaps_rollup") as file:
            return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    return _resident_bytes(pid)
