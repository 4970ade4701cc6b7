"""What every model gives back, wherever it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from focusft.evaluation.generation.prompts import Prompt


@dataclass(frozen=True)
class Completion:
    """What a model wrote.

    Attributes:
        text: The answer, without special tokens (but with the tags of tool calls) and without
            the thinking before it.
        prompt_tokens: Tokens of the prompt as the model got it.
        tokens: Generated tokens, those of the thinking and the stop token included.
        truncated: It ran out of tokens.
        seconds: Its share of the time of its batch.
        thinking: What stood between <think> and </think>, or after a <think> that never ended.
        thinking_tokens: Tokens of the thinking, tags included where each is one token.
    """

    text: str
    prompt_tokens: int
    tokens: int
    truncated: bool
    seconds: float
    thinking: str = ""
    thinking_tokens: int = 0


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
