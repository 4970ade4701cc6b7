"""The mask, against a triple loop, and its pictures."""

import re

import pytest
import torch

from focusft.method.masks import dense_mask, draw_mask, mask_svg
from focusft.method.turns import TurnLayout
from tests.method.helpers import CONFIG, DOCUMENTS, gradients_of, packed, padded
from tests.tiny_models import tiny_model

TURN_IDS = torch.tensor(
    [
        [0, 0, 1, 1, 2, -3, -3, 4, -5, -5, 0],
        [1, 1, -2, -2, 3, 3, 1, 2, -3, -3, 4],  # two documents
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
)
POSITIONS = torch.tensor(
    [
        [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 0],
        [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
)
DOCUMENT_NUMBERS = [[0] * 11, [0] * 6 + [1] * 5, [0] * 11]


def loop_mask(attention, blocks):
    rows, size = TURN_IDS.shape
    mask = torch.zeros(rows, 1, size, size, dtype=torch.bool)
    for row in range(rows):
        turns = TURN_IDS[row].tolist()
        for query in range(size):
            for key in range(size):
                if turns[query] == 0 or turns[key] == 0:
                    mask[row, 0, query, key] = query == key and turns[query] == 0
                    continue
                if DOCUMENT_NUMBERS[row][query] != DOCUMENT_NUMBERS[row][key]:
                    continue
                between = turns[min(query, key) : max(query, key) + 1]
                if blocks == "merged":
                    same_context = all(turn > 0 for turn in between)
                else:
                    same_context = len(set(between)) == 1 and between[0] > 0
                allowed = key <= query or (attention == "bidirectional" and same_context)
                mask[row, 0, query, key] = allowed
    return mask


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("blocks", ["merged", "per_turn"])
def test_mask_equals_a_loop(attention, blocks):
    layout = TurnLayout.from_turn_ids(TURN_IDS, POSITIONS, blocks)
    assert torch.equal(dense_mask(layout, attention), loop_mask(attention, blocks))


def test_causal_mask_of_one_document_is_the_triangle():
    layout = TurnLayout.from_labels(torch.tensor([[-100, -100, 5, 5, -100, 5]]))
    assert torch.equal(dense_mask(layout, "causal")[0, 0], torch.ones(6, 6).tril().bool())


def test_every_query_sees_something():
    layout = TurnLayout.from_turn_ids(TURN_IDS, POSITIONS)
    assert dense_mask(layout, "bidirectional").any(dim=-1).all()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_gives_finite_gradients(implementation, side):
    model = tiny_model("llama")
    model.set_attn_implementation(implementation)
    batch = padded([packed(DOCUMENTS[:1]), packed(DOCUMENTS[1:])], side)
    loss, _, gradients = gradients_of(model, CONFIG, **batch)
    assert loss == loss
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_documents_do_not_see_each_other(implementation):
    model = tiny_model("llama", dtype=torch.float64)
    model.set_attn_implementation(implementation)
    batch = packed(DOCUMENTS)
    # Only the last document is trained on; the tokens before it must not matter.
    start = sum(len(ids) for ids, _ in DOCUMENTS[:2])
    batch["labels"][0, :start] = -100
    loss, _, gradients = gradients_of(model, CONFIG, **batch)
    batch["input_ids"] = batch["input_ids"].clone()
    batch["input_ids"][0, :start] = 3 + (batch["input_ids"][0, :start] + 11) % 100
    other_loss, _, other_gradients = gradients_of(model, CONFIG, **batch)
    assert other_loss == loss
    for name in gradients.keys() - {"model.embed_tokens.weight"}:
        torch.testing.assert_close(other_gradients[name], gradients[name], rtol=0, atol=1e-13)


LAYOUT = TurnLayout.from_labels(torch.tensor([[-100, -100, 5, -100, -100, 5, -100]]))
LAYOUT_PADDED = TurnLayout.from_labels(
    torch.tensor([[-100, -100, 5, -100]]), torch.tensor([[1, 1, 1, 0]])
)


def test_drawing():
    assert draw_mask(LAYOUT, "bidirectional").splitlines() == [
        "C ##.....",
        "C ##.....",
        "R ###....",
        "C #####..",
        "C #####..",
        "R ######.",
        "C #######",
    ]
    assert draw_mask(LAYOUT, "causal").splitlines()[:2] == ["C #......", "C ##....."]
    assert draw_mask(LAYOUT_PADDED, "bidirectional").splitlines()[-1] == "- ...#"


def test_drawing_samples_long_rows():
    lines = draw_mask(LAYOUT, "bidirectional", width=3).splitlines()
    assert lines == ["C #..", "C ##.", "C ###"]


def test_svg():
    svg = mask_svg(LAYOUT, "bidirectional", size=70)
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg" width="70" height="70" ')
    assert 'viewBox="0 0 7 7"' in svg
    cells = re.findall(r'<rect x="(\d+)" y="(\d+)" width="(\d+)" height="1" fill="(.*?)"/>', svg)
    blue, green = "#3b7dd8", "#2a9d5c"
    assert cells == [
        ("0", str(query), str(width), colour)
        for query, (width, colour) in enumerate(
            [(2, blue), (2, blue), (3, green), (5, blue), (5, blue), (6, green), (7, blue)]
        )
    ]
