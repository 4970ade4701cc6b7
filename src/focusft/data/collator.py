"""Tokenised examples -> a right-padded batch.

Shapes: B batch, S sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from focusft.data.chat import IGNORED


@dataclass(frozen=True)
class ConversationCollator:
    """Pads examples on the right to the longest one.

    Attributes:
        pad_token_id: Id of padding.
        pad_to_multiple_of: Round S up to a multiple of this.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Build a batch.

        Args:
            examples: Dicts with lists `input_ids`, `labels`, `turn_ids`.

        Returns:
            int64 tensors [B, S]: `input_ids`, `attention_mask` (0 on padding), `position_ids`
            (0, 1, ... in each row), `labels` (-100 on padding), `turn_ids` (0 on padding).
        """
        length = max(len(example["input_ids"]) for example in examples)
        if self.pad_to_multiple_of is not None:
            length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
        ones = [[1] * len(example["input_ids"]) for example in examples]

        def column(name: str, fill: int) -> Tensor:
            return _pad([example[name] for example in examples], length, fill)

        return {
            "input_ids": column("input_ids", self.pad_token_id),
            "attention_mask": _pad(ones, length, 0),
            "position_ids": torch.arange(length).repeat(len(examples), 1),
            "labels": column("labels", IGNORED),
            "turn_ids": column("turn_ids", 0),
        }


def _pad(rows: list[list[int]], length: int, fill: int) -> Tensor:
    return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows])
