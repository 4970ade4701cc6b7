"""How many prompts are answered at once: as many as memory holds and speed asks for."""

from __future__ import annotations

from collections.abc import Sequence

import psutil
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from focusft.errors import UnsupportedModelError, UserError

# Most prompts of one batch: more make a decoding step slower without making a token cheaper.
MOST_ROWS_ON_CPU = 32
MOST_ROWS = 128
# Tokens of one prefill call at which the matrix products are at full speed.
PREFILL_TOKENS_ON_CPU = 1024
PREFILL_TOKENS = 16_384
# Values of one token that a layer holds at the same time, in hidden sizes.
_HIDDEN_SIZES_IN_FLIGHT = 40
# Part of the free memory that a batch may take.
_MEMORY_SHARE = 0.5


class BatchSizes:
    """The sizes of the batches of one model.

    Attributes:
        prefill_tokens: Most tokens of one prefill call.
        most: Most prompts of a batch; less after memory has run out.
    """

    def __init__(self, model: PreTrainedModel, fixed: int | None) -> None:
        """See what a token costs.

        Args:
            model: A causal language model in eval mode.
            fixed: Prompts of a batch, whatever memory there is; None to look at the memory.

        Raises:
            UnsupportedModelError: The model has layers whose state is not keys and values.
        """
        on_cpu = model.device.type == "cpu"
        self.prefill_tokens = PREFILL_TOKENS_ON_CPU if on_cpu else PREFILL_TOKENS
        self.bytes_per_token = _bytes_per_token(model)
        self._weights = sum(weight.nbytes for weight in model.parameters())
        self._model = model
        self._fixed = fixed
        self.most = fixed or (MOST_ROWS_ON_CPU if on_cpu else MOST_ROWS)

    def next(self, lengths: Sequence[int]) -> int:
        """Size of the next batch.

        Args:
            lengths: Most tokens, answer included, of each prompt that waits, the next first.
        """
        if self._fixed is not None:
            return min(self.most, len(lengths))
        free = _MEMORY_SHARE * free_memory(self._model.device)
        size, longest = 0, 0
        for length in lengths[: self.most]:
            longest = max(longest, length)
            if size and self._bytes(size + 1, longest) > free:
                break
            size += 1
        return size

    def _bytes(self, size: int, longest: int) -> int:
        """Most memory that a batch takes, with `longest` tokens of its longest prompt."""
        config = self._model.config.get_text_config(decoder=True)
        activations = _HIDDEN_SIZES_IN_FLIGHT * config.hidden_size * self._model.dtype.itemsize
        # The keys and values of a prefill call are there twice until they are moved.
        prefill = max(self.prefill_tokens, longest) * (activations + self.bytes_per_token)
        # Logits, and when sampling their probabilities, order and sums, of up to 8 bytes each.
        logits = 5 * 8 * config.vocab_size
        return prefill + size * (longest * self.bytes_per_token + logits)

    def decoding_cost(self, lengths: Sequence[Sequence[int]], rooms: Sequence[int]) -> int:
        """Bytes that decoding reads at most: the weights and the cache, in each step.

        Args:
            lengths: Most tokens, answer included, of each prompt of each batch.
            rooms: Most tokens of an answer of each batch.
        """
        return sum(
            room * (self._weights + len(batch) * max(batch) * self.bytes_per_token)
            for batch, room in zip(lengths, rooms, strict=True)
        )

    def halve(self, size: int, tokens: int) -> None:
        """Make batches smaller after one of `size` prompts has run out of memory.

        Raises:
            UserError: It was a single prompt, of `tokens` tokens.
        """
        if size == 1:
            raise UserError(
                f"out of memory: a single prompt of {tokens} tokens does not fit; use shorter "
                "prompts, a smaller model, or bfloat16"
            )
        self.most = size // 2
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that there is no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch holds but does not use.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(psutil.virtual_memory().available)


def _bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes of the keys and values of one token, which a call with one token shows."""
    config = model.config.get_text_config(decoder=True)
    if not all(isinstance(layer, DynamicLayer) for layer in DynamicCache(config=config).layers):
        raise UnsupportedModelError(
            f"{type(model).__name__} has layers that keep a state instead of keys and values "
            "(Mamba, linear attention); run it behind a server and use that"
        )
    cache = DynamicCache()
    with torch.inference_mode():
        model(
            input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device),
            past_key_values=cache,
            use_cache=True,
        )
    return sum(keys.nbytes + values.nbytes for keys, values, _ in cache)
