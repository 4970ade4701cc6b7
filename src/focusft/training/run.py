"""`focusft train`: data in, a plain Hugging Face model and results.json out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from focusft.data import prepare_dataset
from focusft.data.marked import read_marked
from focusft.errors import ConfigError
from focusft.training.adapters import add_adapters, save_merged
from focusft.training.checkpoints import last_good_checkpoint, list_checkpoints, storage_errors
from focusft.training.config import TrainConfig
from focusft.training.live_probe import PROBE_EXAMPLES
from focusft.training.models import load_model, load_tokenizer
from focusft.training.provenance import versions, write_json
from focusft.training.signals import StopOnSignal
from focusft.training.stop_tokens import add_stop_ids
from focusft.training.trainer import FocuSFTTrainer


def train(config: TrainConfig, console: Console) -> dict[str, Any]:
    """Train as the options say, going on from the last checkpoint in `output_dir`.

    Returns:
        What `results.json` in `output_dir` holds.

    Raises:
        UserError: The data, the model, an option or a checkpoint cannot be used, the loss is not
            finite, or the disk is full.
        RunInterrupted: SIGTERM or SIGINT stopped the training, with a checkpoint.
    """
    started = time.perf_counter()
    folder = Path(str(config.output_dir))
    checkpoint = _find_checkpoint(config, folder, console)
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
            for warning in reports[split].warnings():
                console.print(f"WARNING: {split}: {warning}", soft_wrap=True, markup=False)
    if config.eval_strategy != "no" and "val" not in datasets:
        raise ConfigError("eval_strategy: needs validation data; set val_data")
    # Dropout and the order of the data are drawn from here on.
    set_seed(config.seed)
    model = load_model(
        config.model_name_or_path,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
    )
    if model.dtype is torch.float16:
        raise ConfigError(
            f"dtype: the weights of {config.model_name_or_path} are float16, in which AdamW's "
            "steps go wrong; set dtype to float32 or bfloat16"
        )
    for split, dataset in datasets.items():
        _refuse_ids_without_embedding(f"{split}_data", dataset, model, tokenizer)
    has_own_config = not config.use_peft or config.merge_adapters
    if (added := add_stop_ids(model, tokenizer)) and has_own_config:
        tokens = ", ".join(tokenizer.convert_ids_to_tokens(added))
        console.print(
            f"the trained model's answers will end at {tokens} too, as in the chat template",
            markup=False,
        )
    stop = StopOnSignal()
    trainer = FocuSFTTrainer(
        model=add_adapters(model, config) if config.use_peft else model,
        args=config,
        train_dataset=datasets["train"],
        eval_dataset=datasets.get("val"),
        processing_class=tokenizer,
        callbacks=[stop],
        probe_set=_probe_set(config, tokenizer, console) if config.probe_steps else None,
    )
    console.print(f"attention: {trainer.engine.attention_backend}")
    if checkpoint:
        console.print(f"going on from {checkpoint}", soft_wrap=True)
    with stop.catch(folder):
        trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.evaluate() if "val" in datasets else {}
    with storage_errors(folder, "the trained model"):
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
        with storage_errors(folder, "results.json"):
            write_json(folder / "results.json", results)
        console.print(f"trained model and results.json: {folder}", soft_wrap=True)
        if config.merge_adapters:
            with storage_errors(folder, "the merged model"):
                merged = save_merged(config, folder)
            console.print(f"model with its adapters merged: {merged}", soft_wrap=True)
    return results


def _refuse_ids_without_embedding(
    option: str, dataset: Dataset, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Text may hold a token that `load_tokenizer` only warned of."""
    embeddings = model.config.get_text_config().vocab_size
    column = dataset.select_columns("input_ids").with_format("arrow")
    for table in column.iter(batch_size=10_000):
        for rows in table["input_ids"].chunks:
            highest = int(rows.flatten().to_numpy().max(initial=0))
            if highest >= embeddings:
                token = tokenizer.convert_ids_to_tokens(highest)
                raise ConfigError(
                    f"{option}: the text has the token {token!r} (id {highest}), but the model has "
                    f"{embeddings} embeddings; take it out of the text, or call "
                    f"model.resize_token_embeddings({highest + 1}) and save the model"
                )


def _find_checkpoint(config: TrainConfig, folder: Path, console: Console) -> str | None:
    """The newest whole checkpoint, the same one in every process."""
    if not config.resume and list_checkpoints(folder):
        raise ConfigError(
            f"output_dir: {folder} holds checkpoints of an earlier run; name another folder, or "
            "leave resume out to go on from them"
        )
    found: list[str | None] = [None]
    if config.process_index == 0:
        checkpoint, damaged = last_good_checkpoint(folder)
        for line in damaged:
            console.print(f"WARNING: {line}", soft_wrap=True, markup=False)
        found = [str(checkpoint) if checkpoint else None]
    broadcast_object_list(found)
    return found[0]


def _probe_set(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, console: Console
) -> list[dict[str, Tensor]]:
    """The first examples of the validation data, which know content and marked facts."""
    name = "val_data" if config.val_data else "train_data"
    marked = read_marked(
        [path.strip() for path in vars(config)[name].split(",")],
        tokenizer,
        samples=PROBE_EXAMPLES,
        max_length=config.max_length,
        length_policy=config.length_policy,
    )
    console.print(
        f"attention probe: first {len(marked.examples)} examples of {name}, "
        f"every {config.probe_steps} steps"
    )
    return [example.batch() for example in marked.examples]
