"""Which tokens are context and which are response, in which block, in which document.

Shapes: B batch, S sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from focusft.errors import DataError
from focusft.method.config import ContextBlocks

PADDING = -1


@dataclass(frozen=True)
class Document:
    """One conversation inside a batch: tokens `start` to `stop` (excluded) of row `row`."""

    row: int
    start: int
    stop: int


@dataclass(frozen=True)
class TurnLayout:
    """Context and response tokens of a batch (arXiv 2605.09932, section 3.2).

    Attributes:
        is_response_BS: True on response (assistant) tokens.
        block_ids_BS: Consecutive numbers of the blocks of a row; a block is a stretch of context
            or of response. -1 on padding.
        document_ids_BS: Consecutive numbers of the documents of a row. -1 on padding.
    """

    is_response_BS: Tensor
    block_ids_BS: Tensor
    document_ids_BS: Tensor

    @classmethod
    def from_labels(
        cls,
        labels_BS: Tensor,
        attention_mask_BS: Tensor | None = None,
        position_ids_BS: Tensor | None = None,
    ) -> TurnLayout:
        """Derive the turns from the labels: runs of -100 are context, the others response.

        Args:
            labels_BS: Labels, not shifted; -100 on context and padding.
            attention_mask_BS: 1 on tokens, 0 on padding; every position is a token without it.
            position_ids_BS: Positions; a document starts wherever they do not count on by one.
        """
        is_response_BS = labels_BS != -100
        is_token_BS = _tokens(labels_BS, attention_mask_BS)
        return cls._from_turns(
            is_response_BS.long(), is_response_BS & is_token_BS, is_token_BS, position_ids_BS
        )

    @classmethod
    def from_turn_ids(
        cls,
        turn_ids_BS: Tensor,
        position_ids_BS: Tensor | None = None,
        context_blocks: ContextBlocks = "merged",
    ) -> TurnLayout:
        """Take the turns as given, for instance where some response turns carry no labels.

        Args:
            turn_ids_BS: One signed number for each turn: positive on context turns, negative on
                response turns, 0 on padding.
            position_ids_BS: Positions; a document starts wherever they do not count on by one.
            context_blocks: "merged": adjacent context turns form one block, "per_turn": each
                its own.
        """
        turns_BS = turn_ids_BS.sign() if context_blocks == "merged" else turn_ids_BS
        return cls._from_turns(turns_BS, turn_ids_BS < 0, turn_ids_BS != 0, position_ids_BS)

    @classmethod
    def from_batch(
        cls, batch: Mapping[str, Any], context_blocks: ContextBlocks = "merged"
    ) -> TurnLayout:
        """Read the turns of a batch: from `turn_ids` if they are there, else from `labels`.

        Args:
            batch: What the model is called with: labels or turn_ids, and optionally
                attention_mask and position_ids, each [B, S].
            context_blocks: See `from_turn_ids`.
        """
        position_ids_BS = batch.get("position_ids")
        if position_ids_BS is None and batch.get("cu_seq_lens_q") is not None:
            raise DataError(
                "cu_seq_lens_q: FocuSFT reads the documents of a packed row from position_ids, "
                "which are not there; let the collator return them"
            )
        if batch.get("turn_ids") is not None:
            _check_padding(batch["turn_ids"], batch.get("attention_mask"))
            return cls.from_turn_ids(batch["turn_ids"], position_ids_BS, context_blocks)
        if context_blocks == "per_turn":
            raise DataError(
                "context_blocks: 'per_turn' needs turn_ids in the batch, labels do not show where "
                "one context turn ends; add them or use 'merged'"
            )
        return cls.from_labels(batch["labels"], batch.get("attention_mask"), position_ids_BS)

    @classmethod
    def _from_turns(
        cls,
        turns_BS: Tensor,
        is_response_BS: Tensor,
        is_token_BS: Tensor,
        position_ids_BS: Tensor | None,
    ) -> TurnLayout:
        was_token_BS = _previous(is_token_BS, fill=0).bool()
        starts_document_BS = is_token_BS & ~was_token_BS
        if position_ids_BS is not None:
            position_ids_BS = position_ids_BS.expand_as(turns_BS)
            counts_on_BS = position_ids_BS == _previous(position_ids_BS, fill=-1) + 1
            starts_document_BS |= is_token_BS & ~counts_on_BS
        starts_block_BS = starts_document_BS | (turns_BS != _previous(turns_BS, fill=0))
        return cls(
            is_response_BS=is_response_BS,
            block_ids_BS=_number(starts_block_BS & is_token_BS, is_token_BS),
            document_ids_BS=_number(starts_document_BS, is_token_BS),
        )

    @property
    def is_token_BS(self) -> Tensor:
        """True on everything but padding."""
        return self.document_ids_BS != PADDING

    @property
    def is_context_BS(self) -> Tensor:
        """True on context (system, user, tool) tokens."""
        return self.is_token_BS & ~self.is_response_BS

    def document_numbers(self) -> Tensor:
        """Number of each token's document in the batch, [B, S], in the order of `documents`."""
        counts_B = self.document_ids_BS.amax(dim=1) + 1
        before_B = counts_B.cumsum(dim=0) - counts_B
        return self.document_ids_BS + before_B[:, None]

    def documents(self) -> list[Document]:
        """List the documents of the batch, row by row."""
        found = []
        for row, ids in enumerate(self.document_ids_BS.tolist()):
            start = 0
            for position in range(1, len(ids) + 1):
                if position == len(ids) or ids[position] != ids[start]:
                    if ids[start] != PADDING:
                        found.append(Document(row, start, position))
                    start = position
        return found


def _tokens(like_BS: Tensor, attention_mask_BS: Tensor | None) -> Tensor:
    if attention_mask_BS is None:
        return torch.ones_like(like_BS, dtype=torch.bool)
    if attention_mask_BS.shape != like_BS.shape:
        raise DataError(
            f"attention_mask: shape {tuple(attention_mask_BS.shape)} is not that of the batch "
            f"{tuple(like_BS.shape)}; pass the 2-D padding mask, FocuSFT builds the 4-D one"
        )
    return attention_mask_BS != 0


def _check_padding(turn_ids_BS: Tensor, attention_mask_BS: Tensor | None) -> None:
    if attention_mask_BS is None:
        return
    if not torch.equal(_tokens(turn_ids_BS, attention_mask_BS), turn_ids_BS != 0):
        raise DataError(
            "turn_ids: 0 marks padding, but the attention_mask has its zeros elsewhere; give "
            "every token a turn and every padding position a 0 in both"
        )


def _previous(values_BS: Tensor, fill: int) -> Tensor:
    return torch.nn.functional.pad(values_BS[:, :-1].long(), (1, 0), value=fill)


def _number(starts_BS: Tensor, is_token_BS: Tensor) -> Tensor:
    return torch.where(is_token_BS, starts_BS.long().cumsum(dim=1) - 1, PADDING)
