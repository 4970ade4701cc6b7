"""A started worker: talk to it, watch it, end it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import signal
import subprocess
import time
from dataclasses import dataclass

from focusft.evaluation.sandbox.interface import KILLED, MIB, Limits, Result, SandboxError
from focusft.evaluation.sandbox.output import Capture, one_line
from focusft.evaluation.sandbox.watch import exceeds_files, exceeds_memory

_CPU_LIMIT_HIT = 128 + signal.SIGXCPU
# How often the memory of all processes together and the number of files are looked at.
_WATCH_SECONDS = 0.05
_SESSION_DRAIN_BYTES = 4 * MIB


@dataclass(frozen=True)
class End:
    """How an exchange with the worker ended; `status` is the session's, if it goes on."""

    stopped: str
    status: int | None

    @property
    def is_over(self) -> bool:
        """The process has ended, or must."""
        return self.status is None


class Running:
    """A started process and what is left of its output."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        limits: Limits,
        control: int | None = None,
        status: int | None = None,
    ) -> None:
        self.process = process
        self._limits = limits
        self._control = control
        # Stays open until the end: bubblewrap writes to it again.
        self._status = status
        self._init_pid = None if status is None else _read_init_pid(status)
        self._init_fd = _open_pid(self._init_pid)
        self._ready = control is None
        self._messages = b""
        self._out = Capture(limits.output_bytes)
        self._err = Capture(limits.output_bytes)
        assert process.stdin and process.stdout and process.stderr
        self._captures = {process.stdout.fileno(): self._out, process.stderr.fileno(): self._err}
        for pipe in (process.stdin, process.stdout, process.stderr):
            os.set_blocking(pipe.fileno(), False)

    def talk(self, data: bytes, timeout_s: float, memory_mb: int, *, until_exit: bool) -> End:
        """Send a request, and collect output until the run ends or hits a limit."""
        self._out.clear()
        self._err.clear()
        deadline = time.monotonic() + timeout_s
        next_watch = time.monotonic() + _WATCH_SECONDS
        stdin = self.process.stdin
        assert stdin is not None
        to_send = memoryview(data)
        exit_fd = _open_pid(self.process.pid)
        with selectors.DefaultSelector() as selector:
            selector.register(stdin, selectors.EVENT_WRITE)
            for fd in (*self._captures, self._control, exit_fd):
                if fd is not None:
                    selector.register(fd, selectors.EVENT_READ)
            try:
                while True:
                    now = time.monotonic()
                    if now >= next_watch:
                        next_watch = now + _WATCH_SECONDS
                        if limit := self._exceeded_limit(memory_mb):
                            return End(limit, None)
                    if self._out.total + self._err.total > self._limits.flood_bytes:
                        return End("output", None)
                    wait = max(0.0, min(deadline, next_watch) - now)
                    for key, _ in selector.select(wait):
                        if key.fd == exit_fd:
                            return End("", None)
                        if key.fileobj is stdin:
                            to_send = to_send[_send(key.fd, to_send) :]
                            if not to_send:
                                selector.unregister(stdin)
                                if until_exit:
                                    stdin.close()
                        elif not self._receive(key.fd):
                            selector.unregister(key.fd)
                    status = self._finished()
                    if status is not None:
                        self._drain(_SESSION_DRAIN_BYTES)
                        return End("", status)
                    # Last, so that code that ended in time counts as such even if this process
                    # was stopped meanwhile.
                    if now >= deadline:
                        return End("time", None)
            finally:
                if exit_fd is not None:
                    os.close(exit_fd)

    def result(self, end: End) -> Result:
        """What the run gave; after the end of the process, whatever was left in its pipes.

        Raises:
            SandboxError: The worker never started.
        """
        status = self.process.returncode if end.status is None else end.status
        if not self._ready and not end.stopped:
            raise SandboxError(
                f"bubblewrap does not work here ({one_line(self._err.text())}); it needs "
                "version 0.7 and user namespaces; mend that or choose another sandbox"
            )
        # Popen says -n for a process that died by signal n, bubblewrap 128 + n.
        status = KILLED if end.stopped else 128 - status if status < 0 else status
        stopped = "time" if status == _CPU_LIMIT_HIT else end.stopped
        return Result(self._out.text(), self._err.text(), status, stopped == "time", stopped)

    def kill(self) -> None:
        """End all processes of the sandbox, wait until they are gone, and close everything."""
        if self.process.returncode is not None:
            return
        try:
            if self._init_fd is None:
                self.process.kill()
            else:
                # The kernel ends the whole process namespace with its first process, and
                # bubblewrap, its parent, ends after it.
                signal.pidfd_send_signal(self._init_fd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self._init_fd is not None:
            select.select([self._init_fd], [], [], 10)
            os.close(self._init_fd)
        self._drain(self._limits.flood_bytes)
        for fd in (self._control, self._status):
            if fd is not None:
                os.close(fd)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _exceeded_limit(self, memory_mb: int) -> str:
        """What the processes have too much of together: "memory", "files" or ""."""
        # Until the worker runs, the first process may still have the host's folders as its own.
        if not self._ready:
            return ""
        if exceeds_memory(self._init_pid, memory_mb * MIB):
            return "memory"
        return "files" if exceeds_files(self._init_pid, self._limits.files) else ""

    def _receive(self, fd: int) -> bool:
        """Read what is there; False at the end of the stream."""
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return True
        if fd == self._control:
            self._messages = (self._messages + data)[-64:]
            self._ready = self._ready or data.startswith(b"ready\n")
        else:
            self._captures[fd].add(data)
        return bool(data)

    def _finished(self) -> int | None:
        """The status that a session's worker sent at the end of a run, if it has."""
        start = self._messages.find(b"done ")
        if start < 0 or b"\n" not in self._messages[start:]:
            return None
        word = self._messages[start + 5 :].split(b"\n")[0]
        self._messages = b""
        try:
            return int(word) & 0xFF
        except ValueError:
            return 1

    def _drain(self, most_bytes: int) -> None:
        if self._control is not None and not self._ready:
            os.set_blocking(self._control, False)
            self._receive(self._control)
        for fd, capture in self._captures.items():
            limit = capture.total + most_bytes
            before = -1
            while before != capture.total < limit:
                before = capture.total
                self._receive(fd)


def _read_init_pid(status: int) -> int | None:
    """Process id of the sandbox's first process, which bubblewrap writes when it has made it."""
    text = b""
    while b"\n" not in text and select.select([status], [], [], 30)[0]:
        data = os.read(status, 4096)
        if not data:
            break
        text += data
    try:
        return int(json.loads(text.split(b"\n")[0])["child-pid"])
    except (ValueError, KeyError):
        return None


def _open_pid(pid: int | None) -> int | None:
    try:
        return None if pid is None else os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _send(fd: int, data: memoryview) -> int:
    try:
        return os.write(fd, data[: 1 << 16])
    except BlockingIOError:
        return 0
    except BrokenPipeError:
        return len(data)
