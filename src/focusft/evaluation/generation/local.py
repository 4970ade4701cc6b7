"""A transformers model on this machine.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from focusft.analysis.report.redaction import redact_text
from focusft.data.template import ChatTemplate
from focusft.errors import ConfigError, DataError, UnsupportedModelError
from focusft.evaluation.answers import (
    Answer,
    Limits,
    ThinkingTags,
    opens_thinking,
    split_thinking,
    without_tags,
)
from focusft.evaluation.batching import BatchSizes, is_out_of_memory
from focusft.evaluation.decoding import Encoded, decode
from focusft.evaluation.generation.interface import Completion
from focusft.evaluation.generation.model_facts import (
    most_positions,
    rope_switch,
    special_ids,
    stop_ids,
    weights_fingerprint,
)
from focusft.evaluation.generation.prompts import Prompt, render, tokenise
from focusft.evaluation.prompt_turns import turn_ids
from focusft.evaluation.sampling import Sampling
from focusft.method.architectures import has_sliding_window
from focusft.method.attention import FLEX, SEGMENTS, install_backend
from focusft.method.bfloat16 import warn_if_bfloat16_is_slow
from focusft.method.config import ContextBlocks
from focusft.method.mask_check import check_masking
from focusft.method.product_attention import products_are_faster

Prefill = Literal["causal", "bidirectional"]


@dataclass(frozen=True)
class _Job:
    """A prompt on its way through the model."""

    index: int
    encoded: Encoded
    limits: Limits
    is_thinking: bool
    draws: random.Random

    @property
    def prompt_tokens(self) -> int:
        return len(self.encoded.input_ids)

    @property
    def length(self) -> int:
        """Most tokens, answer included."""
        return self.prompt_tokens + self.limits.room


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
        prefill: Prefill = "causal",
        context_blocks: ContextBlocks = "merged",
        sampling: Sampling | None = None,
        batch_size: int | None = None,
        thinking_budget: int | None = None,
    ) -> None:
        """Put the model in eval mode, with the attention that the prefill needs or is fastest with.

        Args:
            model: A causal language model.
            tokenizer: Its tokenizer.
            chat: Whether prompts go through the chat template; if None, where there is one.
            template_options: More arguments of the chat template, such as enable_thinking.
            prefill: "bidirectional" lets the context tokens of a prompt see each other as in
                training (arXiv 2605.09932, section 3.2); what is generated is always causal.
            context_blocks: For the bidirectional prefill, as in training.
            sampling: How tokens are picked; greedily if None.
            batch_size: Prompts answered at once; if None, as many as memory and speed allow.
            thinking_budget: Most tokens of thinking, after which </think> is written for the
                model and `max_new_tokens` are left for its answer. If None, the thinking takes
                part of `max_new_tokens`.

        Raises:
            ConfigError: An option does not fit the tokenizer or has no such value.
            UnsupportedModelError: The model has layers whose state is not keys and values, or
                none that can be prefilled bidirectionally.
        """
        if chat and tokenizer.chat_template is None:
            raise ConfigError("--chat: the tokenizer has no chat template; leave the option out")
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"--batch_size: {batch_size} is less than 1")
        if prefill not in get_args(Prefill):
            raise ConfigError(f"--prefill: '{prefill}' is neither causal nor bidirectional")
        self._tags = ThinkingTags.of(tokenizer)
        if thinking_budget is not None:
            _check_thinking_budget(thinking_budget, self._tags)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.chat = tokenizer.chat_template is not None if chat is None else chat
        self.template_options = dict(template_options or {})
        self.prefill = prefill
        self.context_blocks = context_blocks
        self.sampling = sampling or Sampling()
        self.batch_size = batch_size
        self.thinking_budget = thinking_budget
        self._sizes = BatchSizes(model, batch_size)
        self._stop_ids = stop_ids(model, tokenizer)
        self._dropped_ids = special_ids(tokenizer)
        self._positions = most_positions(model.config)
        self._rope_switch = rope_switch(model.config)
        self._draws = random.Random(f"{self.sampling.seed}")
        if model.dtype is torch.bfloat16 and model.device.type == "cpu":
            warn_if_bfloat16_is_slow("dtype", "use float32")
        if prefill == "bidirectional":
            _make_bidirectional(model)
        elif model.config._attn_implementation == "sdpa" and (
            model.device.type == "cuda" or products_are_faster(next(model.parameters()))
        ):
            # Ordinary calls profit as well, see focusft/method/attention.py.
            install_backend(model, "segments")

    def describe(self) -> dict[str, Any]:
        """What a results file says of it."""
        return {
            "backend": "transformers",
            "model": redact_text(self.model.name_or_path),
            "weights_sha256": weights_fingerprint(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "attention": self.model.config._attn_implementation,
            "prefill": self.prefill,
            "context_blocks": self.context_blocks,
            "chat": self.chat,
            "template_options": self.template_options,
            "sampling": asdict(self.sampling),
            "batch_size": self.batch_size or "auto",
            "thinking_budget": self.thinking_budget,
        }

    def batches(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """As many prompts together as memory holds, of one length or one answer's length.

        Prompts of one length share a cache without padding, answers of one length end together:
        whichever makes decoding read less. Within that the longest come first.

        Raises:
            DataError: As in `complete`.
        """
        jobs = [self._job(index, prompt) for index, prompt in enumerate(prompts)]
        by_length = self._cut(sorted(jobs, key=lambda job: -job.length))
        by_room = self._cut(sorted(jobs, key=lambda job: (-job.limits.room, -job.length)))
        cheaper = min(by_length, by_room, key=self._decoding_cost)
        return [[job.index for job in batch] for batch in cheaper]

    def _cut(self, waiting: list[_Job]) -> list[list[_Job]]:
        batches = []
        for alike in self._apart(waiting):
            while alike:
                size = self._sizes.next([job.length for job in alike])
                batches.append(alike[:size])
                alike = alike[size:]
        return batches

    def _apart(self, jobs: list[_Job]) -> list[list[_Job]]:
        """Jobs that get the same rotary frequencies throughout, whatever else is in the batch.

        transformers picks the frequencies of a call by the longest position in it. One that
        reaches the other frequencies while it is answered takes all others along: it goes alone.
        """
        if self._rope_switch is None:
            return [jobs]
        groups: dict[tuple[bool, int | None], list[_Job]] = {}
        for job in jobs:
            # Neither is the last token of the prompt prefilled nor that of the answer decoded.
            starts_beyond = job.prompt_tokens - 1 > self._rope_switch
            ends_beyond = job.length - 1 > self._rope_switch
            alone = job.index if starts_beyond != ends_beyond else None
            groups.setdefault((ends_beyond, alone), []).append(job)
        return list(groups.values())

    def _decoding_cost(self, batches: list[list[_Job]]) -> int:
        return self._sizes.decoding_cost(
            [[job.length for job in batch] for batch in batches],
            [max(job.limits.room for job in batch) for batch in batches],
        )

    def complete(
        self, prompts: Sequence[Prompt], batches: Sequence[Sequence[int]] | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Go on from prompts, batch by batch; one that memory does not hold is cut in two.

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
        if batches is None:
            batches = self.batches(prompts)
        waiting = deque(
            alike
            for batch in batches
            for alike in self._apart([self._job(index, prompts[index]) for index in batch])
        )
        while waiting:
            batch = waiting.popleft()
            if rest := batch[self._sizes.most :]:
                waiting.appendleft(rest)
                batch = batch[: self._sizes.most]
            started = time.perf_counter()
            answers: list[Answer] | None = None
            try:
                answers = self._answer(batch)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            if answers is None:
                # Not inside `except`: there the error still holds the tensors of the batch.
                self._sizes.halve(len(batch), batch[0].length)
                waiting.appendleft(batch)
                continue
            seconds = time.perf_counter() - started
            costs = [
                job.prompt_tokens + len(answer.tokens)
                for job, answer in zip(batch, answers, strict=True)
            ]
            for job, answer, cost in zip(batch, answers, costs, strict=True):
                yield job.index, self._completion(job, answer, seconds * cost / sum(costs))

    def _job(self, number: int, prompt: Prompt) -> _Job:
        options = self.template_options
        text = render(self.tokenizer, prompt, chat=self.chat, template_options=options)
        ids = tokenise(self.tokenizer, text, self.chat)
        limits = Limits(self._stop_ids, prompt.max_new_tokens, self._tags, self.thinking_budget)
        if not ids:
            raise DataError(f"prompt {number}: it is empty; give the model something to go on from")
        if self._positions is not None and len(ids) + limits.room > self._positions:
            raise DataError(
                f"prompt {number}: its {len(ids)} tokens and {limits.room} of the answer exceed "
                f"the model's {self._positions} positions (max_position_embeddings); shorten it, "
                "or use a model with a longer context"
            )
        turns = None
        if self.prefill == "bidirectional":
            template = (
                ChatTemplate(self.tokenizer, list(prompt.tools) or None, options)
                if self.chat
                else None
            )
            turns = turn_ids(
                self.tokenizer, text, prompt.answer_prefix, template, list(prompt.messages)
            )
        is_thinking = self.chat and opens_thinking(text.removesuffix(prompt.answer_prefix))
        return _Job(number, Encoded(ids, turns), limits, is_thinking, self._source(ids, prompt))

    def _source(self, ids: list[int], prompt: Prompt) -> random.Random:
        """Random numbers of one answer, which do not depend on the other prompts of its batch."""
        if prompt.sample is None:
            return self._draws
        content = hashlib.sha256(repr(ids).encode()).hexdigest()
        return random.Random(f"{self.sampling.seed} {prompt.sample} {content}")

    def _answer(self, batch: Sequence[_Job]) -> list[Answer]:
        answers = [Answer(job.limits, is_thinking=job.is_thinking) for job in batch]

        def choose(logits_BV: Tensor, rows: Sequence[int]) -> list[int]:
            return self.sampling.pick(logits_BV, [batch[row].draws for row in rows])

        decode(
            self.model,
            [job.encoded for job in batch],
            answers,
            longest_reply=max(job.limits.room for job in batch),
            choose=choose,
            prefill_tokens=self._sizes.prefill_tokens,
            context_blocks=self.context_blocks,
        )
        return answers

    def _completion(self, job: _Job, answer: Answer, seconds: float) -> Completion:
        thinking = self._text(answer.tokens[: answer.thinking_tokens])
        text = self._text(answer.tokens[answer.thinking_tokens :])
        thinking_tokens = answer.thinking_tokens
        if thinking:
            thinking, text = without_tags(thinking), text.lstrip("\n")
        elif not thinking_tokens:
            # Where the tags are no single tokens, only the text shows them.
            thinking, text = split_thinking(text, is_open=job.is_thinking)
            thinking_tokens = len(tokenise(self.tokenizer, thinking, chat=True))
        return Completion(
            text=text,
            prompt_tokens=job.prompt_tokens,
            tokens=len(answer.tokens),
            truncated=not answer.is_stopped,
            seconds=seconds,
            thinking=thinking,
            thinking_tokens=thinking_tokens,
        )

    def _text(self, tokens: Sequence[int]) -> str:
        kept = [token for token in tokens if token not in self._dropped_ids]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False))


def _check_thinking_budget(budget: int, tags: ThinkingTags | None) -> None:
    if budget < 0:
        raise ConfigError(f"--thinking_budget: {budget} is negative")
    if tags is None:
        raise ConfigError(
            "--thinking_budget: the model does not think between <think> and </think>; "
            "leave the option out"
        )


def _make_bidirectional(model: PreTrainedModel) -> None:
    """Install the training attention where it is not there yet, and see that it works."""
    if has_sliding_window(model.config):
        raise UnsupportedModelError(
            f"{type(model).__name__} has layers without full attention (sliding window, chunked "
            "or linear), where a bidirectional prefill is not defined; use --prefill causal"
        )
    before = model.config._attn_implementation
    if before not in (SEGMENTS, FLEX):
        install_backend(model, "auto")
    try:
        check_masking(model, "bidirectional")
    except RuntimeError as error:
        # The placeholder of the mask fits no attention but ours.
        model.set_attn_implementation(before)
        raise UnsupportedModelError(
            f"{type(model).__name__} keeps keyword arguments from its attention, so the mask "
            "cannot reach it; use --prefill causal"
        ) from error
