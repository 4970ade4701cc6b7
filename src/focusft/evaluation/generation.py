"""Batched greedy generation with ordinary causal attention and a KV cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


def generate_greedily(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[dict[str, str]]],
    *,
    max_new_tokens: int,
    batch_size: int,
) -> Iterator[tuple[int, str]]:
    """Answer conversations, sorted by length so that batches carry little padding.

    Args:
        model: A causal language model in eval mode.
        tokenizer: Its tokenizer, with a chat template.
        prompts: Conversations that end where the assistant is to answer.
        max_new_tokens: Longest answer in tokens.
        batch_size: How many conversations are answered at once.

    Yields:
        The index of the prompt and the text of its answer, without special tokens.
    """
    encoded: list[Any] = [
        tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)
        for messages in prompts
    ]
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]["input_ids"]))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = tokenizer.pad(
            {"input_ids": [encoded[index]["input_ids"] for index in indices]},
            padding_side="left",
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode():
            output = model.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.pad_token_id,
            )
        answers = output[:, batch["input_ids"].shape[1] :]
        yield from zip(
            indices, tokenizer.batch_decode(answers, skip_special_tokens=True), strict=True
        )


@dataclass(frozen=True)
class Prompt:
    """What a model is to go on from."""

    messages: tuple[dict[str, Any], ...]
    answer_prefix: str = ""
    max_new_tokens: int = 128
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Completion:
    """What a model wrote."""

    text: str
    prompt_tokens: int
    tokens: int
    truncated: bool
    seconds: float


class Generator(Protocol):
    """A model, wherever it runs."""

    def describe(self) -> dict[str, Any]:
        """What its answers depend on."""

    def batches(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Which prompts are best answered together.

        Returns:
            The indices of the prompts of each batch; each prompt is in one of them.
        """

    def complete(
        self, prompts: Sequence[Prompt], batches: Sequence[Sequence[int]] | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Go on from prompts.

        Args:
            prompts: What to go on from.
            batches: Which of them, by index, and which together: the numbers of an answer depend
                in their last digits on its batch. If None, all, as `batches` puts them together.

        Yields:
            The index of a prompt and its completion, as they are done, in any order.
        """
