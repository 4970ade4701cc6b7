"""What the fast weights learn from: targets, gradients against the oracle, no leak."""

from dataclasses import replace

import pytest
import torch

import focusft
from focusft.method.loss import PredictedRows
from focusft.method.objectives import inner_targets
from focusft.method.turns import TurnLayout
from tests.method.helpers import (
    CONFIG,
    MULTI_TURN,
    SINGLE_TURN,
    TOLERANCE,
    compare,
    conversation,
    double_model,
    gradients_of,
    packed,
    relative_error,
    single,
)
from tests.tiny_models import tiny_model

HELD_OUT = replace(CONFIG, inner_objective="held_out_turns")
CONTEXT = replace(CONFIG, inner_objective="context", inner_context_attention="causal")


def test_targets():
    input_ids = torch.arange(10, 20)[None]
    labels = input_ids.clone()
    labels[0, [0, 1, 4, 5, 8]] = -100
    layout = TurnLayout.from_labels(labels, position_ids_BS=torch.arange(10)[None])

    def positions(objective):
        targets = inner_targets(objective, input_ids, labels, layout)
        found = (targets[0] != -100).nonzero()[:, 0]
        assert torch.equal(targets[0, found], input_ids[0, found])
        return found.tolist()

    assert positions("response") == [2, 3, 6, 7, 9]
    assert positions("context") == [0, 1, 4, 5, 8]
    assert positions("held_out_turns") == [2, 3, 6, 7]


def test_the_last_labelled_turn_is_held_out_even_if_unlabelled_ones_follow():
    turn_ids = torch.tensor([[1, -2, -2, 3, -4, -4, 5, -6, 1, -2, 3, -4]])
    labels = torch.tensor([[-100, 7, 7, -100, -100, 7, -100, -100, -100, 8, -100, 8]])
    positions = torch.tensor([[*range(8), *range(4)]])
    layout = TurnLayout.from_turn_ids(turn_ids, positions)
    targets = inner_targets("held_out_turns", labels, labels, layout)
    assert (targets[0] != -100).nonzero()[:, 0].tolist() == [1, 2, 9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_held_out_turns(steps, checkpointing, dtype):
    model = tiny_model("llama", dtype=dtype)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    last_turn = sum(map(sum, MULTI_TURN)) - MULTI_TURN[-1][1]
    loss, expected_loss, engine, inner_losses, error = compare(
        model,
        replace(HELD_OUT, num_inner_steps=steps),
        MULTI_TURN,
        inner_keep=lambda position: position < last_turn,
    )
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE["segments", dtype])
    assert error < TOLERANCE["segments", dtype]
    assert engine.trace.mean_losses[:-1] == pytest.approx(inner_losses, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("fraction", [0.5, 1.0], ids=["trunk", "no trunk"])
@pytest.mark.parametrize("objective", ["context", "response"])
def test_an_inner_loop_with_causal_attention(objective, fraction, checkpointing, dtype):
    """The oracle runs the whole model under each mask, so the second trunk is checked as well."""
    model = tiny_model("qwen3", dtype=dtype)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    input_ids, labels = conversation(MULTI_TURN)
    inner_labels = torch.where(labels == -100, input_ids, -100)
    config = replace(CONTEXT, inner_objective=objective, inner_layer_fraction=fraction)
    loss, expected_loss, engine, inner_losses, error = compare(
        model,
        config,
        MULTI_TURN,
        inner_labels=inner_labels if objective == "context" else labels,
        inner_bidirectional=False,
    )
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE["segments", dtype])
    assert error < TOLERANCE["segments", dtype]
    # The loss after the last step is not known: the outer loop has another mask.
    assert engine.trace.mean_losses == pytest.approx(inner_losses, rel=1e-5)


@pytest.mark.parametrize("inner", ["same", "bidirectional"])
def test_a_causal_outer_loop(inner):
    config = replace(CONFIG, context_attention="causal", inner_context_attention=inner)
    model = double_model("llama")
    *_, error = compare(
        model,
        config,
        MULTI_TURN,
        bidirectional=False,
        inner_bidirectional=inner == "bidirectional",
    )
    assert error < 1e-10


@pytest.mark.parametrize("share", [0.0, 0.25, 1 / 3, 0.5, 1.0])
def test_the_causal_steps_are_a_share_and_spread_evenly(share):
    config = replace(CONFIG, causal_share=share)
    is_causal = [config.outer_attention(step) == "causal" for step in range(120)]
    assert sum(is_causal) == round(120 * share)
    for start in range(60):
        assert abs(sum(is_causal[start : start + 60]) - 60 * share) <= 1


@pytest.mark.parametrize(
    ("inner", "fraction", "order"),
    [("same", 0.5, 1), ("causal", 0.5, 1), ("same", 1.0, 1), ("same", 0.5, 2)],
)
def test_with_a_causal_share_each_step_has_its_mask(inner, fraction, order):
    config = replace(
        CONFIG,
        inner_context_attention=inner,
        causal_share=0.5,
        inner_layer_fraction=fraction,
        inner_order=order,
    )
    input_ids, labels = conversation(MULTI_TURN)
    batch = {"input_ids": input_ids[None], "labels": labels[None]}
    bidirectional = replace(config, causal_share=0.0)
    causal = replace(
        bidirectional,
        context_attention="causal",
        inner_context_attention=bidirectional.inner_attention,
    )
    engine = focusft.attach(model := double_model("llama").train(), config)
    for step, expected_config in enumerate([bidirectional, causal, bidirectional, causal]):
        engine.step = step
        model.zero_grad()
        model(**batch).loss.backward()
        actual = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        other = double_model("llama").train()
        expected_engine = focusft.attach(other, expected_config)
        expected_engine.step = step
        other(**batch).loss.backward()
        expected = {n: p.grad for n, p in other.named_parameters()}
        assert relative_error(actual, expected) < 1e-10
        assert engine.trace.mean_losses == pytest.approx(expected_engine.trace.mean_losses)


@pytest.mark.parametrize("inner_step", ["fixed", "backtracking"])
@pytest.mark.parametrize("order", [1, 2])
def test_a_document_without_inner_target_is_not_adapted(inner_step, order):
    model = tiny_model("llama")
    batch = single(conversation(SINGLE_TURN))
    *_, expected = gradients_of(model, replace(CONFIG, num_inner_steps=0), **batch)
    config = replace(HELD_OUT, inner_step=inner_step, inner_order=order)
    _, engine, actual = gradients_of(model, config, **batch)
    assert relative_error(actual, expected) < 1e-6
    assert engine.trace.has_targets.tolist() == [False]
    assert engine.trace.steps_watched == engine.trace.steps_raised == 0


def test_a_document_without_inner_target_beside_one_with():
    model = double_model("llama")
    one, two = conversation(SINGLE_TURN), conversation(MULTI_TURN, seed=1)
    _, engine, actual = gradients_of(model, HELD_OUT, **packed([one, two]))
    assert engine.trace.has_targets.tolist() == [False, True]
    parts = [
        gradients_of(model, replace(CONFIG, num_inner_steps=0), **single(one))[2],
        gradients_of(model, HELD_OUT, **single(two))[2],
    ]
    counts = [(labels != -100).sum().item() for _, labels in (one, two)]
    expected = {
        name: (counts[0] * parts[0][name] + counts[1] * parts[1][name]) / sum(counts)
        for name in actual
    }
    assert relative_error(actual, expected) < 1e-10


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_the_inner_loop_never_sees_the_held_out_turn(checkpointing):
    """Other tokens in the last response change nothing that the inner loop computes.

    phi_0 is drawn from the tokens, so it is held fixed here.
    """
    model = tiny_model("llama")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    input_ids, labels = conversation(MULTI_TURN)
    traces = []
    for shift in (0, 5):
        changed_ids, changed = input_ids.clone(), labels.clone()
        changed_ids[-6:] = 3 + (changed_ids[-6:] + shift) % 120
        changed[-6:] = changed_ids[-6:]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("focusft.method.fast_weights._checksums", lambda ids, found: [1])
            batch = {"input_ids": changed_ids[None], "labels": changed[None]}
            traces.append(gradients_of(model, HELD_OUT, **batch)[1].trace)
    one, two = traces
    for field in ("losses", "grad_norms"):
        for ours, theirs in zip(vars(one)[field], vars(two)[field], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


def test_labels_of_the_held_out_turn_are_no_inner_rows():
    _, labels = conversation(MULTI_TURN)
    layout = TurnLayout.from_labels(labels[None])
    targets = inner_targets("held_out_turns", labels[None], labels[None], layout)
    rows = PredictedRows.of(targets, layout)
    assert len(rows) == 4 + 3
    assert not rows.mask_BS[0, -7:].any()


def test_context_targets_do_not_cross_documents():
    batch = packed([conversation(SINGLE_TURN), conversation(SINGLE_TURN, seed=1)])
    layout = TurnLayout.from_batch(batch)
    targets = inner_targets("context", batch["input_ids"], batch["labels"], layout)
    rows = PredictedRows.of(targets, layout)
    assert rows.mask_BS[0].nonzero()[:, 0].tolist() == [*range(11), *range(20, 31)]
