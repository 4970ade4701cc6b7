"""The last layer computes the rows that predict a target, and no others.

Nothing reads its output elsewhere: the other rows are keys and values of its attention, and no
more. So its queries are cut to the rows that are wanted, and its MLP gets these rows alone, in the
inner loop and in the outer one.

Shapes: B batch, S sequence, D hidden, R rows that predict a target.
"""

from __future__ import annotations

from torch import Tensor

from focusft.method.attention import TurnAttention
from focusft.method.loss import PredictedRows


class LastLayerRows:
    """The rows that one loop asks the last layer for.

    Attributes:
        attention: What its attention gets instead of the attention of the layers below.
        per_document: Number of rows of each document.
    """

    def __init__(self, rows: PredictedRows, attention: TurnAttention) -> None:
        """Cut the attention to the rows.

        Args:
            rows: What the loop predicts.
            attention: That of the layers below.
        """
        self.attention = attention.only(rows.mask_BS)
        self.per_document: list[int] = rows.per_document_G.tolist()
        self._shape = rows.mask_BS.shape
        self._positions_R = rows.mask_BS.flatten().nonzero().squeeze(1)

    def take(self, hidden_BSD: Tensor) -> Tensor:
        """The wanted rows, [R, D]."""
        return hidden_BSD.flatten(0, 1).index_select(0, self._positions_R)

    def put_back(self, hidden_RD: Tensor) -> Tensor:
        """The rows where they were, [B, S, D], and zeros between them."""
        zeros_TD = hidden_RD.new_zeros(self._shape.numel(), hidden_RD.shape[1])
        return zeros_TD.index_copy(0, self._positions_R, hidden_RD).unflatten(0, self._shape)
