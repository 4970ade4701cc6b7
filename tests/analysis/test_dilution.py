"""Recomputed attention rows against the weights of eager attention."""

import pytest
import torch

from focusft.analysis.dilution import measure_dilution
from focusft.method.masks import dense_mask
from focusft.method.turns import TurnLayout
from tests.tiny_models import tiny_model


def eager_masses(model, batch, layout, context_attention):
    """Sink mass and context engagement [layers, documents, 2] from full attention weights."""
    model.set_attn_implementation("eager")
    allowed = dense_mask(layout, context_attention)
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    attentions = model(
        input_ids=batch["input_ids"],
        attention_mask=additive,
        position_ids=batch["position_ids"],
        output_attentions=True,
    ).attentions
    model.set_attn_implementation("sdpa")
    layers = []
    for weights in attentions:
        documents = []
        for document in layout.documents():
            row, start, stop = document.row, document.start, document.stop
            queries = [i - 1 for i in range(start + 1, stop) if batch["labels"][row, i] != -100]
            mean = weights[row][:, queries].mean(dim=(0, 1))
            context = [j for j in range(start + 1, stop) if batch["turn_ids"][row, j] > 0]
            documents.append(torch.stack([mean[start], mean[context].sum()]))
        layers.append(torch.stack(documents))
    return torch.stack(layers)


def padded():
    turns = torch.tensor([[1] * 6 + [-2] * 3 + [3] * 2 + [-4] * 3, [1] * 5 + [-2] * 4 + [0] * 5])
    positions = torch.arange(14).expand(2, 14)
    return turns, positions


def packed():
    turns = torch.tensor([[1] * 4 + [-2] * 3 + [1] * 5 + [-2] * 2])
    return turns, torch.tensor([[*range(7), *range(7)]])


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("context_attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("make", [padded, packed])
def test_equals_eager_attention(family, context_attention, make):
    turns, positions = make()
    input_ids = torch.randint(3, 128, turns.shape)
    batch = {
        "input_ids": input_ids,
        "labels": input_ids.where(turns < 0, -100),
        "attention_mask": (turns != 0).long(),
        "position_ids": positions,
        "turn_ids": turns,
    }
    model = tiny_model(family)
    layout = TurnLayout.from_turn_ids(turns, positions)
    expected = eager_masses(model, batch, layout, context_attention).mean(dim=1)
    measured = measure_dilution(model, [batch], context_attention)
    actual = torch.tensor(
        [[layer["sink_mass"], layer["context_engagement"]] for layer in measured.per_layer]
    )
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert measured.sink_mass == pytest.approx(expected[:, 0].mean().item(), abs=1e-5)
    assert model.config._attn_implementation == "sdpa"
