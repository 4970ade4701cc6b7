"""Lengths in tokens as people and published data write them."""

from __future__ import annotations

import re

from focusft.errors import ConfigError


def length_label(length: int) -> str:
    """A length as the published data names it: 4096 and 4000 are "4k", 1048576 is "1M"."""
    # 128000 is a multiple of both.
    thousands = length // 1000 if length % 1000 == 0 else length // 1024
    if thousands >= 1000:
        return f"{thousands // 1000}M"
    return f"{thousands}k"


def length_name(length: int) -> str:
    """A length for people: "512", "1k", "1.5k", "128k", "1M"."""
    for unit, letter in ((1 << 20, "M"), (1 << 10, "k")):
        if length >= unit and length * 2 % unit == 0:
            return f"{length / unit:g}{letter}"
    return str(length)


def parse_length(text: str) -> int:
    """Tokens from "4096", "4k" (4096), "0.5k" (512) or "1M" (1048576).

    Raises:
        ConfigError: It is no length.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", text.strip())
    if match is None:
        raise ConfigError(f"--lengths: '{text}' is no length; write tokens as 512, 0.5k, 4k or 1M")
    tokens = float(match[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20}[match[2].lower()]
    if not tokens.is_integer():
        raise ConfigError(f"--lengths: '{text}' is no whole number of tokens")
    return int(tokens)
