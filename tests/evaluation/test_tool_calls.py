import json
import random
import time

import pytest

from focusft.evaluation.tool_calls import BrokenCall, ToolCall, parse_tool_calls

TOOL = {
    "type": "function",
    "function": {
        "name": "code_interpreter",
        "description": "Runs Python code.",
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string"}, "note": {"type": "string"}},
            "required": ["code"],
        },
    },
}
CODE = 'print("a")\nx = {"b": 1}'


def payload(code, key="arguments"):
    return json.dumps({"name": "code_interpreter", key: {"code": code}})


def call(code):
    return ToolCall("code_interpreter", {"code": code})


XML = (
    "<function=code_interpreter>\n<parameter=code>\n{}\n</parameter>\n"
    "<parameter=note>\nn\n</parameter>\n</function>"
)
FORMS = {
    "hermes": (f"<tool_call>\n{payload(CODE)}\n</tool_call>", [call(CODE)]),
    "hermes, tight": (f"<tool_call>{payload(CODE)}</tool_call>", [call(CODE)]),
    "hermes, unclosed": (f"<tool_call>\n{payload(CODE)}", [call(CODE)]),
    "hermes, end token": (f"<tool_call>\n{payload(CODE)}\n</tool_call><|im_end|>", [call(CODE)]),
    "hermes, several": (
        f"<tool_call>{payload('1')}</tool_call>\n<tool_call>{payload('2')}</tool_call>",
        [call("1"), call("2")],
    ),
    "hermes, several unclosed": (
        f"<tool_call>{payload('1')}\n<tool_call>{payload('2')}",
        [call("1"), call("2")],
    ),
    "hermes, list": (
        f"<tool_call>[{payload('1')}, {payload('2')}]</tool_call>",
        [call("1"), call("2")],
    ),
    "hermes, two in one tag": (
        f"<tool_call>{payload('1')}</tool_call><tool_call>{payload('2')}</tool_call>",
        [call("1"), call("2")],
    ),
    "closing tag in the code": (
        f"<tool_call>{payload('s = `</tool_call>`')}</tool_call>",
        [call("s = `</tool_call>`")],
    ),
    "opening tag in the code": (
        f"<tool_call>{payload('s = `<tool_call>`')}</tool_call>",
        [call("s = `<tool_call>`")],
    ),
    "end of thinking in the code": (
        f"<tool_call>{payload('s = `</think>`')}</tool_call>",
        [call("s = `</think>`")],
    ),
    "thinking in the code": (
        f"<tool_call>{payload('s = `<think>a</think>`')}</tool_call>",
        [call("s = `<think>a</think>`")],
    ),
    "start of thinking in the code": (
        f"<tool_call>{payload('s = `<think>`')}</tool_call>",
        [call("s = `<think>`")],
    ),
    "llama, thinking in the code": (
        f"<|python_tag|>{payload('s = `<think>a</think>`')}",
        [call("s = `<think>a</think>`")],
    ),
    "mistral, thinking in the code": (
        f"[TOOL_CALLS][{payload('s = `<think>a</think>`')}]",
        [call("s = `<think>a</think>`")],
    ),
    "mistral, named, end of thinking in the code": (
        f"[TOOL_CALLS]code_interpreter[ARGS]{json.dumps({'code': 's = `</think>`'})}",
        [call("s = `</think>`")],
    ),
    "qwen coder, thinking in the code": (
        "<tool_call>\n<function=code_interpreter>\n<parameter=code>\ns = '<think>a</think>'\n"
        "</parameter>\n</function>\n</tool_call>",
        [call("s = '<think>a</think>'")],
    ),
    "thinking between calls": (
        f"<tool_call>{payload('1')}</tool_call><think>or <tool_call>{payload('no')}</tool_call>?"
        f"</think><tool_call>{payload('2')}</tool_call>",
        [call("1"), call("2")],
    ),
    "raw line breaks in the JSON": (
        '<tool_call>{"name": "code_interpreter", "arguments": {"code": "a\nb"}}</tool_call>',
        [call("a\nb")],
    ),
    "arguments in a string": (
        "<tool_call>"
        + json.dumps({"name": "code_interpreter", "arguments": json.dumps({"code": CODE})})
        + "</tool_call>",
        [call(CODE)],
    ),
    "OpenAI's nesting": (
        f'<tool_call>{{"type": "function", "function": {payload(CODE)}}}</tool_call>',
        [call(CODE)],
    ),
    "one brace too many": (f"<tool_call>{payload(CODE)}}}</tool_call>", [call(CODE)]),
    "one brace too few": (f"<tool_call>{payload(CODE)[:-1]}</tool_call>", [call(CODE)]),
    "Python literals": (
        "<tool_call>{'name': 'code_interpreter', 'arguments': {'code': '1'}}</tool_call>",
        [call("1")],
    ),
    "fenced JSON in the tag": (
        f"<tool_call>\n```json\n{payload(CODE)}\n```\n</tool_call>",
        [call(CODE)],
    ),
    "qwen coder": (
        f"<tool_call>\n{XML.format(CODE)}\n</tool_call>",
        [ToolCall("code_interpreter", {"code": CODE, "note": "n"})],
    ),
    "qwen coder, no outer tag": (
        XML.format(CODE),
        [ToolCall("code_interpreter", {"code": CODE, "note": "n"})],
    ),
    "qwen coder, tag in the code": (
        f"<tool_call>\n{XML.format('s = `</parameter>`')}\n</tool_call>",
        [ToolCall("code_interpreter", {"code": "s = `</parameter>`", "note": "n"})],
    ),
    "qwen coder, unclosed": (
        f"<tool_call>\n<function=code_interpreter>\n<parameter=code>\n{CODE}",
        [call(CODE)],
    ),
    "qwen coder, several": (
        "<tool_call><function=code_interpreter><parameter=code>\n1\n</parameter></function>"
        "</tool_call>\n"
        "<tool_call><function=code_interpreter><parameter=code>\n2\n</parameter></function>"
        "</tool_call>",
        [call("1"), call("2")],
    ),
    "llama, tag": (f"<|python_tag|>{payload(CODE, 'parameters')}<|eom_id|>", [call(CODE)]),
    "llama, several": (
        f"<|python_tag|>{payload('1', 'parameters')}; {payload('2', 'parameters')}",
        [call("1"), call("2")],
    ),
    "llama, bare": (f"\n{payload(CODE, 'parameters')}<|eot_id|>", [call(CODE)]),
    "bare in a fence": (f"```json\n{payload(CODE)}\n```", [call(CODE)]),
    "llama, code": (f"<|python_tag|>{CODE}<|eom_id|>", [call(CODE)]),
    "llama, function": (
        f"<function=code_interpreter>{json.dumps({'code': CODE})}</function>",
        [call(CODE)],
    ),
    "mistral": (
        f"[TOOL_CALLS] [{payload('1')}, {payload('2')}]</s>",
        [call("1"), call("2")],
    ),
    "mistral, named": (
        f"[TOOL_CALLS]code_interpreter[ARGS]{json.dumps({'code': CODE})}",
        [call(CODE)],
    ),
    "mistral, named twice": (
        '[TOOL_CALLS]code_interpreter{"code": "1"}[TOOL_CALLS]code_interpreter{"code": "2"}',
        [call("1"), call("2")],
    ),
    "after thinking": (
        f"<think>maybe <tool_call>{payload('no')}</tool_call></think>\n"
        f"<tool_call>{payload('yes')}</tool_call>",
        [call("yes")],
    ),
    "after thinking that the template opened": (
        f"maybe <tool_call>{payload('no')}</tool_call>\n</think>"
        f"<tool_call>{payload('yes')}</tool_call>",
        [call("yes")],
    ),
}
BROKEN = {
    "no JSON": ("<tool_call>code_interpreter(1)</tool_call>", "not valid JSON"),
    "empty": ("<tool_call></tool_call>", "not valid JSON"),
    "only the tag": ("<tool_call>", "not valid JSON"),
    "cut off in the code": (
        '<tool_call>{"name": "code_interpreter", "arguments": {"code": "import os; os.rem',
        "not valid JSON",
    ),
    "cut off in the code, behind an escaped quote": (
        '<tool_call>{"name": "code_interpreter", "arguments": {"code": "q = \'\\"\'\\nprint(1)',
        "not valid JSON",
    ),
    "quotes not escaped": (
        '<tool_call>{"name": "code_interpreter", "arguments": {"code": "f("a")"}}</tool_call>',
        "not valid JSON",
    ),
    "unknown tool": (
        '<tool_call>{"name": "search", "arguments": {}}</tool_call>',
        "no tool 'search'; the tools are: 'code_interpreter'",
    ),
    "name of a wrong type": (
        '<tool_call>{"name": ["x"], "arguments": {}}</tool_call>',
        "there is no tool",
    ),
    "no name": ('<tool_call>{"arguments": {"code": "1"}}</tool_call>', "no 'name'"),
    "no arguments": ('<tool_call>{"name": "code_interpreter"}</tool_call>', "no 'arguments'"),
    "missing argument": (
        '<tool_call>{"name": "code_interpreter", "arguments": {"x": 1}}</tool_call>',
        "'code' of 'code_interpreter' is missing",
    ),
    "wrong type": (
        '<tool_call>{"name": "code_interpreter", "arguments": {"code": 5}}</tool_call>',
        "must be a string",
    ),
    "arguments are a list": (
        '<tool_call>{"name": "code_interpreter", "arguments": [1]}</tool_call>',
        "must be a JSON object",
    ),
    "arguments are prose": (
        '<tool_call>{"name": "code_interpreter", "arguments": "run it"}</tool_call>',
        "holds no JSON object",
    ),
    "a number": ("<tool_call>5</tool_call>", "must be an object"),
    "text after the object": (
        f"<tool_call>{payload('1')} and then {payload('2')}</tool_call>",
        "text after the JSON object",
    ),
    "deep nesting": ("<tool_call>" + "[" * 100_000, "nested too deeply"),
    "bare and broken": ('{"name": "code_interpreter", "arguments": {"code": "1', "not valid JSON"),
    "mistral, broken": ("[TOOL_CALLS] [{", "not valid JSON"),
    "function without a name": ("<function=code_interpreter", "not closed"),
    "llama function, broken": ("<function=code_interpreter>{'</function>", "not valid JSON"),
    "xml without the parameter": (
        "<tool_call><function=code_interpreter></function></tool_call>",
        "'code' of 'code_interpreter' is missing",
    ),
}
NO_CALLS = (
    "",
    "The answer is \\boxed{B}",
    '{"answer": "B"}',
    '{"name": "Anna", "arguments": []}',
    "{not json",
    f"<think>maybe <tool_call>{payload('no')}</tool_call>",
    "```python\nprint(1)\n```",
    "a < b, [TOOL], <tool> and </tool_call>",
)


@pytest.mark.parametrize("name", FORMS)
def test_calls_are_read(name):
    text, expected = FORMS[name]
    parsed = parse_tool_calls(text, [TOOL])
    assert list(parsed.calls) == expected
    if "thinking" not in name:
        assert parsed.content == ""
        if "bare" not in name:
            around = parse_tool_calls(f"Let me see.\n{text}", [TOOL])
            assert (around.content, around.calls) == ("Let me see.", parsed.calls)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_calls_say_why(name):
    text, reason = BROKEN[name]
    parsed = parse_tool_calls(text, [TOOL])
    (broken,) = parsed.calls
    assert isinstance(broken, BrokenCall) and reason in broken.reason
    assert "\n" not in broken.reason
    assert json.loads(broken.message)["reason"] == broken.reason
    assert broken.text == text and parsed.content == ""


@pytest.mark.parametrize("text", NO_CALLS)
def test_text_without_calls_stays_as_it_is(text):
    parsed = parse_tool_calls(text, [TOOL])
    assert parsed.calls == () and parsed.content == text.strip()


def test_good_and_broken_calls_keep_their_order():
    text = (
        f"First <tool_call>{payload('1')}</tool_call> then <tool_call>{{</tool_call> and "
        f"<tool_call>{payload('3')}</tool_call> end"
    )
    parsed = parse_tool_calls(text, [TOOL])
    assert parsed.content == "First  then  and  end"
    first, second, third = parsed.calls
    assert (first, third) == (call("1"), call("3"))
    assert isinstance(second, BrokenCall) and second.text == "<tool_call>{</tool_call>"


def test_plain_schemas_and_no_tools():
    assert parse_tool_calls(FORMS["hermes"][0], [TOOL["function"]]).calls == (call(CODE),)
    (broken,) = parse_tool_calls(FORMS["hermes"][0], []).calls
    assert "the tools are: none" in broken.reason
    (broken,) = parse_tool_calls("<|python_tag|>print(1)", []).calls
    assert "no tool takes code" in broken.reason


def fuzzed_outputs(count, seed=0):
    """Valid and broken outputs, cut, joined, and with characters changed."""
    rng = random.Random(seed)
    sources = [text for text, _ in (*FORMS.values(), *BROKEN.values())] + list(NO_CALLS)
    sources = [text for text in sources if len(text) < 10_000]
    pieces = ["<tool_call>", "</tool_call>", "{", "}", '"', "\\", "\n", "\x00", "\ud800", "[", "é"]
    for _ in range(count):
        text = "".join(rng.choices(sources, k=rng.randint(1, 3)))
        for _ in range(rng.randint(0, 8)):
            place = rng.randint(0, len(text))
            if rng.random() < 0.5:
                text = text[:place] + rng.choice(pieces) + text[place:]
            else:
                text = text[:place] + text[place + rng.randint(1, 20) :]
        yield text


def test_fuzzed_outputs_never_raise():
    for text in fuzzed_outputs(3000):
        parsed = parse_tool_calls(text, [TOOL])
        for made in parsed.calls:
            if isinstance(made, ToolCall):
                assert isinstance(made.arguments["code"], str)
            else:
                assert made.reason and made.message


@pytest.mark.parametrize(
    "unit",
    [
        "<tool_call>",
        "<tool_call>{",
        "<think>",
        "</think>",
        "<function=a>",
        "<function=code_interpreter><parameter=code>",
        "[TOOL_CALLS]",
        "<|python_tag|>",
        '{"a":',
        "</s>\n",
        " ",
        "\n" * 3000 + "x",
        "```json\n",
        '"',
        "<tool_call>" + payload("1"),
    ],
)
def test_long_repetition_is_fast(unit):
    started = time.monotonic()
    parse_tool_calls(unit * (60_000 // len(unit)), [TOOL])
    parse_tool_calls("<tool_call>" + unit * (60_000 // len(unit)), [TOOL])
    assert time.monotonic() - started < 5
