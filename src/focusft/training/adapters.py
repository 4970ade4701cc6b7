"""Outer PEFT-LoRA: what is trained are adapters, saved as PEFT saves them.

The fast weights of the inner loop sit on top of the adapters and are thrown away as ever.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import is_peft_available

from focusft.errors import ConfigError
from focusft.training.config import TrainConfig
from focusft.training.models import load_model, load_tokenizer
from focusft.training.resolved_config import RESOLVED_CONFIG
from focusft.training.stop_tokens import add_stop_ids

MERGED = "merged"


def add_adapters(model: PreTrainedModel, config: TrainConfig) -> nn.Module:
    """Freeze a model and put LoRA adapters into it.

    Args:
        model: A causal language model.
        config: The `lora_` options.

    Raises:
        ConfigError: The package peft is missing, or `lora_target_modules` names no linear map.
    """
    if not is_peft_available():
        raise ConfigError("use_peft: needs the package peft; pip install 'peft>=0.18'")
    from peft import LoraConfig, get_peft_model

    names = [name.strip() for name in config.lora_target_modules.split(",")]
    paths = [path for path, _ in model.named_modules()]
    for name in names if names != ["all-linear"] else []:
        # PEFT is content where one of several names is known.
        if not any(path == name or path.endswith(f".{name}") for path in paths):
            raise ConfigError(
                f"lora_target_modules: {name!r} names no part of {type(model).__name__}; name "
                "linear maps such as q_proj, or all-linear alone"
            )
    try:
        return get_peft_model(
            model,
            LoraConfig(
                task_type="CAUSAL_LM",
                r=config.lora_r,
                lora_alpha=config.lora_alpha,
                lora_dropout=config.lora_dropout,
                target_modules="all-linear" if names == ["all-linear"] else names,
            ),
        )
    except ValueError as error:
        raise ConfigError(
            f"lora_target_modules: {config.lora_target_modules!r}: {str(error).splitlines()[0]}"
        ) from error


def save_merged(config: TrainConfig, folder: Path) -> Path:
    """Merge the adapters saved in a folder into their base model, and save it as a plain one.

    The base model is read again, so that it does not matter how the trained one is sharded.

    Args:
        config: Names the base model and its type.
        folder: Holds the adapters.

    Returns:
        The folder of the merged model, inside `folder`.
    """
    from peft import PeftModel

    base = load_model(config.model_name_or_path, dtype=config.dtype)
    merged = PeftModel.from_pretrained(base, folder).merge_and_unload()
    tokenizer = load_tokenizer(config.model_name_or_path)
    add_stop_ids(merged, tokenizer)
    merged.save_pretrained(folder / MERGED)
    tokenizer.save_pretrained(folder / MERGED)
    shutil.copyfile(folder / RESOLVED_CONFIG, folder / MERGED / RESOLVED_CONFIG)
    return folder / MERGED
