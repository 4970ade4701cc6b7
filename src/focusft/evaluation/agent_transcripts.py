"""A few transcripts of a run to read: answers that were right, and answers that were wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any


def transcripts(records: Sequence[dict[str, Any]], each: int = 3) -> str:
    """Markdown with the first right and the first wrong answers of each mode.

    Args:
        records: Lines of `episodes.jsonl`.
        each: How many answers of each sort, from questions of different kinds if there are any.
    """
    parts = ["# Transcripts\n"]
    for mode in dict.fromkeys(record["mode"] for record in records):
        for right in (True, False):
            chosen = [r for r in records if r["mode"] == mode and r["right"]["strict"] == right]
            parts.append(f"## {mode}: {'right' if right else 'wrong'} ({len(chosen)})\n")
            parts += (_transcript(record) for record in islice(_by_kind(chosen), each))
    return "\n".join(parts)


def _by_kind(records: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One of each kind first, then the rest."""
    firsts = {record["kind"]: record for record in reversed(records)}
    yield from firsts.values()
    yield from (record for record in records if firsts[record["kind"]] is not record)


def _transcript(record: dict[str, Any]) -> str:
    found = f"answered {record['strict'] or 'nothing'}, right is {record['reference']}"
    lines = [f"### {record['question']}, sample {record['sample']}: {found}, {record['ended']}\n"]
    for message in record["messages"]:
        text = message["content"]
        for call in message.get("tool_calls", []):
            function = call["function"]
            code = function["arguments"].get("code", function["arguments"])
            text += f"\n[{function['name']}]\n{code}"
        # Longer than any run of backticks in the text.
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        lines.append(f"**{message['role']}**\n{fence}\n{text.strip()}\n{fence}\n")
    return "\n".join(lines)
