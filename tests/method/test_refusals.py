"""What FocuSFT refuses: one line each, with the mend."""

from dataclasses import fields, replace

import pytest
import torch
import transformers

import focusft
from focusft.errors import ConfigError, DataError, UnsupportedModelError, UserError
from tests.method.helpers import CONFIG, MULTI_TURN, assert_mends, conversation, single
from tests.tiny_models import tiny_model

BATCH = single(conversation(MULTI_TURN))
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 128,
    "pad_token_id": 0,
}
EXPERTS = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1}


def build(family, **settings):
    config = transformers.AutoConfig.for_model(family, **SIZES | settings)
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("mistral", {"sliding_window": 8}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
        ("starcoder2", {"sliding_window": 8}),
        ("phi3", {"sliding_window": 8}),
        ("gemma2", {"sliding_window": 8}),
        ("gemma3_text", {"sliding_window": 8}),
        ("cohere2", {"sliding_window": 8}),
        ("gpt_oss", EXPERTS | {"sliding_window": 8}),
    ],
)
def test_sliding_windows(family, settings):
    with pytest.raises(UnsupportedModelError) as error:
        focusft.attach(build(family, **settings), CONFIG)
    assert_mends(error, "sliding window", "use a model")


def test_sliding_windows_inside_a_multimodal_model():
    config = transformers.Gemma3Config(
        text_config=SIZES | {"sliding_window": 4},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
    )
    with pytest.raises(UnsupportedModelError) as error:
        focusft.attach(transformers.Gemma3ForConditionalGeneration(config), CONFIG)
    assert_mends(error, "sliding window")


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("mixtral", {"sliding_window": None}),
        ("qwen3_moe", {"moe_intermediate_size": 16}),
        ("olmoe", {}),
    ],
)
def test_mixtures_of_experts(family, settings):
    with pytest.raises(UnsupportedModelError) as error:
        focusft.attach(build(family, **EXPERTS, **settings), CONFIG)
    assert_mends(error, "mixture of experts", "dense")


def test_a_fused_projection():
    model = build("phi3", sliding_window=None)
    with pytest.raises(UnsupportedModelError) as error:
        focusft.attach(model, CONFIG)
    assert_mends(error, "inner_target_modules", "gate_proj", "gate_up_proj")
    focusft.attach(model, replace(CONFIG, inner_target_modules="down_proj"))


def test_an_unknown_target():
    with pytest.raises(UnsupportedModelError) as error:
        focusft.attach(tiny_model("llama"), replace(CONFIG, inner_target_modules="up_prj"))
    assert_mends(error, "inner_target_modules", "'up_prj'", "layer 2", "up_proj")


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (transformers.BertForMaskedLM, transformers.BertConfig),
        (transformers.BertModel, transformers.BertConfig),
        (transformers.LlamaModel, transformers.LlamaConfig),
    ],
)
def test_models_without_generation(model_class, config):
    with pytest.raises(UnsupportedModelError) as error:
        focusft.attach(model_class(config(**SIZES)), CONFIG)
    assert_mends(error, model_class.__name__, "AutoModelForCausalLM")


def test_encoder_decoders():
    config = transformers.T5Config(
        d_model=32, d_ff=64, d_kv=8, num_layers=1, num_heads=4, vocab_size=128
    )
    with pytest.raises(UnsupportedModelError) as error:
        focusft.attach(transformers.T5ForConditionalGeneration(config), CONFIG)
    assert_mends(error, "decoder-only", "AutoModelForCausalLM")


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
        ("gpt_neox", {}),
        ("bert", {"is_decoder": True}),
    ],
)
def test_layers_norm_or_head_elsewhere(family, settings):
    with pytest.raises(UnsupportedModelError) as error:
        focusft.attach(build(family, **settings), CONFIG)
    assert_mends(error, "layers, norm or head", "decoder.norm")


def test_layers_with_a_state_space_part():
    """Falcon-H1 has self_attn and gate_proj, and a Mamba mixer that would ignore the mask."""
    model = build("falcon_h1", mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1)
    with pytest.raises(UnsupportedModelError) as error:
        focusft.attach(model, CONFIG)
    assert_mends(error, "FalconH1ForCausalLM")


def test_layers_without_self_attention():
    model = tiny_model("llama")
    layer = model.model.layers[3]
    layer.attention = layer.self_attn
    del layer.self_attn
    with pytest.raises(UnsupportedModelError) as error:
        focusft.attach(model, CONFIG)
    assert_mends(error, "layer 3", "self_attn", "use a model")


def test_a_wrapped_model():
    with pytest.raises(UnsupportedModelError) as error:
        focusft.attach(torch.nn.Sequential(tiny_model("llama")), CONFIG)
    assert_mends(error, "Sequential", "before")


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_attention_that_would_drop_the_mask(implementation, when):
    model = tiny_model("llama").train()
    if when == "before":
        model.config._attn_implementation = implementation
    with pytest.raises(UnsupportedModelError) as error:
        focusft.attach(model, CONFIG)
        model.config._attn_implementation = implementation
        model(**BATCH)
    assert_mends(error, implementation, "attn_implementation='sdpa'")


def test_a_mask_that_was_replaced_on_its_way():
    model = tiny_model("llama").train()
    focusft.attach(model, CONFIG)

    def replace_mask(module, args, kwargs):
        return args, kwargs | {"attention_mask": None}

    attention = model.model.layers[2].self_attn
    attention.register_forward_pre_hook(replace_mask, with_kwargs=True, prepend=True)
    with pytest.raises(UnsupportedModelError) as error:
        model(**BATCH)
    assert_mends(error, "LlamaAttention", "mask")


def test_reentrant_checkpointing():
    model = tiny_model("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    focusft.attach(model, CONFIG)
    with pytest.raises(UnsupportedModelError) as error:
        model(**BATCH)
    assert_mends(error, "reentrant", "gradient_checkpointing_kwargs={'use_reentrant': False}")


def test_second_order_with_checkpointing():
    model = tiny_model("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    focusft.attach(model, replace(CONFIG, inner_order=2))
    with pytest.raises(UnsupportedModelError) as error:
        model(**BATCH)
    assert_mends(error, "inner_order=2", "turn gradient checkpointing off")


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_default_checkpointing_is_accepted(implementation):
    model = tiny_model("llama").train()
    model.set_attn_implementation(implementation)
    model.gradient_checkpointing_enable()
    focusft.attach(model, CONFIG)
    model(**BATCH).loss.backward()


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model(BATCH["input_ids"], labels=BATCH["labels"]),
        lambda model: model(
            inputs_embeds=model.get_input_embeddings()(BATCH["input_ids"]), labels=BATCH["labels"]
        ),
    ],
    ids=["positional", "embeddings"],
)
def test_a_batch_that_is_not_given_by_keyword(call):
    model = tiny_model("llama").train()
    focusft.attach(model, CONFIG)
    with pytest.raises(UserError) as error:
        call(model)
    assert_mends(error, "keyword", "input_ids=")


@pytest.mark.parametrize("with_turn_ids", [False, True])
def test_a_mask_with_four_dimensions(with_turn_ids):
    model = tiny_model("llama").train()
    focusft.attach(model, CONFIG)
    size = BATCH["input_ids"].shape[1]
    batch = BATCH | {"attention_mask": torch.ones(1, 1, size, size).tril()}
    if with_turn_ids:
        batch["turn_ids"] = torch.where(BATCH["labels"] == -100, 1, -2)
    with pytest.raises(DataError) as error:
        model(**batch)
    assert_mends(error, "attention_mask", "2-D")


@pytest.mark.parametrize("option", ["output_hidden_states", "output_attentions"])
@pytest.mark.parametrize("where", ["call", "config"])
def test_recorded_states(option, where):
    """The inner loop's layers would be among them."""
    model = tiny_model("llama").train()
    model.set_attn_implementation("eager")
    focusft.attach(model, CONFIG)
    given = {option: True} if where == "call" else {}
    if where == "config":
        setattr(model.config, option, True)
    with pytest.raises(UserError) as error:
        model(**BATCH, **given)
    assert_mends(error, option, "False")
    model.eval()(**BATCH, **given)


def test_recorded_states_without_inner_steps():
    model = tiny_model("llama").train()
    focusft.attach(model, replace(CONFIG, num_inner_steps=0))
    assert len(model(**BATCH, output_hidden_states=True).hidden_states) == 5


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("inner_step", ["fixed", "backtracking"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_a_batch_without_labels_trains_nothing(order, inner_step, checkpointing):
    """No error: every rank of a distributed run must go the same way."""
    if checkpointing and order == 2:
        return
    model = tiny_model("llama").train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    engine = focusft.attach(model, replace(CONFIG, inner_order=order, inner_step=inner_step))
    loss = model(**BATCH | {"labels": torch.full_like(BATCH["labels"], -100)}).loss
    loss.backward()
    assert loss.item() == 0
    assert not any(parameter.grad.any() for parameter in model.parameters())
    assert engine.trace.has_targets.tolist() == [False]
    assert engine.trace.steps_watched == engine.trace.steps_raised == 0


BAD_VALUES = {
    "num_inner_steps": [-1, 1.5, "2", True],
    "inner_lr": [0, -0.1, float("nan"), float("inf"), "0.1"],
    "inner_grad_clip": [-1, float("nan"), None],
    "inner_rank": [0, 2.5, "8"],
    "inner_alpha": [0, -1, float("nan"), float("inf"), "64"],
    "inner_dropout": [-0.1, 1, float("nan"), "0"],
    "inner_layer_fraction": [0, 1.1, float("nan"), None],
    "inner_target_modules": ["", " , ", ["up_proj"]],
    "inner_objective": ["responses", None, 3],
    "inner_step": ["halving", None],
    "inner_order": [0, 3, "1"],
    "context_attention": ["same", "full"],
    "inner_context_attention": ["both"],
    "causal_share": [-0.1, 1.5, float("nan"), "0.5", None],
    "context_blocks": ["turn"],
    "attention_backend": ["flash"],
    "seed": [1.5, "a", None],
}


def test_every_option_has_a_bad_value():
    assert BAD_VALUES.keys() == {option.name for option in fields(focusft.FocusConfig)}


@pytest.mark.parametrize(
    ("option", "value"),
    [(option, value) for option, values in BAD_VALUES.items() for value in values],
)
def test_bad_values(option, value):
    with pytest.raises(ConfigError) as error:
        focusft.FocusConfig(**{option: value})
    assert_mends(error, f"{option}: {value!r}")


def test_a_causal_share_of_causal_steps():
    with pytest.raises(ConfigError) as error:
        focusft.FocusConfig(context_attention="causal", causal_share=0.5)
    assert_mends(error, "causal_share", "leave it out")


@pytest.mark.parametrize("changes", [{}, {"inner_context_attention": "bidirectional"}])
def test_the_context_objective_needs_causal_attention(changes):
    with pytest.raises(ConfigError) as error:
        focusft.FocusConfig(inner_objective="context", **changes)
    assert_mends(error, "inner_objective", "inner_context_attention=causal")
    focusft.FocusConfig(inner_objective="context", num_inner_steps=0, **changes)
    focusft.FocusConfig(inner_objective="context", inner_context_attention="causal")


def test_data_parallel_replicas():
    model = tiny_model("llama").train()
    focusft.attach(model, CONFIG)
    with pytest.raises(UnsupportedModelError) as error:
        model._replicate_for_data_parallel()(**BATCH)
    assert_mends(error, "DataParallel", "torchrun")


def test_labels_on_context():
    input_ids, _ = conversation(MULTI_TURN)
    batch = {"input_ids": input_ids[None], "labels": input_ids[None].clone()}
    turn_ids = torch.ones_like(batch["input_ids"])
    turn_ids[:, -5:] = -2
    model = tiny_model("llama").train()
    focusft.attach(model, CONFIG)
    with pytest.raises(DataError) as error:
        model(**batch, turn_ids=turn_ids)
    assert_mends(error, "labels", "set labels to -100 on context")


def test_documents_known_by_lengths_alone():
    model = tiny_model("llama").train()
    focusft.attach(model, CONFIG)
    with pytest.raises(DataError) as error:
        model(**BATCH, cu_seq_lens_q=torch.tensor([0, 9, 28], dtype=torch.int32))
    assert_mends(error, "cu_seq_lens_q", "position_ids")


def test_prompt_tuning():
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(
        tiny_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(UnsupportedModelError) as error:
        focusft.attach(model, CONFIG)
    assert_mends(error, "PROMPT_TUNING", "use LoRA")


def test_a_model_that_fails_with_the_mask_is_left_as_it_was():
    model = build("doge", num_hidden_layers=2)
    stock = model.config._attn_implementation
    with pytest.raises(UnsupportedModelError) as error:
        focusft.attach(model, CONFIG)
    assert_mends(error, "DogeForCausalLM", "use another model family")
    assert model.config._attn_implementation == stock


def test_hooks_that_are_left_out():
    model = tiny_model("llama").train()
    engine = focusft.attach(model, CONFIG)
    target = engine._architecture.targets[-1]
    forward = target.forward
    engine._architecture.layers[-1].mlp.register_forward_pre_hook(
        lambda module, args: (
            target._forward_hooks.clear() if not engine._active().is_adapting else None
        )
    )
    with pytest.raises(UnsupportedModelError) as error:
        model(**BATCH)
    assert target.forward == forward
    assert_mends(error, "5 of 6 linear maps", "turn it off")


@pytest.mark.parametrize("inner_step", ["fixed", "backtracking"])
def test_a_broken_model_is_not_blamed_on_the_step_size(inner_step):
    model = tiny_model("llama").train()
    focusft.attach(model, replace(CONFIG, inner_step=inner_step))
    torch.nn.init.constant_(model.model.layers[0].mlp.down_proj.weight, float("nan"))
    with pytest.raises(UserError) as error:
        model(**BATCH)
    assert_mends(error, "before any inner step", "lower learning_rate")
    assert "inner_lr" not in str(error.value)
