"""Where a model lies: every source becomes a local folder, whose files are checked before use."""

import json
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from focusft.errors import UnsupportedModelError, UserError, in_short
from focusft.training.gguf_conversion import SMOLLM2, convert_gguf, smollm2_gguf

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TOKENIZER_PATTERNS = ["*.json", "*.jinja", "*.model", "*.txt"]
_MODEL_PATTERNS = ["*.json", "*.jinja", "model*.safetensors"]


def model_folder(name_or_path: str | Path) -> Path:
    """The folder of a model's config and weights.

    Args:
        name_or_path: as in `models.load_model`.

    Raises:
        UserError: nothing is there.
    """
    return _local_folder(name_or_path, _MODEL_PATTERNS)


def tokenizer_folder(name_or_path: str | Path) -> Path:
    """The folder of a model's tokenizer and config; see `model_folder`."""
    return _local_folder(name_or_path, _TOKENIZER_PATTERNS)


def config_folder(name_or_path: str | Path) -> Path:
    """The folder of a model's config; see `model_folder`."""
    return _local_folder(name_or_path, ["config.json"])


def _local_folder(name_or_path: str | Path, hub_patterns: list[str]) -> Path:
    name = str(name_or_path)
    path = Path(name).expanduser()
    if name == SMOLLM2:
        return convert_gguf(smollm2_gguf())
    if path.suffix == ".gguf":
        return convert_gguf(path)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{name}: not a model folder or a .gguf file; give the folder it lies in")
    if name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name):
        raise UserError(f"{name}: no such folder; check the path")
    try:
        return Path(snapshot_download(name, allow_patterns=hub_patterns))
    except (OSError, ValueError) as error:  # hub errors and connection errors are OSErrors
        raise UserError(
            f"{name}: no such folder here, and as a hub id it cannot be loaded: "
            f"{in_short(error)}; check the name and the network, or give a local folder"
        ) from error


def read_config(folder: Path, name: str | Path) -> PretrainedConfig:
    """The config in a folder, which messages call by the name that the user gave.

    Raises:
        UserError: there is none, or transformers cannot read it.
    """
    file = folder / "config.json"
    if not file.is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(
                f"{name}: this is a PEFT adapter, not a model; merge it into its base model "
                "(merge_and_unload) and save that"
            )
        raise UserError(f"{name}: no config.json here; give the folder of a transformers model")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{file}: not valid JSON ({in_short(error)}); save or download the model again"
        ) from error
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise UserError(f"{file}: no model_type; give the config.json of a transformers model")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # strict configs raise classes of their own for a wrong value
        raise UserError(
            f"{file}: transformers cannot read this config (model_type '{raw['model_type']}'): "
            f"{in_short(error)}; mend the config or update transformers"
        ) from error


def require_decoder(config: PretrainedConfig, name: str | Path) -> None:
    """Refuse what is not a text-only causal language model.

    Raises:
        UnsupportedModelError: it is not.
    """
    kind = config.model_type
    mend = "use a decoder-only model such as Llama, Qwen, Mistral or SmolLM"
    if config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{name}: '{kind}' is an encoder-decoder (seq2seq) model; {mend}"
        )
    causal_class = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    architectures = config.architectures or []
    # BERT and its kin are in the causal mapping too, as decoders of a seq2seq pair.
    encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.to_dict().get("is_decoder")
    if causal_class is None or encoder:
        raise UnsupportedModelError(f"{name}: '{kind}' is not a causal language model; {mend}")
    if architectures and causal_class not in architectures:
        raise UnsupportedModelError(
            f"{name}: the checkpoint was saved as {architectures[0]}, not as {causal_class}, "
            f"so it is no text-only causal language model; {mend}"
        )


def check_weight_files(folder: Path) -> None:
    """Open every safetensors file of the model: its header must match its length.

    Raises:
        UserError: a file is missing, damaged or not safetensors.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = sorted(set(weight_map.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{index}: not a valid weight index ({in_short(error)}); "
                "save or download the model again"
            ) from error
    elif (folder / "model.safetensors").is_file():
        files = ["model.safetensors"]
    elif any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise UserError(
            f"{folder}: only pickle weights (.bin or .pt) here, which could run code when loaded; "
            "convert them with model.save_pretrained(folder, safe_serialization=True)"
        )
    else:
        raise UserError(
            f"{folder}: no model.safetensors here; save the model with model.save_pretrained"
        )
    for file in files:
        if not (folder / file).is_file():
            raise UserError(
                f"{folder / file}: this weight file is listed in the index but missing; "
                "save or download the model again"
            )
        try:
            with safe_open(folder / file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{folder / file}: truncated or not a safetensors file ({in_short(error)}); "
                "save or download the model again"
            ) from error
