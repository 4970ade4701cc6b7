"""What an answer to a held-out conversation is worth, and the table of it."""

import json

import pytest

from benchmarks.held_out import by_task, score
from benchmarks.held_out_tables import held_out_section

PLACE = {"task": "qa2", "question": "Where is the milk?", "answer": "garden"}
BEFORE = {"task": "qa3", "question": "Where was it before the garden?", "answer": "office"}
WORDS = {"task": "cwe", "answer": "1. butufu 2. kidibu 3. dakulu 4. tinidu"}
VARIABLES = {"task": "vt", "answer": "ZSCQ OKXU"}


@pytest.mark.parametrize(
    ("meta", "answer", "worth"),
    [
        (PLACE, "The milk is in the garden.", 1),
        (PLACE, "The milk is in the garden or the kitchen.", 0),
        (PLACE, "I do not know.", 0),
        (BEFORE, "It was in the office before the garden.", 1),
        (BEFORE, "It was in the kitchen before the garden.", 0),
        (BEFORE, "It was in the garden.", 0),
        (WORDS, "They are: 1. dakulu 2. butufu 3. dakulu 4. other", 0.5),
        (WORDS, "", 0),
        (VARIABLES, "2 variables are assigned the value 98003, they are: OKXU ZSCQ", 1),
        (VARIABLES, "ZSCQX OKXU", 0.5),
    ],
)
def test_score(meta, answer, worth):
    assert score(meta, answer) == worth


def test_scores_by_task_in_the_order_of_the_rows():
    rows = [{"meta": PLACE}, {"meta": VARIABLES}, {"meta": PLACE}]
    assert by_task(rows, ["garden", "OKXU", "office"]) == {"qa2": [1, 0], "vt": [0.5]}


def write(folder, name, models, longest=250):
    data = {"short": {"conversations": 4, "shortest": 100, "longest": longest}}
    (folder / name).write_text(json.dumps({"scores": models, "data": data}))


def test_section(tmp_path):
    assert held_out_section(tmp_path) == []
    one = {"causal": {"short": {"qa1": [1, 0], "vt": [0.5, 0.5]}}}
    both = one | {"bidirectional": {"short": {"qa1": [1, 1], "vt": [1, 1]}}}
    write(tmp_path, "a.json", {"sft": one})
    write(tmp_path, "b.json", {"focusft": both})
    text = "\n".join(held_out_section(tmp_path))
    assert "Contexts of 100 to 250 tokens, 4 conversations:" in text
    assert "| model | prefill | qa1 | vt | mean |" in text
    assert "| sft | causal | 50.0 [9, 91] | 50.0 [50, 50] | 50.0 [25, 75] |" in text
    assert "| focusft | bidirectional | 100.0 " in text
    write(tmp_path, "b.json", {"focusft": both}, longest=300)
    with pytest.raises(ValueError, match="not of the same data"):
        held_out_section(tmp_path)
