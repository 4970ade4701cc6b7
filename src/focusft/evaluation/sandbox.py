r"""Run Python code that a model wrote, where it can do no harm.

`run(code)` starts a fresh interpreter in bubblewrap: own process, network, IPC and mount
namespaces, a read-only system, a small private /tmp, no environment, no capabilities, a
system-call filter (`seccomp.py`), and limits on time, memory, processes, files and output.
Nothing that the code started outlives the call. (If this process is killed in the milliseconds in
which bubblewrap sets up its namespaces, an idle process of bubblewrap stays, without any code.)

What the code can see of the host: /usr/bin and /usr/lib (read-only), the interpreter's own folders
if it lives elsewhere, the names in the process's mount table, and the kernel's public figures in
/proc (processor, memory, load).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import selectors
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from focusft.errors import ConfigError, UserError
from focusft.evaluation.seccomp import filter_program

_WORKER = Path(__file__).with_name("sandbox_worker.py")
_MIB = 1 << 20
_KILLED = 128 + signal.SIGKILL
_CPU_LIMIT_HIT = 128 + signal.SIGXCPU
# How often the memory of all processes together and the number of files are looked at.
_WATCH_SECONDS = 0.05
_SESSION_DRAIN_BYTES = 4 * _MIB
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "MPLBACKEND": "Agg",
    # One thread each: a pool per core would eat the process and address-space limits.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


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
    flood_bytes: int = 64 * _MIB


class Sandbox(Protocol):
    """Anything that can run code."""

    def run(self, code: str, *, timeout_s: float = 30, memory_mb: int = 2048) -> Result:
        """Run code in a fresh interpreter."""


def run(
    code: str, *, timeout_s: float = 30, memory_mb: int = 2048, sandbox: Sandbox | None = None
) -> Result:
    """Run Python code in a fresh sandbox that is gone afterwards.

    Args:
        code: The program. The value of its last expression is shown as a notebook shows it.
        timeout_s: Wall-clock seconds.
        memory_mb: MiB of address space of each process, and of memory of all of them together.
        sandbox: Where to run it; bubblewrap with the system's Python by default.

    Raises:
        SandboxError: The sandbox does not work here. Never raised for what the code does.
    """
    return (sandbox or Bubblewrap()).run(code, timeout_s=timeout_s, memory_mb=memory_mb)


@dataclass(frozen=True)
class Bubblewrap:
    """The default sandbox. Needs Linux and bubblewrap 0.7 or newer.

    Attributes:
        python: Path of the interpreter, for instance `sys.executable` for the libraries of this
            virtual environment, which the code can then read; the system's by default.
        limits: Limits beside time and memory.
    """

    python: str | None = None
    limits: Limits = Limits()

    def run(self, code: str, *, timeout_s: float = 30, memory_mb: int = 2048) -> Result:
        """Run code in a fresh sandbox; see the function `run`."""
        running = self._start("once", memory_mb, _whole_seconds(timeout_s) + 1)
        try:
            end = running.talk(_encode(code), timeout_s, memory_mb, until_exit=True)
        finally:
            running.kill()
        return running.result(end)

    def session(self, *, timeout_s: float = 30, memory_mb: int = 2048) -> Session:
        """A stateful session in this sandbox; see `Session`."""
        return Session(self, timeout_s=timeout_s, memory_mb=memory_mb)

    def _start(self, mode: str, memory_mb: int, cpu_seconds: int | None) -> _Running:
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise SandboxError(
                "the sandbox needs bubblewrap, but there is no command bwrap; install it "
                "(Debian, Ubuntu: apt-get install bubblewrap) or choose another sandbox"
            )
        python = _interpreter(self.python)
        # The kernel exempts root from the process limit, so root hands over to a user id that
        # nobody has. Others get a user namespace, in which they own nothing but the sandbox.
        is_root = os.geteuid() == 0
        limits = _resource_limits(self.limits, memory_mb, cpu_seconds)
        filter_fd = os.memfd_create("seccomp")
        os.write(filter_fd, filter_program())
        os.lseek(filter_fd, 0, os.SEEK_SET)
        status_read, status_write = os.pipe()
        control_read, control_write = os.pipe()
        command = [
            *(bwrap, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
            *("--unshare-cgroup-try", "--die-with-parent", "--new-session", "--as-pid-1"),
            *("--hostname", "sandbox", "--cap-drop", "ALL"),
            *(_ROOT_OPTIONS if is_root else _USER_OPTIONS),
            # Before the mounts: the interpreter may live below the host's /tmp.
            *("--size", str(self.limits.disk_mb * _MIB), "--perms", "1777", "--tmpfs", "/tmp"),
            *_folders((*_system_mounts(), *python.mounts)),
            *_system_mounts(),
            *python.mounts,
            *("--proc", "/proc", "--dev", "/dev"),
            *("--size", str(self.limits.disk_mb * _MIB), "--perms", "1777", "--tmpfs", "/dev/shm"),
            *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--clearenv"),
            *(word for name, value in _ENVIRONMENT.items() for word in ("--setenv", name, value)),
            *("--seccomp", str(filter_fd), "--json-status-fd", str(status_write), "--"),
            *(_hand_over() if is_root else ()),
            *_worker_command(python.path, control_write, mode, limits),
        ]
        try:
            process = _popen(command, (filter_fd, status_write, control_write))
        except BaseException:
            os.close(status_read)
            os.close(control_read)
            raise
        finally:
            for fd in (filter_fd, status_write, control_write):
                os.close(fd)
        return _Running(process, self.limits, control_read, status_read)


class Session:
    """A sandbox whose variables, imports and files live from one run to the next.

    Use it as a context manager, from one thread: the sandbox dies with the thread that started
    it. A run that hits a limit ends the sandbox; the next run starts an empty one, and
    `restarts` counts that.

    Args:
        sandbox: Where the session runs; bubblewrap with the system's Python by default.
        timeout_s: Wall-clock seconds of each run.
        memory_mb: As in `run`, for the whole session.
    """

    def __init__(
        self,
        sandbox: Bubblewrap | None = None,
        *,
        timeout_s: float = 30,
        memory_mb: int = 2048,
    ) -> None:
        self.sandbox = sandbox or Bubblewrap()
        self.timeout_s = timeout_s
        self.memory_mb = memory_mb
        self.restarts = -1
        self._running: _Running | None = None

    def run(self, code: str) -> Result:
        """Run code after what has been run before.

        Raises:
            SandboxError: The sandbox does not work here.
        """
        if self._running is None:
            self._running = self.sandbox._start("session", self.memory_mb, None)
            self.restarts += 1
        running = self._running
        data = _encode(code)
        request = b"%d\n" % len(data) + data
        try:
            end = running.talk(request, self.timeout_s, self.memory_mb, until_exit=False)
        except BaseException:
            self.close()
            raise
        if end.is_over:
            self.close()
        return running.result(end)

    def close(self) -> None:
        """End the sandbox and all that runs in it."""
        if self._running is not None:
            self._running.kill()
            self._running = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Docker:
    """A container for each run. Not tested against a Docker daemon by this project.

    Attributes:
        image: An image with `python3`; it must be on the machine already.
        limits: Limits beside time and memory.
    """

    image: str = "python:3.12-slim"
    limits: Limits = Limits()

    def run(self, code: str, *, timeout_s: float = 30, memory_mb: int = 2048) -> Result:
        """Run code in a fresh container; see the function `run`."""
        docker = shutil.which("docker")
        if docker is None:
            raise SandboxError("the docker sandbox needs the command docker; install Docker")
        name = f"focusft-{uuid.uuid4().hex}"
        running = _Running(_popen(self.command(docker, name, timeout_s, memory_mb)), self.limits)
        try:
            end = running.talk(_encode(code), timeout_s, memory_mb, until_exit=True)
        finally:
            # Killing the client leaves the container running.
            subprocess.run([docker, "rm", "--force", name], capture_output=True, check=False)
            running.kill()
        result = running.result(end)
        # Docker's own status for a container that it could not start.
        if result.exit_code == 125:
            raise SandboxError(f"docker cannot run {self.image}: {_one_line(result.stderr)}")
        return result

    def command(self, docker: str, name: str, timeout_s: float, memory_mb: int) -> list[str]:
        """The command line that starts the container."""
        limits = _resource_limits(self.limits, memory_mb, _whole_seconds(timeout_s) + 1)
        # The memory and process limits are the container's, over all its processes.
        del limits["RLIMIT_NPROC"]
        tmpfs = f"rw,nosuid,nodev,size={self.limits.disk_mb}m,mode=1777"
        return [
            *(docker, "run", "--rm", "--interactive", "--init", "--pull", "never"),
            *("--name", name, "--network", "none", "--hostname", "sandbox", "--read-only"),
            *("--tmpfs", f"/tmp:{tmpfs}", "--shm-size", f"{self.limits.disk_mb}m"),
            *("--workdir", "/tmp", "--user", "65534:65534", "--cap-drop", "ALL"),
            *("--security-opt", "no-new-privileges", "--pids-limit", str(self.limits.processes)),
            *("--memory", f"{memory_mb}m", "--memory-swap", f"{memory_mb}m", "--cpus", "1"),
            *(w for n, v in _ENVIRONMENT.items() if n != "PATH" for w in ("--env", f"{n}={v}")),
            self.image,
            *_worker_command("python3", -1, "once", limits),
        ]


@dataclass(frozen=True)
class SandboxFusion:
    """A SandboxFusion server, which isolates the code by its own means.

    Attributes:
        url: Address of the server, for instance http://localhost:8080.
        limits: `output_bytes` is the only one that is kept here.
    """

    url: str
    limits: Limits = Limits()

    def run(self, code: str, *, timeout_s: float = 30, memory_mb: int = 2048) -> Result:
        """Run code on the server; see the function `run`."""
        request = {
            "code": show_last_expression(code),
            "language": "python",
            "run_timeout": timeout_s,
            "memory_limit_MB": memory_mb,
        }
        answer = self._post(json.dumps(request).encode(), timeout_s)
        outcome = answer.get("run_result")
        if not isinstance(outcome, dict):
            reason = _one_line(str(answer.get("message") or answer))[:200]
            raise SandboxError(f"{self.url}: the SandboxFusion server ran nothing ({reason})")
        timed_out = outcome.get("status") == "TimeLimitExceeded"
        status = outcome.get("return_code")
        return Result(
            cut_middle(str(outcome.get("stdout") or ""), self.limits.output_bytes),
            cut_middle(str(outcome.get("stderr") or ""), self.limits.output_bytes),
            status if isinstance(status, int) else _KILLED if timed_out else 1,
            timed_out,
            "time" if timed_out else "",
        )

    def _post(self, body: bytes, timeout_s: float) -> dict[str, Any]:
        address = self.url.rstrip("/") + "/run_code"
        try:
            request = urllib.request.Request(
                address, data=body, headers={"Content-Type": "application/json"}
            )
            # The server may queue the run, so it gets more time than the code.
            with urllib.request.urlopen(request, timeout=timeout_s + 60) as response:
                answer = json.loads(response.read(_SESSION_DRAIN_BYTES * 16))
        except (OSError, ValueError) as error:
            raise SandboxError(
                f"{address}: no SandboxFusion server answers ({_one_line(str(error))}); "
                "check the address"
            ) from error
        if not isinstance(answer, dict):
            raise SandboxError(f"{address}: the answer is not SandboxFusion's; check the address")
        return answer


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
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if self.code_may_read_and_delete_my_files is not True:
            raise ConfigError(
                "without a sandbox the model's code can read and delete your files and use your "
                "network; use bubblewrap, or set code_may_read_and_delete_my_files to accept that"
            )

    def run(self, code: str, *, timeout_s: float = 30, memory_mb: int = 2048) -> Result:
        """Run code in a fresh interpreter without protection; see the function `run`."""
        limits = _resource_limits(self.limits, memory_mb, _whole_seconds(timeout_s) + 1)
        # It counts all processes of the user here.
        del limits["RLIMIT_NPROC"]
        running = _Running(_popen(_worker_command(self.python, -1, "once", limits)), self.limits)
        try:
            end = running.talk(_encode(code), timeout_s, memory_mb, until_exit=True)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.process.pid, signal.SIGKILL)
            running.kill()
        return running.result(end)


def cut_middle(text: str, limit: int) -> str:
    """Keep the first and the last half of a text that is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    head, tail = limit - limit // 2, limit // 2
    return f"{text[:head]}{_cut_mark(len(text) - limit, 'characters')}{text[len(text) - tail :]}"


def show_last_expression(code: str) -> str:
    """Rewrite code so that it prints the value of its last expression as a notebook does.

    For servers that run a plain script. Code that does not parse comes back unchanged.
    """
    import ast

    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return code
    if not tree.body or not isinstance(tree.body[-1], ast.Expr):
        return code
    value = tree.body[-1].value
    hook = ast.parse("__import__('sys').displayhook(0)").body[0]
    assert isinstance(hook, ast.Expr) and isinstance(hook.value, ast.Call)
    hook.value.args = [value]
    tree.body[-1] = hook
    return ast.unparse(ast.fix_missing_locations(tree))


@dataclass(frozen=True)
class _End:
    """How an exchange with the worker ended; `status` is the session's, if it goes on."""

    stopped: str
    status: int | None

    @property
    def is_over(self) -> bool:
        return self.status is None


class _Running:
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
        self._init_pid = None if status is None else _init_pid(status)
        self._init_fd = _open_pid(self._init_pid)
        self._ready = control is None
        self._messages = b""
        self._out = _Capture(limits.output_bytes)
        self._err = _Capture(limits.output_bytes)
        assert process.stdin and process.stdout and process.stderr
        self._captures = {process.stdout.fileno(): self._out, process.stderr.fileno(): self._err}
        for pipe in (process.stdin, process.stdout, process.stderr):
            os.set_blocking(pipe.fileno(), False)

    def talk(self, data: bytes, timeout_s: float, memory_mb: int, *, until_exit: bool) -> _End:
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
                        if _exceeds_memory(self._init_pid, memory_mb * _MIB):
                            return _End("memory", None)
                        if _exceeds_files(self._init_pid, self._limits.files):
                            return _End("files", None)
                    if self._out.total + self._err.total > self._limits.flood_bytes:
                        return _End("output", None)
                    wait = max(0.0, min(deadline, next_watch) - now)
                    for key, _ in selector.select(wait):
                        if key.fd == exit_fd:
                            return _End("", None)
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
                        return _End("", status)
                    # Last, so that code that ended in time counts as such even if this process
                    # was stopped meanwhile.
                    if now >= deadline:
                        return _End("time", None)
            finally:
                if exit_fd is not None:
                    os.close(exit_fd)

    def result(self, end: _End) -> Result:
        """What the run gave; after the end of the process, whatever was left in its pipes.

        Raises:
            SandboxError: The worker never started.
        """
        status = self.process.returncode if end.status is None else end.status
        if not self._ready and not end.stopped:
            raise SandboxError(
                f"bubblewrap does not work here ({_one_line(self._err.text())}); it needs "
                "version 0.7 and user namespaces; mend that or choose another sandbox"
            )
        # Popen says -n for a process that died by signal n, bubblewrap 128 + n.
        status = _KILLED if end.stopped else 128 - status if status < 0 else status
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


class _Capture:
    """The first and last bytes of a stream, in bounded memory."""

    def __init__(self, limit: int) -> None:
        self._head_limit, self._tail_limit = limit - limit // 2, limit // 2
        self.clear()

    def clear(self) -> None:
        self._head, self._tail, self.total = bytearray(), bytearray(), 0

    def add(self, data: bytes) -> None:
        self.total += len(data)
        room = self._head_limit - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if len(self._tail) > self._tail_limit + (1 << 17):
            del self._tail[: -self._tail_limit or None]

    def text(self) -> str:
        tail = self._tail[-self._tail_limit :] if self._tail_limit else bytearray()
        cut = self.total - len(self._head) - len(tail)
        if cut == 0:
            return (self._head + tail).decode(errors="replace")
        # Half a character at the cut would read as damage.
        head = self._head.decode(errors="ignore")
        return f"{head}{_cut_mark(cut, 'bytes')}{tail.decode(errors='ignore')}"


@dataclass(frozen=True)
class _Interpreter:
    path: str
    mounts: tuple[str, ...]


@lru_cache
def _interpreter(python: str | None) -> _Interpreter:
    """The interpreter and the mounts that it needs beside /usr/bin and /usr/lib."""
    system = "/usr/bin/python3"
    if python is None and os.access(system, os.X_OK):
        return _Interpreter(system, ())
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
    return _Interpreter(path, tuple(mounts))


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


_ROOT_OPTIONS = ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
_USER_OPTIONS = ("--unshare-user", "--uid", "1000", "--gid", "1000")


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


def _worker_command(python: str, control: int, mode: str, limits: dict[str, int]) -> list[str]:
    words = [f"{name}={value}" for name, value in limits.items()]
    return [python, "-I", "-u", "-B", "-c", _worker_text(), str(control), mode, *words]


@lru_cache
def _worker_text() -> str:
    return _WORKER.read_text(encoding="utf-8")


def _resource_limits(limits: Limits, memory_mb: int, cpu_seconds: int | None) -> dict[str, int]:
    values = {
        "RLIMIT_AS": memory_mb * _MIB,
        "RLIMIT_FSIZE": limits.disk_mb * _MIB,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_NPROC": limits.processes,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
    }
    if cpu_seconds is not None:
        values["RLIMIT_CPU"] = cpu_seconds
    return values


def _popen(command: Sequence[str], pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    # An empty environment: the sandbox's first process shows its own in /proc/1/environ.
    environment = {} if pass_fds else dict(_ENVIRONMENT)
    if Path(command[0]).name == "docker":
        environment = dict(os.environ)
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        cwd="/",
        env=environment,
        pass_fds=pass_fds,
        start_new_session=True,
    )


def _init_pid(status: int) -> int | None:
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


def _exceeds_memory(root_pid: int | None, limit: int) -> bool:
    """Whether a process and its descendants hold more memory than the limit together."""
    if root_pid is None:
        return False
    pids = _descendants(root_pid)
    if sum(_resident_bytes(pid) for pid in pids) <= limit:
        return False
    # Forks share pages, which the plain sum counts once for each.
    return sum(_own_share_bytes(pid) for pid in pids) > limit


def _exceeds_files(root_pid: int | None, limit: int) -> bool:
    """Whether a private folder holds more files than the limit; empty ones cost memory too."""
    if root_pid is None:
        return False
    for folder in ("tmp", "dev/shm"):
        with contextlib.suppress(OSError):
            state = os.statvfs(f"/proc/{root_pid}/root/{folder}")
            if state.f_files - state.f_ffree > limit:
                return True
    return False


def _descendants(root_pid: int) -> list[int]:
    found = [root_pid]
    for pid in found:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children") as file:
                    found += map(int, file.read().split())
    return found


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _own_share_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except OSError:
        return _resident_bytes(pid)


def _whole_seconds(seconds: float) -> int:
    return max(1, int(-(-seconds // 1)))


def _encode(code: str) -> bytes:
    return code.encode(errors="surrogatepass")


def _cut_mark(count: int, unit: str) -> str:
    return f"\n[... {count} {unit} cut ...]\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())
