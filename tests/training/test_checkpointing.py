"""Checkpointing: the same bits, less memory, no attention and hardly a product twice."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import focusft
from focusft.training.checkpointing import (
    ATTENTION_OPERATIONS,
    checkpoint_selectively,
    keep_attention,
)
from focusft.training.config import FocuSFTConfig
from focusft.training.trainer import FocuSFTTrainer
from tests.method.helpers import CONFIG, conversation
from tests.tiny_models import tiny_model

TURNS = [(70, 30)] * 2


def step(
    model,
    *,
    context_attention="bidirectional",
    inner_order=1,
    packed=False,
    autocast=False,
    checkpoints_inner_attention=True,
):
    """Loss, gradients, bytes that autograd keeps, FLOPs of one training step."""
    input_ids, labels = conversation(TURNS)
    positions = torch.arange(len(input_ids))
    if packed:
        input_ids, labels, positions = (torch.cat([x, x]) for x in (input_ids, labels, positions))
    config = replace(CONFIG, context_attention=context_attention, inner_order=inner_order)
    engine = focusft.attach(model.train(), config)
    engine.checkpoints_inner_attention = checkpoints_inner_attention
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(
                input_ids=input_ids[None], labels=labels[None], position_ids=positions[None]
            ).loss
        loss.backward()
    engine.detach()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return loss, gradients, sum(kept.values()), counter.get_total_flops()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("context_attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("packed", [False, True], ids=["single", "packed"])
def test_same_bits_and_nearly_the_same_work_with_less_memory(family, context_attention, packed):
    options = {"context_attention": context_attention, "packed": packed}
    loss, gradients, kept, flops = step(tiny_model(family), **options)
    model = tiny_model(family)
    checkpoint_selectively(model)
    loss_again, gradients_again, kept_again, flops_again = step(model, **options)
    assert torch.equal(loss, loss_again)
    assert all(torch.equal(gradients[name], gradients_again[name]) for name in gradients)
    # The fast weights' small products are all that runs again.
    assert flops <= flops_again < 1.02 * flops
    assert kept_again < 0.75 * kept


class Count(TorchDispatchMode):
    """Counts the forward calls of some operations."""

    def __init__(self, operations):
        super().__init__()
        self.operations, self.calls = operations, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func in self.operations
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "granite"])
@pytest.mark.parametrize("packed", [False, True], ids=["single", "packed"])
def test_the_norms_of_inner_attentions_run_once(family, packed):
    def run(checkpoints):
        model = tiny_model(family)
        checkpoint_selectively(model)
        with Count({torch.ops.aten.rsqrt.default}) as norms:
            found = step(model, packed=packed, checkpoints_inner_attention=checkpoints)
        return *found, norms.calls

    loss, gradients, _, flops, norms = run(True)
    loss_again, gradients_again, _, flops_again, fewer_norms = run(False)
    assert torch.equal(loss, loss_again)
    assert all(torch.equal(gradients[name], gradients_again[name]) for name in gradients)
    # Granite's layers are not plain, so the inner loop runs them as a whole. The tiny models have
    # one adapted layer above the first; the norms of queries and keys are two more in Qwen3's.
    fewer_in_a_step = {"granite": 0, "qwen3": 3}.get(family, 1)
    assert norms - fewer_norms == CONFIG.num_inner_steps * fewer_in_a_step
    assert flops_again == flops


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("packed", [False, True], ids=["single", "packed"])
def test_everything_but_attention_runs_again(family, packed):
    def run(prepare):
        model = tiny_model(family)
        prepare(model)
        with Count(ATTENTION_OPERATIONS) as counter:
            found = step(model, packed=packed)
        return *found, counter.calls

    def full(model):
        model.activation_checkpointing_enable({"use_reentrant": False})

    def full_but_attention(model):
        full(model)
        keep_attention(model)

    loss, gradients, _, _, calls = run(lambda model: None)
    *_, plain_flops, plain_calls = run(full)
    loss_again, gradients_again, _, flops, calls_again = run(full_but_attention)
    assert torch.equal(loss, loss_again)
    assert all(torch.equal(gradients[name], gradients_again[name]) for name in gradients)
    assert calls_again == calls < plain_calls
    assert flops == plain_flops


def test_checkpointing_of_the_users_own_stays():
    model = tiny_model("llama")
    own = {"use_reentrant": False, "context_fn": torch.utils.checkpoint.noop_context_fn}
    for options in (own, {"use_reentrant": True}, {"determinism_check": "none"}):
        model.activation_checkpointing_enable(options)
        keep_attention(model)
        assert model.model.layers[0]._gradient_checkpointing_func.keywords == options


@pytest.mark.parametrize("is_selective", [True, False])
def test_training_keeps_attention(tmp_path, is_selective):
    args = FocuSFTConfig(
        output_dir=str(tmp_path),
        report_to="none",
        use_cpu=True,
        activation_checkpointing=True,
        selective_checkpointing=is_selective,
        max_steps=1,
        save_strategy="no",
        probe_steps=0,
        packing=False,
    )
    model = tiny_model("llama")
    input_ids, labels = conversation(TURNS)
    turns = [1] * 70 + [-2] * 30 + [3] * 70 + [-4] * 30
    rows = [{"input_ids": input_ids.tolist(), "labels": labels.tolist(), "turn_ids": turns}]
    FocuSFTTrainer(model=model, args=args, train_dataset=rows).train()
    options = model.model.layers[0]._gradient_checkpointing_func.keywords
    assert ("context_fn" in options) == is_selective


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_same_bits_under_autocast(family):
    loss, gradients, kept, _ = step(tiny_model(family), autocast=True)
    model = tiny_model(family)
    checkpoint_selectively(model)
    loss_again, gradients_again, kept_again, _ = step(model, autocast=True)
    assert torch.equal(loss, loss_again)
    assert all(torch.equal(gradients[name], gradients_again[name]) for name in gradients)
    assert kept_again < kept
    assert torch.is_autocast_cache_enabled()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "selective"),
        ({"inner_order": 2}, "none"),
        ({"selective_checkpointing": False}, "none"),
        ({"activation_checkpointing": True}, "all_but_attention"),
        ({"activation_checkpointing": True, "selective_checkpointing": False}, "full"),
        (
            {
                "activation_checkpointing": True,
                "activation_checkpointing_kwargs": {"use_reentrant": False, "offload": True},
            },
            "full",
        ),
    ],
)
def test_the_options(tmp_path, options, expected):
    args = FocuSFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, **options)
    assert args.checkpointing_on("cpu") == expected
    model = tiny_model("llama")
    FocuSFTTrainer(model=model, args=args)
    assert model.is_activation_checkpointing == (expected == "selective")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "none"),
        ({"selective_checkpointing": True}, "selective"),
        ({"activation_checkpointing": True}, "all_but_attention"),
    ],
)
def test_a_gpu_is_not_made_to_wait_unasked(tmp_path, options, expected):
    args = FocuSFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, **options)
    assert args.checkpointing_on("cuda") == expected
