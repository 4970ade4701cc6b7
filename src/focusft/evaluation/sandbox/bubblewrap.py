"""The default sandbox: namespaces, a read-only system and a system-call filter by bubblewrap."""

from __future__ import annotations

import os
import secrets
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from focusft.evaluation.sandbox.interface import DEFAULT_LIMITS, MIB, Limits, Result, SandboxError
from focusft.evaluation.sandbox.launch import (
    ENVIRONMENT,
    encode,
    resource_limits,
    start_process,
    whole_seconds,
    worker_command,
)
from focusft.evaluation.sandbox.mounts import file_system, find_interpreter
from focusft.evaluation.sandbox.running import Running
from focusft.evaluation.seccomp import filter_program

if TYPE_CHECKING:
    from focusft.evaluation.sandbox.session import Session

_NAMESPACES = (
    *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
    *("--unshare-cgroup-try", "--die-with-parent", "--new-session", "--as-pid-1"),
    *("--hostname", "sandbox", "--cap-drop", "ALL"),
)
_ROOT_OPTIONS = ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
_USER_OPTIONS = ("--unshare-user", "--uid", "1000", "--gid", "1000")


@dataclass(frozen=True)
class Bubblewrap:
    """The default sandbox. Needs Linux and bubblewrap 0.7 or newer.

    Attributes:
        python: Path of the interpreter, for instance `sys.executable` for the libraries of this
            virtual environment, which the code can then read; the system's by default.
        limits: Limits beside time and memory.
    """

    python: str | None = None
    limits: Limits = DEFAULT_LIMITS

    def run(self, code: str, *, timeout_s: float = 30, memory_mb: int = 2048) -> Result:
        """Run code in a fresh sandbox; see the function `run`."""
        running = start_worker(self, "once", memory_mb, whole_seconds(timeout_s) + 1)
        try:
            end = running.talk(encode(code), timeout_s, memory_mb, until_exit=True)
        finally:
            running.kill()
        return running.result(end)

    def session(self, *, timeout_s: float = 30, memory_mb: int = 2048) -> Session:
        """A stateful session in this sandbox; see `Session`."""
        # Here, because a session can start a sandbox of its own.
        from focusft.evaluation.sandbox.session import Session

        return Session(self, timeout_s=timeout_s, memory_mb=memory_mb)


def start_worker(
    sandbox: Bubblewrap, mode: str, memory_mb: int, cpu_seconds: int | None
) -> Running:
    """Start the worker in a fresh sandbox, for one run (`once`) or many (`session`).

    Raises:
        SandboxError: Bubblewrap or the interpreter is missing.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxError(
            "the sandbox needs bubblewrap, but there is no command bwrap; install it "
            "(Debian, Ubuntu: apt-get install bubblewrap) or choose another sandbox"
        )
    python = find_interpreter(sandbox.python)
    limits = resource_limits(sandbox.limits, memory_mb, cpu_seconds)
    # The kernel exempts root from the process limit, so root hands over to a user id that
    # nobody has. Others get a user namespace, in which they own nothing but the sandbox.
    is_root = os.geteuid() == 0
    filter_fd = os.memfd_create("seccomp")
    os.write(filter_fd, filter_program())
    os.lseek(filter_fd, 0, os.SEEK_SET)
    status_read, status_write = os.pipe()
    control_read, control_write = os.pipe()
    command = [
        bwrap,
        *_NAMESPACES,
        *(_ROOT_OPTIONS if is_root else _USER_OPTIONS),
        *file_system(python.mounts, sandbox.limits.disk_mb * MIB),
        *("--chdir", "/tmp", "--clearenv"),
        *(word for name, value in ENVIRONMENT.items() for word in ("--setenv", name, value)),
        *("--seccomp", str(filter_fd), "--json-status-fd", str(status_write), "--"),
        *(_hand_over() if is_root else ()),
        *worker_command(python.path, control_write, mode, limits),
    ]
    try:
        # An empty environment: the sandbox's first process shows its own in /proc/1/environ.
        process = start_process(command, {}, (filter_fd, status_write, control_write))
    except BaseException:
        os.close(status_read)
        os.close(control_read)
        raise
    finally:
        for fd in (filter_fd, status_write, control_write):
            os.close(fd)
    return Running(process, sandbox.limits, control_read, status_read)


def _hand_over() -> list[str]:
    """Command that gives up root inside the sandbox for a user id that is this run's own."""
    setpriv = shutil.which("setpriv", path="/usr/bin:/bin")
    if setpriv is None:
        raise SandboxError(
            "the sandbox as root needs the command setpriv; install util-linux, or do not be root"
        )
    user = str((1 << 29) + secrets.randbelow(1 << 29))
    # Changing the user id clears --die-with-parent; --pdeathsig sets it again.
    identity = ["--reuid", user, "--regid", user, "--clear-groups"]
    return [setpriv, *identity, "--pdeathsig", "KILL", "--"]
