"""Every family: the oracle's gradients, or a refusal; calls without labels stay stock."""

from dataclasses import replace

import pytest
import torch

import focusft
from focusft.errors import UnsupportedModelError
from tests.method.helpers import (
    BACKENDS,
    CONFIG,
    MULTI_TURN,
    TOLERANCE,
    assert_mends,
    compare,
    conversation,
)
from tests.tiny_models import FAMILIES, tiny_model

# Linear maps that get fast weights where they are not the default ones.
TARGETS = {"phi": "fc1,fc2", "starcoder2": "c_fc,c_proj", "glm": "down_proj"}
# Its layers pass only what they name to their attention, so the state of a call is lost there.
REFUSED = {"stablelm"}
SUPPORTED = [family for family in FAMILIES if family not in REFUSED]


def config_of(family, **changes):
    targets = TARGETS.get(family, CONFIG.inner_target_modules)
    return replace(CONFIG, inner_target_modules=targets, **changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", SUPPORTED)
def test_gradients_equal_the_literal_algorithm(family, backend, checkpointing, dtype):
    model = tiny_model(family, dtype=dtype)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    config = config_of(family, attention_backend=backend)
    loss, expected_loss, *_, error = compare(model, config, MULTI_TURN)
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE[backend, dtype])
    assert error < TOLERANCE[backend, dtype]


@pytest.mark.parametrize("family", SUPPORTED)
def test_gradients_with_eager_attention_and_every_layer_adapted(family):
    model = tiny_model(family, dtype=torch.float64)
    model.set_attn_implementation("eager")
    config = config_of(family, inner_layer_fraction=1.0)
    *_, error = compare(model, config, MULTI_TURN)
    assert error < TOLERANCE["dense", torch.float64]


@pytest.mark.parametrize("family", SUPPORTED)
def test_attention_projections_can_be_adapted(family):
    """Queries are computed inside attention: the call must be active there already."""
    model = tiny_model(family)
    *_, engine = run(model, replace(CONFIG, inner_target_modules="q_proj", inner_lr=0.1))
    assert engine.trace.mean_losses[1] < engine.trace.mean_losses[0]


def run(model, config):
    ids, labels = conversation(MULTI_TURN)
    engine = focusft.attach(model, config)
    loss = model.train()(input_ids=ids[None], labels=labels[None]).loss
    loss.backward()
    return loss, engine


@pytest.mark.parametrize("family", SUPPORTED)
def test_calls_in_eval_mode_or_without_labels_are_stock(family):
    ids, labels = conversation(MULTI_TURN)
    batch = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
    model = tiny_model(family)
    with torch.no_grad():
        expected = model(**batch, labels=labels[None])
        expected_in_training = model.train()(**batch)
    focusft.attach(model, config_of(family))
    with torch.no_grad():
        actual_in_training = model(**batch)
        # A training call in between leaves nothing behind.
        model(**batch, labels=labels[None])
        actual = model.eval()(**batch, labels=labels[None])
    assert torch.equal(actual.loss, expected.loss)
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual_in_training.logits, expected_in_training.logits)


@pytest.mark.parametrize("family", ["stablelm", "nemotron"])
def test_layers_that_keep_the_call_from_their_attention(family, monkeypatch):
    monkeypatch.setitem(FAMILIES, "nemotron", {"head_dim": 8})
    model = tiny_model(family)
    with pytest.raises(UnsupportedModelError) as error:
        focusft.attach(model, replace(CONFIG, inner_target_modules="up_proj,down_proj"))
    assert_mends(error, type(model).__name__, "attention", "another model family")


def test_a_fused_map_is_named():
    with pytest.raises(UnsupportedModelError) as error:
        focusft.attach(tiny_model("glm"), CONFIG)
    assert_mends(error, "inner_target_modules", "gate_proj", "gate_up_proj", "down_proj")


def test_a_scale_that_the_parts_do_not_know_is_noticed():
    model = tiny_model("llama")
    forward = model.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * 1.5
        return output

    model.forward = scaled
    with pytest.raises(UnsupportedModelError) as error:
        focusft.attach(model, CONFIG)
    assert_mends(error, "LlamaForCausalLM", "logits")
