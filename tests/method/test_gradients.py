"""Outer gradients against the literal transcription of the published algorithm."""

from dataclasses import replace

import pytest
import torch

from tests.method.helpers import (
    BACKENDS,
    CONFIG,
    MULTI_TURN,
    SINGLE_TURN,
    TOLERANCE,
    compare,
    conversation,
    gradients_of,
)
from tests.tiny_models import tiny_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("turns", [SINGLE_TURN, MULTI_TURN], ids=["single", "multi"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("steps", [0, 1, 2, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_equal_the_literal_algorithm(
    backend, family, steps, checkpointing, tied, turns, dtype
):
    model = tiny_model(family, dtype=dtype, tie_word_embeddings=tied)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    config = replace(CONFIG, num_inner_steps=steps, attention_backend=backend)
    loss, expected_loss, engine, inner_losses, error = compare(model, config, turns)
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE[backend, dtype])
    assert error < TOLERANCE[backend, dtype]
    if steps:
        assert engine.trace.mean_losses[:-1] == pytest.approx(inner_losses, rel=1e-5)
        assert engine.trace.mean_losses[-1] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_comparison_notices_one_percent_of_inner_lr(family, steps):
    model = tiny_model(family)
    config = replace(CONFIG, num_inner_steps=steps, attention_backend="dense")
    wrong = replace(config, inner_lr=config.inner_lr * 1.01)
    *_, error = compare(model, config, MULTI_TURN, oracle_config=wrong)
    assert error > 10 * TOLERANCE["dense", torch.float32]


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
    assert error < TOLERANCE["segments", dtype]


def test_an_outer_peft_lora_trains_only_its_adapters():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    input_ids, labels = conversation(MULTI_TURN)
    batch = {"input_ids": input_ids[None], "labels": labels[None]}
    *_, gradients = gradients_of(model, CONFIG, **batch)
    assert gradients
    assert all("lora_" in name for name in gradients)
