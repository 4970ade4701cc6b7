"""A sandbox that keeps its state from one run to the next."""

from __future__ import annotations

from types import TracebackType

from focusft.evaluation.sandbox.bubblewrap import Bubblewrap, start_worker
from focusft.evaluation.sandbox.interface import Result
from focusft.evaluation.sandbox.launch import encode
from focusft.evaluation.sandbox.running import Running


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
        self._running: Running | None = None

    def run(self, code: str) -> Result:
        """Run code after what has been run before.

        Raises:
            SandboxError: The sandbox does not work here.
        """
        if self._running is None:
            self._running = start_worker(self.sandbox, "session", self.memory_mb, None)
            self.restarts += 1
        running = self._running
        data = encode(code)
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
