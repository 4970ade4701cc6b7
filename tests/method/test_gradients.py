"""Outer gradients against the literal transcription of the published algorithm."""

from dataclasses import replace

import pytest
import torch

import focusft
from focusft.method.fast_weights import initial_fast_weights
from tests.method.oracle import literal_focusft
from tests.tiny_models import tiny_model

CONFIG = focusft.FocusConfig(
    num_inner_steps=2, inner_lr=0.3, inner_rank=4, inner_alpha=8, inner_layer_fraction=0.5
)
SINGLE_TURN = [(12, 8)]
MULTI_TURN = [(9, 4), (5, 3), (1, 6)]


def conversation(turns, seed=0, vocabulary=128):
    """Random tokens with labels on the second of each (context, response) pair of lengths."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, vocabulary, (sum(map(sum, turns)),), generator=generator)
    labels, start = input_ids.clone(), 0
    for context, response in turns:
        labels[start : start + context] = -100
        start += context + response
    return input_ids, labels


def phi_0(engine, input_ids, labels):
    parts = engine._architecture
    layout = focusft.TurnLayout.from_labels(labels[None])
    weights = initial_fast_weights(
        parts.shapes,
        rank=engine.config.inner_rank,
        alpha=engine.config.inner_alpha,
        dropout=0.0,
        input_ids_BS=input_ids[None],
        layout=layout,
        seed=engine.config.seed,
        step=engine.step,
        dtype=parts.model.dtype,
    )
    return [A[0] for A in weights.A]


def gradients_of(model, config, **batch):
    """Outer loss, trace and gradients by name of one attached call; leaves the model detached."""
    engine = focusft.attach(model, config)
    model.train()
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    engine.detach()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.item(), engine, gradients


def relative_error(actual, expected):
    assert actual.keys() == {name for name, g in expected.items() if g is not None}
    difference = sum((actual[name] - expected[name]).square().sum() for name in actual)
    return (difference / sum(g.square().sum() for g in actual.values())).sqrt().item()


def compare(model, config, turns, oracle_config=None):
    input_ids, labels = conversation(turns)
    loss, engine, actual = gradients_of(
        model, config, input_ids=input_ids[None], labels=labels[None]
    )
    parts = focusft.method.architectures.read_architecture(model, config)
    A0 = [] if config.num_inner_steps == 0 else phi_0(engine, input_ids, labels)
    if not A0:
        A0 = [torch.zeros(config.inner_rank, features) for features, _ in parts.shapes]
    expected_loss, inner_losses, expected = literal_focusft(
        parts.model, parts.layers, input_ids, labels, A0, oracle_config or config
    )
    prefix = "base_model.model." if parts.model is not model else ""
    expected = {prefix + name: gradient for name, gradient in expected.items()}
    return loss, expected_loss, engine, inner_losses, relative_error(actual, expected)


TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-10}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("turns", [SINGLE_TURN, MULTI_TURN], ids=["single", "multi"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_gradients_equal_the_literal_algorithm(family, steps, checkpointing, tied, turns, dtype):
    model = tiny_model(family, dtype=dtype, tie_word_embeddings=tied)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    config = replace(CONFIG, num_inner_steps=steps)
    loss, expected_loss, engine, inner_losses, error = compare(model, config, turns)
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE[dtype])
    assert error < TOLERANCE[dtype]
    if steps:
        assert engine.trace.mean_losses[:-1] == pytest.approx(inner_losses, rel=1e-5)
        assert engine.trace.mean_losses[-1] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_comparison_notices_one_percent_of_inner_lr(family, steps):
    model = tiny_model(family)
    config = replace(CONFIG, num_inner_steps=steps)
    wrong = replace(config, inner_lr=config.inner_lr * 1.01)
    *_, error = compare(model, config, MULTI_TURN, oracle_config=wrong)
    assert error > 10 * TOLERANCE[torch.float32]


@pytest.mark.parametrize("clip", [0.0, 0.01], ids=["no clip", "tight clip"])
def test_gradient_clipping_is_per_matrix(clip):
    config = replace(CONFIG, inner_grad_clip=clip)
    *_, error = compare(tiny_model("llama", dtype=torch.float64), config, MULTI_TURN)
    assert error < 1e-10


@pytest.mark.parametrize(
    "targets", [["q_proj", "v_proj"], ["gate_proj", "up_proj", "down_proj"]], ids=["qv", "mlp"]
)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_gradients_of_an_outer_peft_lora(targets, checkpointing, dtype):
    peft = pytest.importorskip("peft")
    base = tiny_model("llama", dtype=dtype)
    torch.manual_seed(1)
    settings = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(base, settings)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    *_, error = compare(model, CONFIG, MULTI_TURN)
    assert error < TOLERANCE[dtype]


def test_an_outer_peft_lora_trains_only_its_adapters():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    input_ids, labels = conversation(MULTI_TURN)
    batch = {"input_ids": input_ids[None], "labels": labels[None]}
    *_, gradients = gradients_of(model, CONFIG, **batch)
    assert gradients
    assert all("lora_" in name for name in gradients)
