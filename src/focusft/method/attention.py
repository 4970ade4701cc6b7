"""How a model is made to use the mask of `masks.py`: three ways to the same attention.

"segments", the default, calls torch's own kernels turn by turn and never holds a mask (see
`segments.py`). "flex" compiles the predicate into a kernel, for GPUs. "dense" hands the S x S
mask to the attention of transformers: the oracle.

"segments" and "flex" are registered with transformers under names of their own. What they need
for one call travels to them in the keyword arguments of the layers, so it is there again when a
checkpointed layer is recomputed. A call without it is an ordinary call and goes to sdpa (on a GPU
without cuDNN, see `kernels.py`), or, where plain matrix products beat it (`product_attention.py`),
to these.

Shapes: B batch, H query heads, G key heads, S sequence, D features of a head.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from focusft.errors import UnsupportedModelError
from focusft.method.config import AttentionBackend, ContextAttention
from focusft.method.kernels import without_cudnn_attention
from focusft.method.masks import dense_mask, may_attend
from focusft.method.product_attention import (
    Segment,
    product_attention,
    products_are_faster,
)
from focusft.method.segments import SegmentPlan, segment_attention
from focusft.method.turns import TurnLayout

logger = logging.getLogger(__name__)

# Called with the queries [B, H, S, D] and keys [B, G, S, D] of a layer, after the positions are
# in, and with what their products are multiplied by.
Observer = Callable[[Tensor, Tensor, float], None]

# The keyword under which a layer hands the attention of a call on to its attention function.
ATTENTION = "focus_attention"
# Names without "sdpa", "flash" or "flex_attention", on which transformers branches.
SEGMENTS = "focusft_segments"
FLEX = "focusft_flex"
# Arguments of sdpa in transformers after which it is no plain causal attention.
_CHANGE_SDPA = ("is_causal", "position_bias", "cache", "softcap", "s_aux")


class TurnAttention:
    """The attention of one call.

    No dataclass: FSDP2 copies those that travel in keyword arguments.

    Attributes:
        mask: What every attention must get as its `attention_mask`: the dense mask, or an empty
            placeholder, which no other attention function can broadcast.
        kernel: What the backend needs instead of the mask.
        observer: Sees the queries and keys of each attention, "segments" and "flex" only.
    """

    def __init__(
        self,
        mask: Tensor,
        kernel: SegmentPlan | BlockMask | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.mask = mask
        self.kernel = kernel
        self.observer = observer

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """What a model, or one of its layers, is to be called with."""
        return {"attention_mask": self.mask, ATTENTION: self}

    def only(self, rows_BS: Tensor) -> TurnAttention:
        """The same attention where only some rows are wanted; the others may be anything."""
        if isinstance(self.kernel, SegmentPlan):
            return TurnAttention(self.mask, self.kernel.only(rows_BS), self.observer)
        return self

    def observed_by(self, observer: Observer) -> TurnAttention:
        """The same attention, seen by an observer."""
        return TurnAttention(self.mask, self.kernel, observer)

    def show(self, query_BHSD: Tensor, key_BGSD: Tensor, scaling: float | None) -> None:
        """Let the observer look, if there is one."""
        if self.observer is not None:
            factor = query_BHSD.shape[-1] ** -0.5 if scaling is None else scaling
            self.observer(query_BHSD, key_BGSD, factor)


def install_backend(
    model: PreTrainedModel, choice: AttentionBackend
) -> Literal["segments", "flex", "dense"]:
    """Make a model use a backend in the calls that ask for it; other calls stay as they are.

    Args:
        model: A model with the attention interface of transformers. `set_attn_implementation`
            with the earlier name takes the backend out again.
        choice: "auto" takes "segments", or "dense" for a model with eager attention.

    Returns:
        The backend that was taken.

    Raises:
        UnsupportedModelError: The model's attention would drop a custom mask without a word.
    """
    implementation = model.config._attn_implementation
    _refuse_deaf_attention(implementation, ("sdpa", "eager"))
    if choice == "dense" or (choice == "auto" and implementation == "eager"):
        logger.info("attention_backend: dense, through %s", implementation)
        return "dense"
    if implementation == "eager":
        raise UnsupportedModelError(
            f"attention_backend={choice!r} takes the place of sdpa, but the model was loaded with "
            "eager attention; load it with attn_implementation='sdpa'"
        )
    if choice == "flex":
        model.set_attn_implementation(FLEX)
        logger.info("attention_backend: flex")
        return "flex"
    model.set_attn_implementation(SEGMENTS)
    logger.info("attention_backend: segments")
    return "segments"


def turn_attention(
    model: PreTrainedModel, layout: TurnLayout, context_attention: ContextAttention
) -> TurnAttention:
    """Prepare the attention of one call for the backend that is installed in the model.

    Args:
        model: The model, below any wrapper.
        layout: Turns of the batch.
        context_attention: Attention among context tokens.

    Raises:
        UnsupportedModelError: Another attention was set since the backend was installed.
    """
    implementation = model.config._attn_implementation
    _refuse_deaf_attention(implementation, (SEGMENTS, FLEX, "sdpa", "eager"))
    placeholder = torch.empty(1, 1, 0, 0, dtype=torch.bool, device=layout.document_ids_BS.device)
    if implementation == SEGMENTS:
        return TurnAttention(placeholder, SegmentPlan.of(layout, context_attention))
    if implementation == FLEX:
        return TurnAttention(placeholder, _block_mask(layout, context_attention))
    allowed_B1SS = dense_mask(layout, context_attention)
    if implementation == "sdpa":
        return TurnAttention(allowed_B1SS)
    blocked = torch.finfo(model.dtype).min
    additive_B1SS = torch.zeros_like(allowed_B1SS, dtype=model.dtype)
    return TurnAttention(additive_B1SS.masked_fill(~allowed_B1SS, blocked))


def _refuse_deaf_attention(implementation: str, known: tuple[str, ...]) -> None:
    if implementation not in known:
        raise UnsupportedModelError(
            f"attn_implementation={implementation!r} ignores custom masks; "
            "load the model with attn_implementation='sdpa'"
        )


def check_mask_arrived(attention: nn.Module, kwargs: dict[str, Any]) -> None:
    """Refuse to go on when a layer's attention did not get the mask of its call.

    Args:
        attention: The attention of a layer, for the message.
        kwargs: What it was called with.

    Raises:
        UnsupportedModelError: Something between the model and this layer replaced the mask.
    """
    turns: TurnAttention = kwargs[ATTENTION]
    if kwargs["attention_mask"] is not turns.mask:
        raise UnsupportedModelError(
            f"{type(attention).__name__} did not get FocuSFT's attention mask; a hook or "
            "wrapper (context parallelism?) replaced it"
        )


def _block_mask(layout: TurnLayout, context_attention: ContextAttention) -> BlockMask:
    batch, sequence = layout.document_ids_BS.shape
    device = layout.document_ids_BS.device

    def allowed(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return may_attend(layout, context_attention, row, query, key)

    # Uncompiled, the S x S mask would be evaluated as a whole.
    return create_block_mask(
        allowed, batch, None, sequence, sequence, device=device, _compile=device.type == "cuda"
    )


def _segments_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    turns: TurnAttention | None = kwargs.get(ATTENTION)
    if turns is None:
        return _ordinary_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
    check_mask_arrived(module, {**kwargs, "attention_mask": attention_mask})
    assert isinstance(turns.kernel, SegmentPlan)
    turns.show(query, key, scaling)
    return segment_attention(query, key, value, turns.kernel, scaling, dropout), None


def _ordinary_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    # transformers leaves the mask out where every token sees all tokens up to itself.
    is_plainly_causal = (
        attention_mask is None
        and query.shape[2] == key.shape[2] > 1
        and module.is_causal
        and all(kwargs.get(name) is None for name in _CHANGE_SDPA)
    )
    if is_plainly_causal and dropout == 0 and products_are_faster(query):
        everything = Segment(0, query.shape[2], key.shape[2], is_causal=True)
        output_BHSD = product_attention(query, key, value, [everything], scaling)
        return output_BHSD.transpose(1, 2).contiguous(), None
    with without_cudnn_attention(query.device):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )


def _flex_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    turns: TurnAttention | None = kwargs.get(ATTENTION)
    if turns is None:
        return _ordinary_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
    check_mask_arrived(module, {**kwargs, "attention_mask": attention_mask})
    if dropout > 0:
        raise UnsupportedModelError(
            "attention_backend=flex has no attention dropout; use segments, or set "
            "attention_dropout to 0 in the model's config"
        )
    turns.show(query, key, scaling)
    attend = _compiled_flex_attention() if query.is_cuda else flex_attention
    output_BHSD = attend(
        query,
        key,
        value,
        block_mask=turns.kernel,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output_BHSD.transpose(1, 2), None


@cache
def _compiled_flex_attention() -> Any:
    return torch.compile(flex_attention, dynamic=True)


for _name, _forward in ((SEGMENTS, _segments_forward), (FLEX, _flex_forward)):
    AttentionInterface.register(_name, _forward)
    AttentionMaskInterface.register(_name, sdpa_mask)
