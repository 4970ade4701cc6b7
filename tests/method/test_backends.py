"""Segments and flex against the dense mask; a mask that does not arrive is noticed."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import focusft
from focusft.errors import ConfigError, UnsupportedModelError
from focusft.method import attention, segments
from focusft.method.attention import install_backend, turn_attention
from focusft.method.mask_check import check_masking
from focusft.method.masks import dense_mask
from focusft.method.segments import SegmentPlan, segment_attention
from focusft.method.turns import TurnLayout
from tests.method.helpers import (
    CONFIG,
    DOCUMENTS,
    MULTI_TURN,
    assert_mends,
    conversation,
    gradients_of,
    packed,
    padded,
    relative_error,
)
from tests.tiny_models import tiny_model

BATCH = padded([packed(DOCUMENTS[:2]), packed(DOCUMENTS[2:])], side="left")
LAYOUT = TurnLayout.from_batch(BATCH)

# A document is its turns, (context, response) lengths; empty turns and one-token ones included.
lengths = st.one_of(st.integers(0, 3), st.integers(0, 40), st.sampled_from([0, 1, 255, 256, 300]))
documents = st.lists(st.tuples(lengths, lengths), min_size=1, max_size=4)
rows = st.lists(documents, min_size=1, max_size=3)


def layout_of(batch_rows, right):
    """Turn ids and positions of rows of documents, padded on one side."""
    turn_rows, position_rows = [], []
    for documents in batch_rows:
        turn_ids, positions = [], []
        for turns in documents:
            ids = []
            for number, (context, response) in enumerate(turns):
                ids += [2 * number + 1] * context + [-2 * number - 2] * response
            turn_ids += ids or [1]
            positions += range(len(ids) or 1)
        turn_rows.append(turn_ids)
        position_rows.append(positions)
    size = max(map(len, turn_rows)) + 2

    def pad(row):
        padding = [0] * (size - len(row))
        return [*row, *padding] if right else [*padding, *row]

    return torch.tensor([pad(r) for r in turn_rows]), torch.tensor([pad(r) for r in position_rows])


def reference(query, key, value, mask):
    """Softmax attention written out, with the key heads repeated."""
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    scores = (query @ key.transpose(2, 3) * 0.3).masked_fill(~mask, -torch.inf)
    return (scores.softmax(dim=-1) @ value).transpose(1, 2)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.lists(rows, min_size=1, max_size=2),
    right=st.booleans(),
    blocks=st.sampled_from(["merged", "per_turn"]),
    context=st.sampled_from(["bidirectional", "causal"]),
    rows_per_call=st.sampled_from([1, 7, 256]),
    threads=st.sampled_from([1, 3, 8]),
)
def test_segments_equal_softmax_under_the_mask(
    batch, right, blocks, context, rows_per_call, threads
):
    turn_ids, positions = layout_of(batch, right)
    layout = TurnLayout.from_turn_ids(turn_ids, positions, blocks)
    generator = torch.Generator().manual_seed(0)
    shapes = [(len(turn_ids), heads, turn_ids.shape[1], 4) for heads in (4, 2, 2)]
    inputs = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    weight = torch.randn(inputs[0].transpose(1, 2).shape, generator=generator, dtype=torch.float64)
    weight = weight * layout.is_token_BS[:, :, None, None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "ROWS_PER_CALL", rows_per_call)
        # So that three or eight threads cut the queries of the context into parts.
        patch.setattr(segments, "_LEAST_QUERIES_OF_A_PART", 2)
        patch.setattr(torch, "get_num_threads", lambda: threads)
        plan = SegmentPlan.of(layout, context)
        results = []
        for attend in (
            lambda *qkv: segment_attention(*qkv, plan, 0.3, 0.0),
            lambda *qkv: reference(*qkv, dense_mask(layout, context)),
        ):
            leaves = [t.clone().requires_grad_() for t in inputs]
            output = attend(*leaves)
            (output * weight).sum().backward()
            results.append([output * weight, *(leaf.grad for leaf in leaves)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "heads, queries, threads, parts",
    [
        (9, 2000, 1, 1),  # one thread has no other to wait for
        (9, 2000, 2, 2),  # 18 halves for 2 threads, instead of 5 heads for one and 4 for the other
        (8, 2000, 2, 1),
        (9, 2000, 4, 3),
        (9, 2000, 8, 6),
        (9, 300, 8, 2),  # no part of less than 128 queries
        (9, 100, 8, 1),
    ],
)
def test_queries_are_cut_so_that_all_threads_work(monkeypatch, heads, queries, threads, parts):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    calls = []

    def attend(query, *arguments, **options):
        calls.append(len(query))
        return kernel(query, *arguments, **options)

    kernel = segments.F.scaled_dot_product_attention
    monkeypatch.setattr(segments.F, "scaled_dot_product_attention", attend)
    layout = TurnLayout.from_turn_ids(torch.tensor([[1] * queries + [-2]]))
    plan = SegmentPlan.of(layout, "bidirectional")
    query = torch.randn(1, heads, queries + 1, 2)
    segment_attention(query, query, query, plan, None, 0.0)
    segment_attention(query.requires_grad_(), query, query, plan, None, 0.0)
    assert calls == [1, 1, parts, 1]  # without a backward pass nothing is cut


@settings(max_examples=25, deadline=None)
@given(batch=st.lists(rows, min_size=1, max_size=2), right=st.booleans())
def test_gradients_equal_those_of_the_dense_mask(batch, right):
    """The whole bilevel step, over random turns, documents and padding, in float32."""
    turn_ids, positions = layout_of(batch, right)
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, 128, turn_ids.shape, generator=generator)
    batch = {
        "input_ids": input_ids,
        "labels": torch.where(turn_ids < 0, input_ids, -100),
        "turn_ids": turn_ids,
        "position_ids": positions,
        "attention_mask": (turn_ids != 0).long(),
    }
    model = tiny_model("qwen3", max_position_embeddings=4096)
    fast, oracle = (
        gradients_of(model, replace(CONFIG, attention_backend=backend), **batch)
        for backend in ("segments", "dense")
    )
    assert fast[0] == pytest.approx(oracle[0], rel=1e-5, abs=1e-7)
    if (TurnLayout.from_batch(batch).is_response_BS[:, 1:]).any() and oracle[0] > 0:
        assert relative_error(fast[2], oracle[2]) < 1e-5


@pytest.mark.parametrize("context", ["bidirectional", "causal"])
def test_flex_equals_the_dense_mask(context):
    """Uncompiled, on CPU, where torch runs its forward only."""
    hidden = {}
    for backend in ("flex", "dense"):
        model = tiny_model("llama")
        assert install_backend(model, backend) == backend
        inputs = {name: BATCH[name] for name in ("input_ids", "position_ids")}
        with torch.no_grad():
            output = model.model(**inputs, **turn_attention(model, LAYOUT, context).model_kwargs)
        hidden[backend] = output[0][LAYOUT.is_token_BS]
    torch.testing.assert_close(hidden["flex"], hidden["dense"], rtol=1e-5, atol=1e-5)


def test_auto_takes_segments_and_detach_restores_the_model():
    model = tiny_model("llama")
    engine = focusft.attach(model, CONFIG)
    assert engine.attention_backend == "segments"
    assert model.config._attn_implementation == attention.SEGMENTS
    engine.detach()
    assert model.config._attn_implementation == "sdpa"


def test_auto_stays_dense_for_eager_attention():
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    assert focusft.attach(model, CONFIG).attention_backend == "dense"


def test_segments_and_eager_contradict_each_other():
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    with pytest.raises(UnsupportedModelError) as error:
        focusft.attach(model, replace(CONFIG, attention_backend="segments"))
    assert_mends(error, "attention_backend='segments'", "attn_implementation='sdpa'")


def test_an_unknown_backend():
    with pytest.raises(ConfigError) as error:
        focusft.FocusConfig(attention_backend="flash")
    assert_mends(error, "attention_backend", "segments")


@pytest.mark.parametrize("backend", ["segments", "dense"])
def test_a_dropped_mask_is_noticed_when_focusft_is_attached(backend, monkeypatch):
    """As context parallelism does it: is_causal=True, whatever the mask."""
    model = tiny_model("llama")

    def causal_only(module, query, key, value, attention_mask, **kwargs):
        return attention.sdpa_attention_forward(
            module, query, key, value, None, is_causal=True, scaling=kwargs["scaling"]
        )

    name = {"segments": attention.SEGMENTS, "dense": "sdpa"}[backend]
    functions = attention.AttentionInterface._global_mapping
    monkeypatch.setitem(functions, name, causal_only)
    with pytest.raises(UnsupportedModelError) as error:
        focusft.attach(model, replace(CONFIG, attention_backend=backend))
    assert_mends(error, "LlamaForCausalLM", "mask", "sdpa")
    assert model.config._attn_implementation == "sdpa"


def test_a_leak_between_documents_is_noticed(monkeypatch):
    model = tiny_model("llama")
    install_backend(model, "segments")
    whole_row = attention.turn_attention
    monkeypatch.setattr(
        "focusft.method.mask_check.turn_attention",
        lambda model, layout, context: whole_row(
            model, TurnLayout.from_labels(torch.full_like(layout.block_ids_BS, -100)), context
        ),
    )
    with pytest.raises(UnsupportedModelError) as error:
        check_masking(model, "bidirectional")
    assert_mends(error, "token", "must not see")


@pytest.mark.parametrize("backend", ["segments", "dense"])
def test_a_replaced_mask_is_noticed_without_inner_steps(backend):
    model = tiny_model("llama").train()
    focusft.attach(model, replace(CONFIG, num_inner_steps=0, attention_backend=backend))
    model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs | {"attention_mask": None}),
        with_kwargs=True,
        prepend=True,
    )
    input_ids, labels = conversation(MULTI_TURN)
    with pytest.raises(UnsupportedModelError) as error:
        model(input_ids=input_ids[None], labels=labels[None])
    assert_mends(error, "LlamaAttention", "mask")


def test_no_tensor_of_the_size_of_the_mask():
    """Of all tensors that live at once, none has S x S elements."""
    size = 1500
    labels = torch.full((1, size), -100)
    labels[:, 600:1200] = 1
    plan = SegmentPlan.of(TurnLayout.from_labels(labels), "bidirectional")
    assert plan.causal_rows.numel() <= segments.ROWS_PER_CALL * size
    with torch.autograd.graph.saved_tensors_hooks(keep_small(size * size), lambda t: t):
        q, k, v = (torch.randn(1, 1, size, 4, requires_grad=True) for _ in range(3))
        segment_attention(q, k, v, plan, None, 0.0).sum().backward()


def keep_small(limit):
    def pack(tensor):
        assert tensor.numel() < limit, tensor.shape
        return tensor

    return pack
