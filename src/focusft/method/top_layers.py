"""The layers above the trunk, run again in each inner step, without what does not change.

Two things need not be computed again and again. The attention of the first adapted layer lies
below all fast weights, unless they sit in attention itself, so it runs once. And only the rows
that predict a target count after the last layer's attention: the others are keys and values
there, and no more.

Shapes: B batch, S sequence, D hidden, R rows that predict a target.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from focusft.method.architectures import Architecture, attention_part, mlp_part
from focusft.method.attention import ATTENTION
from focusft.method.sharding import unhooked


def prepare_top_layers(
    parts: Architecture,
    trunk_BSD: Tensor,
    rows_BS: Tensor,
    layer_kwargs: dict[str, Any],
    keep_history: bool,
) -> Callable[[], Tensor]:
    """Compute what the fast weights do not change.

    Args:
        parts: The model's parts.
        trunk_BSD: Output of the trunk.
        rows_BS: True on the rows that predict a target.
        layer_kwargs: What each layer is called with.
        keep_history: Keep the graph back to `trunk_BSD`, for the exact hypergradient.

    Returns:
        A function that runs the rest with the fast weights of the moment, and returns the hidden
        states after the final norm, [R, D].
    """
    layers: list[Any] = parts.adapted_layers
    if not parts.has_plain_layers:

        def run_whole_layers() -> Tensor:
            hidden_BSD = trunk_BSD
            for layer in layers:
                hidden_BSD = unhooked(layer)(hidden_BSD, **layer_kwargs)
            return unhooked(parts.norm)(hidden_BSD[rows_BS])

        return run_whole_layers

    last_kwargs = {**layer_kwargs, ATTENTION: layer_kwargs[ATTENTION].only(rows_BS)}

    def attend(layer: Any, hidden_BSD: Tensor) -> Tensor:
        if layer is layers[-1]:
            return attention_part(layer, hidden_BSD, last_kwargs)[rows_BS]
        return attention_part(layer, hidden_BSD, layer_kwargs)

    if not parts.adapts_attention:
        with torch.set_grad_enabled(keep_history):
            attended = attend(layers[0], trunk_BSD)

    def last_layer(hidden_BSD: Tensor) -> Tensor:
        return mlp_part(layers[-1], attend(layers[-1], hidden_BSD))

    def run() -> Tensor:
        hidden = trunk_BSD
        for layer in layers:
            if layer is layers[0] and not parts.adapts_attention:
                hidden = _run(layer, partial(mlp_part, layer), attended)
            elif layer is layers[-1]:
                hidden = _run(layer, last_layer, hidden)
            else:
                hidden = unhooked(layer)(hidden, **layer_kwargs)
        return unhooked(parts.norm)(hidden)

    return run


def _run(layer: Any, part: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    """Run a part of a layer as the layer runs: with or without checkpointing."""
    if layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(part, hidden)
    return part(hidden)
