"""Attaching, detaching and everything around one attached call."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch

import focusft
from focusft.errors import UserError
from tests.method.helpers import (
    CONFIG,
    DOCUMENTS,
    MULTI_TURN,
    assert_mends,
    compare,
    conversation,
    gradients_of,
    packed,
    relative_error,
    single,
)
from tests.tiny_models import tiny_model

PLAIN = replace(CONFIG, num_inner_steps=0, context_attention="causal")
CAUSAL_TRUNK = replace(CONFIG, inner_objective="context", inner_context_attention="causal")
BATCH = single(conversation(MULTI_TURN))
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooks_of(model):
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in HOOKS)


@pytest.mark.parametrize(
    "config",
    [CONFIG, CAUSAL_TRUNK, replace(CONFIG, num_inner_steps=0), PLAIN],
    ids=["response", "context", "no steps", "plain"],
)
def test_detach_leaves_the_model_as_it_was(config):
    model = tiny_model("llama").train()
    names = list(model.state_dict())
    expected = model(**BATCH)
    engine = focusft.attach(model, config)
    assert list(model.state_dict()) == names
    assert [name for name, _ in model.named_parameters()] == names
    model(**BATCH).loss.backward()
    engine.detach()
    engine.detach()
    assert hooks_of(model) == 0
    assert list(model.state_dict()) == names
    actual = model(**BATCH)
    assert torch.equal(actual.loss, expected.loss)
    assert torch.equal(actual.logits, expected.logits)


def test_attach_leaves_each_part_in_its_mode():
    model = tiny_model("llama").train()
    model.model.layers[1].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    focusft.attach(model, CONFIG)
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_a_second_engine_is_refused():
    model = tiny_model("llama")
    engine = focusft.attach(model, CONFIG)
    with pytest.raises(UserError) as error:
        focusft.attach(model, CONFIG)
    assert_mends(error, "attached", "detach()")
    engine.detach()
    focusft.attach(model, CONFIG)


def test_a_second_engine_through_a_peft_wrapper_is_refused():
    peft = pytest.importorskip("peft")
    model = tiny_model("llama")
    focusft.attach(model, CONFIG)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UserError):
        focusft.attach(wrapped, CONFIG)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_no_steps_and_causal_attention_is_plain_sft(implementation):
    model = tiny_model("llama").train()
    model.set_attn_implementation(implementation)
    loss = model(**BATCH).loss
    loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    actual_loss, _, actual = gradients_of(model, PLAIN, **BATCH)
    assert actual_loss == loss.item()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_no_steps_is_sft_under_the_mask():
    """The published mask in a stock forward gives the same loss and gradients."""
    model = tiny_model("llama", dtype=torch.float64)
    config = replace(CONFIG, num_inner_steps=0)
    loss, expected_loss, *_, error = compare(model, config, MULTI_TURN)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    assert error < 1e-10


@pytest.mark.parametrize("config", [CONFIG, CAUSAL_TRUNK], ids=["response", "context"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_several_forwards_before_one_backward(config, checkpointing):
    """A recompute must find the fast weights and the mask of its own forward."""
    model = tiny_model("llama")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    expected = {}
    for document in DOCUMENTS:
        for name, gradient in gradients_of(model, config, **single(document))[2].items():
            expected[name] = expected.get(name, 0) + gradient
    engine = focusft.attach(model, config)
    model.zero_grad()
    losses = [model(**single(document)).loss for document in DOCUMENTS]
    with torch.no_grad():  # an evaluation in between
        model.eval()(**BATCH)
    model.train()
    sum(losses).backward()
    engine.detach()
    actual = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert relative_error(actual, expected) < 1e-6


def test_checkpointing_changes_no_bit():
    model = tiny_model("llama")
    *_, expected = gradients_of(model, CONFIG, **packed(DOCUMENTS))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    *_, actual = gradients_of(model, CONFIG, **packed(DOCUMENTS))
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("config", [CONFIG, CAUSAL_TRUNK], ids=["response", "context"])
def test_the_inner_loop_runs_once_under_checkpointing(config, monkeypatch):
    calls = []
    stock = focusft.method.engine.adapt
    monkeypatch.setattr(
        "focusft.method.engine.adapt", lambda *args: calls.append(1) or stock(*args)
    )
    model = tiny_model("llama")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    gradients_of(model, config, **BATCH)
    assert len(calls) == 1


@pytest.mark.parametrize("config", [CONFIG, CAUSAL_TRUNK], ids=["response", "context"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("backward", [False, True], ids=["loss dropped", "backward"])
def test_nothing_of_a_call_outlives_its_step(config, checkpointing, backward):
    """Neither fast weights nor masks wait for the garbage collector or for the next call."""
    model = tiny_model("llama")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    engine = focusft.attach(model, config)
    kept = []

    def remember(module, args, kwargs):
        kept.append(weakref.ref(kwargs["focus_call"]))
        kept.append(weakref.ref(kwargs["attention_mask"]))

    def remember_fast_weights(module, args, kwargs):
        kept.append(weakref.ref(kwargs["focus_call"].fast_weights))

    model.model.register_forward_pre_hook(remember, with_kwargs=True)
    last = model.model.layers[-1].self_attn
    last.register_forward_pre_hook(remember_fast_weights, with_kwargs=True)
    gc.collect()
    gc.disable()
    try:
        loss = model.train()(**BATCH).loss
        if backward:
            loss.backward()
        del loss
        assert len(kept) > 2
        assert [reference() for reference in kept] == [None] * len(kept)
    finally:
        gc.enable()
    assert engine.trace is not None


@pytest.mark.parametrize("config", [CONFIG, CAUSAL_TRUNK], ids=["response", "context"])
def test_a_training_call_without_gradients(config):
    model = tiny_model("llama").train()
    focusft.attach(model, config)
    with torch.no_grad():
        without = model(**BATCH).loss
    assert not without.requires_grad
    assert torch.equal(without, model(**BATCH).loss)


def test_a_training_call_changes_no_weight_and_no_gradient():
    model = tiny_model("llama").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    focusft.attach(model, CONFIG)
    model(**BATCH)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("config", [CONFIG, CAUSAL_TRUNK], ids=["response", "context"])
def test_autocast_is_close(config):
    model = tiny_model("llama")
    _, engine, expected = gradients_of(model, config, **packed(DOCUMENTS))
    with torch.autocast("cpu", torch.bfloat16):
        loss, lower, actual = gradients_of(model, config, **packed(DOCUMENTS))
    assert lower.trace.mean_losses == pytest.approx(engine.trace.mean_losses, rel=0.05)
    assert all(gradient.dtype == torch.float32 for gradient in actual.values())
    assert relative_error(actual, expected) < 0.3
    # As far from the exact one as without an inner loop.
    assert loss == loss


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_bfloat16_model_is_close(implementation, checkpointing):
    model = tiny_model("llama")
    model.set_attn_implementation(implementation)
    loss, engine, expected = gradients_of(model, CONFIG, **packed(DOCUMENTS))
    model = model.to(torch.bfloat16)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    lower_loss, lower, actual = gradients_of(model, CONFIG, **packed(DOCUMENTS))
    assert lower_loss == pytest.approx(loss, rel=0.05)
    assert lower.trace.mean_losses == pytest.approx(engine.trace.mean_losses, rel=0.05)
    assert all(gradient.dtype == torch.bfloat16 for gradient in actual.values())
    assert relative_error({n: g.float() for n, g in actual.items()}, expected) < 0.3


def step_gradients(step, seed=CONFIG.seed):
    model = tiny_model("llama")
    engine = focusft.attach(model, replace(CONFIG, seed=seed))
    engine.step = step
    model.train()(**BATCH).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_a_call_depends_on_seed_and_step_alone():
    first = step_gradients(3)
    torch.manual_seed(123)
    torch.rand(7)
    again = step_gradients(3)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert relative_error(step_gradients(4), first) > 1e-3
    assert relative_error(step_gradients(3, seed=1), first) > 1e-3


def test_the_global_generator_is_left_alone():
    model = tiny_model("llama").train()
    focusft.attach(model, CONFIG)
    before = torch.random.get_rng_state()
    model(**BATCH).loss.backward()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_initial_fast_weights_are_kaiming_uniform():
    from focusft.method.fast_weights import initial_fast_weights

    weights = initial_fast_weights(
        [(400, 30)],
        rank=50,
        alpha=100,
        dropout=0.0,
        input_ids_BS=BATCH["input_ids"],
        layout=focusft.TurnLayout.from_batch(BATCH),
        seed=0,
        step=0,
        dtype=torch.float32,
    )
    reference = torch.empty(50, 400)
    torch.nn.init.kaiming_uniform_(reference, a=5**0.5)
    assert weights.A[0].shape == (1, 50, 400)
    assert weights.A[0].abs().max() <= 1 / 400**0.5
    assert weights.A[0].std().item() == pytest.approx(reference.std().item(), rel=0.03)
    assert weights.B[0].shape == (1, 30, 50)
    assert not weights.B[0].any()
    assert weights.scaling == 2


def test_dropout_acts_in_the_inner_loop_and_in_the_outer_loss():
    model = tiny_model("llama")
    config = replace(CONFIG, inner_dropout=0.5)
    losses = {gradients_of(model, config, **BATCH)[0] for _ in range(3)}
    assert len(losses) == 3
    torch.manual_seed(5)
    *_, expected = gradients_of(model, config, **BATCH)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(5)
    *_, actual = gradients_of(model, config, **BATCH)
    assert relative_error(actual, expected) < 1e-6


def test_a_tuple_instead_of_an_output_object():
    model = tiny_model("llama")
    expected, _, gradients = gradients_of(model, CONFIG, **BATCH)
    focusft.attach(model, CONFIG)
    model.zero_grad()
    output = model(**BATCH, return_dict=False)
    assert isinstance(output, tuple)
    assert output[0].item() == expected
    assert output[1].shape == (1, 0, 128)
    output[0].backward()
    assert all(torch.equal(p.grad, gradients[n]) for n, p in model.named_parameters())


def test_the_batch_is_not_changed():
    model = tiny_model("llama").train()
    focusft.attach(model, CONFIG)
    turn_ids = torch.where(BATCH["labels"] == -100, 1, -2)
    batch = BATCH | {"turn_ids": turn_ids, "num_items_in_batch": 13}
    before = {name: torch.as_tensor(value).clone() for name, value in batch.items()}
    model(**batch)
    assert batch.keys() == before.keys()
    assert all(torch.equal(torch.as_tensor(batch[name]), before[name]) for name in batch)


def test_turn_ids_are_taken_out_of_stock_calls():
    model = tiny_model("llama")
    expected = model(**BATCH)
    focusft.attach(model, CONFIG)
    turn_ids = torch.where(BATCH["labels"] == -100, 1, -2)
    assert torch.equal(model(**BATCH, turn_ids=turn_ids).logits, expected.logits)


def test_positions_given_for_one_document_change_nothing():
    model = tiny_model("llama")
    expected, _, gradients = gradients_of(model, CONFIG, **BATCH)
    size = BATCH["input_ids"].shape[1]
    given = {"position_ids": torch.arange(size)[None], "attention_mask": torch.ones(1, size)}
    loss, _, actual = gradients_of(model, CONFIG, **BATCH, **given)
    assert loss == expected
    assert all(torch.equal(actual[name], gradients[name]) for name in gradients)


def test_per_turn_blocks_change_the_mask_only_between_context_turns():
    config = replace(CONFIG, context_blocks="per_turn")
    model = tiny_model("llama", dtype=torch.float64)
    context = (BATCH["labels"] == -100).long()
    *_, merged = gradients_of(model, CONFIG, **BATCH)
    # Blocks of context that do not touch are the same either way.
    turns = (1 + (context.diff(dim=1, prepend=context[:, :1]) != 0).cumsum(1)) * (2 * context - 1)
    *_, same = gradients_of(model, config, **BATCH, turn_ids=turns)
    assert relative_error(same, merged) < 1e-12
    split = turns.clone()
    split[0, :4] = 9
    *_, other = gradients_of(model, config, **BATCH, turn_ids=split)
    assert relative_error(other, merged) > 1e-3


def test_a_failed_call_leaves_a_working_engine():
    model = tiny_model("llama")
    expected, *_ = gradients_of(model, CONFIG, **BATCH)
    engine = focusft.attach(model, CONFIG)
    engine.config = replace(CONFIG, inner_lr=1e30, inner_grad_clip=0.0)
    with pytest.raises(UserError):
        model(**BATCH)
    engine.config = CONFIG
    assert model(**BATCH).loss.item() == expected
    stock = tiny_model("llama")(**BATCH).logits
    assert torch.equal(model.eval()(**BATCH).logits, stock)


def test_training_reduces_the_loss():
    model = tiny_model("llama")
    engine = focusft.attach(model, replace(CONFIG, inner_lr=0.05))
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    losses = []
    for engine.step in range(15):
        optimizer.zero_grad()
        loss = model(**packed(DOCUMENTS)).loss
        loss.backward()
        optimizer.step()
        losses.append(engine.trace.mean_losses[0])
    assert losses[-1] < losses[0] / 2


def test_a_batch_of_padding_alone_has_no_loss():
    model = tiny_model("llama").train()
    focusft.attach(model, CONFIG)
    nothing = torch.zeros(1, 6, dtype=torch.long)
    loss = model(input_ids=nothing, attention_mask=nothing, labels=nothing - 100).loss
    loss.backward()
    assert loss.item() == 0


def test_torch_compile_keeps_the_fast_weights():
    model = tiny_model("llama", num_hidden_layers=2).train()
    engine = focusft.attach(model, CONFIG)
    plain = model(**BATCH).loss
    plain.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    loss = torch.compile(model, backend="eager")(**BATCH).loss
    loss.backward()
    assert loss.item() == pytest.approx(plain.item(), abs=1e-6)
    assert relative_error({n: p.grad for n, p in model.named_parameters()}, expected) < 1e-6
    assert len(engine.trace.losses) == CONFIG.num_inner_steps + 1
    torch._dynamo.reset()
