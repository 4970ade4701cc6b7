"""The whole of FocuSFT in one command: data, training, and what changed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from focusft.analysis.dilution import measure_documents, probing
from focusft.analysis.report import write_report
from focusft.data import ConversationCollator, prepare_dataset
from focusft.data.marked import MarkedSet, read_marked
from focusft.data.split import Split
from focusft.data.synthetic import make_conversations
from focusft.data.worlds import LOCATIONS
from focusft.evaluation.generation import LocalGenerator, Prompt
from focusft.statistics.scores import wilson_interval
from focusft.training.config import FocuSFTConfig
from focusft.training.models import load_model, load_tokenizer
from focusft.training.probe_results import MASKS, Measured, probe_results
from focusft.training.provenance import versions, write_json
from focusft.training.trainer import FocuSFTTrainer
from focusft.training.validation import response_loss


@dataclass(frozen=True)
class DemoSettings:
    """Settings measured to work on SmolLM2-135M; those of the paper's 7B model diverge on it.

    Attributes:
        train_examples: Conversations to train on, each seen once.
        held_out_examples: Conversations of the comparison; other prose, other worlds.
        probed_examples: How many of them the attention is measured on.
        context_tokens: Length of the text that hides the facts.
        batch_size: Conversations in one step.
        learning_rate: Of the outer AdamW.
        inner_lr: Of the inner SGD.
        num_inner_steps: K.
        seed: Of data, fast weights and order.
    """

    train_examples: int = 240
    held_out_examples: int = 100
    probed_examples: int = 16
    context_tokens: int = 60
    batch_size: int = 4
    learning_rate: float = 3e-4
    inner_lr: float = 0.03
    num_inner_steps: int = 2
    seed: int = 1234


def run_demo(
    out: Path, model_name: str, settings: DemoSettings, console: Console
) -> dict[str, Any]:
    """Train on generated conversations and compare the model before and after.

    Args:
        out: Folder for the data, the trained model, `results.json` and `report.html`.
        model_name: As in `load_model`.
        settings: Sizes and step sizes.
        console: Where the table goes.

    Returns:
        What `results.json` holds.
    """
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    console.rule("[bold]FocuSFT demo")
    tokenizer = load_tokenizer(model_name)
    model = load_model(model_name, dtype="float32")

    def count_tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    train_file, _ = _write_data(out, "train", settings.train_examples, settings, count_tokens)
    held_out_file, held_out = _write_data(
        out, "held_out", settings.held_out_examples, settings, count_tokens
    )
    train_set, report = prepare_dataset(train_file, tokenizer, max_length=None)
    held_out_set, _ = prepare_dataset(held_out_file, tokenizer, max_length=None)
    console.print(f"data: {report.one_line()}")

    marked = read_marked(
        held_out_file, tokenizer, samples=settings.probed_examples, max_length=None
    )

    def measure(title: str) -> tuple[dict[str, Any], dict[str, Any]]:
        figures = _measure(model, tokenizer, held_out, held_out_set, title, console)
        probe = _probe(model, marked, tokenizer)
        for mask, suffix in (("causal", ""), ("bidirectional", "_bidirectional")):
            for figure in ("sink_mass", "context_engagement"):
                figures[figure + suffix] = probe[mask][figure]
        return figures, probe

    before, probe_before = measure("before training")
    training_started = time.perf_counter()
    args = FocuSFTConfig(
        output_dir=str(out / "checkpoints"),
        num_train_epochs=1,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=1,
        learning_rate=settings.learning_rate,
        num_inner_steps=settings.num_inner_steps,
        inner_lr=settings.inner_lr,
        activation_checkpointing=False,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        seed=settings.seed,
    )
    trainer = FocuSFTTrainer(
        model=model,
        args=args,
        train_dataset=train_set,
        processing_class=tokenizer,
    )
    # One bar like those of the measurements, instead of a line for each step.
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    with _progress(console) as progress:
        trainer.add_callback(_ShowSteps(progress))
        trainer.train()
    trainer.engine.detach()
    train_seconds = time.perf_counter() - training_started
    model_folder = out / "model"
    model.save_pretrained(model_folder)
    tokenizer.save_pretrained(model_folder)
    after, probe_after = measure("after training")
    results = {
        "before": before,
        "after": after,
        "seconds": {"train": train_seconds, "total": time.perf_counter() - started},
        "model": model_name,
        "settings": asdict(settings),
        "data": report.to_dict(),
        "questions": [
            {"question": row["meta"]["question"], "answer": row["meta"]["answer"]}
            for row in held_out
        ],
        "probes": {"before": probe_before, "after": probe_after},
        "log": trainer.state.log_history,
        "versions": versions(),
    }
    write_json(out / "results.json", results)
    print_summary(results, console)
    page = write_report([out / "results.json"], out / "report.html")
    console.print(f"results: {out / 'results.json'}\ntrained model: {model_folder}")
    console.print(f"report: {page.path} (open it in a browser)", soft_wrap=True)
    console.print(f"talk to it: [bold]focusft chat {model_folder}[/bold]", soft_wrap=True)
    return results


class _ShowSteps(TrainerCallback):
    """Shows the steps and the last logged losses on one line."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("training", total=None)

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._progress.update(self._task, completed=state.global_step, total=state.max_steps)

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            adapted, unadapted = logs["loss"], logs["inner_loss_0"]
            self._progress.update(
                self._task,
                description=f"training, loss {unadapted:.2f}, with fast weights {adapted:.2f}",
            )


def _write_data(
    out: Path,
    split: Split,
    count: int,
    settings: DemoSettings,
    count_tokens: Callable[[str], int],
) -> tuple[Path, list[dict[str, Any]]]:
    rows = make_conversations(
        "qa1",
        split=split,
        count=count,
        context_tokens=settings.context_tokens,
        seed=settings.seed,
        count_tokens=count_tokens,
    )
    path = out / f"{split}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path, rows


def _measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    dataset: Any,
    title: str,
    console: Console,
) -> dict[str, Any]:
    """Accuracy and loss under causal attention."""
    model.eval()
    batches = list(_batches(dataset, tokenizer.pad_token_id, size=8))
    with _progress(console) as progress:
        task = progress.add_task(title, total=len(rows) + len(dataset))
        answers = [""] * len(rows)
        prompts = [Prompt(tuple(row["messages"][:-1]), max_new_tokens=8) for row in rows]
        for index, completion in LocalGenerator(model, tokenizer).complete(prompts):
            answers[index] = completion.text
            progress.advance(task)
        total_loss, total_tokens = 0.0, 0.0
        for batch in batches:
            with torch.inference_mode():
                loss, count = response_loss(model, _on(model.device, batch), "causal")
            total_loss, total_tokens = total_loss + loss.item(), total_tokens + count.item()
            progress.advance(task, len(batch["input_ids"]))
    right = [
        is_exact_match(answer, row["meta"]["answer"])
        for answer, row in zip(answers, rows, strict=True)
    ]
    named = [
        names_only(answer, row["meta"]["answer"]) for answer, row in zip(answers, rows, strict=True)
    ]
    low, high = wilson_interval(sum(right), len(right))
    return {
        "accuracy": sum(right) / len(right),
        "accuracy_low": low,
        "accuracy_high": high,
        "accuracy_lenient": sum(named) / len(named),
        "examples": len(right),
        "response_loss": total_loss / total_tokens,
        "answers": answers,
        "right": right,
    }


def _probe(
    model: PreTrainedModel, marked: MarkedSet, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Attention under both masks, as `focusft probe` writes it, without single heads."""
    nothing_adapted: list[list[float]] = [[] for _ in marked.examples]
    with probing(model) as probed:
        measured: dict[str, Measured] = {
            mask: Measured(
                [
                    document
                    for example in marked.examples
                    for document in measure_documents(
                        probed, _on(model.device, example.batch()), mask
                    )
                ],
                nothing_adapted,
            )
            for mask in MASKS
        }
    results = probe_results(measured, marked, tokenizer)
    for mask in MASKS:
        for figures in (results[mask], results[mask]["context_queries"]):
            if figures is not None:
                del figures["per_head"]
    return results


def _on(device: torch.device, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    # The trainer has moved the model to the GPU, if there is one.
    return {name: tensor.to(device) for name, tensor in batch.items()}


def is_exact_match(answer: str, label: str) -> bool:
    """Equal but for surrounding white space, a final full stop and case."""
    return answer.strip().removesuffix(".").casefold() == label.casefold()


def names_only(answer: str, label: str) -> bool:
    """The answer names the label, in whatever sentence, and no other place."""
    text = answer.casefold()
    return [place for place in LOCATIONS if place in text] == [label]


def _batches(dataset: Any, pad_token_id: int, size: int) -> Iterator[dict[str, Tensor]]:
    collate = ConversationCollator(pad_token_id)
    for start in range(0, len(dataset), size):
        stop = min(start + size, len(dataset))
        yield collate([dataset[index] for index in range(start, stop)])


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def print_summary(results: dict[str, Any], console: Console) -> None:
    """Print the comparison that a `results.json` of the demo holds."""
    before, after = results["before"], results["after"]
    table = Table(title=f"{results['model']}: {before['examples']} held-out conversations")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")

    def interval(figures: dict[str, Any]) -> str:
        low, high = figures["accuracy_low"], figures["accuracy_high"]
        return f"{figures['accuracy']:.1%} [{low:.0%}, {high:.0%}]"

    table.add_row("accuracy, greedy, exact match [95%]", interval(before), interval(after))
    for label, key, form in (
        ("... or a sentence that names the place", "accuracy_lenient", ".1%"),
        ("loss of a response token", "response_loss", ".3f"),
        ("sink mass, causal context", "sink_mass", ".4f"),
        ("sink mass, bidirectional context", "sink_mass_bidirectional", ".2e"),
        ("context engagement, causal context", "context_engagement", ".3f"),
        (
            "context engagement, bidirectional context",
            "context_engagement_bidirectional",
            ".3f",
        ),
    ):
        table.add_row(label, format(before[key], form), format(after[key], form))
    console.print(table)
    seconds = results["seconds"]
    console.print(f"training {seconds['train']:.0f} s, everything {seconds['total']:.0f} s")
