"""Where an answer ends, and where the thinking before it does."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

_START = "<think>"
_END = "</think>"


@dataclass(frozen=True)
class ThinkingTags:
    """The tokens around a model's thinking.

    Attributes:
        start: Id of <think>.
        end: Id of </think>.
        forced: What ends the thinking when its budget is spent: </think> and the line breaks
            around it.
    """

    start: int
    end: int
    forced: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> ThinkingTags | None:
        """The tags of a tokenizer that has each as one token; None for other tokenizers."""
        ids = {token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items()}
        if _START not in ids or _END not in ids:
            return None
        forced = tokenizer(f"\n{_END}\n\n", add_special_tokens=False)["input_ids"]
        return cls(ids[_START], ids[_END], tuple(forced))


def opens_thinking(rendered: str) -> bool:
    """Whether a chat template has opened the thinking itself at the end of a prompt."""
    return rendered.rstrip().endswith(_START)


def split_thinking(text: str, *, is_open: bool) -> tuple[str, str]:
    """Take the thinking off a text.

    Args:
        text: What a model wrote.
        is_open: The prompt has opened the thinking.

    Returns:
        The thinking without its tags, and the rest; a thinking that does not end is all there is.
    """
    if not is_open and not text.lstrip().startswith(_START):
        return "", text
    thinking, _, rest = text.partition(_END)
    return without_tags(thinking), rest.lstrip("\n")


def without_tags(thinking: str) -> str:
    """A text of thinking alone."""
    return thinking.strip().removeprefix(_START).removesuffix(_END).strip()


@dataclass(frozen=True)
class Limits:
    """What ends an answer.

    Attributes:
        stop_ids: Tokens that end it.
        max_new_tokens: Most tokens, those of the thinking included if it has no budget.
        tags: The tokens around the thinking, if the model has them.
        thinking_budget: Most tokens of thinking, which then do not count as the answer's.
    """

    stop_ids: frozenset[int]
    max_new_tokens: int
    tags: ThinkingTags | None = None
    thinking_budget: int | None = None

    @property
    def room(self) -> int:
        """Most tokens in all."""
        if self.tags is None or self.thinking_budget is None:
            return self.max_new_tokens
        return self.max_new_tokens + self.thinking_budget + len(self.tags.forced) + 1


def thinking_room(tokenizer: PreTrainedTokenizerBase, budget: int | None) -> int:
    """Most tokens that thinking with a budget takes, on top of the answer's."""
    return Limits(frozenset(), 0, ThinkingTags.of(tokenizer), budget).room


class Answer:
    """The tokens that are written in answer to one prompt.

    Attributes:
        tokens: All of them.
        thinking_tokens: How many of them, from the first on, are thinking, tags included.
    """

    def __init__(self, limits: Limits, *, is_thinking: bool = False) -> None:
        """Start with nothing.

        Args:
            limits: What ends the answer.
            is_thinking: The prompt has opened the thinking.
        """
        self.tokens: list[int] = []
        self.thinking_tokens = 0
        self._limits = limits
        self._is_thinking = is_thinking and limits.tags is not None
        self._thoughts = 0
        self._forced: deque[int] = deque()

    def take(self, proposed: int) -> int:
        """Add a token: the proposed one, or one that ends the thinking."""
        tags, budget = self._limits.tags, self._limits.thinking_budget
        if self._is_thinking and budget is not None and self._thoughts >= budget:
            assert tags is not None
            if proposed != tags.end:
                self._forced = deque(tags.forced)
            self._is_thinking = False
            self.thinking_tokens = len(self.tokens) + max(1, len(self._forced))
        token = self._forced.popleft() if self._forced else proposed
        self.tokens.append(token)
        if tags is None:
            return token
        if self._is_thinking:
            self._thoughts += 1
            self._is_thinking = token != tags.end
            self.thinking_tokens = len(self.tokens)
        elif token == tags.start and len(self.tokens) == 1:
            self._is_thinking = True
            self.thinking_tokens = 1
        return token

    @property
    def is_stopped(self) -> bool:
        """The model has ended it."""
        return bool(self.tokens) and self.tokens[-1] in self._limits.stop_ids

    @property
    def is_done(self) -> bool:
        """No token is to follow."""
        if self._forced:
            return False
        limits = self._limits
        if limits.thinking_budget is None:
            return self.is_stopped or len(self.tokens) >= limits.max_new_tokens
        answered = 0 if self._is_thinking else len(self.tokens) - self.thinking_tokens
        return self.is_stopped or answered >= limits.max_new_tokens
