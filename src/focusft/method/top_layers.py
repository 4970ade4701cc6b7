"""The layers above the trunk, run again in each inner step, without what does not change.

The attention of the first adapted layer lies below all fast weights, unless they sit in attention
itself, so it runs once.

Shapes: B batch, S sequence, D hidden, R rows that predict a target.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from focusft.method.architectures import Architecture, attention_part, mlp_part
from focusft.method.sharding import unhooked


def prepare_top_layers(
    parts: Architecture,
    trunk_BSD: Tensor,
    rows_BS: Tensor,
    layer_kwargs: dict[str, Any],
    keep_history: bool,
    checkpoint_attention: bool,
) -> Callable[[], Tensor]:
    """Compute what the fast weights do not change.

    Args:
        parts: The model's parts.
        trunk_BSD: Output of the trunk.
        rows_BS: True on the rows that predict a target.
        layer_kwargs: What each layer is called with.
        keep_history: Keep the graph back to `trunk_BSD`, for the exact hypergradient.
        checkpoint_attention: See `FocusEngine.checkpoints_inner_attention`.

    Returns:
        A function that runs the rest with the fast weights of the moment, and returns the hidden
        states after the final norm, [R, D].
    """
    layers: list[Any] = parts.adapted_layers
    first, *others = layers

    def run_layer(layer: Any, hidden_BSD: Tensor) -> Tensor:
        if checkpoint_attention or not parts.has_plain_layers:
            output_BSD: Tensor = unhooked(layer)(hidden_BSD, **layer_kwargs)
            return output_BSD
        attended_BSD = attention_part(layer, hidden_BSD, layer_kwargs)
        return _run(layer, partial(mlp_part, layer), attended_BSD)

    if parts.has_plain_layers and not parts.adapts_attention:
        with torch.set_grad_enabled(keep_history):
            attended_BSD = attention_part(first, trunk_BSD, layer_kwargs)
        run_first = partial(_run, first, partial(mlp_part, first), attended_BSD)
    else:
        run_first = partial(run_layer, first, trunk_BSD)

    def run() -> Tensor:
        hidden_BSD = run_first()
        for layer in others:
            hidden_BSD = run_layer(layer, hidden_BSD)
        return unhooked(parts.norm)(hidden_BSD[rows_BS])

    return run


def _run(layer: Any, part: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    """Run a part of a layer as the layer runs: with or without checkpointing."""
    if layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(part, hidden)
    return part(hidden)
