"""Conversations as token ids, labels and turns: reading, checking, tokenising, batching."""

from focusft.data.chat import tokenise_conversation, tokenise_prompt_completion
from focusft.data.collator import ConversationCollator
from focusft.data.lengths import LengthPolicy
from focusft.data.order import LengthBucketedSampler
from focusft.data.report import DataReport
from focusft.data.sources import load_rows
from focusft.data.tokenise import prepare_dataset
from focusft.data.view import render_example

__all__ = [
    "ConversationCollator",
    "DataReport",
    "LengthBucketedSampler",
    "LengthPolicy",
    "load_rows",
    "prepare_dataset",
    "render_example",
    "tokenise_conversation",
    "tokenise_prompt_completion",
]
