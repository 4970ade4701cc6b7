"""Prefill without padding in the way, then decoding of a whole batch from one KV cache.

A prompt is prefilled but for its last token, in calls of prompts of about the same length with
the padding on the right: a causal token never sees what is right of it, so the attention needs no
mask and takes its fastest kernel. The keys and values then move to the right end of a cache whose
memory is taken once, and all prompts are decoded together from their last tokens on.

Shapes: B batch, S sequence, G key heads, D features of a head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from focusft.method.attention import turn_attention
from focusft.method.config import ContextBlocks
from focusft.method.turns import TurnLayout

# Prompts of one prefill call differ in length by no more than this share.
_PADDING = 0.1


class Reply(Protocol):
    """What is being written in answer to one prompt."""

    def take(self, proposed: int) -> int:
        """Add a token, the proposed one or another, and tell which."""

    @property
    def is_done(self) -> bool:
        """Whether no token is to follow."""


@dataclass(frozen=True)
class Encoded:
    """A prompt as token ids.

    Attributes:
        input_ids: At least one token.
        turn_ids: The turn of each token as `TurnLayout.from_turn_ids` takes it, where the context
            tokens are to see each other as in training; None for causal attention. All prompts
            of a batch have the same kind.
    """

    input_ids: list[int]
    turn_ids: list[int] | None = None


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Encoded],
    replies: Sequence[Reply],
    *,
    longest_reply: int,
    choose: Callable[[Tensor, Sequence[int]], list[int]],
    prefill_tokens: int,
    context_blocks: ContextBlocks = "merged",
) -> None:
    """Write the replies to prompts, all in one batch.

    Args:
        model: A causal language model in eval mode.
        prompts: The prompts.
        replies: Where the tokens go.
        longest_reply: Most tokens that any reply takes.
        choose: Picks a token for each row of logits [B, V]; it also gets the indices of the
            prompts that the rows belong to.
        prefill_tokens: Most tokens of one prefill call, unless one prompt has more.
        context_blocks: Where context tokens see each other, the blocks of training.
    """
    with torch.inference_mode():
        cache = _prefill(model, prompts, longest_reply, prefill_tokens, context_blocks)
        rows = list(range(len(prompts)))
        tokens = [prompt.input_ids[-1] for prompt in prompts]
        positions = [len(prompt.input_ids) - 1 for prompt in prompts]
        going_on = rows
        while going_on:
            logits_BV = model(
                input_ids=torch.tensor(tokens, device=model.device)[:, None],
                attention_mask=cache.mask_with_next(),
                position_ids=torch.tensor(positions, device=model.device)[:, None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            tokens = [
                token if replies[row].is_done else replies[row].take(token)
                for row, token in zip(rows, choose(logits_BV, rows), strict=True)
            ]
            # A row that is done stays in its place: beyond it the model may have no positions left,
            # or other rotary frequencies for the whole batch.
            positions = [
                position if replies[row].is_done else position + 1
                for row, position in zip(rows, positions, strict=True)
            ]
            going_on = [place for place, row in enumerate(rows) if not replies[row].is_done]
            # Taking rows out copies the cache, so it waits until half of them are done.
            if going_on and 2 * len(going_on) <= len(rows):
                kept_B = torch.tensor(going_on, device=model.device)
                cache.batch_select_indices(kept_B)
                rows = [rows[place] for place in going_on]
                tokens = [tokens[place] for place in going_on]
                positions = [positions[place] for place in going_on]


class _ReservedLayer(DynamicLayer):
    """Keys and values of one layer, in memory that holds the longest reply from the start."""

    def __init__(self, like_BGSD: Sequence[Tensor], rows: int, length: int, capacity: int) -> None:
        super().__init__()
        self._memory = [t.new_empty(rows, t.shape[1], capacity, t.shape[3]) for t in like_BGSD]
        # Masked values still take part, with weight 0, and 0 times NaN is NaN.
        for memory in self._memory:
            memory[:, :, :length].zero_()
        self.dtype, self.device = like_BGSD[0].dtype, like_BGSD[0].device
        self.is_initialized = True
        self._show(length)

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        self._length = length
        keys, values = (memory[:, :, :length] for memory in self._memory)
        self.keys, self.values = keys, values
        return keys, values

    def set_row(self, row: int, keys_GSD: Tensor, values_GSD: Tensor) -> None:
        """Put the keys and values of a prompt at the end of what is there."""
        for memory, new in zip(self._memory, (keys_GSD, values_GSD), strict=True):
            memory[row, :, self._length - new.shape[1] : self._length] = new

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the keys and values of the next tokens, [B, G, S, D]."""
        stop = self._length + key_states.shape[2]
        for memory, new in zip(self._memory, (key_states, value_states), strict=True):
            memory[:, :, self._length : stop] = new
        return self._show(stop)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows only."""
        self._memory = [memory[indices.to(memory.device)] for memory in self._memory]
        self._show(self._length)


class _BatchCache(Cache):
    """The KV cache of a batch of prompts, aligned at their ends."""

    def __init__(self, lengths: Sequence[int], longest_reply: int, device: torch.device) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self._lengths = list(lengths)
        self._longest = max(lengths)
        # The last prompt token is decoded too; the last reply token is not.
        self._capacity = self._longest + longest_reply
        paddings_B1 = torch.tensor([[self._longest - length] for length in lengths], device=device)
        self._is_token_BS = torch.arange(self._capacity, device=device) >= paddings_B1
        self._reserved: list[_ReservedLayer] = []

    def fill(self, rows: Sequence[int], prefilled: DynamicCache) -> None:
        """Take over the prompts that a prefill call has put into the rows of its own cache."""
        new = [(keys, values) for keys, values, _ in prefilled]
        if not self._reserved:
            self._reserved = [
                _ReservedLayer(pair, len(self._lengths), self._longest, self._capacity)
                for pair in new
            ]
            self.layers = [*self._reserved]
        for layer, (keys_BGSD, values_BGSD) in zip(self._reserved, new, strict=True):
            for place, row in enumerate(rows):
                length = self._lengths[row]
                layer.set_row(row, keys_BGSD[place, :, :length], values_BGSD[place, :, :length])

    def mask_with_next(self) -> Tensor:
        """Bool [B, S]: False on padding, for what is there and the next token."""
        return self._is_token_BS[:, : self.get_seq_length() + 1]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows only."""
        self._is_token_BS = self._is_token_BS[indices]
        super().batch_select_indices(indices)


def _prefill(
    model: PreTrainedModel,
    prompts: Sequence[Encoded],
    longest_reply: int,
    prefill_tokens: int,
    context_blocks: ContextBlocks,
) -> _BatchCache:
    """The cache of every prompt but for its last token.

    The last token sees the same tokens in both attentions: nothing comes after it.
    """
    lengths = [len(prompt.input_ids) - 1 for prompt in prompts]
    cache = _BatchCache(lengths, longest_reply, model.device)
    for rows in groups(lengths, prefill_tokens):
        if lengths[rows[0]]:
            group = [prompts[row] for row in rows]
            cache.fill(rows, _prefill_group(model, group, context_blocks))
    return cache


def _prefill_group(
    model: PreTrainedModel, prompts: Sequence[Encoded], context_blocks: ContextBlocks
) -> DynamicCache:
    cache = DynamicCache()
    kwargs: dict[str, Any] = {}
    rows = [prompt.input_ids[:-1] for prompt in prompts]
    turns = [prompt.turn_ids for prompt in prompts if prompt.turn_ids is not None]
    if turns:
        # The last token must be there for the context before it to see it.
        rows = [prompt.input_ids for prompt in prompts]
        layout = TurnLayout.from_turn_ids(
            _padded(turns, model.device), context_blocks=context_blocks
        )
        kwargs = turn_attention(model, layout, "bidirectional").model_kwargs
    model(
        input_ids=_padded(rows, model.device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **kwargs,
    )
    return cache


def groups(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Put rows of about the same length together.

    Args:
        lengths: Length of each row.
        most_tokens: Most tokens of one group, padding included, unless one row has more.

    Returns:
        The indices of the rows of each group, the longest first.
    """
    found: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if found:
            longest, size = lengths[found[-1][0]], len(found[-1]) + 1
            if size * longest <= most_tokens and lengths[row] >= (1 - _PADDING) * longest:
                found[-1].append(row)
                continue
        found.append([row])
    return found


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Rows of different lengths with zeros on the right."""
    tensors = [torch.tensor(row, device=device) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
