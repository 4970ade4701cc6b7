"""Random conversations and prompt/completion pairs."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from focusft.data.chat import tokenise_conversation, tokenise_prompt_completion
from focusft.data.template import ChatTemplate, locate_turns
from focusft.errors import DataError, UserError
from tests.data.small_tokenizer import make_tokenizer

WORDS = st.sampled_from(
    ["the fox", " ", "\n", "<|im_start|>assistant\n", "<|im_end|>\n", "é🦊", "</think>", "\u00a0x"]
)
CONTENT = st.lists(WORDS | st.text(max_size=8), max_size=5).map("".join)
ANSWER = CONTENT.filter(str.strip)


@st.composite
def conversations(draw):
    messages = [{"role": "system", "content": draw(CONTENT)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        messages.append({"role": "user", "content": draw(CONTENT)})
        messages.append({"role": "assistant", "content": draw(ANSWER)})
        if draw(st.booleans()):
            tools = draw(st.lists(CONTENT, min_size=1, max_size=3))
            messages += [{"role": "tool", "content": content} for content in tools]
            messages.append({"role": "assistant", "content": draw(ANSWER)})
    return messages


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(conversations())
def test_random_conversations(messages):
    tokenizer = make_tokenizer("smollm2")
    text, turns = locate_turns(ChatTemplate(tokenizer), messages)
    said = [m["content"] + "<|im_end|>\n" for m in messages if m["role"] == "assistant"]
    assert [text[turn.start : turn.stop] for turn in turns if turn.is_response] == said
    contexts = [m["content"].strip() for m in messages if m["role"] != "assistant"]
    assert [text[slice(*turn.content)] for turn in turns if turn.content] == contexts

    example = tokenise_conversation(tokenizer, messages)
    assert example["input_ids"] == tokenizer.apply_chat_template(messages)["input_ids"]
    assert len(set(map(len, example.values()))) == 1
    order = list(dict.fromkeys(example["turn_ids"]))
    assert order == [-n if turn.is_response else n for n, turn in enumerate(turns, 1)]
    for token, label, turn in zip(*example.values(), strict=True):
        assert label == (token if turn < 0 else -100)
    # A first token that a newline of the header has swallowed stays context; nothing else does.
    trained = tokenizer.decode([label for label in example["labels"] if label != -100])
    assert "".join(trained.split()) == "".join("".join(said).split())


def test_plain_pair():
    tokenizer = make_tokenizer("smollm2")
    example = tokenise_prompt_completion(tokenizer, "The quick brown", " fox jumps")
    assert tokenizer.decode(example["input_ids"]) == "The quick brown fox jumps<|im_end|>"
    trained = [label for label in example["labels"] if label != -100]
    assert tokenizer.decode(trained) == " fox jumps<|im_end|>"
    assert set(example["turn_ids"]) == {1, -2}
    ended = tokenise_prompt_completion(tokenizer, "The quick brown", " fox jumps<|im_end|>")
    assert ended == example
    with pytest.raises(DataError, match="the prompt ends within a token"):
        tokenise_prompt_completion(tokenizer, "The quick ", "brown fox")


def test_plain_pair_with_special_tokens_around():
    from tokenizers import processors

    tokenizer = make_tokenizer("smollm2")
    core = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    bos, eos = "<|bos|>", "<|im_end|>"
    core.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        special_tokens=[(token, core.token_to_id(token)) for token in (bos, eos)],
    )
    wrapped = type(tokenizer)(tokenizer_object=core, bos_token=bos, eos_token=eos)
    example = tokenise_prompt_completion(wrapped, "The", " fox")
    assert wrapped.decode(example["input_ids"]) == "<|bos|>The fox<|im_end|>"
    assert wrapped.decode([i for i in example["labels"] if i != -100]) == " fox<|im_end|>"


def test_conversational_pair_trains_on_the_completion_only():
    tokenizer = make_tokenizer("smollm2")
    prompt = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    completion = [{"role": "assistant", "content": "d"}]
    example = tokenise_prompt_completion(tokenizer, prompt, completion)
    whole = tokenise_conversation(tokenizer, prompt + completion)
    assert example["input_ids"] == whole["input_ids"]
    assert example["turn_ids"] == whole["turn_ids"]
    trained = [label for label in example["labels"] if label != -100]
    assert tokenizer.decode(trained) == "d<|im_end|>\n"


def test_an_answer_of_weight_0_is_a_response_without_labels():
    tokenizer = make_tokenizer("smollm2")
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}
    plain = [
        {"role": "user", "content": "a"},
        call,
        {"role": "tool", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
        {"role": "assistant", "content": "e"},
    ]
    whole = tokenise_conversation(tokenizer, plain)
    weights = {1: 0, 3: 1, 5: 0.0}
    messages = [m | {"weight": weights[i]} if i in weights else m for i, m in enumerate(plain)]
    example = tokenise_conversation(tokenizer, messages)
    assert example["input_ids"] == whole["input_ids"]
    assert example["turn_ids"] == whole["turn_ids"]
    trained = [label for label in example["labels"] if label != -100]
    assert tokenizer.decode(trained) == "c<|im_end|>\n"


def test_pairs_that_cannot_be_used():
    tokenizer = make_tokenizer("smollm2")
    with pytest.raises(DataError, match="both must be strings, or both lists"):
        tokenise_prompt_completion(tokenizer, "a", [{"role": "assistant", "content": "b"}])
    with pytest.raises(DataError, match="tools and template options need a chat template"):
        tokenise_prompt_completion(tokenizer, "a", "b", template_kwargs={"enable_thinking": True})
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, name_or_path="bare")
    with pytest.raises(UserError, match="bare: has no EOS token"):
        tokenise_prompt_completion(bare, "a", "b")
