"""Plain products against softmax attention written out, and where they take over."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import focusft
from focusft.method import attention, bfloat16, product_attention, segments
from focusft.method.attention import SEGMENTS, install_backend
from focusft.method.product_attention import Segment, products_are_faster
from focusft.training.checkpointing import checkpoint_selectively
from tests.method.helpers import CONFIG, MULTI_TURN, conversation, gradients_of, relative_error
from tests.tiny_models import tiny_model


@pytest.fixture
def able(monkeypatch):
    """A machine on which products win in bfloat16."""
    monkeypatch.setattr(product_attention, "_multiplies_bfloat16_fast_without_amx", lambda: True)


@pytest.mark.parametrize(
    ("amx", "speedup", "taken"), [(False, 4.0, True), (False, 0.5, False), (True, 4.0, False)]
)
def test_the_speed_of_the_cpu_decides(monkeypatch, amx, speedup, taken):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    monkeypatch.setattr(product_attention, "bfloat16_speedup", lambda: speedup)
    decide = product_attention._multiplies_bfloat16_fast_without_amx
    decide.cache_clear()
    try:
        assert products_are_faster(torch.zeros(1, dtype=torch.bfloat16)) == taken
    finally:
        decide.cache_clear()


@pytest.mark.parametrize(("speedup", "warned"), [(0.5, True), (2.0, False)])
def test_a_cpu_that_is_slower_in_bfloat16_is_named(monkeypatch, caplog, speedup, warned):
    monkeypatch.setattr(bfloat16, "bfloat16_speedup", lambda: speedup)
    bfloat16.warn_if_bfloat16_is_slow("bf16", "leave it out")
    assert ("bf16: this CPU multiplies matrices 2.0 times slower" in caplog.text) == warned


def test_the_speed_is_measured():
    assert 0.01 < bfloat16.bfloat16_speedup() < 100


@pytest.fixture
def counted(monkeypatch):
    """Products win in every precision; the shapes of the queries that they attended for."""
    calls = []

    def count(query, *args, **kwargs):
        calls.append(tuple(query.shape))
        return product_attention.product_attention(query, *args, **kwargs)

    for module in (attention, segments):
        monkeypatch.setattr(module, "product_attention", count)
        monkeypatch.setattr(module, "products_are_faster", lambda like: True)
    return calls


def tensors(shape, seed, dtype=torch.float32):
    batch, heads, groups, queries, keys, features = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = [(heads, queries), (groups, keys), (groups, keys), (heads, queries)]
    return [torch.randn(batch, *s, features, generator=generator).to(dtype) for s in sizes]


def reference(query, key, value, is_causal, scaling):
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if is_causal:
        later = torch.ones(scores.shape[-2:]).triu(scores.shape[3] - scores.shape[2] + 1).bool()
        scores = scores.masked_fill(later, -torch.inf)
    return scores.softmax(dim=-1) @ value


SHAPES = [
    (1, 6, 2, 5, 5, 8),
    (2, 4, 4, 70, 70, 16),
    (1, 4, 1, 3, 90, 8),
    (2, 6, 3, 65, 200, 8),
    (1, 2, 1, 1, 1, 8),
    (1, 2, 2, 64, 129, 8),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("scores_per_block", [1, 2**19], ids=["many blocks", "one block"])
def test_output_and_gradients_equal_attention_written_out(
    shape, is_causal, scores_per_block, monkeypatch
):
    monkeypatch.setattr(product_attention, "_SCORES_PER_BLOCK", scores_per_block)
    query, key, value, grad = tensors(shape, 0)
    outputs, gradients = [], []
    for attend in (
        lambda q, k, v: product_attention.product_attention(
            q, k, v, [Segment(0, shape[3], shape[4], is_causal)], 0.3
        ),
        lambda q, k, v: reference(q, k, v, is_causal, 0.3),
    ):
        leaves = [t.clone().requires_grad_() for t in (query, key, value)]
        outputs.append(attend(*leaves))
        gradients.append(torch.autograd.grad(outputs[-1], leaves, grad))
    assert torch.allclose(*outputs, atol=1e-5)
    for actual, expected in zip(*gradients, strict=True):
        assert torch.allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_strided_tensors_are_read_rightly(shape):
    query, key, value, _ = tensors(shape, 1)
    everything = [Segment(0, shape[3], shape[4], is_causal=False)]
    strided = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (query, key, value)]
    strided[1:] = [torch.cat([t, t], dim=2)[:, :, : t.shape[2]] for t in strided[1:]]
    assert torch.equal(
        product_attention.product_attention(query, key, value, everything),
        product_attention.product_attention(*strided, everything),
    )


def test_in_bfloat16_it_is_as_near_to_float32_as_the_fused_kernel():
    query, key, value, grad = tensors((1, 6, 2, 200, 200, 64), 2)

    def gradients(attend, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in (query, key, value)]
        output = attend(*leaves)
        return output, *torch.autograd.grad(output, leaves, grad.to(dtype))

    def fused(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=True
        )

    def products(q, k, v):
        return product_attention.product_attention(q, k, v, [Segment(0, 200, 200, True)])

    expected = gradients(fused, torch.float32)
    for exact, ours, torchs in zip(
        expected,
        gradients(products, torch.bfloat16),
        gradients(fused, torch.bfloat16),
        strict=True,
    ):
        error, error_of_torch = ((t.float() - exact).norm() for t in (ours, torchs))
        assert error < 2.5 * error_of_torch


def test_it_is_an_operation_that_torch_knows_how_to_trace():
    query, key, value, _ = tensors((1, 4, 2, 9, 9, 8), 3)
    leaves = [t.requires_grad_() for t in (query, key, value)]
    torch.library.opcheck(product_attention._attend, (*leaves, [0, 5, 5, 0, 5, 8, 8, 1], 0.3))


def test_only_bfloat16_on_a_cpu_takes_it(able):
    bfloat16 = torch.zeros(1, dtype=torch.bfloat16)
    assert products_are_faster(bfloat16)
    assert not products_are_faster(bfloat16.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert products_are_faster(bfloat16.float())
    with sdpa_kernel(SDPBackend.MATH):
        assert not products_are_faster(bfloat16)
    assert not products_are_faster(bfloat16.to("meta"))


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, context_attention="causal"),
        replace(CONFIG, context_attention="causal", inner_context_attention="bidirectional"),
    ],
    ids=["bidirectional", "causal", "inner bidirectional"],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_uses_it_and_equals_the_dense_mask(config, checkpointing, counted):
    input_ids, labels = conversation(MULTI_TURN)
    batch = {"input_ids": input_ids[None], "labels": labels[None]}
    model = tiny_model("llama")
    if checkpointing:
        checkpoint_selectively(model)
    loss, _, gradients = gradients_of(model, config, **batch)
    assert counted
    dense = replace(config, attention_backend="dense")
    dense_loss, _, dense_gradients = gradients_of(tiny_model("llama"), dense, **batch)
    assert loss == pytest.approx(dense_loss, rel=1e-6)
    assert relative_error(gradients, dense_gradients) < 1e-5


def test_checkpointing_keeps_its_output_and_nothing_keeps_its_scores(counted, monkeypatch):
    runs, kept = [], []

    class CountedScores(product_attention._Scores):
        def __init__(self, *args):
            runs.append(args)
            super().__init__(*args)

    monkeypatch.setattr(product_attention, "_Scores", CountedScores)

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    def step(model):
        runs.clear()
        counted.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            input_ids, labels = conversation([(400, 20)])
            gradients_of(model, CONFIG, input_ids=input_ids[None], labels=labels[None])
        return len(counted), len(runs)

    calls, expected = step(tiny_model("llama"))
    model = tiny_model("llama")
    checkpoint_selectively(model)
    calls_with_recompute, actual = step(model)
    # The recompute asks for the output again, and gets the one that was kept.
    assert calls_with_recompute > calls
    assert actual == expected
    assert max(kept) < 400 * 400


@pytest.mark.parametrize("options", [{}, {"is_causal": False}, {"softcap": None}])
def test_an_ordinary_call_gives_what_sdpa_gives(options, counted):
    model = tiny_model("llama")
    input_ids = torch.arange(3, 43)[None]
    refused = options.get("is_causal") is False
    with torch.no_grad():
        expected = model(input_ids=input_ids, **options).logits
        install_backend(model, "segments")
        assert model.config._attn_implementation == SEGMENTS
        actual = model(input_ids=input_ids, **options).logits
    assert bool(counted) != refused
    assert torch.allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize("mask", ["padding", "decoding"])
def test_an_ordinary_call_with_a_mask_goes_to_sdpa(mask, counted):
    model = tiny_model("llama")
    install_backend(model, "segments")
    input_ids = torch.arange(3, 23)[None].repeat(2, 1)
    with torch.no_grad():
        if mask == "padding":
            allowed = torch.ones_like(input_ids)
            allowed[0, :4] = 0
            model(input_ids=input_ids, attention_mask=allowed)
            assert not counted
        else:
            cache = model(input_ids=input_ids, use_cache=True).past_key_values
            before = len(counted)
            model(input_ids=input_ids[:, :3], past_key_values=cache)
            assert len(counted) == before


def test_second_derivatives_do_not_use_it(able):
    input_ids, labels = conversation(MULTI_TURN)
    model = tiny_model("llama")
    engine = focusft.attach(model.train(), replace(CONFIG, inner_order=2))
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=input_ids[None], labels=labels[None]).loss.backward()
    engine.detach()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
