"""Cross-entropy on response rows only, in chunks."""

import pytest
import torch
from torch.nn import functional as F

from focusft.method import loss as loss_module
from focusft.method.loss import PredictedRows, plain_response_loss, token_losses
from focusft.method.turns import TurnLayout
from tests.method.helpers import (
    CONFIG,
    DOCUMENTS,
    conversation,
    gradients_of,
    packed,
    padded,
    relative_error,
    single,
)
from tests.tiny_models import FAMILIES, tiny_model


@pytest.mark.parametrize("rows", [0, 1, 4, 5, 8, 11])
def test_chunks_change_nothing(rows, monkeypatch):
    targets = torch.randint(0, 30, (rows,))
    head = torch.nn.Linear(6, 30, dtype=torch.float64)
    hidden = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True)

    def run():
        losses = token_losses(hidden, targets, head)
        (losses * torch.arange(rows)).sum().backward()
        gradients = hidden.grad.clone(), head.weight.grad.clone(), head.bias.grad.clone()
        hidden.grad = head.weight.grad = head.bias.grad = None
        return losses.detach(), gradients

    expected, expected_gradients = run()
    torch.testing.assert_close(expected, F.cross_entropy(head(hidden), targets, reduction="none"))
    monkeypatch.setattr(loss_module, "ROWS_PER_CHUNK", 4)
    actual, gradients = run()
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=0)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_no_more_rows_than_a_chunk_at_a_time(monkeypatch):
    monkeypatch.setattr(loss_module, "ROWS_PER_CHUNK", 4)
    sizes = []

    def head(hidden):
        sizes.append(len(hidden))
        return hidden.expand(-1, 9)

    hidden = torch.randn(10, 1, requires_grad=True)
    token_losses(hidden, torch.zeros(10, dtype=torch.long), head).sum().backward()
    assert max(sizes) == 4


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_a_step_in_chunks(checkpointing, monkeypatch):
    model = tiny_model("llama")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    *_, expected = gradients_of(model, CONFIG, **packed(DOCUMENTS))
    monkeypatch.setattr(loss_module, "ROWS_PER_CHUNK", 4)
    *_, actual = gradients_of(model, CONFIG, **packed(DOCUMENTS))
    assert relative_error(actual, expected) < 1e-6


def test_half_precision_logits_are_summed_in_single():
    losses = token_losses(
        torch.randn(3, 5, dtype=torch.bfloat16), torch.tensor([0, 1, 2]), torch.nn.Identity()
    )
    assert losses.dtype == torch.float32


def test_the_first_token_of_a_document_is_never_a_target():
    labels = torch.tensor([[5, 6, -100, 7, 8, 9, -100, -100]])
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]])
    layout = TurnLayout.from_labels(labels, mask, positions)
    rows = PredictedRows.of(labels, layout)
    assert rows.mask_BS[0].tolist() == [True, False, True, False, True, False, False, False]
    assert rows.targets_R.tolist() == [6, 7, 9]
    assert len(rows) == 3


def test_labels_on_padding_are_no_targets():
    labels = torch.tensor([[-100, 5, 6, 7]])
    layout = TurnLayout.from_labels(labels, torch.tensor([[1, 1, 0, 0]]))
    assert PredictedRows.of(labels, layout).targets_R.tolist() == [5]


def test_targets_are_in_row_major_order():
    labels = torch.tensor([[-100, 4, -100], [-100, -100, 5], [-100, 6, 7]])
    rows = PredictedRows.of(labels, TurnLayout.from_labels(labels))
    assert rows.targets_R.tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_response_loss_is_the_stock_loss(family):
    model = tiny_model(family)
    batch = padded([packed([document]) for document in DOCUMENTS])
    del batch["position_ids"]
    expected = model(**batch).loss
    rows = PredictedRows.of(batch["labels"], TurnLayout.from_batch(batch))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    total, count = plain_response_loss(model, inputs, rows)
    assert count == len(rows) == (batch["labels"][:, 1:] != -100).sum()
    torch.testing.assert_close(total / count, expected)


def test_gradients_of_the_plain_response_loss_are_the_stock_ones():
    model = tiny_model("llama", dtype=torch.float64)
    batch = single(conversation([(5, 3), (2, 4)]))
    model(**batch).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    rows = PredictedRows.of(batch["labels"], TurnLayout.from_batch(batch))
    total, count = plain_response_loss(model, {"input_ids": batch["input_ids"]}, rows)
    (total / count).backward()
    assert relative_error({n: p.grad for n, p in model.named_parameters()}, expected) < 1e-6
