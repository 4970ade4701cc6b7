"""Typed training options from YAML files and command-line overrides."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from focusft.errors import ConfigError
from focusft.method.config import FocusConfig
from focusft.training.checkpointing import Checkpointing
from focusft.training.option_names import unknown_option

METHOD_OPTIONS = tuple(option.name for option in dataclasses.fields(FocusConfig))
# What a validation gives for choosing a checkpoint.
_VALIDATION_LOSSES = ("loss", "loss_bidirectional")


@dataclass
class FocuSFTConfig(TrainingArguments, FocusConfig):
    """Options of FocuSFTTrainer: those of `transformers.TrainingArguments` and of the method.

    The defaults are the published settings (arXiv 2605.09932, appendix) for one device.
    """

    method: Literal["focusft", "sft"] = field(
        default="focusft",
        metadata={"help": "focusft, or sft: plain supervised fine-tuning in the same trainer."},
    )
    packing: bool = field(
        default=True,
        metadata={
            "help": "Put the examples of a micro-batch one behind the other in one row instead of "
            "padding them; each keeps its own attention, fast weights and inner loss. Without it, "
            "batches are padded and hold examples of similar length."
        },
    )
    selective_checkpointing: bool | None = field(
        default=None,
        metadata={
            "help": "Run norms and activation functions again in the backward pass instead of "
            "keeping their outputs: about half the activation memory with the same result. On a "
            "CPU it costs little time and is the default; a GPU waits for it where the model is "
            "small. With activation_checkpointing=true all but attention runs again, and with "
            "this one false all of it: less memory each time, and more time. inner_order=2 keeps "
            "everything."
        },
    )
    probe_steps: int = field(
        default=100,
        metadata={
            "help": "Measure attention (sink mass, context engagement) before every so many steps "
            "and at the end: on the first examples of the validation data, and on the batch. "
            "0 turns it off."
        },
    )
    # transformers declares it as text but wants true.
    fsdp: bool | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Shard the model over the processes with FSDP2."},
    )
    num_train_epochs: float = 5
    per_device_train_batch_size: int = 1
    per_device_eval_batch_size: int = 4
    gradient_accumulation_steps: int = 4
    learning_rate: float = 1e-5
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    logging_steps: float = 10
    save_total_limit: int | None = 2
    seed: int = 1234
    # The collator and the engine need columns that the model's forward does not name.
    remove_unused_columns: bool = False
    # The trainer stops on a non-finite loss; it must not be filtered out of the logs.
    logging_nan_inf_filter: bool = False

    def __post_init__(self) -> None:
        if self.method not in ("focusft", "sft"):
            raise ConfigError(f"method: {self.method!r} is not one of focusft, sft")
        if self.probe_steps < 0:
            raise ConfigError(f"probe_steps: {self.probe_steps} must be 0 (off) or more")
        FocusConfig.__post_init__(self)
        # torch warns about pinned memory where there is no GPU to copy it to.
        self.dataloader_pin_memory &= torch.cuda.is_available()
        # transformers takes bf16 without an accelerator for a mistake, unless it is told.
        self.use_cpu |= not torch.accelerator.is_available()
        if self.save_strategy == "best" and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"
        # transformers takes only names that end in "loss" for losses, and would keep the worst.
        if (self.metric_for_best_model or "").endswith("loss_bidirectional"):
            self.greater_is_better = bool(self.greater_is_better)
        TrainingArguments.__post_init__(self)

    def focus_config(self) -> FocusConfig:
        """The options of the method alone; `method=sft` is K = 0 with causal attention."""
        config = FocusConfig(**{name: vars(self)[name] for name in METHOD_OPTIONS})
        if self.method == "sft":
            return dataclasses.replace(
                config,
                num_inner_steps=0,
                context_attention="causal",
                inner_context_attention="same",
                causal_share=0.0,
                inner_objective="response",
            )
        return config

    def checkpointing_on(self, device: str) -> Checkpointing:
        """What the backward pass computes again.

        Args:
            device: Type of the device, such as "cpu" or "cuda".
        """
        if self.activation_checkpointing:
            # What is kept would stay on the device, and offloading is for want of its memory.
            details: Any = self.activation_checkpointing_kwargs or {}
            is_full = self.selective_checkpointing is False or details.get("offload", False)
            return "full" if is_full else "all_but_attention"
        is_selective = self.selective_checkpointing
        if is_selective is None:
            is_selective = device == "cpu"
        # The exact hypergradient needs the activations of the inner loop.
        return "selective" if is_selective and self.inner_order == 1 else "none"

    def resolved(self) -> dict[str, Any]:
        """Every option but those with a default of transformers that is FocuSFT's as well.

        As YAML it gives the same options again.
        """
        default = {f.name: f.default for f in dataclasses.fields(self)}
        stock = {f.name: f.default for f in dataclasses.fields(TrainingArguments)}
        values = {
            name: _plain(value)
            for name, value in vars(self).items()
            if name in default
            and not (value == default[name] == stock.get(name, dataclasses.MISSING))
        }
        # Secrets stay out of files; the deprecated names repeat activation_checkpointing.
        left_out = ("hub_token", "gradient_checkpointing", "gradient_checkpointing_kwargs")
        return {
            name: value
            for name, value in sorted(values.items())
            if name not in left_out
            and isinstance(value, str | int | float | bool | dict | list | None)
        }


@dataclass
class TrainConfig(FocuSFTConfig):
    """Options of `focusft train`."""

    model_name_or_path: str = field(
        default="smollm2", metadata={"help": "Hub id, local folder, GGUF file, or smollm2."}
    )
    dtype: Literal["auto", "float32", "bfloat16"] = field(
        default="auto", metadata={"help": "Type of the weights."}
    )
    attn_implementation: Literal["sdpa", "eager"] = field(
        default="sdpa", metadata={"help": "Attention of transformers that takes our mask."}
    )
    train_data: str = field(
        default="",
        metadata={"help": "Training data, comma-separated: .parquet, .jsonl, or hub ids."},
    )
    val_data: str = field(default="", metadata={"help": "Validation data, like train_data."})
    max_length: int = field(default=4096, metadata={"help": "Longest conversation in tokens."})
    length_policy: Literal["drop", "error", "truncate_context"] = field(
        default="drop",
        metadata={"help": "What happens to longer ones: drop (counted), error, truncate_context."},
    )
    num_proc: int = field(default=1, metadata={"help": "Processes that tokenise."})
    use_peft: bool = field(
        default=False,
        metadata={"help": "Train LoRA adapters (package peft) instead of all weights."},
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "Alpha of the LoRA adapters."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of the LoRA adapters."})
    lora_target_modules: str = field(
        default="all-linear",
        metadata={"help": "Linear maps that get adapters: comma-separated names, or all-linear."},
    )
    merge_adapters: bool = field(
        default=False,
        metadata={"help": "Also save the model with its adapters merged, in output_dir/merged."},
    )
    resume: bool = field(
        default=True, metadata={"help": "Go on from the last checkpoint in output_dir."}
    )

    def __post_init__(self) -> None:
        for option in ("dtype", "attn_implementation", "length_policy"):
            allowed = typing.get_args(typing.get_type_hints(TrainConfig)[option])
            if vars(self)[option] not in allowed:
                raise ConfigError(
                    f"{option}: {vars(self)[option]!r} is not one of {', '.join(allowed)}"
                )
        if not self.train_data:
            raise ConfigError(
                "train_data: missing; name a .parquet or .jsonl file, for instance one from "
                "'focusft data make --out train.jsonl'"
            )
        if self.max_length < 2:
            raise ConfigError(f"max_length: {self.max_length} must be 2 or more")
        if self.merge_adapters and not self.use_peft:
            raise ConfigError("merge_adapters: there are no adapters; set use_peft as well")
        for option in ("lora_r", "lora_alpha"):
            if vars(self)[option] < 1:
                raise ConfigError(f"{option}: {vars(self)[option]} must be 1 or more")
        if not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"lora_dropout: {self.lora_dropout} must be in [0, 1)")
        if self.output_dir is None:
            raise ConfigError("output_dir: missing; name the folder for checkpoints and results")
        if self.resume_from_checkpoint is not None:
            raise ConfigError(
                "resume_from_checkpoint: leave it out: focusft train goes on from the newest "
                "checkpoint in output_dir by itself; to start anew from a checkpoint's weights, "
                "name it in model_name_or_path"
            )
        if self.remove_unused_columns:
            raise ConfigError(
                "remove_unused_columns: would remove the turns of the conversations, which "
                "training needs; leave it out"
            )
        for option in (
            "gradient_accumulation_steps",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
        ):
            if vars(self)[option] < 1:
                raise ConfigError(f"{option}: {vars(self)[option]} must be 1 or more")
        metric = self.metric_for_best_model
        if metric is not None and metric.removeprefix("eval_") not in _VALIDATION_LOSSES:
            raise ConfigError(
                f"metric_for_best_model: {metric!r} is not one of {', '.join(_VALIDATION_LOSSES)}"
            )
        try:
            super().__post_init__()
        except ConfigError:
            raise
        except (ValueError, TypeError, ImportError, RuntimeError, OSError) as error:
            raise ConfigError(f"training options: {_first_line(error)}") from error


def load_train_config(path: Path | None, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read options from a YAML file and from `--option value` arguments, which win.

    Args:
        path: YAML file with one option a line, or None for defaults only.
        overrides: `--option value`, `--option=value`, or `--option` for true.

    Raises:
        ConfigError: An option is unknown, twice there, or of the wrong type, or the file is no
            YAML mapping.
    """
    options = with_new_names(read_yaml(path) if path else {}, str(path))
    where = dict.fromkeys(options, str(path))
    for name, value in with_new_names(_parse_overrides(overrides), "command line").items():
        options[name] = value
        where[name] = "command line"
    return make_train_config(options, where)


def make_train_config(options: Mapping[str, Any], where: Mapping[str, str]) -> TrainConfig:
    """Check options and make the configuration.

    Args:
        options: Values as YAML gives them, by name.
        where: Where each of them was given, for errors.

    Raises:
        ConfigError: An option is unknown or of the wrong type, or contradicts another one.
    """
    hints = typing.get_type_hints(TrainConfig, localns={"torch": torch})
    known = {f.name: hints[f.name] for f in dataclasses.fields(TrainConfig) if f.init}
    checked = {}
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f"{where[name]}: {unknown_option(name, known)}")
        try:
            checked[name] = _coerce(value, known[name])
        except ValueError as error:
            raise ConfigError(f"{where[name]}: {name}: {error}") from None
    return TrainConfig(**checked)


def with_new_names(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options of one source with `activation_checkpointing` for its published name.

    To be done before sources are put together, or the old name of one would win over the new
    name of another.

    Args:
        options: Values by name.
        where: Their source, for errors.

    Raises:
        ConfigError: An option is there by both names.
    """
    renamed = dict(options)
    for new in ("activation_checkpointing", "activation_checkpointing_kwargs"):
        old = new.replace("activation", "gradient")
        if old in options and new in options:
            raise ConfigError(f"{where}: {old} and {new} are the same option; keep one")
        if old in options:
            renamed[new] = renamed.pop(old)
    return renamed


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of options.

    Raises:
        ConfigError: It cannot be read, is no mapping, or names an option twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {_first_line(error)}") from None
    try:
        loaded = yaml.load(text, _UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise ConfigError(f"{path}: must hold 'option: value' lines, not {type(loaded).__name__}")
    return loaded


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    problem=f"option {key!r} is there twice", problem_mark=node.start_mark
                )
        return super().construct_mapping(node, deep)


def _parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    hints = typing.get_type_hints(TrainConfig, localns={"torch": torch})
    values: dict[str, Any] = {}
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("--") or len(argument) == 2:
            raise ConfigError(f"command line: unexpected {argument!r}; write --option value")
        name, has_value, text = argument[2:].partition("=")
        if not has_value:
            is_flag = not remaining or remaining[0].startswith("--")
            text = "true" if is_flag else remaining.pop(0)
        name = name.replace("-", "_")
        if name in values:
            raise ConfigError(f"command line: --{name} is there twice; keep one")
        kinds = set(_flatten(hints.get(name))) - {types.NoneType}
        if kinds == {str} and text != "null":
            # As it is: YAML would take "run #2" for a comment and 010 for 8.
            values[name] = text
            continue
        try:
            values[name] = yaml.safe_load(text) if text else ""
        except yaml.YAMLError:
            values[name] = text
    return values


def _coerce(value: Any, hint: Any) -> Any:
    """Check a YAML value against a type, reading numbers that YAML takes for text (1e-5)."""
    options = _flatten(hint)
    literals = [
        choice
        for option in options
        for choice in typing.get_args(option)
        if typing.get_origin(option) is Literal
    ]
    if value in literals and not isinstance(value, bool):
        return value
    kinds = [typing.get_origin(option) or option for option in options]
    if value is None and types.NoneType in kinds:
        return value
    if isinstance(value, bool):
        if bool in kinds:
            return value
    elif isinstance(value, int) and int in kinds:
        return value
    elif isinstance(value, int | float) and float in kinds:
        return float(value)
    elif isinstance(value, str):
        if str in kinds:
            return value
        for kind in (int, float):
            if kind in kinds:
                try:
                    return kind(value)
                except ValueError:
                    continue
    elif isinstance(value, dict | list) and type(value) in kinds:
        return value
    if str in kinds and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if literals:
        raise ValueError(f"{value!r} is not one of {', '.join(map(str, literals))}")
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        dict: "a mapping",
        list: "a list",
        types.NoneType: "null",
    }
    expected = " or ".join(names[kind] for kind in kinds if kind in names)
    raise ValueError(f"{value!r} is not {expected}")


def _plain(value: Any) -> Any:
    """A value of an option as YAML has it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list):
        return [_plain(part) for part in value]
    # The default is made anew of none given.
    if isinstance(value, AcceleratorConfig) and value != AcceleratorConfig():
        return value.to_dict()
    return value


def _flatten(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [part for option in typing.get_args(hint) for part in _flatten(option)]
    return [hint]


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
