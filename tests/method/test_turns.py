"""Turns, blocks and documents of a batch, against a loop over tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focusft.errors import DataError
from focusft.method.turns import Document, TurnLayout
from tests.method.helpers import assert_mends

CONTEXT, RESPONSE, PADDING = 0, 1, -1


def labels_of(text):
    """One row: `.` context, `R` response."""
    return torch.tensor([[7 if character == "R" else -100 for character in text]])


def numbers(tensor_BS, row=0):
    return tensor_BS[row].tolist()


def test_runs_of_labels_are_the_turns():
    layout = TurnLayout.from_labels(labels_of("...RR.RRR"))
    assert numbers(layout.is_response_BS) == [0, 0, 0, 1, 1, 0, 1, 1, 1]
    assert numbers(layout.block_ids_BS) == [0, 0, 0, 1, 1, 2, 3, 3, 3]
    assert numbers(layout.document_ids_BS) == [0] * 9
    assert layout.documents() == [Document(0, 0, 9)]


def test_a_document_may_start_with_a_labelled_token():
    layout = TurnLayout.from_labels(
        labels_of("RR..RR.R"), position_ids_BS=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    )
    assert numbers(layout.block_ids_BS) == [0, 0, 1, 1, 2, 2, 3, 4]
    assert numbers(layout.document_ids_BS) == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("blocks", ["merged", "per_turn"])
def test_adjacent_context_turns(blocks):
    turn_ids = torch.tensor([[1, 1, 2, 2, -3, -3, 4, 5, -6, 0]])
    layout = TurnLayout.from_turn_ids(turn_ids, context_blocks=blocks)
    merged, per_turn = [0, 0, 0, 0, 1, 1, 2, 2, 3, -1], [0, 0, 1, 1, 2, 2, 3, 4, 5, -1]
    assert numbers(layout.block_ids_BS) == (merged if blocks == "merged" else per_turn)
    assert numbers(layout.is_response_BS) == [0, 0, 0, 0, 1, 1, 0, 0, 1, 0]
    assert numbers(layout.is_context_BS) == [1, 1, 1, 1, 0, 0, 1, 1, 0, 0]


def test_an_unlabelled_response_turn_stays_a_response():
    layout = TurnLayout.from_turn_ids(torch.tensor([[1, 1, -2, -2, 3, -4]]))
    assert numbers(layout.is_response_BS) == [0, 0, 1, 1, 0, 1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_belongs_to_nothing(side):
    mask = [0, 0, 1, 1, 1] if side == "left" else [1, 1, 1, 0, 0]
    labels = torch.full((1, 5), -100)
    labels[0, 4 if side == "left" else 2] = 9
    layout = TurnLayout.from_labels(labels, torch.tensor([mask]))
    expected = [-1, -1, 0, 0, 1] if side == "left" else [0, 0, 1, -1, -1]
    assert numbers(layout.block_ids_BS) == expected
    assert layout.documents() == [Document(0, 2, 5) if side == "left" else Document(0, 0, 3)]


def test_labels_on_padding_do_not_count():
    layout = TurnLayout.from_labels(labels_of("..RR"), torch.tensor([[1, 1, 1, 0]]))
    assert numbers(layout.is_response_BS) == [0, 0, 1, 0]


def test_documents_of_one_token_and_equal_lengths():
    positions = torch.tensor([[0, 0, 0, 1, 0, 1]])
    layout = TurnLayout.from_labels(labels_of("...R.R"), position_ids_BS=positions)
    assert numbers(layout.document_ids_BS) == [0, 1, 2, 2, 3, 3]


def test_one_row_of_positions_serves_every_row():
    labels = labels_of("..R.R").expand(3, 5)
    layout = TurnLayout.from_labels(labels, position_ids_BS=torch.tensor([[0, 1, 2, 0, 1]]))
    assert [d.row for d in layout.documents()] == [0, 0, 1, 1, 2, 2]
    assert layout.document_numbers()[2].tolist() == [4, 4, 4, 5, 5]


def test_a_row_of_padding_has_no_document():
    labels = torch.cat([labels_of("..R"), labels_of("..."), labels_of(".R.")])
    mask = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 1, 1]])
    layout = TurnLayout.from_labels(labels, mask)
    assert layout.documents() == [Document(0, 0, 3), Document(2, 0, 3)]
    assert layout.document_numbers()[2].tolist() == [1, 1, 1]


def test_a_batch_reads_turn_ids_first():
    labels = labels_of("..RR")
    turn_ids = torch.tensor([[1, -2, -2, -2]])
    layout = TurnLayout.from_batch({"labels": labels, "turn_ids": turn_ids})
    assert numbers(layout.is_response_BS) == [0, 1, 1, 1]


def test_blocks_per_turn_need_turn_ids():
    with pytest.raises(DataError) as error:
        TurnLayout.from_batch({"labels": labels_of("..R")}, "per_turn")
    assert_mends(error, "context_blocks", "turn_ids", "merged")


@pytest.mark.parametrize("name", ["labels", "turn_ids"])
def test_a_mask_with_four_dimensions(name):
    values = {"labels": labels_of("..R"), "turn_ids": torch.tensor([[1, 1, -2]])}[name]
    with pytest.raises(DataError) as error:
        TurnLayout.from_batch({name: values, "attention_mask": torch.ones(1, 1, 3, 3)})
    assert_mends(error, "attention_mask", "2-D")


def test_turn_ids_and_attention_mask_agree_on_padding():
    batch = {"turn_ids": torch.tensor([[1, 1, -2]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    with pytest.raises(DataError) as error:
        TurnLayout.from_batch(batch)
    assert_mends(error, "turn_ids", "attention_mask", "padding")


# A document: alternating (is response, length) turns; several context turns may be adjacent.
turn = st.tuples(st.booleans(), st.integers(1, 3))
document = st.lists(turn, min_size=1, max_size=4)
row = st.tuples(st.lists(document, min_size=0, max_size=3), st.integers(0, 2), st.integers(0, 2))


def spell_out(rows):
    """Per token: (document in row, turn in document, is response, position), padding None."""
    spelled = []
    for documents, left, right in rows:
        tokens = [None] * left
        for number, turns in enumerate(documents):
            position = 0
            for index, (is_response, length) in enumerate(turns):
                for _ in range(length):
                    tokens.append((number, index, is_response, position))
                    position += 1
        spelled.append(tokens + [None] * right)
    size = max(map(len, spelled))
    return [tokens + [None] * (size - len(tokens)) for tokens in spelled]


def numbered_by_a_loop(tokens, is_new):
    """Consecutive numbers of stretches of a row, -1 on padding."""
    found, number, previous = [], -1, None
    for token in tokens:
        if token is None:
            found.append(-1)
        else:
            if previous is None or is_new(previous, token):
                number += 1
            found.append(number)
        previous = token
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(row, min_size=1, max_size=3), st.sampled_from(["labels", "merged", "per_turn"]))
def test_layout_equals_a_loop_over_tokens(rows, source):
    spelled = spell_out(rows)
    if not any(any(tokens) for tokens in spelled):
        return
    positions = torch.tensor([[t[3] if t else 0 for t in tokens] for tokens in spelled])
    if source == "labels":
        labels = torch.tensor([[5 if t and t[2] else -100 for t in tokens] for tokens in spelled])
        mask = torch.tensor([[int(t is not None) for t in tokens] for tokens in spelled])
        layout = TurnLayout.from_labels(labels, mask, positions)
    else:
        turn_ids = torch.tensor(
            [[(1 - 2 * t[2]) * (t[1] + 1) if t else 0 for t in tokens] for tokens in spelled]
        )
        layout = TurnLayout.from_turn_ids(turn_ids, positions, source)

    def new_document(before, token):
        return before[0] != token[0]

    def new_block(before, token):
        keys = (0, 1, 2) if source == "per_turn" else (0, 2)
        return any(before[key] != token[key] for key in keys)

    for index, tokens in enumerate(spelled):
        assert numbers(layout.document_ids_BS, index) == numbered_by_a_loop(tokens, new_document)
        assert numbers(layout.block_ids_BS, index) == numbered_by_a_loop(tokens, new_block)
        assert numbers(layout.is_response_BS, index) == [bool(t and t[2]) for t in tokens]
        assert numbers(layout.is_token_BS, index) == [t is not None for t in tokens]
