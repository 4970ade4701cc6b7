"""What belongs to one training forward.

Shapes: B batch, S sequence.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from focusft.method.config import ContextAttention
from focusft.method.fast_weights import FastWeights
from focusft.method.inner_loop import InnerTrace
from focusft.method.last_layer import LastLayerRows
from focusft.method.loss import PredictedRows
from focusft.method.turns import TurnLayout


class FocusCall:
    """The state of one training forward.

    No dataclass: FSDP2 copies those that travel in keyword arguments.
    """

    def __init__(
        self,
        input_ids_BS: Tensor,
        labels_BS: Tensor,
        rows: PredictedRows,
        layout: TurnLayout,
        normaliser: Tensor | int | None,
        context_attention: ContextAttention,
    ) -> None:
        self.input_ids_BS = input_ids_BS
        self.labels_BS = labels_BS
        self.rows = rows
        self.layout = layout
        self.normaliser = normaliser
        self.context_attention = context_attention
        self.trunk_input: tuple[Tensor, dict[str, Any]] | None = None
        self.inner_rows: PredictedRows | None = None
        self.last_layer: LastLayerRows | None = None
        self.fast_weights: FastWeights | None = None
        self.is_adapting = False
        self.maps_adapted = 0
        self.trace: InnerTrace | None = None
        self.loss: Tensor | None = None
