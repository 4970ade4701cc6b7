"""A thousand rows of dirty data: one clear line for each that cannot be used, and none is lost."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from focusft.data import load_rows, prepare_dataset
from focusft.data.chat import IGNORED, encode_row
from focusft.data.rows import check_row
from focusft.errors import DataError

ROWS = 1000

USER = {"role": "user", "content": "Where is it?"}
REPLY = {"role": "assistant", "content": "Here."}
CALL = {
    "role": "assistant",
    "tool_calls": [{"type": "function", "function": {"name": "find", "arguments": {"a": 1}}}],
}
GOOD = [
    {"messages": [USER, REPLY]},
    {"messages": [{"role": "system", "content": "Be brief."}, USER, REPLY, USER, REPLY]},
    {"messages": [USER, CALL, {"role": "tool", "content": "{}"}, REPLY]},
    {"messages": [USER, REPLY], "tools": [{"type": "function", "function": {"name": "f"}}]},
    {"messages": [USER, REPLY], "enable_thinking": True, "source": "x"},
    {"prompt": [USER], "completion": [REPLY]},
    {"prompt": "Two and two is", "completion": " four."},
]
WORDS = ("role", "content", "messages", "assistant", "user", "tool_calls", "function", "name")
TRICKY = (
    "",
    " \n\t ",
    "<|im_start|>assistant\n",
    "<|im_end|>",
    "\ue000\ue001\uf8ff",
    "\ud83e",
    "\x00\x1b[31m",
    "{{ 7 * 7 }} {% raw %}",
    "a\u0301\u200d\U0001f469\u200d\U0001f4bb",
    '{"a":',
    "[" * 3000,
    "x" * 3000,
)
texts = st.sampled_from(TRICKY) | st.sampled_from(WORDS) | st.text(max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | texts, inner)
    ),
    max_leaves=8,
)


def places(value, path=()):
    """Every place in a nested value."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


@st.composite
def dirty_rows(draw):
    """A good row with some of its values replaced, removed, doubled or added; or anything."""
    if draw(st.integers(0, 9)) == 0:
        return draw(values)
    row = copy.deepcopy(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(0, 3))):
        *path, last = draw(st.sampled_from(sorted(set(places(row)) - {()}, key=repr)))
        parent = row
        for key in path:
            parent = parent[key]
        change = draw(st.sampled_from(["replace", "remove", "double", "add"]))
        if change == "replace":
            parent[last] = draw(values)
        elif change == "remove" and len(parent) > 1:
            del parent[last]
        elif change == "double" and isinstance(parent, list):
            parent.insert(last, copy.deepcopy(parent[last]))
        elif isinstance(parent, dict):
            parent[draw(texts)] = draw(values)
        if not isinstance(row, dict) or len(row) == 0:
            break
    return row


def is_used(tokenizer, row):
    """Whether a row can be trained on; refused rows must say why in one line."""
    try:
        checked = check_row(row)
        encoded = encode_row(tokenizer, checked)
    except DataError as error:
        assert str(error).strip()
        assert "\n" not in " ".join(str(error).split())
        return False
    assert len(encoded.input_ids) == len(encoded.labels) == len(encoded.turn_ids)
    labels = zip(encoded.input_ids, encoded.labels, encoded.turn_ids, strict=True)
    assert all(label in (IGNORED, token) for token, label, _ in labels)
    return True


def test_no_row_of_a_thousand_is_lost(tmp_path, chatml):
    rows, used = [], []

    @settings(
        max_examples=ROWS,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(dirty_rows())
    def collect(row):
        # As it comes from a file: JSON has no lone surrogates but escaped ones, and no sharing.
        row = json.loads(json.dumps(row))
        used.append(is_used(chatml, row))
        rows.append(row)

    collect()
    assert len(rows) >= ROWS
    assert 0.1 < sum(used) / len(rows) < 0.9

    def write(name, kept):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        return path

    def prepare(path):
        return prepare_dataset(path, chatml, max_length=200, cache_dir=tmp_path / "cache")

    # Everything in one file: as many are refused as one by one, but for the file's two forms.
    with pytest.raises(DataError, match="rows cannot be used") as caught:
        load_rows(write("all.jsonl", rows))
    assert str(caught.value).split()[2] == str(len(rows))
    kinds = {"messages": [], "prompt": []}
    for row, is_good in zip(rows, used, strict=True):
        if is_good:
            kinds["messages" if row.get("messages") is not None else "prompt"].append(row)
    for kind, good in kinds.items():
        _, report = prepare(write(f"{kind}.jsonl", good))
        assert report.rows == len(good) == report.used + sum(report.dropped.values())
    bad = [row for row, is_good in zip(rows, used, strict=True) if not is_good]
    mixed = write("mixed.jsonl", kinds["messages"][:3] + bad)
    with pytest.raises(DataError, match=f"^{len(bad)} of {len(bad) + 3} rows cannot be used"):
        prepare(mixed)


@settings(
    max_examples=150,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    st.sampled_from([".jsonl", ".json", ".parquet"]),
    st.binary(max_size=200)
    | st.builds(
        lambda row, cut: json.dumps(row).encode()[:-cut], st.sampled_from(GOOD), st.integers(1, 60)
    ),
)
def test_broken_files_are_one_line(tmp_path_factory, suffix, content):
    path = tmp_path_factory.mktemp("broken") / f"rows{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_rows(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
