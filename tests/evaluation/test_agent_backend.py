"""The tool loop over a generator: prompts as in training, and conversations that grow too long."""

import json
from dataclasses import replace

import pytest

from focusft.data.chat import encode_conversation
from focusft.data.multiple_choice import CODE_INTERPRETER
from focusft.errors import ConfigError
from focusft.evaluation.agent import Budget, Tool, ToolOutput, run_episodes
from focusft.evaluation.agent_backend import GeneratorBackend
from focusft.evaluation.generation import Completion, encode
from tests.data.small_tokenizer import make_tokenizer
from tests.data.test_tool_use import make, run_here
from tests.evaluation.test_tool_calls import fuzzed_outputs


class Replaying:
    """A generator that writes given texts one after the other and keeps its prompts."""

    def __init__(self, tokenizer, texts):
        self.tokenizer = tokenizer
        self.texts = list(texts)
        self.prompts = []

    def describe(self):
        return {"backend": "replay"}

    def complete(self, prompts):
        # The last prompt first: the order of completions is free.
        for index, prompt in reversed(list(enumerate(prompts))):
            self.prompts.append(prompt)
            yield index, Completion(self.texts.pop(0), 10, 5, False, 0.1)


class Thinking(Replaying):
    """The same, where three tokens of each answer are thinking."""

    def complete(self, prompts):
        for index, completion in super().complete(prompts):
            yield index, replace(completion, thinking="hm", thinking_tokens=3)


def call(arguments):
    text = run_here(arguments["code"])
    return ToolOutput(text, "Error" in text)


TOOL = Tool(CODE_INTERPRETER, call)


@pytest.mark.parametrize("name", ["smollm2", "qwen2_5"])
def test_prompts_are_those_of_training(name):
    """What the model sees at each turn is what training showed before that response."""
    tokenizer = make_tokenizer(name)
    turns = set()
    for row in make(40):
        trained = encode_conversation(tokenizer, row["messages"], tools=row.get("tools"))
        responses = sorted({turn for turn in trained.turn_ids if turn < 0}, reverse=True)
        starts = [trained.turn_ids.index(turn) for turn in responses]
        texts = [
            tokenizer.decode(
                [i for i, t in zip(trained.input_ids, trained.turn_ids, strict=True) if t == turn],
                skip_special_tokens=True,
            )
            for turn in responses
        ]
        generator = Replaying(tokenizer, texts)
        backend = GeneratorBackend(generator, tokenizer)
        tools = [TOOL] if "tools" in row else []
        first = next(i for i, m in enumerate(row["messages"]) if m["role"] == "assistant")
        ((_, episode),) = run_episodes([row["messages"][:first]], backend, tools=tools)
        assert episode.ended == "answer" and not generator.texts
        shown = [encode(tokenizer, prompt, chat=True) for prompt in generator.prompts]
        assert shown == [trained.input_ids[:start] for start in starts]
        assert episode.broken_calls == 0
        turns.add(len(responses))
    assert {1, 2, 3} <= turns


@pytest.mark.parametrize("name", ["smollm2", "qwen2_5"])
def test_whatever_a_model_writes_can_be_shown_to_it_again(name):
    """500 fuzzed outputs, each in a conversation that goes on and is tokenised at every turn."""
    tokenizer = make_tokenizer(name)
    # No generator gives halves of surrogate pairs.
    outputs = [text.encode(errors="replace").decode() for text in fuzzed_outputs(1000, seed=3)]

    class Fuzzing(Replaying):
        def complete(self, prompts):
            for prompt in prompts:
                assert encode(tokenizer, prompt, chat=True)
            yield from super().complete(prompts)

    generator = Fuzzing(tokenizer, outputs)
    backend = GeneratorBackend(generator, tokenizer, context_tokens=100_000)
    conversations = [[{"role": "user", "content": str(n)}] for n in range(500)]
    echo = Tool(CODE_INTERPRETER, lambda arguments: ToolOutput(arguments["code"], failed=False))
    budget = Budget(turns=2)
    results = dict(
        run_episodes(conversations, backend, tools=[echo], budget=budget, batch_size=100)
    )
    assert len(results) == 500 and sum(result.calls for result in results.values()) > 100
    assert sum(result.broken_calls for result in results.values()) > 100
    json.dumps([result.messages for result in results.values()], ensure_ascii=False).encode()


def test_samples_reach_the_generator_and_order_is_kept():
    tokenizer = make_tokenizer("smollm2")
    generator = Replaying(tokenizer, ["second", "first"])
    backend = GeneratorBackend(generator, tokenizer)
    conversations = [[{"role": "user", "content": text}] for text in ("a", "b")]
    replies = backend.generate(conversations, tools=None, max_new_tokens=[7, 9], samples=[3, 4])
    assert [reply.text for reply in replies] == ["first", "second"]
    assert [(p.sample, p.max_new_tokens) for p in generator.prompts] == [(4, 9), (3, 7)]


def test_a_conversation_without_room_ends_as_truncated():
    tokenizer = make_tokenizer("smollm2")
    long, short = ([{"role": "user", "content": "word " * n}] for n in (200, 1))
    generator = Replaying(tokenizer, ["fits"])
    backend = GeneratorBackend(generator, tokenizer, context_tokens=150)
    results = dict(run_episodes([long, short], backend))
    assert (results[0].ended, results[0].tokens, results[0].answer) == ("tokens", 0, "")
    assert (results[1].ended, results[1].answer) == ("answer", "fits")
    (prompt,) = generator.prompts
    assert prompt.max_new_tokens == 150 - len(encode(tokenizer, prompt, chat=True))


def test_role_of_errors_follows_the_template():
    tools = [CODE_INTERPRETER]
    for name, role in (("smollm2", "tool"), ("qwen2_5", "tool"), ("llama3_2", "tool")):
        tokenizer = make_tokenizer(name)
        assert GeneratorBackend(Replaying(tokenizer, []), tokenizer).error_role(tools) == role
    strict = make_tokenizer("qwen2_5").__class__(
        tokenizer_object=make_tokenizer("qwen2_5").backend_tokenizer,
        chat_template=(
            "{{ tools | tojson if tools }}{% for m in messages %}{% if m.role == 'tool' and not "
            "messages[loop.index0 - 1].tool_calls %}{{ raise_exception('no call') }}{% endif %}"
            "{{ m.role ~ m.content ~ (m.tool_calls or '') }}{% endfor %}"
        ),
    )
    assert GeneratorBackend(Replaying(strict, []), strict).error_role(tools) == "user"


@pytest.mark.parametrize("name, most", [("smollm2", 8), ("qwen2_5", 8), ("llama3_2", 1)])
def test_a_template_of_one_call_gets_one_a_turn(name, most):
    tokenizer = make_tokenizer(name)
    backend = GeneratorBackend(Replaying(tokenizer, []), tokenizer)
    assert backend.calls_per_turn([CODE_INTERPRETER], 8) == most
    assert backend.calls_per_turn([], 8) == 8


def test_thinking_is_free_where_it_has_a_budget():
    tokenizer = make_tokenizer("qwen2_5")
    for free in (True, False):
        generator = Thinking(tokenizer, ["yes"])
        backend = GeneratorBackend(generator, tokenizer, thinking_is_free=free)
        messages = [{"role": "user", "content": "?"}]
        (reply,) = backend.generate([messages], tools=None, max_new_tokens=[9], samples=[0])
        assert (reply.tokens, reply.free_tokens) == (5, 3 if free else 0)


def test_a_tokenizer_without_a_template_is_refused():
    tokenizer = make_tokenizer("qwen2_5")
    plain = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ConfigError, match="needs a chat template"):
        GeneratorBackend(Replaying(plain, []), plain)
