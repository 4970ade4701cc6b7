"""What every sandbox takes and gives: limits in, a result or an error out."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Protocol

from focusft.errors import UserError

MIB = 1 << 20
KILLED = 128 + signal.SIGKILL


class SandboxError(UserError):
    """The sandbox is missing or does not work on this machine; the code did not run."""


@dataclass(frozen=True)
class Result:
    """What came out of a run.

    Attributes:
        stdout: What the code printed, and the value of its last expression. Cut in the middle
            if it is longer than the limit.
        stderr: The same for errors, with the traceback of an exception.
        exit_code: 0 on success, 1 after an exception, the code's own status after `sys.exit`,
            128 + n when signal n ended it.
        timed_out: It ran out of time.
        stopped: Which limit ended it: "time", "memory", "files", "output", or "" for none.
    """

    stdout: str
    stderr: str
    exit_code: int
    timed_out: bool
    stopped: str = ""


@dataclass(frozen=True)
class Limits:
    """Limits beside time and memory.

    Attributes:
        processes: Processes and threads at one time.
        open_files: Open descriptors per process.
        files: Files and folders in /tmp and in /dev/shm.
        disk_mb: Size of /tmp, of /dev/shm, and of any one file, in MiB.
        output_bytes: Bytes kept of stdout and of stderr, first and last half.
        flood_bytes: Bytes of output after which the code is stopped.
    """

    processes: int = 32
    open_files: int = 128
    files: int = 10_000
    disk_mb: int = 64
    output_bytes: int = 1 << 16
    flood_bytes: int = 64 * MIB


DEFAULT_LIMITS = Limits()


class Sandbox(Protocol):
    """Anything that can run code."""

    def run(self, code: str, *, timeout_s: float = 30, memory_mb: int = 2048) -> Result:
        """Run code in a fresh interpreter."""
