"""Tool calls in the text that a model wrote.

Models write calls in the form that their chat template taught them. These are read:

- Hermes and Qwen: `<tool_call>{"name": .., "arguments": {..}}</tool_call>`;
- Qwen coder: `<tool_call><function=name><parameter=code>..</parameter></function></tool_call>`;
- Llama 3: `<|python_tag|>{"name": .., "parameters": {..}}`, `<|python_tag|>` before plain code,
  `<function=name>{..}</function>`, or nothing but the JSON object;
- Mistral: `[TOOL_CALLS] [{..}, {..}]`, `[TOOL_CALLS]name[ARGS]{..}` and `[TOOL_CALLS]name{..}`.

A call that cannot be read is not dropped: it becomes a `BrokenCall` whose `message` the model is
to be shown. Calls inside the model's thinking do not count.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_DECODER = json.JSONDecoder(strict=False)
_THINKING = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_END_TOKEN = re.compile(r"(<\|(eot_id|eom_id|im_end|end_of_text|endoftext)\|>|</s>)\Z")
_LONGEST_END_TOKEN = len("<|end_of_text|>")
_TAGS = ("<tool_call>", "<function=", "[TOOL_CALLS]", "<|python_tag|>")
_START = re.compile("|".join(map(re.escape, _TAGS)))
_FUNCTION = re.compile(r"<function=([^<>\n]*)>")
_PARAMETER = re.compile(r"<parameter=([^<>\n]*)>")
# Ends a parameter's value; a value may hold the tag's own text, so what follows must fit as well.
_PARAMETER_END = re.compile(r"</parameter>(?=\s*(<parameter=|</function>|</tool_call>|\Z))")
_MISTRAL_NAME = re.compile(r"\s*([\w.-]+)\s*(\[CALL_ID\][\w-]*)?\s*(\[ARGS\])?\s*(?=\{)")
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)
_EXPECTED = (
    '<tool_call>\n{"name": "code_interpreter", "arguments": {"code": "print(1 + 1)"}}\n</tool_call>'
)
# A longer broken call is a runaway; looking for other readings of it would take minutes.
_LONGEST_REPAIR = 20_000


@dataclass(frozen=True)
class ToolCall:
    """A call that can be made: a known tool, and arguments that fit its schema."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class BrokenCall:
    """A call that cannot be made.

    Attributes:
        text: What the model wrote.
        reason: What is wrong with it.
    """

    text: str
    reason: str

    @property
    def message(self) -> str:
        """What the model is shown instead of a result, as JSON."""
        return json.dumps(
            {
                "error": "the tool call could not be made",
                "reason": self.reason,
                "expected": _EXPECTED,
            },
            ensure_ascii=False,
        )


@dataclass(frozen=True)
class Parsed:
    """A model's output, taken apart.

    Attributes:
        content: The text without the calls.
        calls: The calls, in order.
    """

    content: str
    calls: tuple[ToolCall | BrokenCall, ...]


class _CallError(Exception):
    pass


def parse_tool_calls(text: str, tools: Sequence[dict[str, Any]]) -> Parsed:
    """Find the tool calls in a model's output.

    Args:
        text: The output, with or without special tokens.
        tools: JSON schemas of the tools, as the chat template gets them.

    Returns:
        The rest of the text and the calls. Never raises for anything that the text holds.
    """
    schemas = {_schema(tool).get("name", ""): _schema(tool) for tool in tools}
    text = _without_end(text)
    searched = _without_thinking(text)
    found = list(_find(searched, schemas)) or list(_find_bare(searched, schemas))
    calls: list[ToolCall | BrokenCall] = []
    content: list[str] = []
    position = 0
    for start, stop, name, arguments in found:
        content.append(text[position:start])
        position = stop
        if isinstance(arguments, _CallError):
            calls.append(BrokenCall(text[start:stop], str(arguments)))
            continue
        try:
            calls.append(_checked(name, arguments, schemas))
        except _CallError as error:
            calls.append(BrokenCall(text[start:stop], str(error)))
    content.append(text[position:])
    return Parsed("".join(content).strip(), tuple(calls))


# Start and stop in the text, the tool's name, and its arguments or why they cannot be read.
_Found = tuple[int, int, Any, Any]


def _find(text: str, schemas: dict[str, dict[str, Any]]) -> Iterator[_Found]:
    position = 0
    while match := _START.search(text, position):
        start, after = match.span()
        if match[0] == "<tool_call>":
            found = list(_read_tagged(text, start, after))
        elif match[0] == "<function=":
            found = [_read_function(text, start, start)]
        elif match[0] == "[TOOL_CALLS]":
            found = list(_read_mistral(text, start, after))
        else:
            found = list(_read_python_tag(text, start, after, schemas))
        yield from found
        position = max(found[-1][1], after)


def _find_bare(text: str, schemas: dict[str, dict[str, Any]]) -> Iterator[_Found]:
    """An answer that is nothing but a JSON call, in a fence or not."""
    fence = _FENCE.fullmatch(text.strip())
    body = fence[1] if fence else text.strip()
    if not body.startswith("{"):
        return
    try:
        value, end = _DECODER.raw_decode(body)
    except (ValueError, RecursionError):
        # Whether broken JSON was meant as a call shows in its first words.
        if re.match(r'\{\s*"name"\s*:\s*"[^"]*"\s*,\s*"(arguments|parameters)"', body):
            yield 0, len(text), None, _CallError(_json_problem(body))
        return
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in schemas or body[end:].strip(" ;\n"):
        return
    if "arguments" in value or "parameters" in value:
        yield 0, len(text), *_name_and_arguments(value)


def _read_tagged(text: str, start: int, after: int) -> Iterator[_Found]:
    """One or several calls behind `<tool_call>`, closed or not."""
    body = _skip_space(text, after)
    if text.startswith("<function=", body):
        yield _read_function(text, start, body)
        return
    try:
        value, end = _DECODER.raw_decode(text, body)
    except (ValueError, RecursionError):
        stop = _close(text, after)
        inner = text[after:stop].removesuffix("</tool_call>").strip()
        yield start, stop, *_read_loosely(inner)
        return
    close = _skip_space(text, end)
    stop = close + len("</tool_call>") if text.startswith("</tool_call>", close) else end
    rest_stop = _close(text, end)
    rest = text[end:rest_stop].removesuffix("</tool_call>").strip()
    if stop == end and rest and rest_stop > end and text[:rest_stop].endswith("</tool_call>"):
        # For instance one brace too many: the model closed the tag, so all of it was the call.
        stop = rest_stop
        if rest.strip("}] \n"):
            problem = _CallError(f"there is text after the JSON object: {rest[:80]!r}")
            yield start, stop, None, problem
            return
    for item in value if isinstance(value, list) and value else [value]:
        yield start, stop, *_name_and_arguments(item)
        start = stop


def _read_function(text: str, start: int, at: int) -> _Found:
    """`<function=name>` with `<parameter=..>` blocks or a JSON object behind it."""
    head = _FUNCTION.match(text, at)
    if head is None:
        stop = _close(text, at)
        return start, stop, None, _CallError("the tag <function=NAME> is not closed by '>'")
    body = _skip_space(text, head.end())
    if text.startswith("{", body):
        try:
            arguments, end = _DECODER.raw_decode(text, body)
        except (ValueError, RecursionError):
            stop = _close(text, body)
            inner = text[body:stop].removesuffix("</tool_call>").strip()
            return start, stop, None, _CallError(_json_problem(inner.removesuffix("</function>")))
        return start, _skip_tags(text, end), head[1].strip(), arguments
    arguments = {}
    position = head.end()
    while (tag := _PARAMETER.match(text, _skip_space(text, position))) is not None:
        end_tag = _PARAMETER_END.search(text, tag.end())
        value_stop = end_tag.start() if end_tag else _open_value_end(text, tag.end())
        value = text[tag.end() : value_stop]
        # The template puts one line break around the value.
        value = value.removeprefix("\n").removesuffix("\n")
        arguments[tag[1].strip()] = value
        position = end_tag.end() if end_tag else value_stop
    return start, _skip_tags(text, position), head[1].strip(), arguments


def _read_mistral(text: str, start: int, after: int) -> Iterator[_Found]:
    body = _skip_space(text, after)
    named = _MISTRAL_NAME.match(text, body)
    following = text.find("[TOOL_CALLS]", after)
    limit = following if following >= 0 else len(text)
    json_start = named.end() if named else body
    try:
        value, end = _DECODER.raw_decode(text, json_start)
    except (ValueError, RecursionError):
        yield start, limit, *_read_loosely(text[json_start:limit].strip())
        return
    if named:
        yield start, end, named[1], value
        return
    for item in value if isinstance(value, list) and value else [value]:
        yield start, end, *_name_and_arguments(item)
        start = end


def _read_python_tag(
    text: str, start: int, after: int, schemas: dict[str, dict[str, Any]]
) -> Iterator[_Found]:
    """JSON objects with semicolons between them, or plain code for the one tool that takes it."""
    body = _skip_space(text, after)
    if re.match(r'\{\s*["\']', text[body : body + 200]):
        while text.startswith("{", body):
            try:
                value, end = _DECODER.raw_decode(text, body)
            except (ValueError, RecursionError):
                yield start, len(text), *_read_loosely(text[body:].strip())
                return
            yield start, end, *_name_and_arguments(value)
            start = end
            body = _skip_space(text, end)
            if text.startswith(";", body):
                body = _skip_space(text, body + 1)
        return
    following = _START.search(text, after)
    stop = following.start() if following else len(text)
    for name, schema in schemas.items():
        required = _parameters(schema).get("required")
        if isinstance(required, list) and len(required) == 1:
            yield start, stop, name, {required[0]: text[after:stop].strip("\n")}
            return
    yield start, stop, None, _CallError("plain code after <|python_tag|>, but no tool takes code")


def _read_loosely(body: str) -> tuple[Any, Any]:
    """Read what strict JSON refuses: Python literals and a missing or doubled last brace."""
    body = _FENCE.sub(r"\1", body).strip()
    if len(body) <= _LONGEST_REPAIR:
        # No quote is added: a cut-off string must not be run as if it were the whole program.
        for candidate in (body, body + "}", body + "}}"):
            try:
                return _name_and_arguments(_DECODER.decode(candidate))
            except (ValueError, RecursionError):
                pass
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = ast.literal_eval(body)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            value = None
        if isinstance(value, dict):
            return _name_and_arguments(value)
    return None, _CallError(_json_problem(body))


def _name_and_arguments(value: Any) -> tuple[Any, Any]:
    if not isinstance(value, dict):
        kind = type(value).__name__
        return None, _CallError(f"the call is a JSON {kind}; it must be an object")
    if isinstance(value.get("function"), dict):
        value = value["function"]
    if "name" not in value:
        return None, _CallError("the call has no 'name'")
    arguments = value.get("arguments", value.get("parameters"))
    if arguments is None:
        return None, _CallError("the call has no 'arguments'")
    return value["name"], arguments


def _checked(name: Any, arguments: Any, schemas: dict[str, dict[str, Any]]) -> ToolCall:
    if not isinstance(name, str) or name not in schemas:
        known = ", ".join(repr(known) for known in schemas) or "none"
        raise _CallError(f"there is no tool {str(name)[:80]!r}; the tools are: {known}")
    if isinstance(arguments, str):
        # OpenAI's form: the arguments as JSON inside a string.
        try:
            arguments = _DECODER.decode(arguments)
        except (ValueError, RecursionError):
            raise _CallError("'arguments' is a string that holds no JSON object") from None
    if not isinstance(arguments, dict):
        raise _CallError("'arguments' must be a JSON object")
    try:
        # A chat template has to write them again, and a tokenizer to read that.
        json.dumps(arguments, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _CallError("'arguments' holds half a surrogate pair, which is no text") from None
    except RecursionError:
        raise _CallError("'arguments' is nested too deeply") from None
    parameters = _parameters(schemas[name])
    for key in parameters.get("required", []):
        if key not in arguments:
            raise _CallError(f"the argument {key!r} of {name!r} is missing")
    for key, schema in parameters.get("properties", {}).items():
        kind = schema.get("type") if isinstance(schema, dict) else None
        if kind == "string" and key in arguments and not isinstance(arguments[key], str):
            raise _CallError(f"the argument {key!r} of {name!r} must be a string")
    return ToolCall(name, arguments)


def _without_end(text: str) -> str:
    """Text without the end tokens and the white space at its end, in linear time."""
    text = text.rstrip()
    while match := _END_TOKEN.search(text, len(text) - _LONGEST_END_TOKEN):
        text = text[: match.start()].rstrip()
    return text


def _without_thinking(text: str) -> str:
    """Blank out the thinking, so that places in the text stay the same."""
    position = 0
    while match := _THINKING.search(text, position):
        inside = _end_of_call(text, match.start())
        if inside is None:
            text = text[: match.start()] + " " * len(match[0]) + text[match.end() :]
        position = match.end() if inside is None else inside
    # A template that opens the thinking itself leaves only its end in the output. Inside a call
    # the same words would be code.
    end = text.find("</think>")
    if end >= 0 and _end_of_call(text, end) is None:
        end += len("</think>")
        text = " " * end + text[end:]
    return text


def _end_of_call(text: str, place: int) -> int | None:
    """End of the call that a place lies in; None where it lies in none that can be read."""
    opened, tag = max((text.rfind(tag, 0, place), tag) for tag in _TAGS)
    if opened < 0:
        return None
    end = None
    if tag == "<|python_tag|>":
        end = len(text)
    elif tag == "<function=":
        close = text.find("</function>", opened)
        end = None if close < 0 else close
    else:
        start = _skip_space(text, opened + len(tag))
        if tag == "[TOOL_CALLS]" and not text.startswith("[", start):
            start = text.find("{", start, place)
        try:
            end = _DECODER.raw_decode(text, start)[1] if start >= 0 else None
        except (ValueError, RecursionError):
            end = None
    return end if end is not None and end > place else None


def _close(text: str, position: int) -> int:
    """End of a call that cannot be read: behind its closing tag, or where the next one starts."""
    close = text.find("</tool_call>", position)
    following = text.find("<tool_call>", position)
    if close >= 0 and (following < 0 or close < following):
        return close + len("</tool_call>")
    return following if following >= 0 else len(text)


def _open_value_end(text: str, position: int) -> int:
    ends = (text.find(tag, position) for tag in ("</parameter>", "</function>", "</tool_call>"))
    return min((end for end in ends if end >= 0), default=len(text))


def _skip_tags(text: str, position: int) -> int:
    for tag in ("</parameter>", "</function>", "</tool_call>"):
        after = _skip_space(text, position)
        if text.startswith(tag, after):
            position = after + len(tag)
    return position


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _json_problem(body: str) -> str:
    try:
        _DECODER.decode(body)
    except RecursionError:
        return "the JSON is nested too deeply"
    except ValueError as error:
        return f"the call is not valid JSON: {error}"
    return "the call is not a JSON object"


def _schema(tool: dict[str, Any]) -> dict[str, Any]:
    inner = tool.get("function", tool)
    return inner if isinstance(inner, dict) else {}


def _parameters(schema: dict[str, Any]) -> dict[str, Any]:
    parameters = schema.get("parameters")
    return parameters if isinstance(parameters, dict) else {}
