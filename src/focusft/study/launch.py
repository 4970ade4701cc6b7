"""Commands as processes of their own: memory comes back, and a kill leaves what they saved."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from focusft.errors import RunInterrupted
from focusft.training.watchdogs import TrainingStopped


class OutOfTimeError(Exception):
    """The time of the study is up; the command at work was stopped and can go on."""


class StageFailedError(Exception):
    """A command failed; the message is one line.

    Attributes:
        is_final: The same command would fail again, because its loss diverges.
    """

    def __init__(self, message: str, *, is_final: bool) -> None:
        super().__init__(message)
        self.is_final = is_final


# Runs a command: words after `focusft`, file for what it prints, when to stop (time.monotonic),
# file descriptor to keep open. Returns the exit code.
Launch = Callable[[Sequence[str], Path, float | None, int], int]


def launch_process(words: Sequence[str], log: Path, end: float | None, lock: int) -> int:
    """Run a command in a process.

    Args:
        words: The command line after `focusft`.
        log: File that its output is added to.
        end: When to stop it, by time.monotonic().
        lock: File descriptor that the process holds open as well: where this process is killed,
            the study stays locked as long as the command lives.

    Returns:
        The exit code.

    Raises:
        OutOfTimeError: The command was stopped at `end`.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "focusft", *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C reaches this process alone, which then stops the other.
            start_new_session=True,
            pass_fds=(lock,),
        )
        try:
            left = None if end is None else max(0.0, end - time.monotonic())
            return process.wait(left)
        except subprocess.TimeoutExpired:
            _stop(process)
            raise OutOfTimeError from None
        except BaseException:
            _stop(process)
            raise


def check_exit(code: int, log: Path) -> None:
    """Raise what an exit code says.

    Raises:
        RunInterrupted: Somebody else stopped the command.
        StageFailedError: It failed.
    """
    if code == 0:
        return
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = lines[-1].removeprefix("focusft: error: ") if lines else "no output"
    if code in (130, 143, -2, -15):
        number = code - 128 if code > 0 else -code
        raise RunInterrupted(f"the command was stopped ({last}); run the study again", number)
    raise StageFailedError(
        f"{last} (exit code {code}, {log})", is_final=code == TrainingStopped.exit_code
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let the command save what it has; a second interruption ends it at once."""
    process.terminate()
    try:
        process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
