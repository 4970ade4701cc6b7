"""What a conversation with tools is made of: a model, its tools, a budget, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from focusft.data.rows import Message
from focusft.errors import ConfigError


@dataclass(frozen=True)
class Reply:
    """What a model wrote in one turn.

    Attributes:
        text: Its text, calls included, with or without special tokens.
        tokens: Number of tokens it generated.
        truncated: It stopped because it had no tokens left.
        thinking: What it thought before the text, where the backend keeps that apart.
        free_tokens: How many of the tokens have a budget of their own, as thinking may.
    """

    text: str
    tokens: int
    truncated: bool = False
    thinking: str = ""
    free_tokens: int = 0


class Backend(Protocol):
    """A model, wherever it runs."""

    def generate(
        self,
        conversations: Sequence[list[Message]],
        *,
        tools: list[dict[str, Any]] | None,
        max_new_tokens: Sequence[int],
        samples: Sequence[int],
    ) -> list[Reply]:
        """Write the next assistant message of each conversation.

        Args:
            conversations: Messages, each list ending where the assistant is to write.
            tools: JSON schemas for the chat template, or None.
            max_new_tokens: Longest reply to each, in tokens.
            samples: Numbers that keep apart the draws for equal conversations.
        """


@dataclass(frozen=True)
class ToolOutput:
    """What a tool gave back: the text that the model sees, and whether the call failed."""

    text: str
    failed: bool


@dataclass(frozen=True)
class Tool:
    """A tool: its JSON schema for the chat template, and what carries out a call."""

    schema: dict[str, Any]
    call: Callable[[dict[str, Any]], ToolOutput]

    @property
    def name(self) -> str:
        """The name that calls use."""
        return str(self.schema["function"]["name"])


@dataclass(frozen=True)
class Budget:
    """What one episode may use. The defaults are those of the published evaluation.

    Attributes:
        turns: Assistant messages.
        tokens: Generated tokens, over all turns; without thinking that has a budget of its own.
        seconds: Wall-clock time; an episode that shares a batch waits for the others in it.
        calls_per_turn: Calls made in one turn; more are answered with an error.
    """

    turns: int = 16
    tokens: int = 20_480
    seconds: float = math.inf
    calls_per_turn: int = 8

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise ConfigError(f"budget {name}: {value} leaves nothing; set it above 0")


@dataclass
class Episode:
    """One conversation from the question to its end.

    Attributes:
        messages: The whole transcript as plain dicts, the question included.
        ended: "answer", or the budget that ran out: "turns", "tokens" or "time".
        turns: Assistant messages.
        tokens: Generated tokens.
        free_tokens: How many of them do not count against the budget.
        calls: Calls that were made.
        failed_calls: Those of them whose code failed or ran out of time.
        broken_calls: Calls that could not be made.
        seconds: Its share of the time that the model took for its batches, and its tools' time.
    """

    messages: list[Message]
    ended: str = ""
    turns: int = 0
    tokens: int = 0
    free_tokens: int = 0
    calls: int = 0
    failed_calls: int = 0
    broken_calls: int = 0
    seconds: float = 0.0

    @property
    def answer(self) -> str:
        """The text of the last assistant message; empty if there is none."""
        last = self.messages[-1]
        return str(last["content"]) if last["role"] == "assistant" else ""

    @property
    def truncated(self) -> bool:
        """A budget ended it."""
        return self.ended != "answer"
