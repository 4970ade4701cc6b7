"""Processes that step in turn: each trainer has one of its own, and only one runs at a time."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any


class Worker:
    """A trainer in a process of its own (see `benchmarks.worker`)."""

    def __init__(
        self, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start the process and wait until it is ready.

        Args:
            arguments: Options of `benchmarks.worker`.
            log: Where its error output goes.
            environment: Variables to set for it.
        """
        self.arguments = list(arguments)
        self.log = log
        self._log_file = log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log_file,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.interpreter_gb = self._read()["interpreter_gb"]

    def step(self) -> dict[str, float]:
        """Let it do one optimizer step: seconds, and peak memory of the process so far."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # its death is told by what it answers
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("@"):
                return dict(json.loads(line[1:]))
        code = self._process.wait()
        lines = self.log.read_text().strip().splitlines()
        raise WorkerDiedError(code, lines[-1] if lines else "no message")

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._log_file.close()


class WorkerDiedError(RuntimeError):
    """The process of a trainer ended, for instance for want of memory."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"exit code {code}: {message}")
        self.code = code


def alternate(workers: Mapping[str, Worker], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Step all workers in turn, after one round that is not counted."""
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for number in range(rounds + 1):
        for name, worker in workers.items():
            measured[name].append(worker.step())
        line = ", ".join(f"{name} {steps[-1]['seconds']:.2f} s" for name, steps in measured.items())
        print(f"round {number}: {line}", flush=True)
    return {name: steps[1:] for name, steps in measured.items()}


def median_ratio(measured: Mapping[str, list[dict[str, float]]], above: str, below: str) -> float:
    """Median over the rounds of the ratio of two steps of the same round."""
    pairs = zip(measured[above], measured[below], strict=True)
    return statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)


def medians(measured: Mapping[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Median seconds of a step."""
    return {
        name: statistics.median(step["seconds"] for step in steps)
        for name, steps in measured.items()
    }
