"""Fit a tokenised row into a maximum length without ever removing a label."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

from focusft.data.chat import IGNORED, ContextSpan, Encoded
from focusft.errors import ConfigError

LengthPolicy = Literal["drop", "error", "truncate_context"]
Drop = Literal["too_long", "no_room", "no_labels"]
# A message that is cut keeps this many tokens, half of them from its beginning.
MIN_KEPT = 32


@dataclass(frozen=True)
class Fitted:
    """A row after the length policy.

    Attributes:
        encoded: What is left of the row; None if it is dropped.
        dropped: Why: "too_long" (policy drop or error), "no_room" (responses, system turn and
            template text alone exceed the length), "no_labels" (nothing to train on).
        removed: Number of context tokens cut out.
    """

    encoded: Encoded | None
    dropped: Drop | None = None
    removed: int = 0


def check_length_options(max_length: int | None, policy: str) -> None:
    """Check the options of the length policy.

    Raises:
        ConfigError: One of them is out of range.
    """
    if policy not in get_args(LengthPolicy):
        allowed = ", ".join(get_args(LengthPolicy))
        raise ConfigError(f"length_policy: {policy!r} is unknown; use one of {allowed}")
    if max_length is not None and (
        isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1
    ):
        raise ConfigError(f"max_length: {max_length!r} is not a positive number of tokens")


def fit_length(encoded: Encoded, max_length: int | None, policy: LengthPolicy) -> Fitted:
    """Apply the length policy to one row.

    Under `truncate_context` what comes after the last response goes first. Then messages lose
    their middle, the longest first: at first those that are neither the system message nor the
    last one before a response, then also the last ones before a response. Response tokens,
    template text (generation prompt, tool descriptions) and the system message stay whole.

    Args:
        encoded: The tokenised row.
        max_length: Largest number of tokens; None for any.
        policy: "drop", "error" (the caller raises for rows that are "too_long") or
            "truncate_context".

    Returns:
        The row, cut if need be, or why it is dropped.
    """
    if all(label == IGNORED for label in encoded.labels):
        return Fitted(None, "no_labels")
    excess = 0 if max_length is None else len(encoded.input_ids) - max_length
    if excess <= 0:
        return Fitted(encoded)
    if policy != "truncate_context":
        return Fitted(None, "too_long")
    cuts = _plan_cuts(encoded, excess)
    removed = sum(stop - start for start, stop in cuts)
    if removed < excess:
        return Fitted(None, "no_room")
    return Fitted(_cut(encoded, cuts), removed=removed)


def _plan_cuts(encoded: Encoded, excess: int) -> list[tuple[int, int]]:
    total = len(encoded.turn_ids)
    end = max(i for i, turn in enumerate(encoded.turn_ids) if turn < 0) + 1
    cuts = [(total - min(excess, total - end), total)] if end < total else []
    excess -= min(excess, total - end)
    spans = [span for span in encoded.context if span.stop <= end and span.role != "system"]
    questions = _before_responses(encoded)
    for chosen in (
        [span for span in spans if span.turn not in questions],
        [span for span in spans if span.turn in questions],
    ):
        for span in sorted(chosen, key=_length, reverse=True):
            removed = min(excess, _length(span) - MIN_KEPT)
            if removed > 0:
                start = span.start + (_length(span) - removed) // 2
                cuts.append((start, start + removed))
                excess -= removed
    return cuts


def _before_responses(encoded: Encoded) -> set[int]:
    turns = list(dict.fromkeys(encoded.turn_ids))
    return {before for before, after in pairwise(turns) if before > 0 > after}


def _length(span: ContextSpan) -> int:
    return span.stop - span.start


def _cut(encoded: Encoded, cuts: list[tuple[int, int]]) -> Encoded:
    removed = {position for start, stop in cuts for position in range(start, stop)}
    kept = [position for position in range(len(encoded.input_ids)) if position not in removed]

    def moved(position: int) -> int:
        return bisect_left(kept, position)

    return replace(
        encoded,
        input_ids=[encoded.input_ids[position] for position in kept],
        labels=[encoded.labels[position] for position in kept],
        turn_ids=[encoded.turn_ids[position] for position in kept],
        context=tuple(
            replace(span, start=moved(span.start), stop=moved(span.stop))
            for span in encoded.context
        ),
        needles=tuple((moved(start), moved(stop)) for start, stop in encoded.needles),
    )
