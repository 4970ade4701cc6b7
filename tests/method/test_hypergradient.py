"""inner_order=2: the gradient through the inner steps, against central finite differences."""

from dataclasses import replace

import pytest
import torch

import focusft
from tests.method.helpers import (
    CONFIG,
    DOCUMENTS,
    double_model,
    gradients_of,
    packed,
    relative_error,
    single,
)
from tests.tiny_models import tiny_model

EPSILON = 1e-5
SECOND = replace(CONFIG, inner_order=2)
TARGETS = {"phi": "fc1,fc2", "starcoder2": "c_fc,c_proj"}


@pytest.fixture(autouse=True)
def _softmax_in_double(monkeypatch):
    """Stock eager attention rounds its softmax to float32, too coarse for differences."""
    stock = torch.nn.functional.softmax

    def softmax(values, dim, dtype=None):
        return stock(values, dim=dim, dtype=torch.promote_types(values.dtype, dtype))

    monkeypatch.setattr("torch.nn.functional.softmax", softmax)


def slope(model, config, batch, direction):
    """Directional derivative of the outer loss; the step sizes on both sides."""
    engine = focusft.attach(model, config)
    model.train()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    values, sizes = [], []
    with torch.no_grad():
        for sign in (1, -1):
            for name, parameter in model.named_parameters():
                parameter.copy_(start[name] + sign * EPSILON * direction[name])
            values.append(model(**batch).loss.item())
            sizes.append([size.tolist() for size in engine.trace.step_sizes])
        for name, parameter in model.named_parameters():
            parameter.copy_(start[name])
    engine.detach()
    assert sizes[0] == sizes[1]
    return (values[0] - values[1]) / (2 * EPSILON), sizes[0]


def check(model, config, batch, directions=3):
    _, _, gradients = gradients_of(model, config, **batch)
    worst = 0.0
    for _ in range(directions):
        direction = {n: torch.randn_like(p) for n, p in model.named_parameters()}
        # Every matrix counts alike, whatever its size.
        direction = {n: d / d.norm() for n, d in direction.items()}
        expected, sizes = slope(model, config, batch, direction)
        actual = sum((gradients[n] * direction[n]).sum() for n in direction).item()
        worst = max(worst, abs(actual - expected) / max(abs(expected), 1e-2))
    assert worst < 1e-6
    return gradients, sizes


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("inner_step", ["fixed", "backtracking"])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("batch", [single(DOCUMENTS[1]), packed(DOCUMENTS)], ids=["one", "packed"])
def test_the_exact_hypergradient(batch, steps, inner_step, implementation):
    model = double_model("llama")
    model.set_attn_implementation(implementation)
    # Backtracking halves 1.0 on some documents; the halved sizes are the same on both sides.
    step_size = 1.0 if inner_step == "backtracking" else CONFIG.inner_lr
    config = replace(SECOND, num_inner_steps=steps, inner_step=inner_step, inner_lr=step_size)
    second, _ = check(model, config, batch)
    *_, first = gradients_of(model, replace(config, inner_order=1), **batch)
    assert relative_error(second, first) > 1e-2


@pytest.mark.parametrize("family", ["qwen3", "granite", "phi", "starcoder2"])
def test_other_families(family):
    config = replace(SECOND, inner_target_modules=TARGETS.get(family, SECOND.inner_target_modules))
    check(double_model(family), config, single(DOCUMENTS[1]))


@pytest.mark.parametrize(
    "changes",
    [
        {"inner_grad_clip": 0.0},
        {"inner_grad_clip": 0.05},
        {"inner_objective": "held_out_turns"},
        {"inner_objective": "context", "inner_context_attention": "causal"},
        {
            "inner_objective": "context",
            "inner_context_attention": "causal",
            "inner_layer_fraction": 1.0,
        },
    ],
    ids=["no clip", "tight clip", "held out", "context", "context without trunk"],
)
def test_other_inner_loops(changes):
    model = double_model("llama")
    check(model, replace(SECOND, **changes), packed(DOCUMENTS))


def test_losses_in_chunks(monkeypatch):
    """Chunks of the inner loss are recomputed; their second derivatives must be there as well."""
    model = double_model("llama")
    *_, expected = gradients_of(model, SECOND, **packed(DOCUMENTS))
    monkeypatch.setattr("focusft.method.loss.ROWS_PER_CHUNK", 4)
    *_, actual = gradients_of(model, SECOND, **packed(DOCUMENTS))
    assert relative_error(actual, expected) < 1e-12


def test_single_precision_is_close():
    model = tiny_model("llama")
    *_, actual = gradients_of(model, SECOND, **packed(DOCUMENTS))
    *_, expected = gradients_of(model.double(), SECOND, **packed(DOCUMENTS))
    assert relative_error({n: g.double() for n, g in actual.items()}, expected) < 1e-4


def test_order_two_without_steps_is_order_one():
    model = tiny_model("llama")
    config = replace(SECOND, num_inner_steps=0)
    *_, second = gradients_of(model, config, **packed(DOCUMENTS))
    *_, first = gradients_of(model, replace(config, inner_order=1), **packed(DOCUMENTS))
    assert all(torch.equal(first[name], second[name]) for name in first)
