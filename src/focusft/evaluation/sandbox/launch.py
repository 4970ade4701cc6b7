"""How a sandbox starts the worker: its command line, limits, environment and pipes."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from focusft.evaluation.sandbox.interface import MIB, Limits

_WORKER = Path(__file__).with_name("worker.py")
ENVIRONMENT = {
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


def worker_command(python: str, control: int, mode: str, limits: dict[str, int]) -> list[str]:
    """The command that runs the worker.

    Args:
        python: Path of the interpreter, inside the sandbox.
        control: Descriptor on which the worker says how far it is, or -1.
        mode: `once` or `session`.
        limits: From `resource_limits`.
    """
    words = [f"{name}={value}" for name, value in limits.items()]
    return [python, "-I", "-u", "-B", "-c", _worker_text(), str(control), mode, *words]


@lru_cache
def _worker_text() -> str:
    return _WORKER.read_text(encoding="utf-8")


def resource_limits(limits: Limits, memory_mb: int, cpu_seconds: int | None) -> dict[str, int]:
    """The limits that the kernel keeps for each process, by their names in `resource`."""
    values = {
        "RLIMIT_AS": memory_mb * MIB,
        "RLIMIT_FSIZE": limits.disk_mb * MIB,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_NPROC": limits.processes,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
    }
    if cpu_seconds is not None:
        values["RLIMIT_CPU"] = cpu_seconds
    return values


def start_process(
    command: Sequence[str], environment: Mapping[str, str], pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, with unbuffered pipes."""
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


def whole_seconds(seconds: float) -> int:
    """Seconds rounded up, at least one."""
    return max(1, int(-(-seconds // 1)))


def encode(code: str) -> bytes:
    """Code as the worker reads it, which also takes what is not valid UTF-8."""
    return code.encode(errors="surrogatepass")
