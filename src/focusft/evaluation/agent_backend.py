"""A generator as the model of the tool loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from focusft.data.rows import Message
from focusft.data.template import ChatTemplate
from focusft.data.tool_text import with_tools
from focusft.errors import ConfigError, DataError
from focusft.evaluation.agent import Reply
from focusft.evaluation.generation import Generator, Prompt, encode


class GeneratorBackend:
    """Lets a `Generator` speak in the tool loop.

    Prompts are rendered as in training: tools go to the chat template, or into the messages where
    the template knows none (`focusft.data.tool_text`).

    Args:
        generator: The model.
        tokenizer: Its tokenizer, with a chat template.
        context_tokens: Most tokens of a conversation and the next reply; a conversation that has
            no room left gets an empty reply that counts as truncated. None: no such limit.
        thinking_is_free: The generator has a budget for thinking, which comes on top of that of
            the episode.

    Raises:
        ConfigError: The tokenizer has no chat template.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: PreTrainedTokenizerBase,
        *,
        context_tokens: int | None = None,
        thinking_is_free: bool = False,
    ) -> None:
        if not tokenizer.chat_template:
            raise ConfigError(
                f"{tokenizer.name_or_path}: the tool loop needs a chat template; use the instruct "
                "version of the model"
            )
        self.generator = generator
        self.tokenizer = tokenizer
        self.context_tokens = context_tokens
        self.thinking_is_free = thinking_is_free

    def generate(
        self,
        conversations: Sequence[list[Message]],
        *,
        tools: list[dict[str, Any]] | None,
        max_new_tokens: Sequence[int],
        samples: Sequence[int],
    ) -> list[Reply]:
        """Write the next assistant message of each conversation; see `agent.Backend`."""
        replies = [Reply("", 0, truncated=True)] * len(conversations)
        prompts: dict[int, Prompt] = {}
        for index, messages in enumerate(conversations):
            shown, schemas = with_tools(self.tokenizer, messages, tools)
            prompt = Prompt(
                messages=tuple(shown),
                max_new_tokens=max_new_tokens[index],
                tools=tuple(schemas or ()),
                sample=samples[index],
            )
            if self.context_tokens is not None:
                room = self.context_tokens - len(encode(self.tokenizer, prompt, chat=True))
                if room < 1:
                    continue
                prompt = replace(prompt, max_new_tokens=min(prompt.max_new_tokens, room))
            prompts[index] = prompt
        if not prompts:
            return replies
        indices = list(prompts)
        for place, answer in self.generator.complete(list(prompts.values())):
            replies[indices[place]] = Reply(
                text=answer.text,
                tokens=answer.tokens,
                truncated=answer.truncated,
                thinking=answer.thinking,
                free_tokens=answer.thinking_tokens if self.thinking_is_free else 0,
            )
        return replies

    def calls_per_turn(self, tools: list[dict[str, Any]], most: int) -> int:
        """How many calls of a turn the chat template shows: `most`, or 1 as in Llama 3.1."""
        if not tools:
            return most
        function = {"name": tools[0]["function"]["name"], "arguments": {}}
        calls = [
            {"id": f"t001c{number:04d}", "type": "function", "function": function}
            for number in range(2)
        ]
        answers = [
            {"role": "tool", "name": function["name"], "tool_call_id": call["id"], "content": "1"}
            for call in calls
        ]
        messages: list[Message] = [
            {"role": "user", "content": "probe_question"},
            {"role": "assistant", "content": "", "tool_calls": calls},
            *answers,
        ]
        return 1 if self._rendered(messages, tools) is None else most

    def error_role(self, tools: list[dict[str, Any]]) -> str:
        """Role of a message that answers a call that could not be made.

        "tool" where the chat template shows such a message without a call before it, else "user".
        """
        messages: list[Message] = [
            {"role": "user", "content": "probe_question"},
            {"role": "assistant", "content": "probe_call"},
            {"role": "tool", "content": "probe_error"},
        ]
        return "tool" if "probe_error" in (self._rendered(messages, tools) or "") else "user"

    def _rendered(self, messages: list[Message], tools: list[dict[str, Any]]) -> str | None:
        """What the chat template makes of messages; None where it refuses them."""
        shown, schemas = with_tools(self.tokenizer, messages, tools)
        try:
            return ChatTemplate(self.tokenizer, schemas).render(shown, add_generation_prompt=True)
        except DataError:
            return None
