"""Tools for chat templates that know none."""

import json

import pytest

from focusft.data.chat import encode_conversation, tokenise_prompt_completion
from focusft.data.rows import check_messages
from focusft.data.tool_text import knows_tools, with_tools
from focusft.evaluation.tool_calls import ToolCall, parse_tool_calls
from tests.data.small_tokenizer import make_tokenizer
from tests.data.test_templates import CALLS, TOOLS, WEATHER, said

WRITTEN_CALLS = CALLS.removesuffix("<|im_end|>\n")


@pytest.mark.parametrize(
    "name, knows",
    [("smollm2", False), ("phi3", False), ("qwen2_5", True), ("qwen3", True), ("llama3_2", True)],
)
def test_templates_that_know_tools(name, knows):
    assert knows_tools(make_tokenizer(name)) == knows


def test_tools_calls_and_results_are_written_as_text():
    messages, tools = with_tools(make_tokenizer("smollm2"), check_messages(TOOLS), [WEATHER])
    assert tools is None
    system, *rest = messages
    assert system["role"] == "system" and json.dumps(WEATHER) in system["content"]
    assert rest == [
        TOOLS[0],
        {"role": "assistant", "content": WRITTEN_CALLS},
        {
            "role": "user",
            "content": '<tool_response>\n{"t": 20}\n</tool_response>\n'
            "<tool_response>\n<tool_response>5</tool_response>\n</tool_response>",
        },
        *TOOLS[4:],
    ]
    assert parse_tool_calls(rest[1]["content"], [WEATHER]).calls == (
        ToolCall("get_weather", {"city": "Rome"}),
        ToolCall("get_weather", {"city": "Oslo"}),
    )


def test_text_beside_a_call_and_the_users_system_message_stay():
    messages = [said("system", "Be brief."), TOOLS[0], {**TOOLS[1], "content": "I look."}]
    checked = check_messages(messages)
    written, _ = with_tools(make_tokenizer("smollm2"), checked, [WEATHER])
    assert written[0]["content"].startswith("Be brief.\n\nYou can call tools.")
    assert written[2]["content"] == "I look.\n" + WRITTEN_CALLS
    assert checked == check_messages(messages), "the input is not changed"


@pytest.mark.parametrize("name", ["smollm2", "qwen2_5"])
def test_conversations_without_tools_are_left_alone(name):
    messages = check_messages([said("user", "x"), said("assistant", "y")])
    assert with_tools(make_tokenizer(name), messages, None) == (messages, None)


def test_a_template_that_knows_tools_gets_them():
    messages = check_messages(TOOLS)
    assert with_tools(make_tokenizer("qwen2_5"), messages, [WEATHER]) == (messages, [WEATHER])
    assert not encode_conversation(make_tokenizer("qwen2_5"), TOOLS, tools=[WEATHER]).tools_as_text


def test_training_learns_the_calls():
    tokenizer = make_tokenizer("smollm2")
    encoded = encode_conversation(tokenizer, TOOLS, tools=[WEATHER])
    assert encoded.tools_as_text
    trained = tokenizer.decode([label for label in encoded.labels if label != -100])
    assert trained == CALLS + "20 and 5.<|im_end|>\nWelcome.<|im_end|>\n"
    pair = tokenise_prompt_completion(tokenizer, TOOLS[:4], TOOLS[4:5], tools=[WEATHER])
    assert tokenizer.decode([x for x in pair["labels"] if x != -100]) == "20 and 5.<|im_end|>\n"


def test_thoughts_beside_a_call_are_counted_as_not_shown():
    messages = [TOOLS[0], {**TOOLS[1], "reasoning_content": "Two cities."}, *TOOLS[2:]]
    encoded = encode_conversation(make_tokenizer("smollm2"), messages, tools=[WEATHER])
    assert encoded.tools_as_text and encoded.rewritten == 1
