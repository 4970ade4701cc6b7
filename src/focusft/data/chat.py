"""Conversation or prompt/completion pair -> token ids, labels and turn ids.

Ids come from one tokenisation of the tokenizer's own rendering; labels and turns are laid over
them by character offsets, so the ids are what the model sees at inference, token for token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from focusft.data.rows import (
    Message,
    check_messages,
    check_row,
    check_template_kwargs,
    check_tools,
    tool_name,
)
from focusft.data.template import ChatTemplate, Turn, locate_turns
from focusft.data.tool_text import with_tools
from focusft.errors import DataError, UserError

IGNORED = -100


@dataclass(frozen=True)
class ContextSpan:
    """Tokens `start` to `stop` (excluded) that hold a context message, without template text."""

    start: int
    stop: int
    turn: int
    role: str


@dataclass(frozen=True)
class Encoded:
    """A tokenised row.

    Attributes:
        input_ids: Token ids.
        labels: The token's id on trained response tokens, -100 elsewhere; not shifted.
        turn_ids: +n on the tokens of the n-th turn if it is context, -n if it is a response.
        context: Where the context messages are, in the order of the text.
        rewritten: Assistant messages whose text the template did not show in full, for instance
            the thinking of earlier turns.
        tools_as_text: The chat template knows no tools, so they were written into the messages.
        needles: Tokens [start, stop) of the marked facts, see `check_row`.
    """

    input_ids: list[int]
    labels: list[int]
    turn_ids: list[int]
    context: tuple[ContextSpan, ...]
    rewritten: int = 0
    tools_as_text: bool = False
    needles: tuple[tuple[int, int], ...] = ()

    def example(self) -> dict[str, list[int]]:
        """The three lists that training needs."""
        return {
            "input_ids": self.input_ids,
            "labels": self.labels,
            "turn_ids": self.turn_ids,
        }


def tokenise_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    *,
    tools: list[dict[str, Any]] | None = None,
    template_kwargs: dict[str, Any] | None = None,
) -> dict[str, list[int]]:
    """Tokenise a conversation with the tokenizer's chat template; train on its assistant turns.

    Args:
        tokenizer: A fast tokenizer with a chat template.
        messages: Messages with `role` and `content` (and `tool_calls` on assistant messages);
            an assistant message with the `weight` 0 is a response turn without labels.
        tools: JSON schemas of the tools.
        template_kwargs: Variables of the chat template, e.g. `{"enable_thinking": False}`.

    Returns:
        `input_ids`, `labels` and `turn_ids`, lists of equal length. The ids equal
        `tokenizer.apply_chat_template(messages, ...)`; where the chat template knows no tools,
        with the messages of `focusft.data.tool_text.with_tools`.

    Raises:
        DataError: A message is malformed, or the template hides or rewrites it.
        UserError: The tokenizer is slow or has no usable chat template.
    """
    return encode_conversation(
        tokenizer, messages, tools=tools, template_kwargs=template_kwargs
    ).example()


def tokenise_prompt_completion(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[Message],
    completion: str | list[Message],
    *,
    tools: list[dict[str, Any]] | None = None,
    template_kwargs: dict[str, Any] | None = None,
) -> dict[str, list[int]]:
    """Tokenise a prompt and its completion; train on the completion only.

    Args:
        tokenizer: A fast tokenizer; with a chat template if the pair is made of messages.
        prompt: Plain text, or messages. Assistant messages in it count as response turns, but
            have no labels.
        completion: Plain text (the EOS token is appended when it is missing), or messages.
        tools: JSON schemas of the tools, for messages.
        template_kwargs: Variables of the chat template, for messages.

    Returns:
        `input_ids`, `labels` and `turn_ids`, lists of equal length.

    Raises:
        DataError: The pair is malformed.
        UserError: The tokenizer is slow, or has no EOS token or chat template where needed.
    """
    return encode_prompt_completion(
        tokenizer, prompt, completion, tools=tools, template_kwargs=template_kwargs
    ).example()


def encode_row(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> Encoded:
    """Tokenise a row as `check_row` returns it."""
    options = {"tools": row["tools"], "template_kwargs": row["template_kwargs"]}
    if "messages" in row:
        needle_spans = row.get("needle_spans", ())
        return encode_conversation(tokenizer, row["messages"], needle_spans=needle_spans, **options)
    return encode_prompt_completion(tokenizer, row["prompt"], row["completion"], **options)


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    *,
    tools: list[dict[str, Any]] | None = None,
    template_kwargs: dict[str, Any] | None = None,
    needle_spans: Sequence[Sequence[int]] = (),
) -> Encoded:
    """Like `tokenise_conversation`, with the place of the context messages.

    `needle_spans` are characters [start, end) of the first user message.
    """
    checked = check_messages(messages)
    messages, tools = with_tools(tokenizer, checked, check_tools(tools))
    template = ChatTemplate(tokenizer, tools, check_template_kwargs(template_kwargs or {}))
    text, turns = locate_turns(template, messages)
    rewritten = _check_shown(text, turns, messages, tools)
    input_ids, offsets = template.tokenise(messages)
    starts = token_starts(text, offsets)
    signed = [-n if turn.is_response else n for n, turn in enumerate(turns, 1)]
    turn_of_token = np.searchsorted([turn.start for turn in turns], starts, side="right") - 1
    turn_ids = np.asarray(signed)[turn_of_token]
    context = []
    for number, turn in enumerate(turns, 1):
        if turn.content is not None and turn.message is not None:
            begin, end = np.searchsorted(starts, turn.content).tolist()
            context.append(ContextSpan(begin, end, number, messages[turn.message]["role"]))
    responses = [-n for n, turn in enumerate(turns, 1) if turn.is_response]
    said = [message for message in checked if message["role"] == "assistant"]
    trained = [n for n, m in zip(responses, said, strict=True) if "weight" not in m]
    labels = np.where(np.isin(turn_ids, trained), input_ids, IGNORED)
    return Encoded(
        input_ids,
        labels.tolist(),
        turn_ids.tolist(),
        tuple(context),
        rewritten,
        tools_as_text=messages is not checked,
        needles=_needle_tokens(needle_spans, text, turns, messages, starts),
    )


def _needle_tokens(
    spans: Sequence[Sequence[int]],
    text: str,
    turns: list[Turn],
    messages: list[Message],
    starts: np.ndarray,
) -> tuple[tuple[int, int], ...]:
    """Tokens that hold a character of a span of the first user message."""
    if not spans:
        return ()
    user = next(i for i, message in enumerate(messages) if message["role"] == "user")
    written = messages[user]["content"]
    shown = next(turn.content for turn in turns if turn.message == user)
    assert shown is not None
    # What is shown begins at the first character that is no white space.
    offset = shown[0] - (len(written) - len(written.lstrip()))
    found = []
    for start, end in spans:
        first, last = offset + start, offset + end
        if text[first:last] != written[start:end]:
            raise DataError(
                f"'meta.needle_spans' [{start}, {end}] is not to be found in the chat text of "
                f"message {user + 1}; correct the span or leave needle_spans out"
            )
        token = int(np.searchsorted(starts, first, side="right")) - 1
        found.append((token, int(np.searchsorted(starts, last))))
    return tuple(found)


def encode_prompt_completion(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[Message],
    completion: str | list[Message],
    *,
    tools: list[dict[str, Any]] | None = None,
    template_kwargs: dict[str, Any] | None = None,
) -> Encoded:
    """Like `tokenise_prompt_completion`, with the place of the context messages."""
    row = check_row(
        {
            "prompt": prompt,
            "completion": completion,
            "tools": tools,
            "chat_template_kwargs": template_kwargs,
        }
    )
    if isinstance(row["prompt"], str):
        return _encode_plain(tokenizer, row["prompt"], row["completion"])
    untrained = [m | {"weight": 0} if m["role"] == "assistant" else m for m in row["prompt"]]
    return encode_conversation(
        tokenizer,
        untrained + row["completion"],
        tools=row["tools"],
        template_kwargs=row["template_kwargs"],
    )


def _encode_plain(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> Encoded:
    name = tokenizer.name_or_path or type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer {name}: is a slow one without character offsets; use a fast one"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer {name}: has no EOS token to end a completion; set eos_token")
    encoding = tokenizer(prompt + completion, return_offsets_mapping=True)
    input_ids = list(encoding["input_ids"])
    starts = token_starts(prompt + completion, encoding["offset_mapping"])
    first = int(np.searchsorted(starts, len(prompt)))
    if first and encoding["offset_mapping"][first - 1][1] > len(prompt):
        what = "the white space" if prompt[-1].isspace() else "the last characters"
        raise DataError(
            f"the prompt ends within a token, whose rest would not be learned; move {what} "
            "at the end of the prompt to the start of the completion"
        )
    if input_ids[-1] != tokenizer.eos_token_id:
        input_ids.append(tokenizer.eos_token_id)
    labels = [IGNORED] * first + input_ids[first:]
    turn_ids = [1] * first + [-2] * (len(input_ids) - first)
    begin = 1 if input_ids[0] == tokenizer.bos_token_id else 0
    return Encoded(input_ids, labels, turn_ids, (ContextSpan(begin, first, 1, "user"),))


def token_starts(text: str, offsets: list[tuple[int, int]]) -> np.ndarray:
    """First character of each token, never decreasing.

    Byte-level tokenizers may leave leading spaces out of a token's offsets (`trim_offsets`): they
    are given back. Special tokens that were added around the text have the offsets (0, 0).
    """
    starts = np.zeros(len(offsets), dtype=np.int64)
    end = 0
    for position, (start, stop) in enumerate(offsets):
        start = max(start, starts[position - 1] if position else 0)
        if end < start and not text[end:start].strip(" "):
            start = end
        starts[position] = start
        end = max(end, stop)
    return starts


def _check_shown(
    text: str, turns: list[Turn], messages: list[Message], tools: list[dict[str, Any]] | None
) -> int:
    """Check that no tool or tool call is lost; count the messages with lost or changed text."""
    for tool in tools or []:
        if tool_name(tool) not in text:
            raise DataError(
                f"the chat template does not show the tool {tool_name(tool)!r}; "
                "remove 'tools' or use a template with tools"
            )
    rewritten = 0
    for turn in turns:
        if not turn.is_response or turn.message is None:
            continue
        message, shown = messages[turn.message], text[turn.start : turn.stop]
        for call in message.get("tool_calls", []):
            if tool_name(call) not in shown:
                raise DataError(
                    f"message {turn.message + 1} (assistant): the chat template does not show its "
                    "tool_calls; use a template with tools"
                )
        said = (message.get("content"), message.get("reasoning_content"), message.get("thinking"))
        squeezed = _squeeze(shown)
        rewritten += any(isinstance(s, str) and _squeeze(s) not in squeezed for s in said)
    return rewritten


def _squeeze(text: str) -> str:
    return "".join(text.split())
