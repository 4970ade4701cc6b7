"""One trainer in a process of its own, stepping whenever it is told to.

Started by the other benchmarks: it answers each line on its standard input with one step and one
line of JSON, the seconds of the step and the peak memory of the process so far.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, get_args

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from benchmarks.flop_counter import flop_counter
from benchmarks.published import PublishedTrainer, checkout_trainer
from focusft.method.config import FocusConfig
from focusft.training.checkpointing import Checkpointing
from focusft.training.config import FocuSFTConfig
from focusft.training.models import load_model, load_tokenizer
from focusft.training.trainer import FocuSFTTrainer

VARIANTS = ("sft", "k0", "ours", "published", "authors", "trl_sft")


def main() -> None:
    """Build the trainer, then step on demand."""
    options = parser().parse_args()
    if options.limit_gb:
        limit = int(options.limit_gb * 1024**3)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    interpreter_gb = _peak_gb()
    model = _model(options)
    rows = json.loads(options.rows.read_text())
    trainer = make_trainer(options, model, rows)
    trainer.add_callback(StepOnDemand(counts_flops=options.count_flops))
    _answer({"interpreter_gb": interpreter_gb})
    trainer.train()


def parser() -> argparse.ArgumentParser:
    """The options of a trainer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("--checkpointing", choices=get_args(Checkpointing), default="none")
    parser.add_argument("--model", required=True)
    parser.add_argument("--layers", type=int, help="random weights, with so many layers")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--autocast", action="store_true", help="bf16 autocast")
    parser.add_argument("--num_inner_steps", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--pad_to", type=int, help="tokens of a padded batch (not ours)")
    parser.add_argument("--count_flops", action="store_true", help="answer with FLOPs; slower")
    parser.add_argument("--limit_gb", type=float, help="memory that the process may take")
    parser.add_argument("--checkout", type=Path)
    parser.add_argument("--rows", type=Path, required=True, help="JSON: a list of examples")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trainer")
    return parser


class StepOnDemand(TrainerCallback):
    """Waits before each step and tells how long it took, optimizer included."""

    def __init__(self, counts_flops: bool) -> None:
        self.started = 0.0
        self.counter = flop_counter() if counts_flops else None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for a line, or stop at the end of the input."""
        if not sys.stdin.readline():
            sys.stdout.flush()
            raise SystemExit(0)
        if self.counter is not None:
            self.counter.__enter__()
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Answer."""
        figures = {
            "seconds": time.perf_counter() - self.started,
            "peak_gb": _peak_gb(),
            "resident_gb": _resident_gb(),
        }
        if self.counter is not None:
            self.counter.__exit__(None, None, None)
            figures["flops"] = self.counter.get_total_flops()
        _answer(figures)


def _answer(figures: dict[str, float]) -> None:
    sys.__stdout__.write("\n@" + json.dumps(figures) + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def _resident_gb() -> float:
    return float(psutil.Process().memory_info().rss) / 1024**3


def _model(options: argparse.Namespace) -> Any:
    if options.layers is None:
        return load_model(options.model, dtype=options.dtype)
    config = AutoConfig.for_model(**load_model(options.model).config.to_dict())
    config.num_hidden_layers = options.layers
    config.layer_types = None
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options.dtype))


def make_trainer(
    options: argparse.Namespace, model: Any, rows: list[dict[str, list[int]]]
) -> Trainer:
    """The trainer that the options name, on these rows; it prints nothing."""
    trainer = _trainer(options, model, rows)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def _trainer(options: argparse.Namespace, model: Any, rows: list[dict[str, list[int]]]) -> Trainer:
    config = FocusConfig(
        num_inner_steps=0 if options.variant == "k0" else options.num_inner_steps, inner_lr=0.1
    )
    arguments: dict[str, Any] = {
        "output_dir": str(options.out),
        "max_steps": 10_000,
        "per_device_train_batch_size": options.batch_size,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-5,
        "activation_checkpointing": options.checkpointing in ("all_but_attention", "full"),
        "bf16": options.autocast,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
    }
    if options.checkpointing == "full":
        arguments["activation_checkpointing_kwargs"] = {"use_reentrant": False}
    if options.variant in ("sft", "k0", "ours"):
        ours = FocuSFTConfig(
            **arguments,
            method="sft" if options.variant == "sft" else "focusft",
            num_inner_steps=config.num_inner_steps,
            inner_lr=config.inner_lr,
            probe_steps=0,
            selective_checkpointing=options.checkpointing in ("selective", "all_but_attention"),
        )
        return FocuSFTTrainer(model=model, args=ours, train_dataset=rows)
    collate = partial(_pad, pad_to=options.pad_to)
    if options.variant == "trl_sft":
        return _trl_trainer(options, model, rows, arguments)
    from transformers import TrainingArguments

    if options.variant == "published":
        published = TrainingArguments(**arguments)
        return PublishedTrainer(model, published, config, train_dataset=rows, data_collator=collate)
    return checkout_trainer(
        options.checkout, model, arguments, config, train_dataset=rows, data_collator=collate
    )


def _trl_trainer(
    options: argparse.Namespace, model: Any, rows: Any, arguments: dict[str, Any]
) -> Trainer:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(**arguments, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    return SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(
            [{name: row[name] for name in ("input_ids", "labels")} for row in rows]
        ),
        data_collator=_pad,
        processing_class=load_tokenizer(options.model),
    )


def _pad(
    examples: list[dict[str, list[int]]], pad_to: int | None = None
) -> dict[str, torch.Tensor]:
    """A batch padded on the right."""
    length = pad_to or max(len(example["input_ids"]) for example in examples)

    def column(name: str, fill: int) -> torch.Tensor:
        return torch.tensor([e[name] + [fill] * (length - len(e[name])) for e in examples])

    batch = {"input_ids": column("input_ids", 0), "labels": column("labels", -100)}
    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    batch["attention_mask"] = (torch.arange(length)[None] < lengths[:, None]).long()
    batch["loss_mask"] = (batch["labels"] != -100).long()
    return batch


if __name__ == "__main__":
    main()
