"""Which split a generated thing belongs to, by a hash of its text."""

import hashlib
from typing import Literal

Split = Literal["train", "held_out"]
SPLITS = ("train", "held_out")
# One part of five of the topics and of the worlds is held out.
_HELD_OUT_PARTS = 5


def hashed_part(text: str) -> int:
    """A number below _HELD_OUT_PARTS that depends on the text alone (hash() is salted)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % _HELD_OUT_PARTS
