"""Multiple-choice questions, the prompt that asks them, and the tool that they are solved with.

Training data and evaluation share all three.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from focusft.data.rows import Message

# The tool of the published evaluation on GPQA.
CODE_INTERPRETER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "code_interpreter",
        "description": (
            "Runs Python code in a fresh interpreter and returns what it prints and the value of "
            "its last expression."
        ),
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "The Python code to run."}},
            "required": ["code"],
        },
    },
}


@dataclass(frozen=True)
class Question:
    """A multiple-choice question.

    Attributes:
        id: Its name in the results, unique in its set.
        text: The question alone.
        options: The options in the order in which they are shown.
        answer: Letter of the right option.
        domain: Subject, as the prompt names it; may be empty.
        kind: What it belongs to in the results, for sets that have kinds; may be empty.
    """

    id: str
    text: str
    options: tuple[str, ...]
    answer: str
    domain: str = ""
    kind: str = ""


def ask(question: Question, *, with_tools: bool) -> list[Message]:
    r"""The messages that ask a question.

    Args:
        question: The question.
        with_tools: Whether the prompt speaks of the code interpreter.
    """
    subject = f"{question.domain.lower()} " if question.domain else ""
    tool = (
        "You can call the code_interpreter tool to run Python code; each call starts afresh and "
        "returns what the code prints. "
        if with_tools
        else ""
    )
    options = "\n".join(
        f"({chr(ord('A') + number)}) {option}" for number, option in enumerate(question.options)
    )
    text = (
        f"Solve the following {subject}problem step by step. {tool}"
        "End with the letter of the right option in \\boxed{}, for example \\boxed{A}.\n\n"
        f"{question.text}\n\n{options}"
    )
    return [{"role": "user", "content": text}]
