"""What is planned: the sizes of a model, and how it is trained.

One micro-batch has B documents of S tokens. Each document is a number of turns of equal size,
context and response in alternation, with R response tokens in all.

Letters in formulas: T = B * S tokens, D hidden size, H query heads of d features, G key heads,
F intermediate size, V vocabulary, L layers, n adapted layers at the top, r rank of the fast
weights, K inner steps, c bytes of an activation that goes into a matrix product.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from focusft.errors import UserError
from focusft.method.architectures import PLAIN_PARTS, read_architecture
from focusft.method.config import ContextAttention, FocusConfig
from focusft.method.segments import ROWS_PER_CALL
from focusft.training.checkpointing import Checkpointing

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
            # Phi-3 and GLM make gate and up in one map.
            is_gated=len(mlp) == 3 or mlp[0].outputs == 2 * mlp[-1].inputs,
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
    def mlp_readers(self) -> int:
        """Maps of one layer that read the norm before the MLP."""
        return sum(m.level == 2 for m in self.maps)

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
        syncs_each_batch: FSDP2 reduces the gradients of every micro-batch; without it each device
            keeps those of the whole model until the last one.
        precision: "fp32", "bf16_mixed" (fp32 weights) or "bf16" (weights too).
        checkpointing: What layers keep for the backward pass: everything ("none"), their input,
            matrix products and attention ("selective"), input and attention
            ("all_but_attention"), or their input alone ("full").
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
    syncs_each_batch: bool = False
    precision: PrecisionName = "fp32"
    checkpointing: Checkpointing = "none"
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
    def recomputes_products(self) -> bool:
        """Whether the backward pass runs the matrix products of a layer again."""
        return self.checkpointing in ("all_but_attention", "full")

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


def inner_rows(focus: FocusConfig, setup: Setup) -> int:
    """Rows with an inner target, over all documents (`method/objectives.py`)."""
    if focus.inner_objective == "context":
        return setup.documents * (setup.length - setup.response_tokens - 1)
    if focus.inner_objective == "held_out_turns":
        last = _share(setup.response_tokens, setup.turns, setup.turns - 1)
        return setup.documents * (setup.response_tokens - last)
    return setup.rows
