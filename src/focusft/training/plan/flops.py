"""FLOPs of a training step by phase, each with its formula (letters: see `setup.py`).

A multiplication with an addition counts as two, as everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from focusft.errors import UserError
from focusft.method.config import FocusConfig
from focusft.method.loss import ROWS_PER_CHUNK
from focusft.training.plan.setup import (
    Call,
    ModelShape,
    Setup,
    attention_calls,
    inner_rows,
    response_calls,
)


@dataclass(frozen=True)
class Flops:
    """FLOPs by kind; element-wise work is not counted."""

    linear: int = 0
    attention: int = 0
    fast_weights: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        """All kinds."""
        return self.linear + self.attention + self.fast_weights + self.head

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(a + b for a, b in zip(self._values, other._values, strict=True)))

    def __mul__(self, factor: float) -> Flops:
        return Flops(*(round(factor * value) for value in self._values))

    @property
    def _values(self) -> tuple[int, ...]:
        return dataclasses.astuple(self)


def attention_flops(shape: ModelShape, setup: Setup, calls: Iterable[Call]) -> Flops:
    """A forward: 4 * H * d for each pair (q.k, and weight times v). A backward takes 2.5 times.

    The backward of flash attention has five products where the forward has two: it computes q.k
    again. The pairs are those of the mask: context turns full, responses causal.
    """
    pairs = setup.documents * sum(call.pairs for call in calls)
    return Flops(attention=4 * shape.query_width * pairs)


ATTENTION_BACKWARD_HALVES = 5  # in halves of a forward


def _attention_backward(forward: Flops) -> Flops:
    return Flops(attention=forward.attention * ATTENTION_BACKWARD_HALVES // 2)


def layer_flops(
    shape: ModelShape,
    setup: Setup,
    calls: Iterable[Call],
    *,
    rank: int = 0,
    is_zero: bool = False,
    mlp_tokens: int | None = None,
    with_attention: bool = True,
) -> Flops:
    """A forward of one layer: 2 * tokens * size of each map, and the attention.

    Args:
        shape: The model.
        setup: The run.
        calls: Attention calls of one document.
        rank: Of the fast weights in use: 2 * tokens * r * (inputs + outputs) more for each
            target. 0 for none.
        is_zero: B is zero, and the product with it left out: no outputs in that formula.
        mlp_tokens: Tokens that go through the MLP; all by default.
        with_attention: Also run attention, with its maps.
    """
    flops = attention_flops(shape, setup, calls) if with_attention else Flops()
    for m in shape.maps:
        if m.level <= 1 and not with_attention:
            continue
        tokens = setup.tokens if m.level <= 1 or mlp_tokens is None else mlp_tokens
        flops += Flops(linear=2 * tokens * m.size)
        if m.has_fast_weights:
            features = m.inputs + (0 if is_zero else m.outputs)
            flops += Flops(fast_weights=2 * tokens * rank * features)
    return flops


def recompute_flops(
    shape: ModelShape,
    setup: Setup,
    forward: Flops,
    *,
    has_fast_weights: bool,
    is_last: bool,
) -> Flops:
    """A checkpointed layer runs again, up to the last tensor that its backward wants.

    Non-reentrant checkpointing stops there: the map out of the MLP is not computed again, unless
    fast weights follow it, or the last layer puts its rows back.
    """
    if setup.checkpointing == "all_but_attention":
        forward += Flops(attention=-forward.attention)
    last = shape.maps[-1]
    if (has_fast_weights and last.has_fast_weights) or (is_last and shape.is_plain):
        return forward
    return forward + Flops(linear=-2 * setup.tokens * last.size)


def head_flops(shape: ModelShape, rows: int) -> Flops:
    """A forward of the head on some rows: 2 * rows * D * V."""
    return Flops(head=2 * rows * shape.head_size)


def inner_layer_backward(
    shape: ModelShape,
    setup: Setup,
    forward: Flops,
    *,
    rank: int,
    is_first: bool,
    mlp_tokens: int,
    with_attention: bool,
    is_first_step: bool,
) -> Flops:
    """Activation gradients and fast-weight gradients of one layer; no base-weight gradients.

    A map passes a gradient on (2 * tokens * size) if its input depends on fast weights: always
    above the first adapted layer, there only behind a target. Each target's fast weights cost
    2 * tokens * r * outputs for B's gradient, as much for what goes back through B, and
    2 * tokens * r * inputs each for A's gradient and the input's. At the first step B is zero, so
    that nothing goes back through it: B's gradient is all there.
    """
    target_levels = [m.level for m in shape.targets]
    flops = Flops()
    if with_attention and (not is_first or 0 in target_levels):
        flops += _attention_backward(forward)
    for m in shape.maps:
        if m.level <= 1 and not with_attention:
            continue
        tokens = setup.tokens if m.level <= 1 else mlp_tokens
        passes_on = not is_first or any(level < m.level for level in target_levels)
        if passes_on:
            flops += Flops(linear=2 * tokens * m.size)
        if m.has_fast_weights:
            through_b = 0 if is_first_step else m.outputs + m.inputs * (1 + int(passes_on))
            flops += Flops(fast_weights=2 * tokens * rank * (m.outputs + through_b))
    return flops


def inner_flops(shape: ModelShape, focus: FocusConfig, setup: Setup) -> dict[str, Flops]:
    """The inner loop: forward, backward and, with checkpointing, recomputation of K steps.

    As `method/top_layers.py` and `method/last_layer.py` run it: the first adapted layer's attention
    once in all, the last layer's MLP, the norm and the head on the rows with a target only.
    """
    steps = focus.num_inner_steps
    if steps == 0:
        return {}
    if focus.inner_order == 2:
        raise UserError("plan: inner_order=2 is not covered; plan with inner_order=1")
    calls = attention_calls(setup, focus.inner_attention)
    rows, rank = inner_rows(focus, setup), focus.inner_rank
    once = Flops()
    # Of the first step, and of each other one.
    forward = {True: Flops(), False: Flops()}
    recompute, backward = forward.copy(), forward.copy()
    if focus.inner_attention != focus.context_attention:  # the trunk again, under another mask
        once += layer_flops(shape, setup, calls) * shape.first_adapted
    for index in range(shape.adapted):
        is_first, is_last = index == 0, index == shape.adapted - 1
        is_cut = is_last and shape.is_plain and focus.inner_objective != "context"
        layer_calls = response_calls(calls) if is_cut else calls
        tokens = rows if is_last and shape.is_plain else setup.tokens
        is_split = is_first and shape.is_plain and not shape.adapts_attention
        if is_split:
            whole = layer_flops(shape, setup, layer_calls)
            once += whole + layer_flops(shape, setup, (), with_attention=False) * -1
        for is_first_step in (True, False):
            of_layer = layer_flops(
                shape,
                setup,
                layer_calls,
                rank=rank,
                is_zero=is_first_step,
                mlp_tokens=tokens,
                with_attention=not is_split,
            )
            forward[is_first_step] += of_layer
            if setup.recomputes_products:
                recompute[is_first_step] += recompute_flops(
                    shape, setup, of_layer, has_fast_weights=True, is_last=is_last
                )
            backward[is_first_step] += inner_layer_backward(
                shape,
                setup,
                of_layer,
                rank=rank,
                is_first=is_first,
                mlp_tokens=tokens,
                with_attention=not is_split,
                is_first_step=is_first_step,
            )
    head = head_flops(shape, rows)
    head_recompute = head if rows > ROWS_PER_CHUNK else Flops()
    # Backtracking also looks at the loss after the last step (and more often, if it rises).
    looks = int(focus.inner_step == "backtracking")
    others = steps - 1
    return {
        "inner forward": (
            once + forward[True] + forward[False] * (others + looks) + head * (steps + looks)
        ),
        "inner backward": backward[True] + backward[False] * others + head * steps,
        "inner recompute": recompute[True] + recompute[False] * others + head_recompute * steps,
    }


def step_flops(shape: ModelShape, focus: FocusConfig, setup: Setup) -> dict[str, Flops]:
    """FLOPs of one micro-batch by phase, the mean over steps with and without a causal outer mask.

    The phases are those of `_phases`.
    """
    usual = _phases(shape, focus, setup)
    share = focus.causal_share
    if share == 0:
        return usual
    causal = dataclasses.replace(
        focus,
        context_attention="causal",
        inner_context_attention=focus.inner_attention,
        causal_share=0.0,
    )
    return {
        phase: usual[phase] * (1 - share) + flops * share
        for phase, flops in _phases(shape, causal, setup).items()
    }


def _phases(shape: ModelShape, focus: FocusConfig, setup: Setup) -> dict[str, Flops]:
    """FLOPs of one micro-batch by phase, under the masks of the config.

    The backward of the outer loop takes twice the forward's linear maps (activations and
    weights); fast weights are constant there and pass the activation gradient on only. The last
    layer's queries and MLP are those of the rows with a target (`method/last_layer.py`).
    """
    calls = attention_calls(setup, focus.context_attention)
    rank = focus.inner_rank if focus.num_inner_steps else 0
    of_trunk = layer_flops(shape, setup, calls)
    whole = layer_flops(shape, setup, calls, rank=rank)
    last = whole
    if shape.is_plain:
        last = layer_flops(shape, setup, response_calls(calls), rank=rank, mlp_tokens=setup.rows)
    trunk = of_trunk * shape.first_adapted
    top = whole * (shape.adapted - 1) + last
    layers = trunk + top
    head = head_flops(shape, setup.rows)
    backward = layers + Flops(linear=layers.linear, attention=-layers.attention)
    backward += _attention_backward(layers) + head * 2
    recompute = Flops()
    if setup.recomputes_products:
        again = partial(recompute_flops, shape, setup)
        recompute += again(of_trunk, has_fast_weights=False, is_last=False) * shape.first_adapted
        adapts = rank > 0
        of_whole = again(whole, has_fast_weights=adapts, is_last=False)
        recompute += of_whole * (shape.adapted - 1)
        recompute += again(last, has_fast_weights=adapts, is_last=True)
    if setup.rows > ROWS_PER_CHUNK:
        recompute += head
    return {
        "trunk forward": trunk,
        **inner_flops(shape, focus, setup),
        "outer forward": top + head,
        "outer backward": backward,
        "outer recompute": recompute,
    }
