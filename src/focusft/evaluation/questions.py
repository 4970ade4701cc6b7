"""Multiple-choice questions from files: generated tool-use sets, and GPQA."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from focusft.data.multiple_choice import Question
from focusft.errors import ConfigError, DataError
from focusft.evaluation.gpqa import load_gpqa


def load_questions(source: str, *, seed: int = 0) -> list[Question]:
    """Read questions, in the order of the file.

    Args:
        source: A .jsonl file as `focusft data make --task tools` writes it, or a source of
            `load_gpqa`.
        seed: Seed of the order of the options, for GPQA.

    Raises:
        DataError: The source cannot be read or is malformed: one line with file, row and mend.
    """
    file = Path(source)
    if file.suffix.lower() != ".jsonl":
        return load_gpqa(source, seed=seed)
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{source}: cannot be read ({reason}); check the path") from error
    questions = [
        _question(line, f"{source}: line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not questions:
        raise DataError(f"{source}: has no questions; make some with focusft data make")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise DataError(f"{source}: two questions have the id {question.id!r}; rename one")
        seen.add(question.id)
    return questions


def select_questions(questions: Sequence[Question], kinds: Sequence[str]) -> list[Question]:
    """The questions of some kinds or subjects.

    Raises:
        ConfigError: No question is of such a kind.
    """
    chosen = [q for q in questions if q.kind in kinds or q.domain in kinds]
    known = {name for question in questions for name in (question.kind, question.domain) if name}
    for kind in kinds:
        if kind not in known:
            raise ConfigError(f"--tasks: {kind!r} is none of {', '.join(sorted(known)) or 'none'}")
    return chosen


def describe(questions: Sequence[Question]) -> dict[str, Any]:
    """What a run says of its questions: `n`, and a `sha256` with their options and answers."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(repr(question).encode())
    return {"n": len(questions), "sha256": digest.hexdigest()}


def _question(line: str, where: str) -> Question:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error}); mend it") from None
    meta = row.get("meta") if isinstance(row, dict) else None
    if not isinstance(meta, dict):
        raise DataError(
            f"{where}: has no 'meta' with a question; name a file that focusft data make "
            "--task tools wrote"
        )
    options = meta.get("options")
    if not (isinstance(options, list) and 2 <= len(options) <= 26):
        raise DataError(f"{where}: 'options' of 'meta' must be a list of 2 to 26 texts")
    if not all(isinstance(option, str) for option in options):
        raise DataError(f"{where}: 'options' of 'meta' must be texts")
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)]
    answer = _text(meta, "answer", where)
    if len(answer) != 1 or answer not in letters:
        raise DataError(f"{where}: 'answer' of 'meta' is {answer!r}; it must be one of {letters}")
    return Question(
        id=_text(meta, "id", where),
        text=_text(meta, "question", where),
        options=tuple(options),
        answer=answer,
        domain=str(meta.get("domain") or ""),
        kind=str(meta.get("kind") or ""),
    )


def _text(meta: dict[str, Any], name: str, where: str) -> str:
    value = meta.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {name!r} of 'meta' must be a text that is not empty")
    return value
