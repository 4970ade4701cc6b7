"""Prompts, and the text and tokens that a model gets of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from focusft.data.template import ChatTemplate
from focusft.errors import ConfigError, DataError

Message = dict[str, Any]


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

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens: {self.max_new_tokens} leaves no room for an answer")


def render(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    *,
    chat: bool,
    template_options: Mapping[str, Any] | None = None,
) -> str:
    """The text of a prompt as a model gets it, but for the BOS token of plain text.

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
    return tokenise(tokenizer, text, chat)


def tokenise(tokenizer: PreTrainedTokenizerBase, text: str, chat: bool) -> list[int]:
    """Token ids of a text that `render` gave."""
    # A chat template writes the special tokens itself.
    ids: list[int] = tokenizer(text, add_special_tokens=not chat, verbose=False)["input_ids"]
    return ids
