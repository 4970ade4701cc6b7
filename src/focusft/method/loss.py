"""Cross-entropy on response rows only, chunked before the head.

Shapes: B batch, S sequence, D hidden, V vocabulary, R rows that predict a labelled token,
G documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from focusft.method.turns import TurnLayout

# Logits exist for this many rows at a time; more rows recompute theirs in the backward pass.
ROWS_PER_CHUNK = 512


@dataclass(frozen=True)
class PredictedRows:
    """The positions whose next token is a target.

    Attributes:
        mask_BS: True where the next token is a target.
        targets_R: The token to predict at each of them, in row-major order.
        document_of_R: Number of the document that each of them belongs to.
        per_document_G: Number of rows of each document.
    """

    mask_BS: Tensor
    targets_R: Tensor
    document_of_R: Tensor
    per_document_G: Tensor

    @classmethod
    def of(cls, targets_BS: Tensor, layout: TurnLayout) -> PredictedRows:
        """Shift targets (-100 where there is none) to the rows that predict them.

        The first token of a document is never a target: the row before it belongs to another
        document.
        """
        next_BS = F.pad(targets_BS[:, 1:], (0, 1), value=-100)
        next_document_BS = F.pad(layout.document_ids_BS[:, 1:], (0, 1), value=-1)
        mask_BS = (next_BS != -100) & (next_document_BS == layout.document_ids_BS)
        mask_BS &= layout.is_token_BS
        numbers_BS = layout.document_numbers()
        document_of_R = numbers_BS[mask_BS]
        documents = int(numbers_BS.amax()) + 1
        return cls(
            mask_BS,
            next_BS[mask_BS],
            document_of_R,
            document_of_R.bincount(minlength=documents),
        )

    def __len__(self) -> int:
        return self.targets_R.numel()

    def mean_of_each_document(self, values_R: Tensor) -> Tensor:
        """Mean of a value of each row over the rows of each document, [G]; 0 without a row."""
        sums_G = values_R.new_zeros(len(self.per_document_G))
        sums_G = sums_G.index_add(0, self.document_of_R, values_R)
        return sums_G / self.per_document_G.clamp(min=1)


def token_losses(
    hidden_RD: Tensor, targets_R: Tensor, logits_of: Callable[[Tensor], Tensor]
) -> Tensor:
    """Cross-entropy of each row, without ever holding the logits of more than one chunk.

    Args:
        hidden_RD: Hidden states after the final norm.
        targets_R: Token ids.
        logits_of: The head, [R, D] to [R, V].

    Returns:
        [R], float32 or float64.
    """

    def chunk_losses(hidden_CD: Tensor, targets_C: Tensor) -> Tensor:
        return _cross_entropy(logits_of(hidden_CD), targets_C)

    if len(targets_R) <= ROWS_PER_CHUNK:
        return chunk_losses(hidden_RD, targets_R)
    chunks = zip(hidden_RD.split(ROWS_PER_CHUNK), targets_R.split(ROWS_PER_CHUNK), strict=True)
    losses = [checkpoint(chunk_losses, h, t, use_reentrant=False) for h, t in chunks]
    return torch.cat(losses)


def plain_response_loss(
    model: nn.Module, inputs: dict[str, Any], rows: PredictedRows
) -> tuple[Tensor, Tensor]:
    """Loss of the stock model, un-adapted, with logits on response rows only.

    This is SFT itself when `inputs` hold the ordinary padding mask, and the validation loss.

    Args:
        model: A causal language model, possibly wrapped (DDP, PEFT).
        inputs: What its forward takes, without labels.
        rows: The rows that predict a labelled token.

    Returns:
        Sum of the token losses and their number.
    """
    logits_RV = model(**inputs, logits_to_keep=rows.mask_BS, use_cache=False).logits
    return _cross_entropy(logits_RV, rows.targets_R).sum(), rows.mask_BS.sum()


def _cross_entropy(logits_RV: Tensor, targets_R: Tensor) -> Tensor:
    at_least_float32 = torch.promote_types(logits_RV.dtype, torch.float32)
    return F.cross_entropy(logits_RV.to(at_least_float32), targets_R, reduction="none")
