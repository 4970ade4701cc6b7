"""Benchmark items: made for a tokenizer, written as JSON lines with a manifest, read back.

The same arguments give the same bytes, in every process and for every tokenizer with the same
hash. Every prompt is counted as the model will get it, with its chat template and answer prefix.
"""

from focusft.evaluation.items.files import MANIFEST_FILE, PROMPTS_FILE, read_items, write_items
from focusft.evaluation.items.item import Item, ItemSet, prompt_ids
from focusft.evaluation.items.lengths import length_label, length_name, parse_length
from focusft.evaluation.items.make import SHORTEST, SUITES, make_items

__all__ = [
    "MANIFEST_FILE",
    "PROMPTS_FILE",
    "SHORTEST",
    "SUITES",
    "Item",
    "ItemSet",
    "length_label",
    "length_name",
    "make_items",
    "parse_length",
    "prompt_ids",
    "read_items",
    "write_items",
]
