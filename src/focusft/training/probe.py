"""`focusft probe`: the attention of a model on conversations, under both masks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from transformers import PreTrainedModel

from focusft.analysis.dilution import measure_documents, observing, probing
from focusft.analysis.recorder import DocumentDilution, QuerySample, Recorder
from focusft.data.marked import MarkedExample, MarkedSet, read_marked
from focusft.errors import ConfigError
from focusft.method.architectures import read_architecture
from focusft.method.config import ContextAttention, ContextBlocks, FocusConfig
from focusft.method.engine import attach
from focusft.method.turns import TurnLayout
from focusft.training.models import Dtype, load_model, load_tokenizer
from focusft.training.probe_report import print_differences, print_probe
from focusft.training.probe_results import (
    FAST_WEIGHTS,
    MASKS,
    Measured,
    differences,
    probe_results,
)
from focusft.training.provenance import versions, write_json
from focusft.training.resolved_config import trained_context_blocks

_Measure = Callable[[dict[str, Tensor]], tuple[DocumentDilution, list[float]]]


@dataclass(frozen=True)
class ProbeSettings:
    """What to measure.

    Attributes:
        data: Data files or hub names, comma-separated.
        samples: Examples to measure, the first usable ones.
        max_length: Longer examples are left out, and counted.
        context_queries: Context queries of an example, evenly spaced; all response queries count.
        dtype: Type of the weights.
        with_fast_weights: Measure too with fast weights that were adapted on the example.
        inner_lr: Step size of their inner loop.
        num_inner_steps: K.
    """

    data: str
    samples: int = 100
    max_length: int = 4096
    context_queries: int = 128
    dtype: Dtype = "auto"
    with_fast_weights: bool = False
    inner_lr: float = 0.1
    num_inner_steps: int = 2

    def __post_init__(self) -> None:
        if self.context_queries < 1:
            raise ConfigError(f"context_queries: {self.context_queries} must be 1 or more")
        if self.with_fast_weights and self.num_inner_steps < 1:
            raise ConfigError("num_inner_steps: fast weights need 1 or more")
        if self.with_fast_weights:
            self.focus_config("causal")  # checks the options of the inner loop

    @property
    def sample(self) -> QuerySample:
        """The queries of each example."""
        return QuerySample(response=None, context=self.context_queries)

    def focus_config(
        self, context_attention: ContextAttention, context_blocks: ContextBlocks = "merged"
    ) -> FocusConfig:
        """The inner loop: the published one but for the step size and the model's own blocks."""
        return FocusConfig(
            num_inner_steps=self.num_inner_steps,
            inner_lr=self.inner_lr,
            context_attention=context_attention,
            context_blocks=context_blocks,
            attention_backend="segments",
        )


def run_probe(
    model_name: str, compare: str | None, settings: ProbeSettings, out: Path, console: Console
) -> dict[str, Any]:
    """Measure one model, or two on the same conversations.

    Args:
        model_name: As in `load_model`.
        compare: A second model, or None.
        settings: What to measure.
        out: Folder for `results.json`.
        console: Where the tables go.

    Returns:
        What `results.json` holds (docs/attention.md).

    Raises:
        UserError: A model, the data or an option cannot be used.
    """
    started = time.perf_counter()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"out: {out} cannot be a folder ({error.strerror}); name another"
        ) from None
    # A wrong name shows before anything is measured.
    marked = {name: _read(name, settings, console) for name in (model_name, compare) if name}
    results = _probe(model_name, marked[model_name], settings, console)
    if compare:
        other = _probe(compare, marked[compare], settings, console)
        other["differences"] = differences(results["examples"], other["examples"])
        results["compare"] = other
    results |= {
        "config": asdict(settings) | {"model": model_name, "compare": compare},
        "seconds": time.perf_counter() - started,
        "versions": versions(),
    }
    write_json(out / "results.json", results)
    print_probe(results, console)
    if compare:
        print_probe(results["compare"], console)
        print_differences(results, console)
    console.print(f"results: {out / 'results.json'}", soft_wrap=True)
    return results


def _read(model_name: str, settings: ProbeSettings, console: Console) -> MarkedSet:
    marked = read_marked(
        [path.strip() for path in settings.data.split(",")],
        load_tokenizer(model_name),
        samples=settings.samples,
        max_length=settings.max_length,
    )
    console.print(f"{model_name}: {marked.one_line()}", soft_wrap=True)
    return marked


def _probe(
    model_name: str, marked: MarkedSet, settings: ProbeSettings, console: Console
) -> dict[str, Any]:
    model = load_model(model_name, dtype=settings.dtype)
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    blocks = trained_context_blocks(model_name)
    if settings.with_fast_weights:
        # A model that they do not fit shows before anything is measured.
        read_architecture(model, settings.focus_config("causal", blocks))
    measured = _measure(model, blocks, marked.examples, settings, model_name, console)
    return {
        "model": model_name,
        "context_blocks": blocks,
        **probe_results(measured, marked, load_tokenizer(model_name)),
    }


def _measure(
    model: PreTrainedModel,
    blocks: ContextBlocks,
    examples: Sequence[MarkedExample],
    settings: ProbeSettings,
    title: str,
    console: Console,
) -> dict[str, Measured]:
    """Measure every example under every condition, by the condition's name."""
    conditions: dict[str, Callable[[], AbstractContextManager[_Measure]]]
    conditions = {mask: partial(_plain, model, mask, blocks, settings) for mask in MASKS}
    if settings.with_fast_weights:
        conditions |= {
            mask + FAST_WEIGHTS: partial(_adapted, model, mask, blocks, settings) for mask in MASKS
        }
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    measured: dict[str, Measured] = {}
    with progress:
        task = progress.add_task(title, total=len(examples) * len(conditions))
        for name, prepare in conditions.items():
            progress.update(task, description=f"{title}, {name.replace('_', ' ')}")
            found = Measured([], [])
            with prepare() as measure:
                for example in examples:
                    batch = {k: t.to(model.device) for k, t in example.batch().items()}
                    document, inner_losses = measure(batch)
                    found.documents.append(document)
                    found.inner_losses.append(inner_losses)
                    progress.advance(task)
            measured[name] = found
    return measured


@contextmanager
def _plain(
    model: PreTrainedModel, mask: ContextAttention, blocks: ContextBlocks, settings: ProbeSettings
) -> Iterator[_Measure]:
    with probing(model) as probed:

        def measure(batch: dict[str, Tensor]) -> tuple[DocumentDilution, list[float]]:
            (document,) = measure_documents(probed, batch, mask, settings.sample, blocks)
            return document, []

        yield measure


@contextmanager
def _adapted(
    model: PreTrainedModel, mask: ContextAttention, blocks: ContextBlocks, settings: ProbeSettings
) -> Iterator[_Measure]:
    config = settings.focus_config(mask, blocks)
    architecture = read_architecture(model, config)
    engine = attach(model, config)

    def measure(batch: dict[str, Tensor]) -> tuple[DocumentDilution, list[float]]:
        recorder = Recorder(batch, TurnLayout.from_batch(batch, blocks), mask, settings.sample)
        inputs = {name: batch[name] for name in ("input_ids", "labels", "turn_ids")}
        with torch.no_grad(), observing(architecture, recorder):
            model(**inputs)
        (document,) = recorder.documents()
        assert engine.trace is not None
        return document, engine.trace.mean_losses

    model.train()
    try:
        yield measure
    finally:
        model.eval()
        engine.detach()
