"""The turns of a prompt, as training lays them over a conversation."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from focusft.data.chat import token_starts
from focusft.data.rows import Message
from focusft.data.template import ChatTemplate, locate_turns
from focusft.errors import DataError


def turn_ids(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    answer_prefix: str,
    template: ChatTemplate | None,
    messages: list[Message],
) -> list[int]:
    """Signed turn of each token of a prompt, as `TurnLayout.from_turn_ids` takes them.

    The generation prompt belongs to the context turn before it and the answer prefix to the
    response that follows; a prompt of plain text is one context turn.

    Args:
        tokenizer: A fast tokenizer.
        text: The whole prompt.
        answer_prefix: The end of it that is the beginning of the answer.
        template: What has rendered the messages; None for plain text.
        messages: The conversation.

    Raises:
        DataError: The template rewrites the conversation, so that its turns cannot be found.
    """
    starts, is_response = [0], [False]
    if template is not None:
        history, turns = locate_turns(template, messages)
        if not text.startswith(history):
            raise DataError(
                "the chat template shows a conversation in another way when an answer is to "
                "follow, so its turns cannot be found; use --prefill causal"
            )
        starts = [turn.start for turn in turns]
        is_response = [turn.is_response for turn in turns]
        if is_response[-1]:
            starts.append(len(history))
            is_response.append(False)
    if answer_prefix:
        starts.append(len(text) - len(answer_prefix))
        is_response.append(True)
    encoding: Any = tokenizer(
        text,
        add_special_tokens=template is None,
        return_offsets_mapping=True,
        verbose=False,
    )
    first_characters = token_starts(text, encoding["offset_mapping"])
    turn_of_token = np.searchsorted(starts, first_characters, side="right") - 1
    signed = [-n if response else n for n, response in enumerate(is_response, 1)]
    found: list[int] = np.asarray(signed)[turn_of_token].tolist()
    return found
