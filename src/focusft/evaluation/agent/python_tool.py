"""The Python tool: code that the model writes, run in a sandbox."""

from __future__ import annotations

from typing import Any

from focusft.data.multiple_choice import CODE_INTERPRETER
from focusft.evaluation.agent.interface import Tool, ToolOutput
from focusft.evaluation.sandbox import Result, Sandbox, cut_middle, run


def code_interpreter(
    sandbox: Sandbox | None = None,
    *,
    timeout_s: float = 30,
    memory_mb: int = 2048,
    output_characters: int = 256,
) -> Tool:
    """The published tool: Python code, run without a memory of earlier calls.

    Args:
        sandbox: Where the code runs; bubblewrap by default.
        timeout_s: Seconds of each call.
        memory_mb: Memory of each call in MiB.
        output_characters: Longest output that the model sees; longer ones are cut in the middle.
            256 is what the published evaluation uses.
    """

    def call(arguments: dict[str, Any]) -> ToolOutput:
        result = run(arguments["code"], timeout_s=timeout_s, memory_mb=memory_mb, sandbox=sandbox)
        text = cut_middle(describe(result, timeout_s, memory_mb), output_characters)
        return ToolOutput(text, result.exit_code != 0)

    return Tool(CODE_INTERPRETER, call)


def describe(result: Result, timeout_s: float, memory_mb: int) -> str:
    """A run as the model is told of it."""
    parts = [part for part in (result.stdout.rstrip("\n"), result.stderr.rstrip("\n")) if part]
    reasons = {
        "time": f"the code ran longer than {timeout_s:g} seconds and was stopped",
        "memory": f"the code used more than {memory_mb} MiB of memory and was stopped",
        "files": "the code made too many files and was stopped",
        "output": "the code wrote too much output and was stopped",
    }
    if result.stopped:
        parts.append(f"Error: {reasons[result.stopped]}")
    elif result.exit_code and not result.stderr:
        parts.append(f"Error: exit status {result.exit_code}")
    return "\n".join(parts) or "(no output)"
