"""Output of a run in bounded space."""

from __future__ import annotations


class Capture:
    """The first and last bytes of a stream, in bounded memory."""

    def __init__(self, limit: int) -> None:
        self._head_limit, self._tail_limit = limit - limit // 2, limit // 2
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._head, self._tail, self.total = bytearray(), bytearray(), 0

    def add(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        self.total += len(data)
        room = self._head_limit - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if len(self._tail) > self._tail_limit + (1 << 17):
            del self._tail[: -self._tail_limit or None]

    def text(self) -> str:
        """What was kept, with a mark where something was cut."""
        tail = self._tail[-self._tail_limit :] if self._tail_limit else bytearray()
        cut = self.total - len(self._head) - len(tail)
        if cut == 0:
            return (self._head + tail).decode(errors="replace")
        # Half a character at the cut would read as damage.
        head = self._head.decode(errors="ignore")
        return f"{head}{_cut_mark(cut, 'bytes')}{tail.decode(errors='ignore')}"


def cut_middle(text: str, limit: int) -> str:
    """Keep the first and the last half of a text that is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    head, tail = limit - limit // 2, limit // 2
    return f"{text[:head]}{_cut_mark(len(text) - limit, 'characters')}{text[len(text) - tail :]}"


def _cut_mark(count: int, unit: str) -> str:
    return f"\n[... {count} {unit} cut ...]\n"


def one_line(text: str) -> str:
    """A text for an error message."""
    return " ".join(text.split())
