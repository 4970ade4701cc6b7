"""FocuSFT on transformers.Trainer: only the loss, the validation and the logs are ours."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers.trainer_utils import has_length

from focusft.data import ConversationCollator, LengthBucketedSampler
from focusft.errors import ConfigError
from focusft.method.architectures import unwrap_causal_lm
from focusft.method.bfloat16 import warn_if_bfloat16_is_slow
from focusft.method.engine import FocusEngine
from focusft.method.inner_loop import InnerTrace
from focusft.method.loss import PredictedRows
from focusft.method.turns import TurnLayout
from focusft.training.checkpointing import KeepAttention, checkpoint_selectively
from focusft.training.config import FocuSFTConfig, TrainConfig
from focusft.training.heap import ReturnFreedMemory
from focusft.training.live_probe import PROBE_EXAMPLES, LiveProbe
from focusft.training.parallelism import refuse_data_parallel, refuse_parallelism
from focusft.training.resolved_config import RESOLVED_CONFIG
from focusft.training.resume import CONTENT, ResumableTrainer
from focusft.training.validation import response_loss, validation_losses
from focusft.training.watchdogs import (
    WatchInnerLoss,
    stop_on_non_finite,
    stop_on_non_finite_losses,
)

logger = logging.getLogger(__name__)

# Options of the method with which a run may go on otherwise.
_MAY_CHANGE = ("inner_lr", "inner_step", "inner_grad_clip", "attention_backend")


@dataclass
class _Window:
    """What happened since the last line of the log."""

    started: float = field(default_factory=time.perf_counter)
    tokens: int = 0
    response_tokens: int = 0
    traces: list[InnerTrace] = field(default_factory=list)


class FocuSFTTrainer(ResumableTrainer):
    """Bilevel SFT (arXiv 2605.09932, algorithm 1) in the trainer of transformers.

    Batches hold input_ids, attention_mask and labels, and optionally position_ids and turn_ids;
    without a collator of their own, rows with input_ids, labels and turn_ids are packed.
    The loss is the sum over the response tokens of all micro-batches and ranks divided by their
    number. Validation losses are those of the un-adapted model: `eval_loss` with causal
    attention, `eval_loss_bidirectional` with the mask of training, where the model can take it.
    """

    def __init__(
        self,
        model: nn.Module,
        args: FocuSFTConfig,
        *,
        probe_set: Sequence[Mapping[str, Tensor]] | None = None,
        **kwargs: Any,
    ) -> None:
        """Attach FocuSFT to the model and set up the trainer.

        Args:
            model: As for `focusft.attach`.
            args: The options.
            probe_set: Batches whose attention is measured during training, see
                `focusft.analysis.dilution.measure_documents`. By default the first examples of
                the validation data, or of the training data without any.
            kwargs: As for `transformers.Trainer`, without functions for the loss and metrics.

        Raises:
            ConfigError: Something that the method does not cover is asked for.
            UnsupportedModelError: The model has a part that the method does not cover.
        """
        _refuse_unsupported(args)
        _refuse_callables(kwargs)
        self.focusft_args = args
        self.focus_config = args.focus_config()
        # Packed rows need their documents kept apart in plain SFT as well.
        self._is_stock = self.focus_config.is_plain_sft and not args.packing
        self.engine = FocusEngine(model, self.focus_config, keep_plain_sft_stock=self._is_stock)
        try:
            self._set_up(model, args, probe_set, kwargs)
        except BaseException:
            # Without a trainer nobody could take the hooks off the model.
            self.engine.detach()
            raise

    def _set_up(
        self,
        model: nn.Module,
        args: FocuSFTConfig,
        probe_set: Sequence[Mapping[str, Tensor]] | None,
        kwargs: dict[str, Any],
    ) -> None:
        if kwargs.get("data_collator") is None:
            kwargs["data_collator"] = ConversationCollator(
                _pad_token_id(model, kwargs.get("processing_class")), packing=args.packing
            )
        super().__init__(model=model, args=args, **kwargs)
        refuse_parallelism(self.accelerator)
        # The loss below takes num_items_in_batch, whatever the model's own forward does.
        self.model_accepts_loss_kwargs = True
        checkpointing = args.checkpointing_on(args.device.type)
        if checkpointing == "selective":
            checkpoint_selectively(model)
            self.engine.checkpoints_inner_attention = False
        elif checkpointing == "all_but_attention":
            self.add_callback(KeepAttention())
        if checkpointing != "none" and args.device.type == "cpu" and not self._is_stock:
            self.add_callback(ReturnFreedMemory(self.engine.first_adapted_layer))
        if args.bf16 and args.device.type == "cpu":
            warn_if_bfloat16_is_slow("bf16", "leave it out to train faster")
        self.engine.stops_on_non_finite = self.args.world_size == 1
        self.add_callback(WatchInnerLoss(self.focus_config.inner_lr))
        self._window = _Window()
        self._data_sha256: str | None = None
        self.inner_steps_watched = 0
        self.inner_steps_raised = 0
        self.live_probe: LiveProbe | None = None
        if args.probe_steps and self.is_fsdp_enabled and unwrap_causal_lm(model) is not model:
            # The probe calls the model below PEFT, but FSDP2 must see its outermost one first.
            logger.warning("probe_steps: the attention probe is off with FSDP2 and PEFT together")
        elif args.probe_steps:
            batches = self._first_examples() if probe_set is None else probe_set
            self.live_probe = LiveProbe(
                model,
                self.focus_config,
                [self._prepare_inputs(dict(batch)) for batch in batches],
                args.probe_steps,
                watches_batch=self.engine.attention_backend in ("segments", "flex"),
            )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The outer loss of one micro-batch, summed and divided by `num_items_in_batch`."""
        if not model.training:  # `predict`: the stock model
            inputs = {name: value for name, value in inputs.items() if name != "turn_ids"}
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        mask_BS = inputs.get("attention_mask")
        tokens = inputs["input_ids"].numel() if mask_BS is None else mask_BS.sum().item()
        self._window.tokens += int(tokens)
        self._window.response_tokens += inputs["labels"].ne(-100).sum().item()
        with stop_on_non_finite_losses(self), self._probed(inputs):
            if self._is_stock:
                total, count = response_loss(model, inputs, "causal")
                normaliser = count if num_items_in_batch is None else num_items_in_batch
                loss = total / torch.as_tensor(normaliser).clamp(min=1)
                outputs = None
            else:
                self.engine.step = self.state.global_step
                outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
                loss = outputs.loss
                self._keep_trace(self.engine.trace)
        # Several processes stop together, at the norm of the gradients that they share.
        if self.args.world_size == 1 and self.is_in_train:
            stop_on_non_finite(self, "loss", loss.item())
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # DDP averages gradients over ranks; the normaliser already counts all of them.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _data_cursor(self) -> dict[str, Any]:
        """Of the method all but what mends a divergence, and what does not change the result."""
        args = self.focusft_args
        focus = {k: v for k, v in asdict(self.focus_config).items() if k not in _MAY_CHANGE}
        cursor = {"method": args.method, "packing": args.packing, **focus}
        if isinstance(args, TrainConfig):
            cursor |= {"model": args.model_name_or_path, "use_peft": args.use_peft}
            if args.use_peft:
                cursor |= {k: v for k, v in vars(args).items() if k.startswith("lora_")}
        if isinstance(self.train_dataset, Dataset):
            if self._data_sha256 is None:
                self._data_sha256 = _content_sha256(self.train_dataset)
            cursor[CONTENT] = self._data_sha256
        return super()._data_cursor() | cursor

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Padded, as the stock model wants it: a prediction for each example."""
        collator = self.data_collator
        if isinstance(collator, ConversationCollator):
            self.data_collator = replace(collator, packing=False)
        try:
            return super().get_test_dataloader(test_dataset)
        finally:
            self.data_collator = collator

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Tensor]], device: torch.device
    ) -> Tensor:
        """Predicted tokens of all micro-batches and ranks; the first of a document is none."""
        count = 0
        for batch in batch_samples:
            layout = TurnLayout.from_batch(batch, self.focus_config.context_blocks)
            count += len(PredictedRows.of(batch["labels"], layout))
        total = torch.tensor(count, device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        return total

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        args = self.args
        # The sampler of transformers for lengths draws the order of the first epoch when resumed.
        by_length = args.train_sampling_strategy == "group_by_length"
        if not by_length and (
            self.focusft_args.packing or args.train_sampling_strategy != "random"
        ):
            return super()._get_train_sampler(train_dataset)
        return LengthBucketedSampler(
            [len(ids) for ids in _column(dataset, "input_ids")],
            self.args.train_batch_size
            * self.args.gradient_accumulation_steps
            * self.args.world_size,
            args.seed if args.data_seed is None else args.data_seed,
        )

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Validation loss per response token of the un-adapted model, under both masks."""
        started = time.perf_counter()
        datasets = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(datasets, dict):
            several: dict[str, float] = {}
            for name, dataset in datasets.items():
                several |= self.evaluate(dataset, ignore_keys, f"{metric_key_prefix}_{name}")
            return several
        causal, bidirectional, tokens = validation_losses(
            self, eval_dataset, self.focus_config.context_blocks
        )
        metrics = {f"{metric_key_prefix}_loss": causal}
        if bidirectional is not None:
            metrics[f"{metric_key_prefix}_loss_bidirectional"] = bidirectional
        metrics[f"{metric_key_prefix}_response_tokens"] = tokens
        metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - started, 3)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make it, or say which package or option `optim` lacks."""
        with _option_errors("optim"):
            return super().create_optimizer(model)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        """Make it, or say which of `lr_scheduler_kwargs` is missing."""
        with _option_errors("lr_scheduler_type"):
            return super().create_scheduler(num_training_steps, optimizer)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the inner loop's losses and the throughput to each line of training."""
        if "loss" in logs:
            logs = {**logs, **self._window_metrics()}
            self._window = _Window()
        super().log(logs, start_time)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; afterwards name an inner step size that was too large, and its mend."""
        output = super().train(*args, **kwargs)
        probe, step = self.live_probe, self.state.global_step
        if probe is not None and probe.last_step != step:
            with self.compute_loss_context_manager():
                metrics = probe.measure_set(step)
            if metrics:
                self.log(metrics)
        if self.inner_steps_raised:
            logger.warning(
                "%d of %d inner steps raised the inner loss (inner_lr=%g): lower inner_lr or set "
                "inner_step=backtracking",
                self.inner_steps_raised,
                self.inner_steps_watched,
                self.focus_config.inner_lr,
            )
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save a plain Hugging Face model, gathered from all processes.

        Within checkpoints, `state_dict_type: SHARDED_STATE_DICT` of FSDP2 saves shards alone.
        """
        if self.is_fsdp_enabled and not _internal_call:
            self._save(output_dir, state_dict=self.accelerator.get_state_dict(self.model))
            if self.args.push_to_hub:
                self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
            return
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save a plain Hugging Face checkpoint, with the options as YAML instead of a pickle."""
        super()._save(output_dir, state_dict)
        if not self.args.should_save:  # under FSDP2 every process comes here
            return
        folder = Path(str(output_dir or self.args.output_dir))
        (folder / "training_args.bin").unlink(missing_ok=True)
        options = yaml.safe_dump(self.focusft_args.resolved(), sort_keys=True, allow_unicode=True)
        (folder / RESOLVED_CONFIG).write_text(options, encoding="utf-8")

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        # With fp16 an overflow is part of the search for the loss scale.
        if self.accelerator.scaler is None:
            stop_on_non_finite(self, "gradient norm", float(norm))
        return norm

    def counts(self) -> dict[str, int]:
        """Inner steps that were watched and raised so far."""
        return {
            "inner_steps_watched": self.inner_steps_watched,
            "inner_steps_raised": self.inner_steps_raised,
        }

    @contextmanager
    def _probed(self, inputs: dict[str, Any]) -> Iterator[None]:
        """Measure attention before and in a training call, where that is due."""
        probe, step = self.live_probe, self.state.global_step
        if probe is None or not probe.is_due(step):
            yield
            return
        metrics = probe.measure_set(step)
        with probe.watch_batch(inputs) as found:
            yield
        metrics |= probe.batch_metrics(found, self.accelerator.gather)
        if metrics:
            self.log(metrics)

    def _first_examples(self) -> list[dict[str, Tensor]]:
        """Batches of one example each."""
        name, dataset = "eval_dataset", self.eval_dataset
        if isinstance(dataset, dict):
            dataset = next(iter(dataset.values()), None)
        if dataset is None:
            name, dataset = "train_dataset", self.train_dataset
        if dataset is None or not has_length(dataset):
            logger.warning(
                "probe_steps: no data set with a length to take a probe set from, so only batches "
                "are probed; pass eval_dataset"
            )
            return []
        examples: Any = dataset
        count = min(PROBE_EXAMPLES, len(examples))
        logger.info("the attention probe takes the first %d examples of %s", count, name)
        return [self.data_collator([examples[index]]) for index in range(count)]

    def _keep_trace(self, trace: InnerTrace | None) -> None:
        if trace is None:
            return
        if self.args.logging_strategy != "no":
            self._window.traces.append(trace)
        self.inner_steps_watched += trace.steps_watched
        self.inner_steps_raised += trace.steps_raised

    def _window_metrics(self) -> dict[str, float]:
        """Throughput of all processes together, and means over what their inner loops did."""
        window, seconds = self._window, time.perf_counter() - self._window.started
        traces = [trace for trace in window.traces if trace.has_targets.any()]
        inner = [trace.mean_losses for trace in traces]
        sizes = [torch.stack(t.step_sizes)[:, t.has_targets].flatten() for t in traces]
        known = [
            [losses[step] for losses in inner if step < len(losses)]
            for step in range(self.focus_config.num_inner_steps + 1)
        ]
        # Each mean as its sum and its count, so that the processes can be added up.
        pairs = [
            (float(window.tokens), float(window.response_tokens)),
            (
                float(sum(trace.steps_raised for trace in traces)),
                float(sum(trace.steps_watched for trace in traces)),
            ),
            (sum(s.sum().item() for s in sizes), float(sum(s.numel() for s in sizes))),
            *((sum(losses), float(len(losses))) for losses in known),
        ]
        if self.args.world_size > 1:
            mine = torch.tensor([pairs], device=self.args.device)
            pairs = self.accelerator.gather(mine).sum(0).tolist()
        (tokens, response_tokens), raised, step_size, *losses = pairs
        means = {
            **{f"inner_loss_{step}": pair for step, pair in enumerate(losses)},
            "inner_steps_raised": raised,
            "inner_step_size": step_size,
        }
        return {
            "tokens_per_second": round(tokens / seconds, 1),
            "response_tokens_per_second": round(response_tokens / seconds, 2),
            **{name: total / count for name, (total, count) in means.items() if count},
        }


def _pad_token_id(model: Any, tokenizer: Any) -> int:
    """Any id will do: padding is masked."""
    for source in (tokenizer, model.config):
        if source is not None and source.pad_token_id is not None:
            return int(source.pad_token_id)
    return 0


def _content_sha256(dataset: Dataset) -> str:
    """Hash of tokens and labels; tens of MB take less than a second."""
    digest = hashlib.sha256()
    columns = [name for name in ("input_ids", "labels") if name in dataset.column_names]
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=10_000):
        for name in columns:
            for rows in table[name].chunks:
                digest.update(rows.value_lengths().to_numpy().tobytes())
                digest.update(rows.flatten().to_numpy().tobytes())
    return digest.hexdigest()


def _column(dataset: Any, name: str) -> Iterable[Any]:
    """A column at once where the data set has columns, else row by row."""
    if isinstance(dataset, Dataset):
        return dataset[name]
    return (dataset[index][name] for index in range(len(dataset)))


@contextmanager
def _option_errors(option: str) -> Iterator[None]:
    """What transformers raises about an option, as the user's error."""
    try:
        yield
    except (ImportError, ValueError, TypeError) as error:
        raise ConfigError(f"{option}: {error}") from error


def _refuse_unsupported(args: FocuSFTConfig) -> None:
    refuse_data_parallel(args.n_gpu)
    if args.attention_backend == "flex" and args.device.type == "cpu":
        raise ConfigError("attention_backend: flex trains on GPUs only; use auto on a CPU")
    if args.label_smoothing_factor > 0:
        raise ConfigError("label_smoothing_factor: not defined for FocuSFT; set it to 0")
    if args.auto_find_batch_size:
        raise ConfigError("auto_find_batch_size: not supported; set per_device_train_batch_size")
    if args.use_liger_kernel:
        raise ConfigError("use_liger_kernel: replaces the loss that FocuSFT computes; turn it off")
    for option, is_set in (
        ("bf16_full_eval", args.bf16_full_eval),
        ("fp16_full_eval", args.fp16_full_eval),
    ):
        if is_set:
            raise ConfigError(f"{option}: validation runs in the precision of training; leave it")


def _refuse_callables(given: Mapping[str, Any]) -> None:
    for name in ("compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"):
        if given.get(name) is not None:
            raise ConfigError(
                f"{name}: FocuSFT computes the loss itself and never holds all logits; leave it out"
            )
