"""Marked facts and content are found in the tokens, whatever the template and the length."""

import json

import pytest

from focusft.data.marked import read_marked
from focusft.data.synthetic import make_conversations
from focusft.errors import ConfigError, DataError
from tests.data.small_tokenizer import make_tokenizer


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def generated(count=4, context_tokens=300, tokenizer=None):
    return make_conversations(
        "qa2",
        count=count,
        context_tokens=context_tokens,
        seed=3,
        count_tokens=lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
    )


def decode_runs(tokenizer, ids, mask):
    """The texts of the runs of ones."""
    runs, current = [], []
    for token, marked in [*zip(ids, mask, strict=True), (0, 0)]:
        if marked:
            current.append(token)
        elif current:
            runs.append(tokenizer.decode(current))
            current = []
    return runs


@pytest.mark.parametrize("template", ["smollm2", "llama3", "qwen3", "gemma"])
def test_needles_are_the_marked_facts(template, tmp_path):
    tokenizer = make_tokenizer(template)
    rows = generated(tokenizer=tokenizer)
    rows[0]["messages"][0]["content"] = "  \n" + rows[0]["messages"][0]["content"] + " "
    rows[0]["meta"]["needle_spans"] = [[s + 3, e + 3] for s, e in rows[0]["meta"]["needle_spans"]]
    found = read_marked(write(tmp_path / "d.jsonl", rows), tokenizer, samples=9, max_length=None)
    assert len(found.examples) == len(rows)
    for row, example in zip(rows, found.examples, strict=True):
        runs = decode_runs(tokenizer, example.encoded.input_ids, example.needle_mask)
        # Facts that follow each other make one run; a space before a fact may be its token's.
        assert " ".join(run.strip() for run in runs) == " ".join(row["meta"]["needles"])


def test_content_is_what_people_wrote(tmp_path):
    tokenizer = make_tokenizer("smollm2")
    messages = [
        {"role": "system", "content": "The dog sleeps."},
        {"role": "user", "content": "Where <|im_end|> is the fox?"},
        {"role": "assistant", "content": "Away."},
        {"role": "user", "content": "And the dog?"},
        {"role": "assistant", "content": "It sleeps."},
    ]
    data = write(tmp_path / "d.jsonl", [{"messages": messages}])
    (example,) = read_marked(data, tokenizer, samples=1, max_length=None).examples
    runs = decode_runs(tokenizer, example.encoded.input_ids, example.content_mask)
    assert runs == ["The dog sleeps.", "Where ", " is the fox?", "And the dog?"]
    assert sum(example.needle_mask) == 0
    assert {tuple(t.shape) for t in example.batch().values()} == {(1, len(example.content_mask))}


def test_truncation_moves_the_marks(tmp_path):
    tokenizer = make_tokenizer("smollm2")
    row = generated(1, tokenizer=tokenizer)[0]
    filler = {"role": "tool", "content": "The quick brown fox jumps over the lazy dog. " * 100}
    row["messages"][1:1] = [{"role": "assistant", "content": "Wait."}, filler]
    data = write(tmp_path / "d.jsonl", [row])
    whole = read_marked(data, tokenizer, samples=1, max_length=None).examples[0]
    length = len(whole.encoded.input_ids) - 100
    cut = read_marked(
        data, tokenizer, samples=1, max_length=length, length_policy="truncate_context"
    ).examples[0]
    assert len(cut.encoded.input_ids) == length
    facts = decode_runs(tokenizer, whole.encoded.input_ids, whole.needle_mask)
    assert decode_runs(tokenizer, cut.encoded.input_ids, cut.needle_mask) == facts
    assert sum(whole.content_mask) - sum(cut.content_mask) == 100


def test_rows_that_are_left_out_are_counted(tmp_path):
    tokenizer = make_tokenizer("smollm2")
    rows = generated(2, 300, tokenizer) + generated(3, 60, tokenizer)
    data = write(tmp_path / "d.jsonl", rows)
    found = read_marked(data, tokenizer, samples=2, max_length=280)
    assert (len(found.examples), found.read, found.left_out) == (2, 4, {"too_long": 2})
    assert found.one_line() == "2 examples of 4 rows read, 2 left out (too long)"
    with pytest.raises(DataError, match="no row can be probed"):
        read_marked(data, tokenizer, samples=2, max_length=20)
    with pytest.raises(DataError, match=r"line 1: .* tokens exceed max_length 280"):
        read_marked(data, tokenizer, samples=2, max_length=280, length_policy="error")
    with pytest.raises(ConfigError, match="samples: 0"):
        read_marked(data, tokenizer, samples=0, max_length=280)


@pytest.mark.parametrize("spans", [[[3, 2]], [[0, 9999]], [[0]], [["a", "b"]], [3], "0-4"])
def test_wrong_spans_are_named(spans, tmp_path):
    tokenizer = make_tokenizer("smollm2")
    row = generated(1, tokenizer=tokenizer)[0]
    row["meta"]["needle_spans"] = spans
    with pytest.raises(DataError, match=r"line 1: 'meta.needle_spans' holds"):
        read_marked(write(tmp_path / "d.jsonl", [row]), tokenizer, samples=1, max_length=None)
