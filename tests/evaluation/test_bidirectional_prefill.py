import copy

import pytest
import torch

from focusft.data.chat import encode_conversation
from focusft.errors import ConfigError, DataError, UnsupportedModelError
from focusft.evaluation.decoding import Encoded
from focusft.evaluation.generation import LocalGenerator, Prompt, encode
from focusft.method.masks import dense_mask
from focusft.method.turns import TurnLayout
from focusft.training.models import load_model
from tests.tiny_models import FAMILIES, tiny_model, tiny_tokenizer

USER, ANSWER = "user", "assistant"
CONVERSATIONS = (
    [(USER, "where is the apple")],
    [("system", "be brief"), (USER, "hi"), (ANSWER, "yes"), (USER, "and now?")],
    [(USER, "x" * 70)],
    [(USER, "a"), (ANSWER, "b" * 30), (USER, "c"), (ANSWER, "d"), ("tool", "e"), (USER, "f")],
    [(USER, "x" * 68)],
)


def prompts_for(conversations, max_new_tokens):
    return [
        Prompt(
            tuple({"role": role, "content": content} for role, content in messages),
            answer_prefix="The answer is" if number % 2 else "",
            max_new_tokens=max_new_tokens,
        )
        for number, messages in enumerate(conversations)
    ]


def turns_of_training(tokenizer, prompt):
    """Signed turns of the prompt's tokens in a training row that starts with it."""
    answer = {"role": ANSWER, "content": prompt.answer_prefix + "42"}
    row = encode_conversation(tokenizer, [*prompt.messages, answer])
    ids = encode(tokenizer, prompt, chat=True)
    assert row.input_ids[: len(ids)] == ids
    return row.turn_ids[: len(ids)]


def slow_reference(model, ids, turns, max_new_tokens, context_blocks, stop_ids=(2,)):
    """The whole mask and the whole model at each step; what is generated is a response."""
    new: list[int] = []
    next_turn = turns[-1] if turns[-1] < 0 else -(turns[-1] + 1)
    while len(new) < max_new_tokens and not (new and new[-1] in stop_ids):
        turn_ids = torch.tensor([turns + [next_turn] * len(new)])
        layout = TurnLayout.from_turn_ids(turn_ids, context_blocks=context_blocks)
        with torch.inference_mode():
            logits = model(
                input_ids=torch.tensor([ids + new]),
                attention_mask=dense_mask(layout, "bidirectional"),
                use_cache=False,
            ).logits
        new.append(int(logits[0, -1].argmax()))
    return new


def check(model, slow_model, tokenizer, prompts, **settings):
    generator = LocalGenerator(model, tokenizer, prefill="bidirectional", **settings)
    done = dict(generator.complete(prompts))
    blocks = settings.get("context_blocks", "merged")
    for index, prompt in enumerate(prompts):
        ids = encode(tokenizer, prompt, chat=True)
        turns = turns_of_training(tokenizer, prompt)
        expected = slow_reference(slow_model, ids, turns, prompt.max_new_tokens, blocks)
        assert done[index].text == tokenizer.decode(expected, skip_special_tokens=True)
        assert done[index].tokens == len(expected)
    return [done[index].text for index in range(len(prompts))]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_it_equals_a_reference_that_recomputes_the_mask_at_each_step(family):
    tokenizer = tiny_tokenizer()
    # One with segments, one with the dense mask of the reference.
    model, slow = (tiny_model(family, vocab_size=len(tokenizer)) for _ in range(2))
    prompts = prompts_for(CONVERSATIONS, max_new_tokens=10)
    texts = check(model, slow, tokenizer, prompts)
    causal = dict(LocalGenerator(slow, tokenizer).complete(prompts))
    assert texts != [causal[index].text for index in range(len(prompts))]


@pytest.mark.parametrize("family", sorted({*FAMILIES} - {"llama", "qwen2", "qwen3", "stablelm"}))
def test_it_works_in_every_family(family):
    tokenizer = tiny_tokenizer()
    model, slow = (tiny_model(family, vocab_size=len(tokenizer)) for _ in range(2))
    check(model, slow, tokenizer, prompts_for(CONVERSATIONS[:2], max_new_tokens=4))


def test_layers_that_keep_the_mask_from_their_attention_are_refused():
    tokenizer = tiny_tokenizer()
    model = tiny_model("stablelm", vocab_size=len(tokenizer))
    with pytest.raises(UnsupportedModelError, match="use --prefill causal"):
        LocalGenerator(model, tokenizer, prefill="bidirectional")
    assert model.config._attn_implementation == "sdpa"
    LocalGenerator(model, tokenizer)


@pytest.mark.parametrize("backend", ["eager", "dense", "flex"])
def test_it_works_with_every_backend(backend):
    from focusft.method.attention import install_backend

    tokenizer = tiny_tokenizer()
    model, slow = (tiny_model("qwen3", vocab_size=len(tokenizer)) for _ in range(2))
    if backend == "eager":
        model.set_attn_implementation("eager")
    elif backend == "flex":
        install_backend(model, "flex")
    check(model, slow, tokenizer, prompts_for(CONVERSATIONS[:2], max_new_tokens=4))


def test_blocks_can_be_single_turns():
    tokenizer = tiny_tokenizer()
    model, slow = (tiny_model("llama", vocab_size=len(tokenizer)) for _ in range(2))
    prompts = prompts_for(CONVERSATIONS[:2], max_new_tokens=10)
    apart = check(model, slow, tokenizer, prompts, context_blocks="per_turn")
    merged = check(model, slow, tokenizer, prompts)
    assert apart[0] == merged[0]
    assert apart[1] != merged[1]


def test_a_causal_generator_on_the_same_model_stays_causal():
    tokenizer = tiny_tokenizer()
    prompts = prompts_for(CONVERSATIONS, max_new_tokens=6)
    model = tiny_model("llama", vocab_size=len(tokenizer))
    before = dict(LocalGenerator(model, tokenizer).complete(prompts))
    dict(LocalGenerator(model, tokenizer, prefill="bidirectional").complete(prompts))
    after = dict(LocalGenerator(model, tokenizer).complete(prompts))
    assert [before[i].text for i in before] == [after[i].text for i in before]


def test_the_prompt_of_a_base_model_is_one_context_turn():
    tokenizer = tiny_tokenizer(chat_template=None)
    generator = LocalGenerator(
        tiny_model("llama", vocab_size=len(tokenizer)), tokenizer, prefill="bidirectional"
    )
    prompt = Prompt(({"role": "user", "content": "abc"},), answer_prefix=" d")
    job = generator._job(0, prompt)
    assert job.encoded == Encoded(tokenizer("abc d")["input_ids"], [1, 1, 1, -2, -2])


def test_a_template_that_rewrites_history_before_an_answer_is_refused():
    template = (
        "{% if add_generation_prompt %}answer now: {% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = tiny_tokenizer(chat_template=template)
    model = tiny_model("llama", vocab_size=len(tokenizer))
    generator = LocalGenerator(model, tokenizer, prefill="bidirectional")
    with pytest.raises(DataError, match="use --prefill causal"):
        dict(generator.complete(prompts_for(CONVERSATIONS[:1], max_new_tokens=2)))


def test_windows_of_attention_and_unknown_prefills_are_refused():
    tokenizer = tiny_tokenizer()
    model = tiny_model("mistral", vocab_size=len(tokenizer), sliding_window=8)
    with pytest.raises(UnsupportedModelError, match="use --prefill causal"):
        LocalGenerator(model, tokenizer, prefill="bidirectional")
    with pytest.raises(ConfigError, match="--prefill: 'both'"):
        LocalGenerator(model, tokenizer, prefill="both")


@pytest.mark.slow
def test_smollm2_equals_the_reference(smollm2):
    model = load_model("smollm2", dtype="float32").eval()
    slow = copy.deepcopy(model)
    conversations = (
        [(USER, "Mary went to the kitchen. John went to the garden. Where is Mary?")],
        [(USER, "Say hello."), (ANSWER, "Hello."), (USER, "Now say it to Anna, politely.")],
        [("system", "You answer in one word."), (USER, "The capital of France?")],
    )
    check(model, slow, smollm2, prompts_for(conversations, max_new_tokens=12))
