"""Rows with several documents and padding at once; traces; normalisation by a given number."""

from dataclasses import replace

import pytest
import torch

import focusft
from focusft.errors import UserError
from tests.method.helpers import (
    CONFIG,
    DOCUMENTS,
    conversation,
    double_model,
    gradients_of,
    mean_of_single_runs,
    packed,
    padded,
    relative_error,
    single,
)
from tests.tiny_models import tiny_model

FOUR = [*DOCUMENTS, conversation([(2, 3), (6, 1)], seed=7)]
LIMITS = {torch.float32: 1e-5, torch.float64: 1e-10}
BATCHES = {
    "packed": (packed(DOCUMENTS), DOCUMENTS),
    "right": (padded([packed([document]) for document in DOCUMENTS]), DOCUMENTS),
    "left": (padded([packed([document]) for document in DOCUMENTS], "left"), DOCUMENTS),
    "two rows": (padded([packed(FOUR[:3]), packed(FOUR[3:])]), FOUR),
    "two rows, left": (padded([packed(FOUR[:1]), packed(FOUR[1:])], "left"), FOUR),
    # Documents of one batch may be equal.
    "twins": (padded([packed([FOUR[0]]), packed([FOUR[0], FOUR[1]])]), [FOUR[0], FOUR[0], FOUR[1]]),
}
VARIANTS = {
    "fixed": {},
    "backtracking": {"inner_step": "backtracking", "inner_lr": 1.0},
    "held out": {"inner_objective": "held_out_turns"},
    "context": {"inner_objective": "context", "inner_context_attention": "causal"},
    "second order": {"inner_order": 2},
}


@pytest.mark.parametrize("dtype", LIMITS, ids=["fp32", "fp64"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch", BATCHES)
def test_gradients_and_traces_are_those_of_single_runs(batch, variant, dtype):
    batch, documents = BATCHES[batch]
    config = replace(CONFIG, **VARIANTS[variant])
    model = double_model("llama") if dtype == torch.float64 else tiny_model("llama")
    expected_loss, expected, engines = mean_of_single_runs(model, config, documents)
    loss, engine, actual = gradients_of(model, config, **batch)
    assert loss == pytest.approx(expected_loss, rel=LIMITS[dtype])
    assert relative_error(actual, expected) < LIMITS[dtype]
    for field in ("losses", "step_sizes", "grad_norms"):
        for ours, *theirs in zip(
            vars(engine.trace)[field], *(vars(e.trace)[field] for e in engines), strict=True
        ):
            torch.testing.assert_close(ours, torch.cat(theirs), rtol=LIMITS[dtype], atol=1e-7)
    assert engine.trace.has_targets.tolist() == [e.trace.has_targets.item() for e in engines]
    assert engine.trace.steps_watched == sum(e.trace.steps_watched for e in engines)
    assert engine.trace.steps_raised == sum(e.trace.steps_raised for e in engines)


def test_checkpointing_several_documents():
    model = double_model("llama")
    batch, documents = BATCHES["two rows"]
    _, expected, _ = mean_of_single_runs(model, CONFIG, documents)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    *_, actual = gradients_of(model, CONFIG, **batch)
    assert relative_error(actual, expected) < 1e-10


@pytest.mark.parametrize("number", [40, torch.tensor(40)], ids=["int", "tensor"])
def test_a_given_number_of_items_normalises(number):
    model = double_model("llama")
    batch, documents = BATCHES["packed"]
    count = sum((labels != -100).sum().item() for _, labels in documents)
    loss, _, gradients = gradients_of(model, CONFIG, **batch)
    scaled_loss, _, scaled = gradients_of(model, CONFIG, **batch, num_items_in_batch=number)
    assert scaled_loss == pytest.approx(loss * count / 40)
    expected = {name: gradient * count / 40 for name, gradient in gradients.items()}
    assert relative_error(scaled, expected) < 1e-12


@pytest.mark.parametrize(
    ("make_model", "limit"), [(tiny_model, 2e-6), (double_model, 1e-12)], ids=["fp32", "fp64"]
)
def test_accumulation_equals_one_batch(make_model, limit):
    model = make_model("llama")
    total = sum((labels != -100).sum().item() for _, labels in FOUR)
    *_, expected = gradients_of(model, CONFIG, **BATCHES["two rows"][0])
    engine = focusft.attach(model, CONFIG)
    model.zero_grad()
    for document in FOUR:
        model(**single(document), num_items_in_batch=total).loss.backward()
    engine.detach()
    actual = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert relative_error(actual, expected) < limit


def test_plain_sft_keeps_packed_documents_apart():
    model = tiny_model("llama").train()
    documents = [packed([document]) for document in FOUR[:2]]
    row = packed(FOUR[:2])
    row |= {"attention_mask": torch.ones_like(row["input_ids"])}
    total = (row["labels"] != -100).sum()
    engine = focusft.attach(
        model, focusft.FocusConfig(num_inner_steps=0, context_attention="causal")
    )
    alone = sum(model(**document, num_items_in_batch=total).loss for document in documents)
    together = model(**row, num_items_in_batch=total, turn_ids=None).loss
    torch.testing.assert_close(together, alone)
    with pytest.raises(UserError, match="leave the padding out"):
        row["attention_mask"][0, -1] = 0
        model(**row)
    engine.detach()
    assert not model._forward_pre_hooks


def test_turn_ids_give_what_labels_give():
    model = tiny_model("llama")
    batch, _ = BATCHES["two rows"]
    *_, expected = gradients_of(model, CONFIG, **batch)
    turn_ids = torch.where(batch["labels"] == -100, 1, -2) * batch["attention_mask"]
    *_, actual = gradients_of(model, CONFIG, **batch, turn_ids=turn_ids)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_equal_documents_at_other_positions_draw_equal_fast_weights():
    model = tiny_model("llama")
    _, engine, _ = gradients_of(model, CONFIG, **BATCHES["twins"][0])
    for losses in engine.trace.losses:
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)


def test_a_row_of_padding_changes_nothing():
    model = double_model("llama")
    batch = padded([packed([document]) for document in DOCUMENTS])
    *_, expected = gradients_of(model, CONFIG, **batch)
    empty = {name: torch.zeros_like(value[:1]) for name, value in batch.items()}
    empty["labels"] -= 100
    batch = {name: torch.cat([empty[name], value]) for name, value in batch.items()}
    *_, actual = gradients_of(model, CONFIG, **batch)
    assert relative_error(actual, expected) < 1e-12
