import math
import random

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM

from focusft.errors import ConfigError, DataError, UnsupportedModelError, UserError
from focusft.evaluation import batching, decoding
from focusft.evaluation.generation import LocalGenerator, Prompt, Sampling, encode, local
from focusft.evaluation.items import prompt_ids
from tests.tiny_models import tiny_model, tiny_tokenizer

VOCABULARY = len(tiny_tokenizer())
TEXTS = ("where is the apple", "hi", "a", "x" * 60, "the cat sat on the mat", "b", "x" * 58)


def ask(text, **settings):
    return Prompt(({"role": "user", "content": text},), **({"max_new_tokens": 12} | settings))


def tiny(family="llama", **config):
    return tiny_model(family, vocab_size=VOCABULARY, **config)


def complete(generator, prompts):
    done = dict(generator.complete(prompts))
    assert sorted(done) == list(range(len(prompts)))
    return [done[index] for index in range(len(prompts))]


def naive_greedy(model, ids, max_new_tokens, stop_ids=(2,)):
    """Recompute everything at each step."""
    new: list[int] = []
    while len(new) < max_new_tokens and not (new and new[-1] in stop_ids):
        with torch.inference_mode():
            logits = model(torch.tensor([ids + new]), use_cache=False).logits
        new.append(int(logits[0, -1].argmax()))
    return new


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma", "granite", "phi"])
def test_a_batch_writes_what_each_prompt_alone_would_get(family):
    model, tokenizer = tiny(family), tiny_tokenizer()
    prompts = [
        ask(text, max_new_tokens=4 + 3 * number, answer_prefix=" so" * (number % 2))
        for number, text in enumerate(TEXTS)
    ]
    done = complete(LocalGenerator(model, tokenizer), prompts)
    for prompt, completion in zip(prompts, done, strict=True):
        ids = encode(tokenizer, prompt, chat=True)
        expected = naive_greedy(model, ids, prompt.max_new_tokens)
        assert completion.text == text_of(tokenizer, expected)
        assert completion.tokens == len(expected)
        assert completion.prompt_tokens == len(ids)
        assert completion.truncated == (expected[-1] != 2)
        assert completion.seconds > 0


def test_a_window_of_attention_is_kept_across_padding():
    model, tokenizer = tiny("mistral", sliding_window=9), tiny_tokenizer()
    prompts = [ask(text) for text in TEXTS]
    for prompt, completion in zip(
        prompts, complete(LocalGenerator(model, tokenizer), prompts), strict=True
    ):
        expected = naive_greedy(model, encode(tokenizer, prompt, chat=True), 12)
        assert completion.text == text_of(tokenizer, expected)


def stopping_at(model, token, after):
    """Make a model that says `token` once its context has `after` tokens."""
    forward = model.forward

    def stopping(*args, position_ids=None, **kwargs):
        output = forward(*args, position_ids=position_ids, **kwargs)
        if position_ids is not None:
            output.logits[:, -1, token] += 1e4 * (position_ids[:, -1] >= after)
        return output

    model.forward = stopping
    return model


def test_rows_that_stop_early_leave_the_batch_and_change_nothing():
    tokenizer = tiny_tokenizer()
    prompts = [ask(text, max_new_tokens=30) for text in TEXTS]
    plain = complete(LocalGenerator(tiny(), tokenizer), prompts)
    model = stopping_at(tiny(), token=2, after=45)
    rows = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    done = complete(LocalGenerator(model, tokenizer), prompts)
    for before, after in zip(plain, done, strict=True):
        assert not after.truncated
        assert after.tokens == max(1, 47 - after.prompt_tokens)
        assert before.text.startswith(after.text.rstrip("\ufffd"))
    assert rows[-1] < len(TEXTS)


def test_the_stop_tokens_of_the_model_and_of_the_tokenizer_both_stop():
    tokenizer = tiny_tokenizer()
    for token in (2, 3):
        model = stopping_at(tiny(), token=token, after=0)
        model.generation_config.eos_token_id = [3]
        (done,) = complete(LocalGenerator(model, tokenizer), [ask("hi")])
        assert (done.text, done.tokens, done.truncated) == ("", 1, False)


def test_the_settings_of_the_generation_config_are_not_used():
    tokenizer, prompts = tiny_tokenizer(), [ask("hi")]
    plain = complete(LocalGenerator(tiny(), tokenizer), prompts)
    model = tiny()
    model.generation_config.update(
        do_sample=True, temperature=9.0, repetition_penalty=9.0, max_length=1
    )
    assert complete(LocalGenerator(model, tokenizer), prompts)[0].text == plain[0].text


def test_no_prefill_call_has_a_mask_or_all_logits():
    model, tokenizer = tiny(), tiny_tokenizer()
    prompts = [ask(text) for text in TEXTS]
    calls = []

    def watch(module, args, kwargs):
        calls.append((kwargs["input_ids"].shape[1], kwargs))

    model.register_forward_pre_hook(watch, with_kwargs=True)
    generator = LocalGenerator(model, tokenizer)
    calls.clear()
    complete(generator, prompts)
    prefills = [kwargs for length, kwargs in calls if length > 1]
    assert prefills
    assert len(prefills) < len(prompts)
    assert all(kwargs.get("attention_mask") is None for kwargs in prefills)
    assert all(kwargs["logits_to_keep"] == 1 for _, kwargs in calls)


def test_groups_are_of_about_one_length_and_not_too_big():
    draw = random.Random(0)
    for _ in range(50):
        lengths = [draw.randrange(1, 2000) for _ in range(draw.randrange(1, 40))]
        found = decoding.groups(lengths, 4096)
        assert sorted(row for group in found for row in group) == list(range(len(lengths)))
        for group in found:
            longest = max(lengths[row] for row in group)
            assert len(group) == 1 or longest * len(group) <= 4096
            assert all(lengths[row] >= 0.9 * longest for row in group)


def test_one_token_prompts_are_answered():
    tokenizer, model = tiny_tokenizer(chat_template=None), tiny()
    for texts in (("a", "b", "c"), ("a", "hello there")):
        prompts = [ask(text) for text in texts]
        done = complete(LocalGenerator(model, tokenizer), prompts)
        for text, completion in zip(texts, done, strict=True):
            expected = naive_greedy(model, tokenizer(text)["input_ids"], 12)
            assert completion.text == text_of(tokenizer, expected)


def test_a_base_model_gets_the_text_and_one_bos():
    tokenizer = tiny_tokenizer(chat_template=None)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    prompt = ask("hi", answer_prefix=" A:")
    assert encode(tokenizer, prompt, chat=False)[:2] == [1, *tokenizer("h")["input_ids"][1:]]
    assert tokenizer.decode(encode(tokenizer, prompt, chat=False)[1:]) == "hi A:"
    tokenizer.chat_template = tiny_tokenizer().chat_template
    ids = encode(tokenizer, prompt, chat=True)
    assert tokenizer.decode(ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n A:"
    assert ids == prompt_ids(tokenizer, "hi", " A:", chat=True)
    generator = LocalGenerator(tiny(), tokenizer, chat=False)
    assert complete(generator, [prompt])[0].prompt_tokens == 6


def test_a_base_model_refuses_what_only_a_template_can_render():
    generator = LocalGenerator(tiny(), tiny_tokenizer(chat_template=None))
    two = Prompt(({"role": "system", "content": "s"}, {"role": "user", "content": "u"}))
    for prompt in (two, ask("hi", tools=({"type": "function"},))):
        with pytest.raises(DataError, match="needs a chat template"):
            complete(generator, [prompt])
    with pytest.raises(ConfigError, match="no chat template"):
        LocalGenerator(tiny(), tiny_tokenizer(chat_template=None), chat=True)


def test_tools_and_template_options_reach_the_template():
    template = "{{ tools | length }}{{ shout }}{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = tiny_tokenizer(chat_template=template)
    prompt = ask("hi", tools=({"name": "a"}, {"name": "b"}))
    ids = encode(tokenizer, prompt, chat=True, template_options={"shout": "!"})
    assert tokenizer.decode(ids) == "2!hi"


def test_a_prompt_too_long_for_the_model_is_an_error_before_anything_runs():
    model, tokenizer = tiny(max_position_embeddings=64), tiny_tokenizer()
    prompts = [ask("hi"), ask("x" * 20, max_new_tokens=12)]
    length = len(encode(tokenizer, prompts[1], chat=True))
    fits = ask("x" * 20, max_new_tokens=64 - length)
    complete(LocalGenerator(model, tokenizer), [fits])
    too_long = ask("x" * 20, max_new_tokens=65 - length)
    with pytest.raises(DataError, match=rf"prompt 1: its {length} tokens .* 64 positions"):
        next(LocalGenerator(model, tokenizer).complete([prompts[0], too_long]))


def test_an_answer_has_room_for_a_token():
    with pytest.raises(ConfigError, match="max_new_tokens: 0"):
        ask("hi", max_new_tokens=0)


def test_rope_scaling_makes_room():
    rope = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 10_000.0,
    }
    model = tiny(max_position_embeddings=64, rope_parameters=rope)
    generator = LocalGenerator(model, tiny_tokenizer())
    complete(generator, [ask("x" * 100)])
    with pytest.raises(DataError, match="256 positions"):
        complete(generator, [ask("x" * 250)])


def alone(model, prompts):
    """What each prompt is answered in a batch of its own."""
    generator = LocalGenerator(model, tiny_tokenizer(), batch_size=1)
    return [complete(generator, [prompt])[0].text for prompt in prompts]


def test_rows_that_are_done_stay_within_the_model_s_positions():
    config = AutoConfig.for_model(
        "gpt2", vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    rooms = {"a" * 90: 4, "b" * 10: 60, "c" * 9: 60}
    prompts = [ask(text, max_new_tokens=room) for text, room in rooms.items()]
    done = dict(LocalGenerator(model, tiny_tokenizer()).complete(prompts, [[0, 1, 2]]))
    assert [done[index].text for index in range(3)] == alone(model, prompts)


def test_prompts_that_get_other_rotary_frequencies_share_no_batch():
    longrope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0, 5.0, 6.0, 7.0],
        "original_max_position_embeddings": 128,
    }
    config = AutoConfig.for_model(
        "phi3",
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=512,
        original_max_position_embeddings=128,
        rope_parameters=longrope,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        if weight.dim() >= 2:
            torch.nn.init.normal_(weight, std=0.2)
    around = len(encode(tiny_tokenizer(), ask(""), chat=True))
    # Beyond the switch, two across it, two within it (one just so), another beyond it.
    tokens = (240, 121, 110, 105, 40, 129, 130)
    prompts = [ask(("abcdefgh" * 40)[: length - around], max_new_tokens=24) for length in tokens]
    generator = LocalGenerator(model, tiny_tokenizer())
    found = {frozenset(batch) for batch in generator.batches(prompts)}
    assert found == {frozenset(batch) for batch in ({0, 6}, {1}, {2}, {3, 4}, {5})}
    # Batches that were planned otherwise are taken apart.
    done = dict(generator.complete(prompts, [list(range(len(tokens)))]))
    assert [done[index].text for index in range(len(tokens))] == alone(model, prompts)


def test_short_prompts_are_not_answered_with_the_frequencies_of_long_ones():
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    model = tiny(max_position_embeddings=64, rope_parameters=rope)
    prompts = [ask("x" * 100), ask("where is it"), ask("hi")]
    done = dict(LocalGenerator(model, tiny_tokenizer()).complete(prompts, [[0, 1, 2]]))
    assert [done[1].text, done[2].text] == alone(model, prompts[1:])


def test_tags_of_tool_calls_stay_and_other_special_tokens_go():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["[TOOL_CALLS]", "[IMG]"]})
    generator = LocalGenerator(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer)
    ids = tokenizer("a[TOOL_CALLS]b[IMG]c<|im_end|>")["input_ids"]
    assert generator._text(ids) == "a[TOOL_CALLS]bc"


def test_out_of_memory_halves_the_batch_until_it_fits(monkeypatch):
    tokenizer, prompts = tiny_tokenizer(), [ask(text) for text in TEXTS]
    expected = complete(LocalGenerator(tiny(), tokenizer), prompts)
    sizes = []
    real = local.decode

    def limited(model, encoded, *args, **kwargs):
        sizes.append(len(encoded))
        if len(encoded) > 2:
            raise torch.OutOfMemoryError("out of memory")
        real(model, encoded, *args, **kwargs)

    monkeypatch.setattr(local, "decode", limited)
    done = complete(LocalGenerator(tiny(), tokenizer), prompts)
    assert [c.text for c in done] == [c.text for c in expected]
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]

    def hopeless(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")

    monkeypatch.setattr(local, "decode", hopeless)
    with pytest.raises(UserError, match="a single prompt of"):
        complete(LocalGenerator(tiny(), tokenizer), prompts)


def test_a_batch_has_prompts_of_one_length_or_answers_of_one_length():
    def batches(lengths, rooms):
        prompts = [
            ask("a" * length, max_new_tokens=room)
            for length, room in zip(lengths, rooms, strict=True)
        ]
        generator = LocalGenerator(tiny(), tiny_tokenizer(), batch_size=2)
        return generator.batches(prompts)

    # Short answers are not kept waiting for long ones ..
    assert batches([40, 41, 42, 43], [90, 2, 90, 2]) == [[2, 0], [3, 1]]
    # .. but where all take about as long, short prompts are not padded to the long ones.
    assert batches([10, 400, 10, 400], [30, 31, 31, 30]) == [[1, 3], [2, 0]]


def test_the_batch_is_as_big_as_memory_allows(monkeypatch):
    tokenizer, prompts = tiny_tokenizer(), [ask(text) for text in TEXTS]
    generator = LocalGenerator(tiny(), tokenizer)
    # 4 layers, keys and values, 2 heads of 8 features, 4 bytes.
    assert generator._sizes.bytes_per_token == 4 * 2 * 2 * 8 * 4
    sizes = []
    real = local.decode
    monkeypatch.setattr(
        local, "decode", lambda m, e, *a, **k: (sizes.append(len(e)), real(m, e, *a, **k))
    )
    overhead = 1024 * (40 * 32 * 4 + generator._sizes.bytes_per_token)
    row = 96 * generator._sizes.bytes_per_token + 40 * VOCABULARY
    longest = max(len(encode(tokenizer, prompt, chat=True)) for prompt in prompts) + 12
    assert longest <= 96
    monkeypatch.setattr(batching, "free_memory", lambda device: 2 * (overhead + 3 * row))
    complete(generator, prompts)
    assert sizes[0] == 3
    monkeypatch.setattr(batching, "free_memory", lambda device: 0)
    sizes.clear()
    complete(generator, prompts)
    assert sizes == [1] * len(prompts)
    sizes.clear()
    complete(LocalGenerator(tiny(), tokenizer, batch_size=4), prompts)
    assert sizes == [4, 3]
    with pytest.raises(ConfigError, match="--batch_size: 0"):
        LocalGenerator(tiny(), tokenizer, batch_size=0)


def test_samples_do_not_depend_on_the_batch():
    model, tokenizer = tiny(), tiny_tokenizer()
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=7)
    prompts = [ask(text, sample=number) for text in TEXTS for number in range(3)]
    together = complete(LocalGenerator(model, tokenizer, sampling=sampling), prompts)
    alone = LocalGenerator(model, tokenizer, sampling=sampling, batch_size=1)
    assert [c.text for c in complete(alone, prompts)] == [c.text for c in together]
    assert len({c.text for c in together[:3]}) == 3
    other = LocalGenerator(model, tokenizer, sampling=Sampling(temperature=1.0, seed=8))
    assert [c.text for c in complete(other, prompts)] != [c.text for c in together]


def test_samples_without_a_number_are_new_draws():
    generator = LocalGenerator(tiny(), tiny_tokenizer(), sampling=Sampling(temperature=1.0))
    texts = [c.text for _ in range(2) for c in complete(generator, [ask("hi")] * 2)]
    assert len(set(texts)) == 4


def test_drawn_tokens_have_their_probabilities():
    logits = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log()
    draws = [random.Random(number) for number in range(20_000)]

    def frequencies(sampling):
        picked = torch.tensor(sampling.pick(logits.expand(len(draws), -1), draws))
        return torch.bincount(picked, minlength=5) / len(draws)

    torch.testing.assert_close(
        frequencies(Sampling(temperature=1.0)), logits.exp(), atol=0.01, rtol=0
    )
    hot = (logits / 2).softmax(0)
    torch.testing.assert_close(frequencies(Sampling(temperature=2.0)), hot, atol=0.01, rtol=0)
    nucleus = torch.tensor([0.5, 0.2, 0.15, 0, 0]) / 0.85
    torch.testing.assert_close(
        frequencies(Sampling(temperature=1.0, top_p=0.75)), nucleus, atol=0.01, rtol=0
    )
    assert frequencies(Sampling(temperature=1.0, top_p=0.4))[0] == 1
    assert frequencies(Sampling())[0] == 1


@pytest.mark.parametrize(
    "settings",
    [
        *({"temperature": value} for value in (-1.0, math.nan, math.inf)),
        *({"top_p": value} for value in (0.0, 1.5, math.nan, math.inf)),
    ],
)
def test_sampling_settings_are_checked(settings):
    with pytest.raises(ConfigError, match=f"--{next(iter(settings))}"):
        Sampling(**settings)


def test_models_without_a_kv_cache_are_refused():
    config = AutoConfig.for_model("mamba", hidden_size=16, num_hidden_layers=1, vocab_size=300)
    with pytest.raises(UnsupportedModelError, match="Mamba"):
        LocalGenerator(AutoModelForCausalLM.from_config(config), tiny_tokenizer())


def test_the_generator_describes_itself():
    described = LocalGenerator(tiny(), tiny_tokenizer(), batch_size=3).describe()
    assert described["backend"] == "transformers"
    assert described["dtype"] == "float32"
    assert described["chat"] is True
    assert described["batch_size"] == 3
    assert described["sampling"] == {"temperature": 0.0, "top_p": 1.0, "seed": 0}
