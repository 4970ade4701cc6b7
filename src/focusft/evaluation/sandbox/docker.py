"""Code in a Docker container."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from dataclasses import dataclass

from focusft.evaluation.sandbox.interface import DEFAULT_LIMITS, Limits, Result, SandboxError
from focusft.evaluation.sandbox.launch import (
    ENVIRONMENT,
    encode,
    resource_limits,
    start_process,
    whole_seconds,
    worker_command,
)
from focusft.evaluation.sandbox.output import one_line
from focusft.evaluation.sandbox.running import Running


@dataclass(frozen=True)
class Docker:
    """A container for each run. Not tested against a Docker daemon by this project.

    Attributes:
        image: An image with `python3`; it must be on the machine already.
        limits: Limits beside time and memory.
    """

    image: str = "python:3.12-slim"
    limits: Limits = DEFAULT_LIMITS

    def run(self, code: str, *, timeout_s: float = 30, memory_mb: int = 2048) -> Result:
        """Run code in a fresh container; see the function `run`."""
        docker = shutil.which("docker")
        if docker is None:
            raise SandboxError("the docker sandbox needs the command docker; install Docker")
        name = f"focusft-{uuid.uuid4().hex}"
        command = self.command(docker, name, timeout_s, memory_mb)
        running = Running(start_process(command, os.environ), self.limits)
        try:
            end = running.talk(encode(code), timeout_s, memory_mb, until_exit=True)
        finally:
            # Killing the client leaves the container running.
            subprocess.run([docker, "rm", "--force", name], capture_output=True, check=False)
            running.kill()
        result = running.result(end)
        # Docker's own status for a container that it could not start; code may exit with it too.
        if result.exit_code == 125 and result.stderr.startswith("docker:"):
            raise SandboxError(f"docker cannot run {self.image}: {one_line(result.stderr)}")
        return result

    def command(self, docker: str, name: str, timeout_s: float, memory_mb: int) -> list[str]:
        """The command line that starts the container."""
        limits = resource_limits(self.limits, memory_mb, whole_seconds(timeout_s) + 1)
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
            *(w for n, v in ENVIRONMENT.items() if n != "PATH" for w in ("--env", f"{n}={v}")),
            self.image,
            *worker_command("python3", -1, "once", limits),
        ]
