"""Which split a generated thing belongs to, by a hash of its text."""

import hashlib
from typing import Literal

Split = Literal["train", "held_out"]
SPLITS = ("train", "held_out")
# One part of five of the topics and of the worlds is held out.
_HELD_OUT_PARTS = 5


def split_of(text: str) -> Split:
    """The split that a text belongs to, whatever the seeds (hash() is salted: no help here)."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return "held_out" if number % _HELD_OUT_PARTS == 0 else "train"
