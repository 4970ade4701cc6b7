"""A tokenised example as coloured text: what the model reads and what it is trained to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from focusft.data.chat import IGNORED

_STYLES = {
    "context": "dim blue",
    "response": "bold green",
    "response without labels": "yellow",
}


def render_example(
    tokenizer: PreTrainedTokenizerBase, example: Mapping[str, Sequence[int]]
) -> Text:
    """Draw an example.

    Args:
        tokenizer: The tokenizer that made the ids.
        example: Lists `input_ids`, `labels`, `turn_ids` of equal length.

    Returns:
        A legend with token counts, and the decoded text in the legend's colours, special tokens
        included.
    """
    ids = list(example["input_ids"])
    kinds = list(map(_kind, example["labels"], example["turn_ids"]))
    text = Text()
    for kind, style in _STYLES.items():
        text.append(f"{kind}: {kinds.count(kind)} tokens", style).append("   ")
    text.append("\n\n")
    for kind, run in groupby(range(len(ids)), key=kinds.__getitem__):
        text.append(_decode(tokenizer, [ids[position] for position in run]), _STYLES[kind])
    return text


def _kind(label: int, turn: int) -> str:
    if turn >= 0:
        return "context"
    return "response" if label != IGNORED else "response without labels"


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    decoded: Any = tokenizer.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return str(decoded)
