"""Tools as plain text, for chat templates that know no tools (SmolLM2's, for instance).

A template that shows tools, calls and results renders them itself. For any other one they are
written into the messages in the form that the templates of Hermes and Qwen use: the tools into the
system message, a call as `<tool_call>` in the assistant's text, and results as `<tool_response>` in
a user message. Training and evaluation both go through `with_tools`, so a model is asked in the
form that it has learned.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from focusft.data.rows import Message

_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "probe_description",
        "parameters": {"type": "object", "properties": {"probe_key": {"type": "string"}}},
    },
}
_PROBE_FUNCTION = {"name": "probe_tool", "arguments": {"probe_key": "probe_value"}}
_PROBE_CALL = {"type": "function", "id": "probe1234", "function": _PROBE_FUNCTION}
_PROBE: list[Message] = [
    {"role": "user", "content": "probe_question"},
    {"role": "assistant", "content": "", "tool_calls": [_PROBE_CALL]},
    {"role": "tool", "name": "probe_tool", "tool_call_id": "probe1234", "content": "probe_result"},
    {"role": "assistant", "content": "probe_answer"},
]
_PROBE_WORDS = ("probe_description", "probe_value", "probe_result", "probe_answer")


def with_tools(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    tools: list[dict[str, Any]] | None,
) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """A conversation as the tokenizer's chat template can show it.

    Args:
        tokenizer: A tokenizer; its chat template decides.
        messages: Checked messages (`check_messages`).
        tools: JSON schemas of the tools, or None.

    Returns:
        The same messages and tools if the template knows tools, or if the conversation has neither
        tools nor calls; otherwise messages that hold them as text, and None.
    """
    if not tools and not any("tool_calls" in message for message in messages):
        return messages, tools
    if not tokenizer.chat_template or knows_tools(tokenizer):
        return messages, tools
    return _as_text(messages, tools or []), None


def knows_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template shows tools, calls and results; found by rendering some."""
    return _shows_probe(tokenizer, tokenizer.get_chat_template(None, [_PROBE_TOOL]))


@lru_cache(maxsize=32)
def _shows_probe(tokenizer: PreTrainedTokenizerBase, source: str) -> bool:
    try:
        text = str(
            tokenizer.apply_chat_template(
                _PROBE,
                tools=[_PROBE_TOOL],
                chat_template=source,
                tokenize=False,
            )
        )
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError):
        return False
    return all(word in text for word in _PROBE_WORDS)


def _as_text(messages: list[Message], tools: list[dict[str, Any]]) -> list[Message]:
    written: list[Message] = []
    if tools:
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        text = f"{system}\n\n{_describe(tools)}" if system else _describe(tools)
        written.append({"role": "system", "content": text})
        messages = messages[1:] if messages[0]["role"] == "system" else messages
    previous = ""
    for message in messages:
        if message["role"] == "tool":
            response = f"<tool_response>\n{message['content']}\n</tool_response>"
            if previous == "tool":
                written[-1]["content"] += "\n" + response
            else:
                written.append({"role": "user", "content": response})
        elif "tool_calls" in message:
            calls = [_write_call(call["function"]) for call in message["tool_calls"]]
            parts = [message.get("content") or "", *calls]
            text = "\n".join(part for part in parts if part)
            others = {key: value for key, value in message.items() if key != "tool_calls"}
            written.append({**others, "content": text})
        else:
            written.append(message)
        previous = message["role"]
    return written


def _describe(tools: list[dict[str, Any]]) -> str:
    schemas = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    example = _write_call({"name": "NAME", "arguments": {"ARGUMENT": "VALUE"}})
    return (
        f"You can call tools. Their JSON schemas:\n{schemas}\nA call is written as\n{example}\n"
        "and its result comes back in <tool_response></tool_response>."
    )


def _write_call(function: dict[str, Any]) -> str:
    call = {"name": function["name"], "arguments": function["arguments"]}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
