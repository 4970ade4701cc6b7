"""Selective checkpointing: the same bits, less memory, hardly a matrix product twice."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import focusft
from focusft.training.checkpointing import checkpoint_selectively
from focusft.training.config import FocuSFTConfig
from focusft.training.trainer import FocuSFTTrainer
from tests.method.helpers import CONFIG, conversation
from tests.tiny_models import tiny_model

TURNS = [(70, 30)] * 2


def step(model, *, context_attention="bidirectional", inner_order=1, packed=False, autocast=False):
    """Loss, gradients, bytes that autograd keeps, FLOPs of one training step."""
    input_ids, labels = conversation(TURNS)
    positions = torch.arange(len(input_ids))
    if packed:
        input_ids, labels, positions = (torch.cat([x, x]) for x in (input_ids, labels, positions))
    config = replace(CONFIG, context_attention=context_attention, inner_order=inner_order)
    engine = focusft.attach(model.train(), config)
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
        ({"activation_checkpointing": True}, "full"),
    ],
)
def test_the_options(tmp_path, options, expected):
    args = FocuSFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, **options)
    assert args.checkpointing == expected
    model = tiny_model("llama")
    FocuSFTTrainer(model=model, args=args)
    assert model.is_activation_checkpointing == (expected == "selective")
