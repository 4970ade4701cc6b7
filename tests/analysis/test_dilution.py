"""Recomputed attention rows against the weights of eager attention."""

import math

import pytest
import torch

import focusft
from focusft.analysis.attention_rows import DISTANCE_STARTS, FIGURES
from focusft.analysis.dilution import (
    Dilution,
    measure_dilution,
    measure_documents,
    observing,
    probing,
)
from focusft.analysis.recorder import QuerySample, Recorder
from focusft.errors import UnsupportedModelError
from focusft.method.architectures import read_architecture
from focusft.method.masks import dense_mask
from focusft.method.turns import TurnLayout
from tests.tiny_models import tiny_model


def single():
    return torch.tensor([[1] * 9 + [-2] * 4]), None


def multi_turn():
    return torch.tensor([[1] * 6 + [-2] * 3 + [3] * 5 + [-4] * 2 + [5] * 2]), None


def padded():
    turns = torch.tensor([[1] * 6 + [-2] * 3 + [3] * 2 + [-4] * 3, [1] * 5 + [-2] * 4 + [0] * 5])
    return turns, torch.arange(14).expand(2, 14)


def packed():
    turns = torch.tensor([[1] * 6 + [-2] * 3 + [1] * 5 + [-2] * 2 + [3] * 2 + [-4] * 2])
    return turns, torch.tensor([[*range(9), *range(11)]])


def make_batch(make):
    turns, positions = make()
    input_ids = torch.randint(3, 128, turns.shape)
    # Every second context token is content, every third of them a needle.
    content = (turns > 0) & (torch.arange(turns.shape[1]) % 2 == 0)
    batch = {
        "input_ids": input_ids,
        "labels": input_ids.where(turns < 0, -100),
        "attention_mask": (turns != 0).long(),
        "turn_ids": turns,
        "content_mask": content.long(),
        "needle_mask": (content & (torch.arange(turns.shape[1]) % 3 == 0)).long(),
    }
    return batch if positions is None else batch | {"position_ids": positions}


def eager_weights(model, batch, layout, context_attention):
    """Attention weights [L, B, H, S, S] of transformers' own eager attention."""
    model.set_attn_implementation("eager")
    allowed = dense_mask(layout, context_attention)
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    attentions = model(
        input_ids=batch["input_ids"],
        attention_mask=additive,
        position_ids=batch.get("position_ids"),
        output_attentions=True,
    ).attentions
    model.set_attn_implementation("sdpa")
    return torch.stack(attentions).detach()


def naive_figures(weights, batch, document, queries):
    """The figures by their definitions: [L, H, F], and attention by distance [L, H, E]."""
    row, start, stop = document.row, document.start, document.stop
    is_context = [batch["turn_ids"][row, j] > 0 for j in range(start, stop)]
    is_content = [bool(batch["content_mask"][row, j]) for j in range(start, stop)]
    is_needle = [bool(batch["needle_mask"][row, j]) for j in range(start, stop)]
    layers, heads = weights.shape[0], weights.shape[2]
    figures = torch.zeros(layers, heads, len(FIGURES))
    distances = torch.zeros(layers, heads, len(DISTANCE_STARTS))
    for layer in range(layers):
        for head in range(heads):
            rows = [weights[layer, row, head, start + i, start:stop].tolist() for i in queries]
            tokens, count = range(stop - start), len(rows)
            favourites = [max(tokens, key=lambda j, r=r: r[j]) for r in rows]
            shares = [favourites.count(j) / count for j in tokens]
            favourite = max(tokens, key=lambda j: shares[j])
            values = {
                "sink_mass": sum(r[0] for r in rows),
                "sink_mass_first_four": sum(sum(r[:4]) for r in rows),
                "context_mass": sum(sum(r[j] for j in tokens if j and is_context[j]) for r in rows),
                "context_engagement": sum(
                    sum(r[j] for j in tokens if j >= 4 and is_content[j]) for r in rows
                ),
                "needle_mass": sum(sum(r[j] for j in tokens if is_needle[j]) for r in rows),
                "entropy": -sum(p * math.log(p) for r in rows for p in r if p > 0),
                "sink_mass_favoured": sum(r[favourite] for r in rows),
                "favoured_share": count * shares[favourite],
                "favoured_is_first": count * (favourite == 0),
            }
            figures[layer, head] = torch.tensor([values[name] / count for name in FIGURES])
            for i, r in zip(queries, rows, strict=True):
                for j in tokens[1:]:
                    distance = i - j
                    index = 0 if distance < 0 else 1 + distance.bit_length()
                    distances[layer, head, index] += r[j] / count
    return figures, distances


def response_queries(batch, document):
    row, start = document.row, document.start
    return [
        i - 1 - start for i in range(start + 1, document.stop) if batch["labels"][row, i] != -100
    ]


def context_queries(batch, document):
    predicting = response_queries(batch, document)
    is_context = batch["turn_ids"][document.row, document.start : document.stop] > 0
    return [i for i in range(1, len(is_context)) if is_context[i] and i not in predicting]


def check_equal(measured, naive):
    figures, distances = naive
    torch.testing.assert_close(measured.figures_LHF.float(), figures, atol=1e-5, rtol=0)
    torch.testing.assert_close(measured.distances_LHE.float(), distances, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("context_attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("make", [single, multi_turn, padded, packed])
def test_equals_eager_attention(family, context_attention, make):
    batch, model = make_batch(make), tiny_model(family)
    layout = TurnLayout.from_batch(batch)
    weights = eager_weights(model, batch, layout, context_attention)
    with probing(model) as probed:
        measured = measure_documents(probed, batch, context_attention)
    assert len(measured) == len(layout.documents())
    for document, figures in zip(layout.documents(), measured, strict=True):
        for part, queries in (
            (figures.response, response_queries(batch, document)),
            (figures.context, context_queries(batch, document)),
        ):
            assert part.queries == len(queries)
            check_equal(part, naive_figures(weights, batch, document, queries))
            row, tokens = document.row, slice(document.start, document.stop)
            received = weights[:, row, :, tokens, tokens][:, :, queries].mean(dim=(0, 1, 2))
            torch.testing.assert_close(part.received_T.float(), received, atol=1e-5, rtol=0)


def test_chunks_and_samples_measure_the_same_rows(monkeypatch):
    batch, model = make_batch(multi_turn), tiny_model("llama")
    layout = TurnLayout.from_batch(batch)
    whole = measure_dilution(model, [batch], "bidirectional")
    monkeypatch.setattr("focusft.analysis.attention_rows.WEIGHTS_PER_CHUNK", 1)
    chunked = measure_dilution(model, [batch], "bidirectional")
    assert chunked.means == pytest.approx(whole.means, abs=1e-6)
    weights = eager_weights(model, batch, layout, "bidirectional")
    with probing(model) as probed:
        (sampled,) = measure_documents(probed, batch, "bidirectional", QuerySample(2, 3))
    (document,) = layout.documents()
    for part, all_queries, most in (
        (sampled.response, response_queries(batch, document), 2),
        (sampled.context, context_queries(batch, document), 3),
    ):
        chosen = [all_queries[k * len(all_queries) // most] for k in range(most)]
        check_equal(part, naive_figures(weights, batch, document, chosen))


def test_means_count_each_document_the_same():
    batch, model = make_batch(packed), tiny_model("llama")
    del batch["needle_mask"]
    with probing(model) as probed:
        documents = [d.response for d in measure_documents(probed, batch, "causal")]
    means = Dilution.of(documents)
    by_hand = sum(d.figures_LHF[..., 0].mean().item() for d in documents) / 2
    assert means.sink_mass == pytest.approx(by_hand)
    result = means.to_dict()
    assert result["needle_mass"] is None
    assert result["sink_mass"] == pytest.approx(by_hand)
    layers = [layer["sink_mass"] for layer in result["per_layer"]]
    assert sum(layers) / len(layers) == pytest.approx(by_hand)
    heads = result["per_head"]["sink_mass"]
    assert [sum(layer) / len(layer) for layer in heads] == pytest.approx(layers)
    assert sum(result["distances"]["mass"]) == pytest.approx(1 - by_hand, abs=1e-6)
    assert (result["documents"], result["queries"]) == (2, 7)


def test_a_probe_leaves_the_model_as_it_was():
    model = tiny_model("llama").train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    batch = make_batch(single)
    state = torch.random.get_rng_state()
    measure_dilution(model, [batch], "bidirectional")
    assert [module.training for module in model.modules()] == modes
    assert model.config._attn_implementation == "sdpa"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_call_is_observed_with_its_fast_weights(checkpointing):
    """Fast weights in attention change the weights of the adapted layers, and only of them."""
    model = tiny_model("llama").train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = make_batch(packed)
    layout = TurnLayout.from_batch(batch)
    inputs = {name: t for name, t in batch.items() if not name.endswith("_mask")}
    config = focusft.FocusConfig(inner_lr=0.3, inner_rank=2, inner_target_modules="q_proj,v_proj")
    with probing(model) as probed:
        plain, _ = measure_documents(probed, batch, "bidirectional")
    engine = focusft.attach(model, config)
    architecture = read_architecture(model, config)
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    recorder = Recorder(batch, layout, "bidirectional", QuerySample())
    with observing(architecture, recorder):
        loss = model(**inputs).loss
    loss.backward()
    assert [len(m._forward_pre_hooks) for m in model.modules()] == hooks
    # Neither the inner steps nor the recompute of checkpointing were taken for layers.
    assert recorder.layers == len(architecture.layers)
    adapted, _ = recorder.documents()
    first = architecture.first_adapted
    difference = (adapted.response.figures_LHF - plain.response.figures_LHF).abs().amax(dim=(1, 2))
    assert (difference[:first] < 1e-6).all()
    assert (difference[first:] > 1e-3).all()
    engine.detach()


def test_a_window_is_refused():
    model = tiny_model("mistral", sliding_window=4)
    with pytest.raises(UnsupportedModelError, match="probe another model"):
        measure_dilution(model, [make_batch(single)], "causal")
