"""Models that go on from prompts: what they get, what they give back, and one on this machine.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import psutil
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from focusft.data.template import ChatTemplate
from focusft.errors import ConfigError, DataError, UnsupportedModelError, UserError
from focusft.evaluation.decoding import Encoded, decode

Message = dict[str, Any]

# Tokens that tokenizers may call special, but that say where a tool call or thinking begins.
_KEPT_TAGS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>")
# Most prompts of one batch: more make a decoding step slower without making a token cheaper.
_MOST_ROWS = {"cpu": 32}
_MOST_ROWS_ELSEWHERE = 128
# Tokens of one prefill call at which the matrix products are at full speed.
_PREFILL_TOKENS = {"cpu": 1024}
_PREFILL_TOKENS_ELSEWHERE = 16_384
# Values of one token that a layer holds at the same time, in hidden sizes.
_HIDDEN_SIZES_IN_FLIGHT = 40
# Part of the free memory that a batch may take.
_MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Prompt:
    """What a model is to go on from.

    Attributes:
        messages: A conversation that ends where the assistant is to write; without a chat
            template one message, whose content is the text.
        answer_prefix: Raw text after the chat template.
        max_new_tokens: Longest answer in tokens.
        tools: JSON schemas for the chat template.
        sample: Which sample of this prompt it is, where several are drawn: the same number gives
            the same draw, whatever else is in the batch. If None, every draw is a new one.
    """

    messages: tuple[Message, ...]
    answer_prefix: str = ""
    max_new_tokens: int = 128
    tools: tuple[dict[str, Any], ...] = ()
    sample: int | None = None


@dataclass(frozen=True)
class Completion:
    """What a model wrote.

    Attributes:
        text: The answer, without special tokens (but with the tags of tool calls).
        prompt_tokens: Tokens of the prompt as the model got it.
        tokens: Generated tokens, the stop token included.
        truncated: It ran out of tokens.
        seconds: Its share of the time of its batch.
    """

    text: str
    prompt_tokens: int
    tokens: int
    truncated: bool
    seconds: float


class Generator(Protocol):
    """A model, wherever it runs."""

    def describe(self) -> dict[str, Any]:
        """What a results file says of it: backend, model, dtype, sampling and so on."""

    def batches(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Which prompts are best answered together: the indices of each batch."""

    def complete(
        self, prompts: Sequence[Prompt], batches: Sequence[Sequence[int]] | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Go on from prompts.

        Args:
            prompts: What to go on from.
            batches: Indices of those that are to be answered, and which of them together: the
                batch has an effect on the last digits of the logits. If None, all of them, as
                `batches` puts them together.

        Yields:
            The index of a prompt and its completion, as they are done, in any order.
        """


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: Draw from the likeliest tokens that together have this probability.
        seed: Seed of all draws.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"--temperature: {self.temperature} is negative; 0 is greedy")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top_p: {self.top_p} is not above 0 and at most 1")

    @property
    def is_greedy(self) -> bool:
        """Nothing is drawn."""
        return self.temperature == 0

    def pick(self, logits_BV: Tensor, draws: Sequence[random.Random]) -> list[int]:
        """Pick a token for each row.

        Args:
            logits_BV: Logits [B, V].
            draws: A source of random numbers for each row.
        """
        if self.is_greedy:
            picked: list[int] = logits_BV.argmax(dim=-1).tolist()
            return picked
        probabilities_BV, tokens_BV = (
            (logits_BV.double() / self.temperature).softmax(dim=-1).sort(dim=-1, descending=True)
        )
        sums_BV = probabilities_BV.cumsum(dim=-1)
        # The nucleus: every token before which the sum is below top_p.
        nucleus_B = ((sums_BV - probabilities_BV) < self.top_p).sum(dim=-1)
        mass_B1 = sums_BV.gather(1, nucleus_B[:, None] - 1)
        numbers_B1 = torch.tensor(
            [[draw.random()] for draw in draws], dtype=torch.double, device=logits_BV.device
        )
        places_B1 = torch.searchsorted(sums_BV, numbers_B1 * mass_B1, right=True)
        places_B1 = places_B1.minimum(nucleus_B[:, None] - 1)
        picked = tokens_BV.gather(1, places_B1).squeeze(1).tolist()
        return picked


def render(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    *,
    chat: bool,
    template_options: Mapping[str, Any] | None = None,
) -> str:
    """The text of a prompt as a model gets it, but for a BOS token of plain text.

    Args:
        tokenizer: The model's tokenizer.
        prompt: The prompt.
        chat: Whether the chat template wraps it.
        template_options: More arguments of the chat template, such as enable_thinking.

    Raises:
        DataError: The chat template refuses the conversation, or there is none for it.
    """
    if chat:
        template = ChatTemplate(tokenizer, list(prompt.tools) or None, dict(template_options or {}))
        text = template.render(list(prompt.messages), add_generation_prompt=True)
    elif len(prompt.messages) == 1 and not prompt.tools:
        text = str(prompt.messages[0]["content"])
    else:
        raise DataError(
            "a conversation of several messages or with tools needs a chat template; "
            "use the instruct version of the model"
        )
    return text + prompt.answer_prefix


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    *,
    chat: bool,
    template_options: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a prompt, with one BOS where the model has one; see `render`."""
    text = render(tokenizer, prompt, chat=chat, template_options=template_options)
    # A chat template writes the special tokens itself.
    ids: list[int] = tokenizer(text, add_special_tokens=not chat, verbose=False)["input_ids"]
    return ids


class _Answer:
    """The tokens that are written in answer to one prompt."""

    def __init__(self, stop_ids: frozenset[int], max_new_tokens: int) -> None:
        self.tokens: list[int] = []
        self._stop_ids = stop_ids
        self._max_new_tokens = max_new_tokens

    def take(self, proposed: int) -> int:
        self.tokens.append(proposed)
        return proposed

    @property
    def is_stopped(self) -> bool:
        return bool(self.tokens) and self.tokens[-1] in self._stop_ids

    @property
    def is_done(self) -> bool:
        return self.is_stopped or len(self.tokens) >= self._max_new_tokens


class LocalGenerator:
    """A transformers model on this machine.

    The settings of the model's generation config (temperature, repetition penalty, ..) are not
    used, only its stop tokens: what is done is what `Sampling` says.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat: bool | None = None,
        template_options: Mapping[str, Any] | None = None,
        sampling: Sampling | None = None,
        batch_size: int | None = None,
    ) -> None:
        """Put the model in eval mode and see what a token costs.

        Args:
            model: A causal language model.
            tokenizer: Its tokenizer.
            chat: Whether prompts go through the chat template; if None, where there is one.
            template_options: More arguments of the chat template, such as enable_thinking.
            sampling: How tokens are picked; greedily if None.
            batch_size: Prompts answered at once; if None, as many as memory and speed allow.

        Raises:
            ConfigError: There is no chat template, or the batch size is below 1.
            UnsupportedModelError: The model has layers whose state is not keys and values.
        """
        if chat and tokenizer.chat_template is None:
            raise ConfigError("--chat: the tokenizer has no chat template; leave the option out")
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"--batch_size: {batch_size} is less than 1")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.chat = tokenizer.chat_template is not None if chat is None else chat
        self.template_options = dict(template_options or {})
        self.sampling = sampling or Sampling()
        self.batch_size = batch_size
        self._stop_ids = _stop_ids(model, tokenizer)
        self._dropped_ids = _special_ids(tokenizer)
        self._bytes_per_token = _bytes_per_token(model)
        self._most_rows = batch_size or _MOST_ROWS.get(model.device.type, _MOST_ROWS_ELSEWHERE)
        self._prefill_tokens = _PREFILL_TOKENS.get(model.device.type, _PREFILL_TOKENS_ELSEWHERE)
        self._draws = random.Random(f"{self.sampling.seed}")

    def describe(self) -> dict[str, Any]:
        """What a results file says of it."""
        return {
            "backend": "transformers",
            "model": self.model.name_or_path,
            "weights_sha256": weights_fingerprint(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "attention": self.model.config._attn_implementation,
            "chat": self.chat,
            "template_options": self.template_options,
            "sampling": asdict(self.sampling),
            "batch_size": self.batch_size or "auto",
        }

    def batches(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Prompts of about the same length together, the longest first: lack of memory shows soon.

        Raises:
            DataError: As in `complete`.
        """
        tokens = [len(self._encode(*pair).input_ids) for pair in enumerate(prompts)]
        waiting = sorted(range(len(prompts)), key=lambda index: -tokens[index])
        batches = []
        while waiting:
            size = self.batch_size or self._size_of_next(
                [tokens[index] + prompts[index].max_new_tokens for index in waiting]
            )
            size = min(size, self._most_rows)
            batches.append(waiting[:size])
            waiting = waiting[size:]
        return batches

    def complete(
        self, prompts: Sequence[Prompt], batches: Sequence[Sequence[int]] | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Go on from prompts, batch by batch; a batch that memory does not hold is cut in two.

        Args:
            prompts: What to go on from.
            batches: As in `Generator.complete`.

        Yields:
            The index of a prompt and its completion, batch by batch.

        Raises:
            DataError: A prompt and its answer exceed the positions of the model, or the chat
                template refuses a conversation. Nothing is generated then.
            UserError: Not even one prompt fits into memory.
        """
        waiting = deque(self.batches(prompts) if batches is None else batches)
        encoded = {
            index: self._encode(index, prompts[index]) for batch in waiting for index in batch
        }
        while waiting:
            indices = waiting.popleft()
            if rest := indices[self._most_rows :]:
                waiting.appendleft(rest)
                indices = indices[: self._most_rows]
            started = time.perf_counter()
            try:
                answers = self._answer(
                    [encoded[index] for index in indices], [prompts[index] for index in indices]
                )
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                self._make_room(len(indices), len(encoded[indices[0]].input_ids))
                waiting.appendleft(indices)
                continue
            seconds = time.perf_counter() - started
            costs = [
                len(encoded[index].input_ids) + len(answer.tokens)
                for index, answer in zip(indices, answers, strict=True)
            ]
            for index, answer, cost in zip(indices, answers, costs, strict=True):
                yield (
                    index,
                    Completion(
                        text=self._text(answer.tokens),
                        prompt_tokens=len(encoded[index].input_ids),
                        tokens=len(answer.tokens),
                        truncated=not answer.is_stopped,
                        seconds=seconds * cost / sum(costs),
                    ),
                )

    def _encode(self, number: int, prompt: Prompt) -> Encoded:
        ids = encode(self.tokenizer, prompt, chat=self.chat, template_options=self.template_options)
        positions = _positions(self.model)
        if not ids:
            raise DataError(f"prompt {number}: it is empty; give the model something to go on from")
        if positions is not None and len(ids) + prompt.max_new_tokens > positions:
            raise DataError(
                f"prompt {number}: its {len(ids)} tokens and {prompt.max_new_tokens} of the "
                f"answer exceed the model's {positions} positions (max_position_embeddings); "
                "shorten it, or use a model with a longer context"
            )
        return Encoded(ids, [1] * len(ids))

    def _answer(self, encoded: Sequence[Encoded], prompts: Sequence[Prompt]) -> list[_Answer]:
        answers = [_Answer(self._stop_ids, prompt.max_new_tokens) for prompt in prompts]
        draws = [self._draw(*pair) for pair in zip(encoded, prompts, strict=True)]
        decode(
            self.model,
            encoded,
            answers,
            longest_reply=max(prompt.max_new_tokens for prompt in prompts),
            choose=lambda logits_BV, rows: self.sampling.pick(
                logits_BV, [draws[row] for row in rows]
            ),
            prefill_tokens=self._prefill_tokens,
        )
        return answers

    def _draw(self, encoded: Encoded, prompt: Prompt) -> random.Random:
        """Random numbers of one answer, which do not depend on the other prompts of its batch."""
        if self.sampling.is_greedy or prompt.sample is None:
            return self._draws
        content = hashlib.sha256(repr(encoded.input_ids).encode()).hexdigest()
        return random.Random(f"{self.sampling.seed} {prompt.sample} {content}")

    def _size_of_next(self, lengths: Sequence[int]) -> int:
        """How many prompts fit into memory, the first of them being the longest."""
        activations = (
            max(self._prefill_tokens, lengths[0])
            * _HIDDEN_SIZES_IN_FLIGHT
            * self.model.get_input_embeddings().weight.shape[1]
            * self.model.dtype.itemsize
        )
        # The keys and values of a prefill call are there twice until they are moved.
        moved = max(self._prefill_tokens, lengths[0]) * self._bytes_per_token
        # Logits in single precision, their probabilities, order and sums.
        logits = 5 * 8 * self.model.config.get_text_config().vocab_size
        room = _MEMORY_SHARE * _free_memory(self.model.device) - activations - moved
        return max(1, int(room // (lengths[0] * self._bytes_per_token + logits)))

    def _make_room(self, size: int, tokens: int) -> None:
        if size == 1:
            raise UserError(
                f"out of memory: a single prompt of {tokens} tokens does not fit; use shorter "
                "prompts, --dtype bfloat16 or a smaller model"
            ) from None
        self._most_rows = size // 2
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _text(self, tokens: Sequence[int]) -> str:
        kept = [token for token in tokens if token not in self._dropped_ids]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False))


def weights_fingerprint(model: PreTrainedModel) -> str:
    """Hash of 64 values of every weight: training changes it, a copy to another place does not."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        values = weight.flatten()[:: max(1, weight.numel() // 64)]
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(values.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    of_model = model.generation_config.eos_token_id if model.generation_config else None
    found = of_model if isinstance(of_model, list) else [of_model]
    return frozenset(id_ for id_ in [*found, tokenizer.eos_token_id] if id_ is not None)


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    return frozenset(
        id_
        for id_, token in tokenizer.added_tokens_decoder.items()
        if token.special and token.content not in _KEPT_TAGS
    )


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


def _positions(model: PreTrainedModel) -> int | None:
    """Most tokens that the model has positions for; None if there is no end."""
    config = model.config.get_text_config(decoder=True).to_dict()
    positions: int | None = config.get("max_position_embeddings")
    rope = config.get("rope_parameters") or {}
    if positions is None or rope.get("rope_type") not in ("yarn", "longrope", "dynamic"):
        return positions
    original = rope.get("original_max_position_embeddings") or positions
    return max(positions, int(original * (rope.get("factor") or 1)))


def _free_memory(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch holds but does not use.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(psutil.virtual_memory().available)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
