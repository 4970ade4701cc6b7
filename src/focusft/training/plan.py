"""Memory and FLOPs of a training step, from a model's config alone: nothing is loaded or run.

Each function is one term, with its formula and what it was read from. `benchmarks/plan_check.py`
holds them against measurement. They are exact for layers as Llama's, Mistral's, Qwen2's and
Qwen3's are (RMSNorm, rotary positions, gated MLP); other families differ by their norms.

One micro-batch has B documents of S tokens. Each document is a number of turns of equal size,
context and response in alternation, with R response tokens in all.

Letters in formulas: T = B * S tokens, D hidden size, H query heads of d features, G key heads,
F intermediate size, V vocabulary, L layers, n adapted layers at the top, r rank of the fast
weights, K inner steps, c bytes of an activation that goes into a matrix product.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from focusft.errors import UserError
from focusft.method.architectures import PLAIN_PARTS, read_architecture
from focusft.method.config import ContextAttention, FocusConfig
from focusft.method.loss import ROWS_PER_CHUNK
from focusft.method.segments import ROWS_PER_CALL

PrecisionName = Literal["fp32", "bf16_mixed", "bf16"]
Backend = Literal["segments", "flex", "dense"]

# Bytes of the state that torch keeps for each parameter, as a multiple of the parameter's own.
OPTIMIZER_STATES = {
    "adamw_torch": 2.0,
    "adamw_torch_fused": 2.0,
    "sgd": 0.0,
}


@dataclass(frozen=True)
class Precision:
    """Bytes of one number.

    Attributes:
        weights: Of a parameter, and of its gradient and of each state of the optimizer.
        residual: Of the hidden states between layers.
        compute: Of what goes into matrix products.
        is_autocast: Weights and inputs are cast for each product: bf16 copies of both are kept.
    """

    weights: int
    residual: int
    compute: int
    is_autocast: bool = False


PRECISIONS: dict[PrecisionName, Precision] = {
    "fp32": Precision(weights=4, residual=4, compute=4),
    "bf16_mixed": Precision(weights=4, residual=4, compute=2, is_autocast=True),
    "bf16": Precision(weights=2, residual=2, compute=2),
}


@dataclass(frozen=True)
class LinearMap:
    """A linear map of a layer.

    Attributes:
        inputs: Input features.
        outputs: Output features.
        level: Order in the layer: 0 query, key, value; 1 attention output; 2 into the MLP; 3 out.
        has_fast_weights: It is one of `inner_target_modules`.
    """

    inputs: int
    outputs: int
    level: int
    has_fast_weights: bool

    @property
    def size(self) -> int:
        """Elements of the weight."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder-only model.

    Attributes:
        family: `model_type` of its config.
        hidden: D.
        layers: L.
        first_adapted: Index of the first layer with fast weights.
        heads: H.
        key_heads: G.
        head_features: d.
        intermediate: F.
        vocabulary: V.
        parameters: Of the whole model, shared ones counted once.
        layer_parameters: Of the largest layer.
        is_tied: Embedding and head share their weight.
        is_gated: The MLP is down(act(gate(x)) * up(x)).
        has_qk_norm: Queries and keys are normed.
        is_plain: A layer is attention, then MLP, each with a residual: the inner loop then runs
            only the parts that fast weights change.
        maps: Linear maps of one layer.
    """

    family: str
    hidden: int
    layers: int
    first_adapted: int
    heads: int
    key_heads: int
    head_features: int
    intermediate: int
    vocabulary: int
    parameters: int
    layer_parameters: int
    is_tied: bool
    is_gated: bool
    has_qk_norm: bool
    is_plain: bool
    maps: tuple[LinearMap, ...]

    @classmethod
    def of(cls, model: PreTrainedModel, focus: FocusConfig) -> ModelShape:
        """Read the sizes of a model, which may live on the meta device.

        Raises:
            UnsupportedModelError: The method does not cover the model.
        """
        parts = read_architecture(model, focus)
        settings: Any = model.config.get_text_config(decoder=True)
        layer = parts.adapted_layers[0]
        children = dict(layer.named_children())
        targets = set(parts.targets)
        maps = []
        for name, levels in (("self_attn", (0, 1)), ("mlp", (2, 3))):
            if name not in children:
                raise UserError(
                    f"plan: a layer of {type(model).__name__} has no {name}; this architecture "
                    "is not covered"
                )
            linear = [m for m in children[name].modules() if isinstance(m, nn.Linear)]
            for module in linear:
                level = levels[1] if module is linear[-1] else levels[0]
                maps.append(
                    LinearMap(module.in_features, module.out_features, level, module in targets)
                )
        heads = settings.num_attention_heads
        key_heads = settings.to_dict().get("num_key_value_heads") or heads
        mlp = [m for m in maps if m.level >= 2]
        embedding: Any = model.get_input_embeddings()
        return cls(
            family=model.config.model_type,
            hidden=settings.hidden_size,
            layers=len(parts.layers),
            first_adapted=parts.first_adapted,
            heads=heads,
            key_heads=key_heads,
            head_features=next(m for m in maps if m.level == 1).inputs // heads,
            intermediate=mlp[-1].inputs,
            vocabulary=embedding.weight.shape[0],
            parameters=_size(model),
            layer_parameters=max(_size(layer) for layer in parts.layers),
            is_tied=parts.head.weight is embedding.weight,
            is_gated=len(mlp) == 3,
            has_qk_norm="q_norm" in dict(children["self_attn"].named_children()),
            # Granite has these parts too, but scales its residuals.
            is_plain=set(children) == PLAIN_PARTS
            and "residual_multiplier" not in settings.to_dict(),
            maps=tuple(maps),
        )

    @property
    def adapted(self) -> int:
        """n, the number of layers with fast weights."""
        return self.layers - self.first_adapted

    @property
    def query_width(self) -> int:
        """H * d."""
        return self.heads * self.head_features

    @property
    def key_width(self) -> int:
        """G * d."""
        return self.key_heads * self.head_features

    @property
    def head_size(self) -> int:
        """Elements of the head, V * D."""
        return self.vocabulary * self.hidden

    @property
    def targets(self) -> list[LinearMap]:
        """The maps of one layer that get fast weights."""
        return [m for m in self.maps if m.has_fast_weights]

    @property
    def adapts_attention(self) -> bool:
        """True when fast weights sit inside attention."""
        return any(m.level <= 1 for m in self.targets)

    def fast_weights(self, rank: int) -> int:
        """Elements of the fast weights of one document: n * sum of r * (inputs + outputs)."""
        return self.adapted * sum(rank * (m.inputs + m.outputs) for m in self.targets)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass(frozen=True)
class Setup:
    """How a model is trained.

    Attributes:
        length: S, tokens of a document.
        response_tokens: R, labelled tokens of a document.
        documents: B, documents of a micro-batch on one device.
        turns: Pairs of context and response in a document.
        accumulation: Micro-batches of an optimizer step.
        precision: "fp32", "bf16_mixed" (fp32 weights) or "bf16" (weights too).
        checkpointing: Layers keep only their input, and run again in the backward pass.
        data_parallel: Devices, each with micro-batches of its own.
        shards: Devices that FSDP2 spreads parameters, gradients and optimizer state over; 1 for
            DDP or a single device.
        optimizer: Name as in transformers, see OPTIMIZER_STATES.
        backend: Attention backend.
        device: "cpu" or "cuda".
    """

    length: int
    response_tokens: int
    documents: int = 1
    turns: int = 1
    accumulation: int = 1
    precision: PrecisionName = "fp32"
    checkpointing: bool = False
    data_parallel: int = 1
    shards: int = 1
    optimizer: str = "adamw_torch_fused"
    backend: Backend = "segments"
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        for name in (
            *("length", "response_tokens", "documents", "turns"),
            *("accumulation", "data_parallel", "shards"),
        ):
            if vars(self)[name] < 1:
                raise UserError(f"plan: {name} is {vars(self)[name]}; it must be 1 or more")
        if self.response_tokens >= self.length:
            raise UserError(
                f"plan: {self.response_tokens} response tokens leave no context in "
                f"{self.length} tokens; lower --response"
            )
        if self.turns > min(self.response_tokens, self.length - self.response_tokens):
            raise UserError(f"plan: {self.turns} turns have no token each; lower --turns")
        if self.data_parallel % self.shards:
            raise UserError(
                f"plan: {self.data_parallel} devices cannot be divided into groups of "
                f"{self.shards} shards; make --shards a divisor of --data_parallel"
            )
        if self.precision not in PRECISIONS:
            raise UserError(f"plan: precision {self.precision!r} is not one of {list(PRECISIONS)}")
        if self.optimizer not in OPTIMIZER_STATES:
            raise UserError(
                f"plan: the state of optim={self.optimizer} is not known here; plan with one of "
                f"{', '.join(OPTIMIZER_STATES)}"
            )

    @property
    def tokens(self) -> int:
        """T."""
        return self.documents * self.length

    @property
    def rows(self) -> int:
        """Rows that predict a labelled token, over all documents."""
        return self.documents * self.response_tokens

    @property
    def activation_precision(self) -> Precision:
        """FSDP2 casts weights and the inputs of each layer itself: nothing is left to autocast."""
        if self.shards > 1 and self.precision == "bf16_mixed":
            return PRECISIONS["bf16"]
        return PRECISIONS[self.precision]


# Attention: which keys each query sees, and in which kernel calls.


@dataclass(frozen=True)
class Call:
    """One kernel call: `queries` see `keys` keys, the last ones causally where it `is_causal`."""

    queries: int
    keys: int
    is_causal: bool

    @property
    def is_masked(self) -> bool:
        """Causal over more keys than queries needs a mask of [queries, keys]."""
        return self.is_causal and self.queries < self.keys

    @property
    def pairs(self) -> int:
        """Pairs of query and key under the mask."""
        hidden = self.queries * (self.queries - 1) // 2 if self.is_causal else 0
        return self.queries * self.keys - hidden


def attention_calls(setup: Setup, attention: ContextAttention) -> list[Call]:
    """Kernel calls of `method/segments.py` for one document.

    A context turn is one call without a mask. A response goes in blocks of ROWS_PER_CALL rows.
    Under causal attention the document is one causal call.
    """
    if attention == "causal":
        return [Call(setup.length, setup.length, is_causal=True)]
    calls, position = [], 0
    for turn in range(setup.turns):
        context = _share(setup.length - setup.response_tokens, setup.turns, turn)
        position += context
        calls.append(Call(context, position, is_causal=False))
        rows_left = _share(setup.response_tokens, setup.turns, turn)
        while rows_left:
            rows = min(rows_left, ROWS_PER_CALL)
            position, rows_left = position + rows, rows_left - rows
            calls.append(Call(rows, position, is_causal=True))
    return calls


def _share(total: int, parts: int, index: int) -> int:
    return total * (index + 1) // parts - total * index // parts


def response_calls(calls: Iterable[Call]) -> list[Call]:
    """The calls that are left in the last layer of the inner loop: response rows only.

    Each response is shifted by one row, which does not change the sizes.
    """
    return [call for call in calls if call.is_causal]


# FLOPs. A multiplication with an addition counts as two, as everywhere.


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

    def __mul__(self, factor: int) -> Flops:
        return Flops(*(factor * value for value in self._values))

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
            flops += Flops(fast_weights=2 * tokens * rank * (m.inputs + m.outputs))
    return flops


def recompute_flops(shape: ModelShape, forward: Flops, tokens: int, *, rank: int = 0) -> Flops:
    """A checkpointed layer runs again, up to the last tensor that its backward wants.

    Non-reentrant checkpointing stops there: the last product (the map out of the MLP, or the
    fast weights that follow it) is not computed again.
    """
    last = shape.maps[-1]
    if rank and last.has_fast_weights:
        return forward + Flops(fast_weights=-2 * tokens * rank * last.outputs)
    return forward + Flops(linear=-2 * tokens * last.size)


def head_flops(shape: ModelShape, rows: int) -> Flops:
    """A forward of the head on some rows: 2 * rows * D * V."""
    return Flops(head=2 * rows * shape.head_size)


def inner_rows(focus: FocusConfig, setup: Setup) -> int:
    """Rows with an inner target, over all documents (`method/objectives.py`)."""
    if focus.inner_objective == "context":
        return setup.documents * (setup.length - setup.response_tokens - 1)
    if focus.inner_objective == "held_out_turns":
        last = _share(setup.response_tokens, setup.turns, setup.turns - 1)
        return setup.documents * (setup.response_tokens - last)
    return setup.rows


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
    2 * tokens * r * inputs each for A's gradient and the input's. A's gradient is zero at the
    first step, where B is zero, and is left out there.
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
            through_b = passes_on or not is_first_step
            of_inputs = int(passes_on) + int(not is_first_step)
            flops += Flops(
                fast_weights=2
                * tokens
                * rank
                * (m.outputs * (1 + int(through_b)) + m.inputs * of_inputs)
            )
    return flops


def inner_flops(shape: ModelShape, focus: FocusConfig, setup: Setup) -> dict[str, Flops]:
    """The inner loop: forward, backward and, with checkpointing, recomputation of K steps.

    As `method/top_layers.py` runs it: the first adapted layer's attention once in all, the last
    layer's MLP, the norm and the head on the rows with a target only.
    """
    steps = focus.num_inner_steps
    if steps == 0:
        return {}
    if focus.inner_order == 2:
        raise UserError("plan: inner_order=2 is not covered; plan with inner_order=1")
    calls = attention_calls(setup, focus.inner_attention)
    rows, rank = inner_rows(focus, setup), focus.inner_rank
    once, forward, recompute = Flops(), Flops(), Flops()
    backward = {True: Flops(), False: Flops()}
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
        of_layer = layer_flops(
            shape,
            setup,
            layer_calls,
            rank=rank,
            mlp_tokens=tokens,
            with_attention=not is_split,
        )
        forward += of_layer
        if setup.checkpointing:
            recompute += recompute_flops(shape, of_layer, tokens, rank=rank)
        for is_first_step in (True, False):
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
    if rows > ROWS_PER_CHUNK:
        recompute += head
    # Backtracking also looks at the loss after the last step (and more often, if it rises).
    forwards = steps + int(focus.inner_step == "backtracking")
    return {
        "inner forward": once + (forward + head) * forwards,
        "inner backward": backward[True] + backward[False] * (steps - 1) + head * steps,
        "inner recompute": recompute * steps,
    }


def step_flops(shape: ModelShape, focus: FocusConfig, setup: Setup) -> dict[str, Flops]:
    """FLOPs of one micro-batch by phase.

    The backward of the outer loop takes twice the forward's linear maps (activations and
    weights); fast weights are constant there and pass the activation gradient on only.
    """
    calls = attention_calls(setup, focus.context_attention)
    rank = focus.inner_rank if focus.num_inner_steps else 0
    trunk = layer_flops(shape, setup, calls)
    top = layer_flops(shape, setup, calls, rank=rank)
    layers = trunk * shape.first_adapted + top * shape.adapted
    head = head_flops(shape, setup.rows)
    backward = layers + Flops(linear=layers.linear, attention=-layers.attention)
    backward += _attention_backward(layers) + head * 2
    recompute = Flops()
    if setup.checkpointing:
        recompute += recompute_flops(shape, trunk, setup.tokens) * shape.first_adapted
        recompute += recompute_flops(shape, top, setup.tokens, rank=rank) * shape.adapted
    if setup.rows > ROWS_PER_CHUNK:
        recompute += head
    # The stock forward also makes the logits of one position of each row.
    outer_head = head + head_flops(shape, 1)
    return {
        "trunk forward": trunk * shape.first_adapted,
        **inner_flops(shape, focus, setup),
        "outer forward": top * shape.adapted + outer_head,
        "outer backward": backward,
        "outer recompute": recompute,
    }


# Memory: what autograd keeps for the backward pass, in bytes on one device.


def norm_bytes(width: int, tokens: int, readers: int, precision: Precision) -> int:
    """RMSNorm keeps its input in fp32, the normed input, and its output for those who read it.

    Under autocast each reader makes a bf16 copy of its own.
    """
    copies = readers if precision.is_autocast else 1
    return tokens * width * (4 + precision.residual + copies * precision.compute)


def attention_bytes(shape: ModelShape, setup: Setup, calls: list[Call]) -> int:
    """What attention keeps in one layer.

    The kernels keep q, k, v, out (T * d * (2 H + 2 G) numbers of c bytes) and the fp32 log-sum-exp
    (T * H). Segments: outputs of several calls are joined to one more tensor of T * H * d; each
    block of response rows keeps its mask, [rows, keys]; on a GPU these calls also copy keys and
    values to H heads, and autocast copies the keys for every call. Dense: a mask of S * S numbers
    for each document, and keys and values copied to H heads.
    """
    precision = setup.activation_precision
    c = precision.compute
    q, kv = shape.query_width, shape.key_width
    per_token = c * (2 * q + 2 * kv) + 4 * shape.heads
    if shape.has_qk_norm:
        per_token += (4 + c) * (q + kv)
    total = setup.tokens * per_token
    if setup.backend == "dense":
        copied = 2 * c * (q - kv) * setup.tokens if shape.heads != shape.key_heads else 0
        mask = max(c, 4 if setup.device == "cpu" else c) * setup.length**2
        return total + copied + setup.documents * mask
    if setup.backend == "segments":
        if setup.documents * len(calls) > 1:
            total += c * setup.tokens * q
        for call in calls:
            if call.is_masked:
                number = 4 if setup.device == "cpu" else c
                total += setup.documents * number * call.queries * call.keys
                if setup.device == "cuda" and shape.heads != shape.key_heads:
                    total += setup.documents * 2 * c * q * call.keys
        if precision.is_autocast:
            total += setup.documents * c * kv * (sum(call.keys for call in calls) - setup.length)
    return total


def mlp_bytes(shape: ModelShape, tokens: int, precision: Precision) -> int:
    """A gated MLP keeps gate, act(gate), up and their product, each F wide; others two of them."""
    return tokens * precision.compute * shape.intermediate * (4 if shape.is_gated else 2)


def layer_bytes(shape: ModelShape, setup: Setup, calls: list[Call]) -> int:
    """What one layer of the outer forward keeps: two norms, attention, MLP."""
    precision = setup.activation_precision
    mlp_readers = 2 if shape.is_gated else 1
    return (
        norm_bytes(shape.hidden, setup.tokens, 3, precision)
        + attention_bytes(shape, setup, calls)
        + norm_bytes(shape.hidden, setup.tokens, mlp_readers, precision)
        + mlp_bytes(shape, setup.tokens, precision)
    )


def hidden_bytes(shape: ModelShape, setup: Setup) -> int:
    """Hidden states between two layers: all that a checkpointed layer keeps."""
    return setup.tokens * shape.hidden * setup.activation_precision.residual


def workspace_bytes(shape: ModelShape, setup: Setup, tokens: int) -> int:
    """Gradients alive in the backward of an MLP: two F wide, and two hidden states."""
    precision = setup.activation_precision
    return tokens * (2 * shape.intermediate * precision.compute + 2 * shape.hidden * 4)


def logits_bytes(shape: ModelShape, rows: int) -> int:
    """Log-probabilities and two gradients, fp32, for one chunk of rows at a time."""
    return 3 * 4 * min(rows, ROWS_PER_CHUNK) * shape.vocabulary


def kept_logits_bytes(shape: ModelShape, rows: int) -> int:
    """Log-probabilities kept from the forward to the backward: none where chunks recompute."""
    return 4 * rows * shape.vocabulary if rows <= ROWS_PER_CHUNK else 0


def inner_layers_bytes(shape: ModelShape, focus: FocusConfig, setup: Setup) -> list[int]:
    """What each adapted layer keeps in one inner step, without checkpointing.

    Less than in the outer forward where `method/top_layers.py` leaves parts out; T * r numbers
    more for each target.
    """
    precision = setup.activation_precision
    calls = attention_calls(setup, focus.inner_attention)
    rows = inner_rows(focus, setup)
    mlp_readers = 2 if shape.is_gated else 1
    layers = []
    for index in range(shape.adapted):
        is_first, is_last = index == 0, index == shape.adapted - 1
        tokens = rows if is_last and shape.is_plain else setup.tokens
        low_rank = sum(
            precision.compute * focus.inner_rank * (setup.tokens if m.level <= 1 else tokens)
            for m in shape.targets
        )
        total = low_rank + norm_bytes(shape.hidden, tokens, mlp_readers, precision)
        total += mlp_bytes(shape, tokens, precision)
        if is_first and shape.is_plain and not shape.adapts_attention:
            total -= 4 * tokens * shape.hidden  # its input needs no gradient
        else:
            is_cut = is_last and shape.is_plain and focus.inner_objective != "context"
            total += norm_bytes(shape.hidden, setup.tokens, 3, precision)
            total += attention_bytes(shape, setup, response_calls(calls) if is_cut else calls)
        layers.append(total)
    return layers


@dataclass(frozen=True)
class Plan:
    """What one optimizer step takes.

    Attributes:
        shape: The model.
        focus: Options of the method.
        setup: How it is trained.
        memory: Bytes on one device, by term.
        moments: Bytes alive on one device at the moments that can be the peak.
        flops: Of one micro-batch on one device, by phase.
        tflops: Assumed or measured matmul rate of one device, in 10^12 per second.
        utilisation: Assumed fraction of it over a whole step.
    """

    shape: ModelShape
    focus: FocusConfig
    setup: Setup
    tflops: float | None = None
    utilisation: float = 1.0
    memory: dict[str, int] = field(init=False)
    moments: dict[str, int] = field(init=False)
    flops: dict[str, Flops] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "flops", step_flops(self.shape, self.focus, self.setup))
        object.__setattr__(self, "memory", memory_terms(self.shape, self.focus, self.setup))
        object.__setattr__(self, "moments", memory_moments(self.memory, self.setup))

    @property
    def peak(self) -> int:
        """Bytes at the worst moment."""
        return max(self.moments.values())

    @property
    def peak_moment(self) -> str:
        """The worst moment."""
        return max(self.moments, key=lambda moment: self.moments[moment])

    @cached_property
    def total_flops(self) -> int:
        """Of one micro-batch on one device."""
        return sum(flops.total for flops in self.flops.values())

    @property
    def seconds(self) -> float | None:
        """Of one optimizer step: matrix products only, at the assumed rate and utilisation."""
        if self.tflops is None:
            return None
        return self.total_flops * self.setup.accumulation / (self.tflops * 1e12 * self.utilisation)

    @property
    def over_sft(self) -> float:
        """FLOPs over those of K = 0 under the same mask."""
        baseline = step_flops(
            self.shape, dataclasses.replace(self.focus, num_inner_steps=0), self.setup
        )
        return self.total_flops / sum(flops.total for flops in baseline.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "model": dataclasses.asdict(self.shape),
            "setup": dataclasses.asdict(self.setup),
            "memory_bytes": self.memory,
            "moments_bytes": self.moments,
            "peak_bytes": self.peak,
            "peak_moment": self.peak_moment,
            "flops": {phase: dataclasses.asdict(flops) for phase, flops in self.flops.items()},
            "total_flops": self.total_flops,
            "flops_over_k0": self.over_sft,
            "tflops": self.tflops,
            "utilisation": self.utilisation,
            "step_seconds": self.seconds,
        }


def memory_terms(shape: ModelShape, focus: FocusConfig, setup: Setup) -> dict[str, int]:
    """Every term in bytes on one device.

    Args:
        shape: The model.
        focus: Options of the method.
        setup: The run.

    Returns:
        Terms by name. Not all are alive at the same time: see `memory_moments`. "attention" is
        a part of the activations, not added to them.
    """
    weights = PRECISIONS[setup.precision].weights
    precision = setup.activation_precision
    calls = attention_calls(setup, focus.context_attention)
    of_layer, hidden = layer_bytes(shape, setup, calls), hidden_bytes(shape, setup)
    outside_layers = norm_bytes(shape.hidden, setup.tokens, 1, precision)
    linear = sum(m.size for m in shape.maps) * shape.layers + shape.head_size
    casts = 2 * linear if precision.is_autocast else 0
    steps = focus.num_inner_steps
    kept = outside_layers + shape.layers * of_layer
    checkpointed = outside_layers + (shape.layers + 1) * hidden
    # Between the forward of the trunk and the outer forward of the top layers.
    trunk = shape.first_adapted * (hidden if setup.checkpointing else of_layer)

    sharded = setup.shards > 1
    tail = shape.head_size * (1 if shape.is_tied else 2)
    unsharded_layers = 2 if sharded else 0  # the current one and the prefetched one
    terms = {
        "parameters": shape.parameters * weights // setup.shards,
        "gradients": shape.parameters * weights // setup.shards,
        "optimizer state": int(shape.parameters * weights * OPTIMIZER_STATES[setup.optimizer])
        // setup.shards,
        "DDP gradient buckets": (
            shape.parameters * weights if setup.data_parallel > 1 and not sharded else 0
        ),
        "FSDP2 unsharded, outer loop": (
            precision.compute * (tail + unsharded_layers * shape.layer_parameters) * int(sharded)
        ),
        "FSDP2 unsharded gradients": (
            precision.compute * unsharded_layers * shape.layer_parameters
        ),
        "FSDP2 unsharded, inner loop": (
            precision.compute * (tail + shape.adapted * shape.layer_parameters) * int(sharded)
            if steps
            else 0
        ),
        "autocast weight copies": casts,
        "activations, kept": kept,
        "activations, checkpointed": checkpointed,
        "activations of one layer": of_layer,
        "attention of one layer": attention_bytes(shape, setup, calls),
        "logits": logits_bytes(shape, setup.rows),
        "head gradient": shape.head_size * weights,
        "workspace": workspace_bytes(shape, setup, setup.tokens),
    }
    if setup.backend == "dense":
        terms["dense mask"] = setup.documents * setup.length**2
    if steps:
        layers = inner_layers_bytes(shape, focus, setup)
        rows = inner_rows(focus, setup)
        if setup.checkpointing:
            inner = (shape.adapted - 1) * hidden + max(layers)
            space = workspace_bytes(shape, setup, setup.tokens)
        else:
            inner = sum(layers)
            tokens = rows if shape.is_plain else setup.tokens
            space = workspace_bytes(shape, setup, tokens)
        terms |= {
            "trunk activations": trunk + hidden,
            # The first layer's attended input is kept through all steps.
            "inner activations": hidden + inner,
            "inner logits": logits_bytes(shape, rows),
            "inner workspace": space,
            "fast weights": 4 * shape.fast_weights(focus.inner_rank) * setup.documents,
        }
    return terms


def memory_moments(terms: dict[str, int], setup: Setup) -> dict[str, int]:
    """Sums of the terms that are alive together, at each moment that can be the peak.

    Activations shrink while gradients grow in the backward pass, so that its two ends bound it.
    """
    t = terms
    state = t["parameters"] + t["optimizer state"] + t["DDP gradient buckets"]
    before = state + (t["gradients"] if setup.accumulation > 1 else 0)
    before += t.get("dense mask", 0)
    fast = t.get("fast weights", 0)
    casts = t["autocast weight copies"]
    outer_shards = t["FSDP2 unsharded, outer loop"] + t["FSDP2 unsharded gradients"]
    recomputed = t["activations of one layer"] if setup.checkpointing else 0
    activations = t["activations, checkpointed" if setup.checkpointing else "activations, kept"]
    kept_casts = 0 if setup.checkpointing else casts
    head = t["head gradient"] // setup.shards
    moments = {}
    if "inner activations" in t:
        # During a step: phi_0 and phi_k. At its update: the gradients, before and after clipping.
        during = t["inner activations"] + 2 * fast
        during += max(t["inner logits"], t["inner workspace"])
        moments["inner loop"] = (
            before
            + t["trunk activations"]
            + max(during, 4 * fast)
            + casts
            + t["FSDP2 unsharded, inner loop"]
        )
    moments["start of the backward pass"] = (
        before
        + activations
        + fast
        + kept_casts
        + outer_shards
        + max(t["logits"], head + recomputed + t["workspace"])
    )
    moments["end of the backward pass"] = (
        state
        + t["gradients"]
        + t["activations of one layer"]
        + t["workspace"]
        + kept_casts
        + outer_shards
    )
    moments["optimizer step"] = state + t["gradients"]
    return moments
