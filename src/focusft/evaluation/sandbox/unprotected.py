"""No sandbox at all, for those who accept that."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from dataclasses import dataclass

from focusft.errors import ConfigError
from focusft.evaluation.sandbox.interface import DEFAULT_LIMITS, Limits, Result
from focusft.evaluation.sandbox.launch import (
    ENVIRONMENT,
    encode,
    resource_limits,
    start_process,
    whole_seconds,
    worker_command,
)
from focusft.evaluation.sandbox.running import Running


@dataclass(frozen=True)
class Unprotected:
    """No sandbox: the code runs as you, with limits but without walls.

    Attributes:
        code_may_read_and_delete_my_files: Must be True, because that is what the model's code
            can do here; it can also use your network and credentials and leave processes behind.
        python: Path of the interpreter; this one by default.
        limits: Limits beside time and memory; the number of processes and /tmp are not limited.
    """

    code_may_read_and_delete_my_files: bool
    python: str = sys.executable
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        if self.code_may_read_and_delete_my_files is not True:
            raise ConfigError(
                "without a sandbox the model's code can read and delete your files and use your "
                "network; use bubblewrap, or set code_may_read_and_delete_my_files to accept that"
            )

    def run(self, code: str, *, timeout_s: float = 30, memory_mb: int = 2048) -> Result:
        """Run code in a fresh interpreter without protection; see the function `run`."""
        limits = resource_limits(self.limits, memory_mb, whole_seconds(timeout_s) + 1)
        # It counts all processes of the user here.
        del limits["RLIMIT_NPROC"]
        command = worker_command(self.python, -1, "once", limits)
        running = Running(start_process(command, ENVIRONMENT), self.limits)
        try:
            end = running.talk(encode(code), timeout_s, memory_mb, until_exit=True)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.process.pid, signal.SIGKILL)
            running.kill()
        return running.result(end)
