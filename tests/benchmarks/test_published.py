"""The baseline of the timings really is the published procedure."""

import pytest
import torch
from transformers import TrainingArguments

from benchmarks.published import PublishedTrainer, additive_mask
from focusft.method.masks import dense_mask
from focusft.method.turns import TurnLayout
from tests.method.helpers import CONFIG, MULTI_TURN, conversation
from tests.method.oracle import literal_focusft
from tests.tiny_models import tiny_model


def test_its_mask_is_the_oracles():
    _, labels = conversation(MULTI_TURN)
    is_token = torch.ones_like(labels, dtype=torch.bool)[None]
    allowed = additive_mask(labels[None], is_token) == 0
    layout = TurnLayout.from_labels(labels[None])
    assert torch.equal(allowed, dense_mask(layout, "bidirectional"))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_its_step_is_the_literal_algorithm(tmp_path, checkpointing):
    model = tiny_model("llama").train()
    args = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to="none",
        activation_checkpointing=checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
    )
    trainer = PublishedTrainer(model, args, CONFIG)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    input_ids, labels = conversation(MULTI_TURN)
    batch = {
        "input_ids": input_ids[None],
        "labels": labels[None],
        "attention_mask": torch.ones_like(labels)[None],
    }
    torch.manual_seed(3)
    trainer.compute_loss(model, batch).backward()
    actual = {
        name.replace(".base.", "."): p.grad
        for name, p in model.named_parameters()
        if p.grad is not None and "A_rI" not in name and "B_Or" not in name
    }
    torch.manual_seed(3)
    for lora in trainer.loras:
        lora.reset()
    drawn = [lora.A_rI.detach().clone() for lora in trainer.loras]
    fresh = tiny_model("llama")
    _, _, expected = literal_focusft(fresh, fresh.model.layers, input_ids, labels, drawn, CONFIG)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-6)
