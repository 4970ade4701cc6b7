"""Tokenised examples -> one packed row, or a right-padded batch.

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
    """Puts examples one behind the other in one row, or pads them on the right.

    Attributes:
        pad_token_id: Id of padding.
        packing: One row without padding, B = 1; positions start again at 0 with each example,
            which keeps their attention and their fast weights apart.
        pad_to_multiple_of: Round S up to a multiple of this.
    """

    pad_token_id: int
    packing: bool = False
    pad_to_multiple_of: int | None = None

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Build a batch.

        Args:
            examples: Dicts with lists `input_ids`, `labels`, `turn_ids`.

        Returns:
            int64 tensors [B, S]: `input_ids`, `attention_mask` (0 on padding), `position_ids`
            (0, 1, ... in each example), `labels` (-100 on padding), `turn_ids` (0 on padding).
        """
        rows = [
            {
                "input_ids": list(example["input_ids"]),
                "labels": list(example["labels"]),
                "turn_ids": list(example["turn_ids"]),
                "position_ids": list(range(len(example["input_ids"]))),
            }
            for example in examples
        ]
        if self.packing:
            rows = [{name: [x for row in rows for x in row[name]] for name in rows[0]}]
        length = max(len(row["input_ids"]) for row in rows)
        if self.pad_to_multiple_of is not None:
            length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
        fill = {"input_ids": self.pad_token_id, "labels": IGNORED, "turn_ids": 0}
        batch = {name: _pad([row[name] for row in rows], length, fill[name]) for name in fill}
        # Padding goes on counting, so that it does not look like further documents.
        positions = [[*row["position_ids"], *range(len(row["input_ids"]), length)] for row in rows]
        return batch | {
            "position_ids": torch.tensor(positions),
            "attention_mask": _pad([[1] * len(row["input_ids"]) for row in rows], length, 0),
        }


def _pad(rows: list[list[int]], length: int, fill: int) -> Tensor:
    return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows])
