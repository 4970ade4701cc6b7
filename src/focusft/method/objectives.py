"""What the fast weights learn from: the targets of the inner loss.

Shapes: B batch, S sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from focusft.method.config import InnerObjective
from focusft.method.turns import TurnLayout

NO_TARGET = -100


def inner_targets(
    objective: InnerObjective, input_ids_BS: Tensor, labels_BS: Tensor, layout: TurnLayout
) -> Tensor:
    """Targets of the inner loss, -100 where there is none; not shifted.

    Args:
        objective: "response": the outer labels, as in the published code. "context": the
            context tokens. "held_out_turns": the outer labels without the last labelled turn
            of each document, which stays unseen by the inner loop.
        input_ids_BS: Tokens.
        labels_BS: Outer labels.
        layout: Turns of the batch.
    """
    if objective == "response":
        return labels_BS
    if objective == "context":
        return torch.where(layout.is_context_BS, input_ids_BS, NO_TARGET)
    return torch.where(_is_last_labelled_turn(labels_BS, layout), NO_TARGET, labels_BS)


def _is_last_labelled_turn(labels_BS: Tensor, layout: TurnLayout) -> Tensor:
    labelled_block_BS = torch.where(labels_BS != NO_TARGET, layout.block_ids_BS, -1)
    document_BS = layout.document_ids_BS.clamp(min=0)
    last_block_BS = torch.full_like(document_BS, -1).scatter_reduce(
        1, document_BS, labelled_block_BS, reduce="amax"
    )
    return layout.block_ids_BS == last_block_BS.gather(1, document_BS)
