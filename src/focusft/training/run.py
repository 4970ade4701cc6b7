"""`focusft train`: data in, a plain Hugging Face model and results.json out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from focusft.data import prepare_dataset
from focusft.errors import ConfigError
from focusft.training.adapters import add_adapters, save_merged
from focusft.training.config import TrainConfig
from focusft.training.models import load_model, load_tokenizer
from focusft.training.provenance import versions, write_json
from focusft.training.trainer import FocuSFTTrainer


def train(config: TrainConfig, console: Console) -> dict[str, Any]:
    """Train as the options say, going on from the last checkpoint in `output_dir`.

    Returns:
        What `results.json` in `output_dir` holds.

    Raises:
        UserError: The data, the model or an option cannot be used, or the loss is not finite.
    """
    started = time.perf_counter()
    folder = Path(str(config.output_dir))
    checkpoint = get_last_checkpoint(folder) if folder.is_dir() else None
    if checkpoint and not config.resume:
        raise ConfigError(
            f"output_dir: {folder} holds checkpoints of an earlier run; name another folder, or "
            "leave resume out to go on from them"
        )
    tokenizer = load_tokenizer(config.model_name_or_path)
    datasets, reports = {}, {}
    for split, paths in (("train", config.train_data), ("val", config.val_data)):
        if paths:
            datasets[split], reports[split] = prepare_dataset(
                [path.strip() for path in paths.split(",")],
                tokenizer,
                max_length=config.max_length,
                length_policy=config.length_policy,
                num_proc=config.num_proc,
            )
            console.print(f"{split}: {reports[split].one_line()}", soft_wrap=True)
    if config.eval_strategy != "no" and "val" not in datasets:
        raise ConfigError("eval_strategy: needs validation data; set val_data")
    # Dropout and the order of the data are drawn from here on.
    set_seed(config.seed)
    model = load_model(
        config.model_name_or_path,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
    )
    trainer = FocuSFTTrainer(
        model=add_adapters(model, config) if config.use_peft else model,
        args=config,
        train_dataset=datasets["train"],
        eval_dataset=datasets.get("val"),
        processing_class=tokenizer,
    )
    console.print(f"attention: {trainer.engine.attention_backend}")
    if checkpoint:
        console.print(f"going on from {checkpoint}", soft_wrap=True)
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.evaluate() if "val" in datasets else {}
    trainer.save_model()
    results = {
        "metrics": metrics,
        "inner_steps_watched": trainer.inner_steps_watched,
        "inner_steps_raised": trainer.inner_steps_raised,
        "seconds": time.perf_counter() - started,
        "attention_backend": trainer.engine.attention_backend,
        "resumed_from": checkpoint,
        "data": {split: report.to_dict() for split, report in reports.items()},
        "log": trainer.state.log_history,
        "config": config.resolved(),
        "versions": versions(),
    }
    if trainer.is_world_process_zero():
        write_json(folder / "results.json", results)
        console.print(f"trained model and results.json: {folder}", soft_wrap=True)
        if config.merge_adapters:
            merged = save_merged(config, folder)
            console.print(f"model with its adapters merged: {merged}", soft_wrap=True)
    return results
