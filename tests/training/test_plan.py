"""The plan against counted FLOPs, and from the command line."""

import json
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import focusft
from benchmarks.flop_counter import product_flops
from focusft.cli import main
from focusft.errors import UserError
from focusft.training.checkpointing import Checkpointing, checkpoint_selectively, keep_attention
from focusft.training.plan import Plan
from focusft.training.plan.memory import mlp_bytes
from focusft.training.plan.setup import ModelShape, Setup
from tests.method.helpers import CONFIG, conversation
from tests.tiny_models import tiny_model


def counted_flops(model, config, turns):
    """FLOPs of a step as torch counts them; it does not count attention on the CPU."""
    # Nor what is written in place, as the fast weights' products are.
    in_place = {torch.ops.aten.addmm_: product_flops}
    input_ids, labels = conversation(turns)
    engine = focusft.attach(model, config)
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        model.train()(input_ids=input_ids[None], labels=labels[None]).loss.backward()
    engine.detach()
    counts = counter.get_flop_counts()["Global"]
    return sum(count for op, count in counts.items() if "attention" not in str(op))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "granite"])
@pytest.mark.parametrize("checkpointing", get_args(Checkpointing))
@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_flops_outside_attention(family, checkpointing, steps):
    model = tiny_model(family, hidden_size=64, intermediate_size=192, head_dim=16)
    if checkpointing in ("all_but_attention", "full"):
        model.activation_checkpointing_enable({"use_reentrant": False})
    if checkpointing == "all_but_attention":
        keep_attention(model)
    if checkpointing == "selective":
        checkpoint_selectively(model)
    config = replace(CONFIG, num_inner_steps=steps)
    setup = Setup(length=200, response_tokens=60, turns=2, checkpointing=checkpointing)
    plan = Plan(ModelShape.of(model, config), config, setup)
    planned = sum(phase.total - phase.attention for phase in plan.flops.values())
    assert planned == counted_flops(model, config, [(70, 30)] * 2)


def test_the_flops_of_a_causal_share_are_the_mean_over_the_steps():
    shape, setup = ModelShape.of(tiny_model("llama"), CONFIG), Setup(length=200, response_tokens=60)
    shares = [Plan(shape, replace(CONFIG, causal_share=s), setup).total_flops for s in (0, 0.5, 1)]
    causal = replace(CONFIG, context_attention="causal", inner_context_attention="bidirectional")
    assert shares[2] == Plan(shape, causal, setup).total_flops
    assert shares[1] == pytest.approx((shares[0] + shares[2]) / 2)


def test_more_steps_length_and_devices():
    shape = ModelShape.of(tiny_model("llama"), CONFIG)
    setup = Setup(length=4096, response_tokens=64)
    one = Plan(shape, CONFIG, setup)
    peaks = [
        Plan(shape, CONFIG, replace(setup, checkpointing=kind)).peak
        for kind in ("full", "all_but_attention", "selective", "none")
    ]
    assert peaks == sorted(peaks)
    assert (
        Plan(shape, CONFIG, replace(setup, checkpointing="none")).total_flops
        < Plan(shape, CONFIG, replace(setup, checkpointing="all_but_attention")).total_flops
        < Plan(shape, CONFIG, replace(setup, checkpointing="full")).total_flops
    )
    assert Plan(shape, replace(CONFIG, num_inner_steps=3), setup).total_flops > one.total_flops
    sharded = Plan(shape, CONFIG, replace(setup, data_parallel=8, shards=8))
    assert sharded.memory["optimizer state"] * 8 == one.memory["optimizer state"]
    assert one.over_sft > 1
    dense = Plan(shape, CONFIG, replace(setup, backend="dense"))
    assert dense.memory["dense mask"] == 4096**2


def test_a_fused_gate_counts_as_one():
    config = replace(CONFIG, inner_target_modules="down_proj")
    setup = Setup(length=4096, response_tokens=64)
    fused, plain = (ModelShape.of(tiny_model(family), config) for family in ("glm", "llama"))
    assert (fused.is_gated, fused.mlp_readers) == (True, 1)
    assert (plain.is_gated, plain.mlp_readers) == (True, 2)
    fused = replace(fused, intermediate=plain.intermediate)
    precision = setup.activation_precision
    assert mlp_bytes(fused, 9, precision) == mlp_bytes(plain, 9, precision)
    assert not ModelShape.of(
        tiny_model("phi"), replace(CONFIG, inner_target_modules="fc2")
    ).is_gated


def test_gradients_that_fsdp2_has_not_reduced_are_those_of_the_whole_model():
    shape = ModelShape.of(tiny_model("llama"), CONFIG)
    setup = Setup(length=64, response_tokens=8, precision="bf16_mixed", data_parallel=8, shards=8)
    name, moment = "FSDP2 gradients not yet reduced", "start of the backward pass"
    one = Plan(shape, CONFIG, setup)
    kept = Plan(shape, CONFIG, replace(setup, accumulation=4))
    synced = Plan(shape, CONFIG, replace(setup, accumulation=4, syncs_each_batch=True))
    assert (one.memory[name], synced.memory[name]) == (0, 0)
    assert kept.memory[name] == 2 * shape.parameters
    assert kept.moments[moment] - one.moments[moment] == 2 * shape.parameters
    assert synced.moments[moment] - one.moments[moment] == one.memory["gradients"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"response_tokens": 512}, "--response"),
        ({"response_tokens": 9, "turns": 10}, "--turns"),
        ({"data_parallel": 6, "shards": 4}, "--shards"),
        ({"documents": 0}, "documents"),
        ({"optimizer": "lomo"}, "optim=lomo"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(UserError, match=words):
        Setup(**({"length": 512, "response_tokens": 64} | options))


def test_command_line(tmp_path, capsys):
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    out = tmp_path / "plan.json"
    options = ["--max_length", "256", "--train_data", "none.jsonl", "--output_dir", str(tmp_path)]
    command = ["plan", "--model_name_or_path", str(folder), "--tflops", "1", "--json", str(out)]
    assert main([*command, *options]) == 0
    plan = json.loads(out.read_text())
    assert plan["peak_bytes"] == max(plan["moments_bytes"].values())
    assert plan["step_seconds"] > 0
    assert "peak" in capsys.readouterr().out
    assert main([*command, *options, "--response", "256"]) == 2
    assert "lower --response" in capsys.readouterr().err


def test_meta_models_hold_no_weights():
    from focusft.training.models import meta_model

    model = meta_model("smollm2")
    assert {p.device for p in model.parameters()} == {torch.device("meta")}
