"""`focusft plan`: from the options of a run to a plan, and the plan as tables."""

from __future__ import annotations

import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.training_args import OptimizerNames

from focusft.errors import ConfigError
from focusft.training.config import TrainConfig
from focusft.training.models import meta_model
from focusft.training.plan import Plan
from focusft.training.plan.setup import ModelShape, PrecisionName, Setup

GIB = 1024**3
_ADDED = {
    "parameters",
    "gradients",
    "optimizer state",
    "DDP gradient buckets",
    "FSDP2 unsharded, outer loop",
    "FSDP2 unsharded, inner loop",
    "FSDP2 unsharded gradients",
    "autocast weight copies",
    "activations, kept",
    "attention of one layer",
    "logits",
    "dense mask",
    "inner activations",
    "inner logits",
    "fast weights",
}


def plan_training(
    config: TrainConfig,
    *,
    response_tokens: int,
    turns: int,
    data_parallel: int,
    shards: int,
    device: str,
    tflops: float | None,
    utilisation: float,
) -> Plan:
    """Plan a run of `focusft train` with conversations of `max_length` tokens.

    Args:
        config: Options of the run.
        response_tokens: Labelled tokens of a conversation.
        turns: Pairs of context and response in a conversation.
        data_parallel: Number of devices.
        shards: Devices that FSDP2 spreads the model over; 1 for DDP.
        device: "cpu" or "cuda".
        tflops: Matmul rate of a device in 10^12 per second; measured if None on the CPU.
        utilisation: Fraction of it that a whole step reaches.

    Raises:
        UserError: The model has no config here, or an option is out of range.
    """
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device: {device!r} is not one of cpu, cuda")
    if not 0 < utilisation <= 1:
        raise ConfigError(f"--utilisation: {utilisation} must be above 0 and at most 1")
    model = meta_model(config.model_name_or_path)
    focus = config.focus_config()
    setup = Setup(
        length=config.max_length,
        response_tokens=response_tokens,
        documents=config.per_device_train_batch_size,
        turns=turns,
        accumulation=config.gradient_accumulation_steps,
        syncs_each_batch=_syncs_each_batch(config),
        precision=_precision(config, model.config.dtype),
        checkpointing=config.checkpointing_on(device),
        data_parallel=data_parallel,
        shards=shards,
        optimizer=OptimizerNames(config.optim).value,
        backend="segments" if config.attention_backend == "auto" else config.attention_backend,
        device="cuda" if device == "cuda" else "cpu",
    )
    if tflops is None and device == "cpu":
        tflops = measured_tflops()
    return Plan(ModelShape.of(model, focus), focus, setup, tflops, utilisation)


def _syncs_each_batch(config: TrainConfig) -> bool:
    options: Any = config.accelerator_config
    return bool((options.gradient_accumulation_kwargs or {}).get("sync_each_batch"))


def _precision(config: TrainConfig, saved: torch.dtype | str | None) -> PrecisionName:
    is_half = config.dtype == "bfloat16" or (config.dtype == "auto" and saved == torch.bfloat16)
    if is_half:
        return "bf16"
    return "bf16_mixed" if config.bf16 or config.fp16 else "fp32"


def measured_tflops(size: int = 2048, rounds: int = 8) -> float:
    """Best rate of a square float32 product on this CPU, in 10^12 per second."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds) / 1e12


def print_plan(plan: Plan, console: Console) -> None:
    """Print what is planned, the memory of one device, and the FLOPs of one micro-batch."""
    shape, setup, focus = plan.shape, plan.setup, plan.focus
    console.print(
        f"{shape.family}, {shape.parameters / 1e9:.2f}B parameters, {shape.layers} layers, "
        f"{shape.adapted} with fast weights; {setup.documents} x {setup.length} tokens, "
        f"{setup.response_tokens} of them response; {setup.precision}, "
        f"checkpointing {setup.checkpointing}; {setup.data_parallel} devices, "
        f"{setup.shards} shards; K = {focus.num_inner_steps}",
        soft_wrap=True,
    )
    memory = Table("memory of one device", "GiB")
    for name, size in plan.memory.items():
        if name in _ADDED and size:
            memory.add_row(name, f"{size / GIB:.2f}")
    memory.add_section()
    for moment, size in plan.moments.items():
        style = "bold" if moment == plan.peak_moment else ""
        memory.add_row(f"alive: {moment}", f"{size / GIB:.2f}", style=style)
    console.print(memory)
    flops = Table("one micro-batch on one device", "TFLOP")
    for phase, count in plan.flops.items():
        flops.add_row(phase, f"{count.total / 1e12:.3f}")
    flops.add_section()
    flops.add_row("together", f"{plan.total_flops / 1e12:.3f}", style="bold")
    flops.add_row("times those of K = 0", f"{plan.over_sft:.2f}")
    console.print(flops)
    console.print(f"peak: {plan.peak / GIB:.2f} GiB on each device, at the {plan.peak_moment}")
    if plan.seconds is not None and plan.tflops is not None:
        console.print(
            f"one optimizer step: about {plan.seconds:.1f} s at {plan.tflops:.2f} TFLOP/s and "
            f"{plan.utilisation:.0%} of it, without communication"
        )
