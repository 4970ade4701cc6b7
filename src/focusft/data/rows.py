"""Check one row of a data file and bring it into the one shape that the rest works with.

A row holds either `messages` or `prompt` and `completion`, and optionally `tools`,
`enable_thinking` and `chat_template_kwargs` (docs/data_format.md).
"""

from __future__ import annotations

import inspect
import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from focusft.errors import DataError

ROLES = ("system", "user", "assistant", "tool")
_RESERVED_KWARGS = frozenset(
    inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
) - {"kwargs"}

# Columns of other known forms, and how a row gets into ours.
_OTHER_FORMS = (
    (
        {"conversations"},
        "for ShareGPT rows rename 'conversations' to 'messages', 'from' to 'role' (human to user, "
        "gpt to assistant) and 'value' to 'content'",
    ),
    (
        {"instruction", "output"},
        "for Alpaca rows put 'instruction' and 'input' into 'prompt', and 'output' into "
        "'completion'",
    ),
    (
        {"chosen", "rejected"},
        "of preference rows keep the chosen answer, as 'completion' or as the last message of "
        "'messages', and leave 'rejected' out",
    ),
    ({"data"}, "if 'data' is the list of rows, write that list alone into the file"),
)

Message = dict[str, Any]


def check_row(row: object) -> dict[str, Any]:
    """Check a row and return it in canonical form.

    Args:
        row: One row as it was read.

    Returns:
        A dict with `messages`, or with `prompt` and `completion` (both strings or both lists of
        messages); always `tools` (list or None) and `template_kwargs` (dict); and `needle_spans`
        (list of [start, end) characters) where the row marks facts in its first user message.

    Raises:
        DataError: Something is missing or has the wrong shape.
    """
    if not isinstance(row, dict):
        raise DataError(f"the row is {_kind(row)}; write one JSON object per row")
    present = {str(key) for key, value in row.items() if value is not None}
    has_messages, has_pair = "messages" in present, bool(present & {"prompt", "completion"})
    if has_messages and has_pair:
        raise DataError("has both 'messages' and 'prompt'/'completion'; keep one of the two forms")
    checked: dict[str, Any] = {
        "tools": check_tools(row.get("tools")),
        "template_kwargs": _template_kwargs(row),
    }
    if has_messages:
        checked["messages"] = check_messages(row["messages"])
    elif {"prompt", "completion"} <= present:
        checked["prompt"], checked["completion"] = _check_pair(row["prompt"], row["completion"])
        if isinstance(checked["prompt"], str) and (checked["tools"] or checked["template_kwargs"]):
            raise DataError(
                "tools and template options need a chat template, but 'prompt' is plain text; "
                "write prompt and completion as lists of messages"
            )
    else:
        found = ", ".join(repr(name) for name in sorted(present)) or "none"
        mends = [mend for columns, mend in _OTHER_FORMS if columns <= present]
        raise DataError(
            f"no 'messages' column, nor 'prompt' and 'completion' (found: {found}); "
            f"{mends[0] if mends else 'rename yours'}, see docs/data_format.md"
        )
    if has_messages and (needle_spans := _needle_spans(row.get("meta"), checked["messages"])):
        checked["needle_spans"] = needle_spans
    return checked


def _needle_spans(meta: object, messages: list[Message]) -> list[list[int]]:
    """Marked facts: `meta.needle_spans`, as `focusft.data.synthetic` writes them."""
    spans = meta.get("needle_spans") if isinstance(meta, dict) else None
    if not spans:
        return []
    text = next((m["content"] for m in messages if m["role"] == "user"), "")
    for span in spans if isinstance(spans, list) else [spans]:
        is_pair = isinstance(span, list) and [type(end) for end in span] == [int, int]
        if not is_pair or not 0 <= span[0] < span[1] <= len(text):
            raise DataError(
                f"'meta.needle_spans' holds {span!r}; write [start, end] pairs of characters "
                f"inside the first user message, which has {len(text)}"
            )
    return spans


def check_messages(messages: object) -> list[Message]:
    """Check a conversation; keys whose value is None are dropped.

    Args:
        messages: List of dicts with `role` and `content`, or such a list as a JSON string.

    Returns:
        The cleaned messages; `tool_calls` in OpenAI's shape with `arguments` as a dict, and
        `weight` 0 on the assistant messages that are not to be trained on.

    Raises:
        DataError: Names the message (counted from 1) and how to mend it.
    """
    if isinstance(messages, str):
        messages = _parse_json(messages, "'messages' is a string that")
    if not isinstance(messages, list):
        raise DataError(f"'messages' is {_kind(messages)}; it must be a list of messages")
    if not messages:
        raise DataError("'messages' is empty; remove the row or add its turns")
    cleaned = [_check_message(number, message) for number, message in enumerate(messages, 1)]
    roles = [message["role"] for message in cleaned]
    if "assistant" not in roles:
        raise DataError("no assistant message, so there is nothing to train on; remove the row")
    if roles[0] == "assistant":
        raise DataError("message 1 is from the assistant; put a system or user message first")
    for number, role in enumerate(roles, 1):
        if role == "system" and number > 1:
            raise DataError(f"message {number} is a system message; it must be the first message")
        if role == "tool" and "assistant" not in roles[: number - 1]:
            raise DataError(
                f"message {number} is a tool result, but no assistant message comes before it"
            )
    return cleaned


def check_tools(tools: object) -> list[dict[str, Any]] | None:
    """Check tool descriptions.

    Args:
        tools: A list of JSON schemas, or such a list as a JSON string, or None.

    Returns:
        The list, or None when there are no tools.

    Raises:
        DataError: Not a list of objects with a name.
    """
    if isinstance(tools, str):
        tools = _parse_json(tools, "'tools'") if tools.strip() else None
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list):
        raise DataError(f"'tools' is {_kind(tools)}; it must be a list of JSON schemas")
    _check_unicode("'tools'", tools)
    for number, tool in enumerate(tools, 1):
        if not isinstance(tool, dict) or not isinstance(tool_name(tool), str):
            raise DataError(
                f"tool {number} of 'tools' has no name; "
                'write {"type": "function", "function": {"name": ...}}'
            )
    return tools


def tool_name(tool: dict[str, Any]) -> Any:
    """Name of a tool description or tool call, in OpenAI's shape or flat."""
    function = tool.get("function", tool)
    return function.get("name") if isinstance(function, dict) else None


def without_nulls(value: Any) -> Any:
    """Drop None-valued keys at every depth.

    Arrow gives all structs of a column the same keys and fills the missing ones with None.
    """
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _check_message(number: int, message: object) -> Message:
    if not isinstance(message, dict):
        raise DataError(
            f"message {number} is {_kind(message)}; "
            'it must be an object like {"role": "user", "content": "..."}'
        )
    message = {key: value for key, value in message.items() if value is not None}
    role = message.get("role")
    if role not in ROLES:
        what = "has no 'role'" if role is None else f"has the unknown role {role!r}"
        raise DataError(f"message {number} {what}; use one of {', '.join(ROLES)}")
    name = f"message {number} ({role})"
    if not message.get("tool_calls", True):
        del message["tool_calls"]  # an empty list means no calls, but templates test the key only
    if "tool_calls" in message:
        if role != "assistant":
            raise DataError(f"{name} has 'tool_calls'; only the assistant can call tools")
        message["tool_calls"] = _check_tool_calls(name, message["tool_calls"])
    if "content" not in message and "tool_calls" not in message:
        mend = "give it a string or tool_calls" if role == "assistant" else "give it a string"
        raise DataError(f"{name} has no 'content'; {mend}")
    content = message.get("content", "")
    if isinstance(content, list):
        raise DataError(f"{name}: 'content' is a list; join the texts of its parts into one string")
    if not isinstance(content, str):
        raise DataError(f"{name}: 'content' is {_kind(content)}; it must be a string")
    _check_unicode(name, message)
    if role == "assistant" and not _says_something(message):
        raise DataError(f"{name} is empty; fill it or remove the row")
    if "weight" in message:
        _check_weight(name, message)
    return message


def _says_something(message: Message) -> bool:
    texts = [message.get(key) for key in ("content", "reasoning_content", "thinking")]
    return "tool_calls" in message or any(isinstance(t, str) and t.strip() for t in texts)


def _check_weight(name: str, message: Message) -> None:
    """OpenAI's `weight`: 1, the same as none, or 0 for an answer that is not trained on."""
    weight = message["weight"]
    if message["role"] != "assistant":
        raise DataError(f"{name} has a 'weight'; only assistant messages are trained on, remove it")
    if isinstance(weight, bool) or weight not in (0, 1):
        raise DataError(f"{name}: 'weight' is {weight!r}; use 1, or 0 to leave it untrained")
    if weight == 1:
        del message["weight"]


def _check_tool_calls(name: str, calls: object) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise DataError(f"{name}: 'tool_calls' is {_kind(calls)}; it must be a list of calls")
    checked = []
    for number, call in enumerate(calls, 1):
        where = f"{name}: tool call {number}"
        if not isinstance(call, dict):
            raise DataError(f"{where} is {_kind(call)}; it must be an object")
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(f"{where} has no function name; write {{'function': {{'name': ...}}}}")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = _parse_json(arguments, f"{where}: 'arguments'")
        if arguments is None:
            arguments = {}
        if not isinstance(arguments, dict):
            raise DataError(f"{where}: 'arguments' is {_kind(arguments)}; it must be an object")
        outer = {key: value for key, value in call.items() if value is not None}
        if "function" not in call:
            outer = {}
        checked.append(
            {
                **outer,
                "type": "function",
                "function": {"name": function["name"], "arguments": arguments},
            }
        )
    return checked


def _check_pair(prompt: object, completion: object) -> tuple[Any, Any]:
    if isinstance(prompt, str) and isinstance(completion, str):
        for name, text in (("prompt", prompt), ("completion", completion)):
            if not text:
                raise DataError(f"'{name}' is empty; fill it or remove the row")
            _check_unicode(f"'{name}'", text)
        return prompt, completion
    if not (isinstance(prompt, list) and isinstance(completion, list)):
        raise DataError(
            f"'prompt' is {_kind(prompt)} and 'completion' is {_kind(completion)}; "
            "both must be strings, or both lists of messages"
        )
    if not prompt or not completion:
        name = "completion" if prompt else "prompt"
        raise DataError(f"'{name}' is empty; fill it or remove the row")
    messages = check_messages([*prompt, *completion])
    prompt, completion = messages[: len(prompt)], messages[len(prompt) :]
    if all(message["role"] != "assistant" for message in completion):
        raise DataError("'completion' has no assistant message, so there is nothing to train on")
    return prompt, completion


def _template_kwargs(row: dict[str, Any]) -> dict[str, Any]:
    kwargs = row.get("chat_template_kwargs")
    if isinstance(kwargs, str):
        kwargs = _parse_json(kwargs, "'chat_template_kwargs'")
    if not isinstance(kwargs, dict | None):
        raise DataError(f"'chat_template_kwargs' is {_kind(kwargs)}; it must be an object")
    kwargs = dict(kwargs or {})
    if row.get("enable_thinking") is not None:
        if not isinstance(row["enable_thinking"], bool):
            kind = _kind(row["enable_thinking"])
            raise DataError(f"'enable_thinking' is {kind}; it must be true or false")
        kwargs["enable_thinking"] = row["enable_thinking"]
    return check_template_kwargs(kwargs)


def check_template_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Refuse template options that would change how the template is called.

    Raises:
        DataError: An option has the name of a parameter of `apply_chat_template`.
    """
    reserved = sorted(_RESERVED_KWARGS & kwargs.keys())
    if reserved:
        raise DataError(
            f"'chat_template_kwargs' may not set {reserved[0]!r}; "
            "it holds variables of the chat template only"
        )
    _check_unicode("'chat_template_kwargs'", kwargs)
    return kwargs


def _parse_json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not valid JSON ({error}); mend it") from None


def _check_unicode(name: str, value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError(f"{name} holds half a surrogate pair; write valid Unicode") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{name} holds something that is not JSON: {error}") from None


def _kind(value: object) -> str:
    if value is None:
        return "missing"
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true/false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), f"of type {type(value).__name__}")
