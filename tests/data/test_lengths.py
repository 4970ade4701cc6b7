"""The length policy never removes a label, and says what it did."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focusft.data.chat import encode_conversation
from focusft.data.lengths import MIN_KEPT, check_length_options, fit_length
from focusft.errors import ConfigError
from tests.data.small_tokenizer import make_tokenizer


def encode(*contents):
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    messages = [{"role": roles[name], "content": " fox" * count} for name, count in contents]
    return encode_conversation(make_tokenizer("smollm2"), messages)


LONG = encode(("s", 50), ("u", 200), ("a", 9), ("t", 300), ("u", 80), ("a", 7), ("u", 60))
LABELS = [label for label in LONG.labels if label != -100]


def sizes(encoded):
    return {turn: encoded.turn_ids.count(turn) for turn in dict.fromkeys(encoded.turn_ids)}


def test_short_rows_stay():
    for policy in ("drop", "error", "truncate_context"):
        assert fit_length(LONG, len(LONG.input_ids), policy).encoded is LONG
        assert fit_length(LONG, None, policy).encoded is LONG


@pytest.mark.parametrize("policy", ["drop", "error"])
def test_long_rows_are_dropped(policy):
    assert fit_length(LONG, 100, policy).dropped == "too_long"


def test_first_what_follows_the_last_response_goes():
    before = sizes(LONG)
    fitted = fit_length(LONG, len(LONG.input_ids) - before[7], "truncate_context")
    assert sizes(fitted.encoded) == {turn: n for turn, n in before.items() if turn != 7}


def test_then_the_middle_of_what_is_no_question():
    before = sizes(LONG)
    cut = before[7] + 250
    fitted = fit_length(LONG, len(LONG.input_ids) - cut, "truncate_context")
    after = sizes(fitted.encoded)
    assert after == {**{t: n for t, n in before.items() if t != 7}, 4: before[4] - 250}
    assert fitted.removed == cut


def test_then_the_middle_of_the_questions():
    before = sizes(LONG)
    tool = next(span for span in LONG.context if span.role == "tool")
    room = len(LONG.input_ids) - before[7] - (tool.stop - tool.start - MIN_KEPT) - 100
    fitted = fit_length(LONG, room, "truncate_context")
    after = sizes(fitted.encoded)
    assert after[1] == before[1] and after[5] == before[5] and after[2] == before[2] - 100
    kept = fitted.encoded.input_ids
    assert len(kept) == room
    text = make_tokenizer("smollm2").decode(kept)
    assert text.count("<|im_start|>assistant\n") == 2 and text.count("<|im_start|>user\n") == 2


def test_rows_without_room_are_dropped():
    assert fit_length(LONG, 60, "truncate_context").dropped == "no_room"


def test_rows_without_labels_are_dropped():
    bare = replace(LONG, labels=[-100] * len(LONG.labels))
    for policy in ("drop", "error", "truncate_context"):
        assert fit_length(bare, None, policy).dropped == "no_labels"


@settings(max_examples=60, deadline=None)
@given(st.integers(1, len(LONG.input_ids) + 10))
def test_labels_survive_any_length(max_length):
    fitted = fit_length(LONG, max_length, "truncate_context")
    if fitted.encoded is None:
        assert fitted.dropped == "no_room"
        return
    encoded = fitted.encoded
    assert len(encoded.input_ids) == min(max_length, len(LONG.input_ids))
    assert [label for label in encoded.labels if label != -100] == LABELS
    assert sizes(encoded)[1] == sizes(LONG)[1]
    for token, label, turn in zip(encoded.input_ids, encoded.labels, encoded.turn_ids, strict=True):
        assert label == (token if turn < 0 else -100)


def test_bad_options():
    with pytest.raises(ConfigError, match="length_policy: 'cut' is unknown; use one of drop"):
        check_length_options(10, "cut")
    for bad in (0, -1, 2.5, True):
        with pytest.raises(ConfigError, match="max_length"):
            check_length_options(bad, "drop")
