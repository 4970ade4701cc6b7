"""Settings of a training call under which its gradients or its output would be wrong."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from focusft.errors import DataError, UnsupportedModelError, UserError
from focusft.method.architectures import Architecture
from focusft.method.config import FocusConfig
from focusft.method.turns import TurnLayout


def refuse_lossy_checkpointing(parts: Architecture, config: FocusConfig) -> None:
    """Refuse checkpointing that the gradients of the inner loop do not survive.

    Raises:
        UnsupportedModelError: It is reentrant, or the hypergradient needs what it throws away.
    """
    layers: list[Any] = [layer for layer in parts.adapted_layers if layer.gradient_checkpointing]
    if not layers:
        return
    layer = layers[0]
    if layer._gradient_checkpointing_func.keywords.get("use_reentrant", True):
        raise UnsupportedModelError(
            "gradient checkpointing is reentrant, which loses the inner loop's gradients; "
            "use gradient_checkpointing_kwargs={'use_reentrant': False}"
        )
    if config.inner_order == 2:
        raise UnsupportedModelError(
            "inner_order=2 needs the activations of the inner loop; turn gradient checkpointing off"
        )


def refuse_labelled_context(layout: TurnLayout, labels_BS: Tensor, config: FocusConfig) -> None:
    """Refuse labels that the token before them can already see.

    Args:
        layout: Turns of the batch.
        labels_BS: Its labels, [B, S]; -100 where there is none.
        config: Options of the method.

    Raises:
        DataError: A context token has a label, and context attends bidirectionally.
    """
    if config.context_attention == config.inner_attention == "causal":
        return
    if ((labels_BS != -100) & layout.is_context_BS).any():
        raise DataError(
            "labels: a context token (turn_ids > 0) has one, which the token before it sees under "
            "bidirectional attention; set labels to -100 on context"
        )


def refuse_recorded_states(
    parts: Architecture, config: FocusConfig, kwargs: dict[str, Any]
) -> None:
    """Refuse to record hidden states: the inner loop's would lie between those of the outer one.

    Args:
        parts: The model's parts.
        config: Options of the method.
        kwargs: What the model is called with.

    Raises:
        UserError: The call, or the model's config, asks for them.
    """
    defaults = parts.model.config
    for option, default in (
        ("output_hidden_states", defaults.output_hidden_states),
        ("output_attentions", defaults.output_attentions),
    ):
        if kwargs.get(option, default) and config.num_inner_steps > 0:
            raise UserError(
                f"{option}: a training call would also return what the inner loop's layers "
                "computed; ask for it in eval mode or set it to False"
            )
