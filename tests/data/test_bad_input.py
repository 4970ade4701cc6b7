"""Bad files and rows: one clear line that names the file and the row."""

from __future__ import annotations

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from focusft.data.chat import tokenise_conversation
from focusft.data.sources import load_rows
from focusft.errors import DataError
from tests.data.small_tokenizer import make_tokenizer

USER = {"role": "user", "content": "hi"}
REPLY = {"role": "assistant", "content": "ho"}
GOOD = {"messages": [USER, REPLY]}


def calling(**function):
    return {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": function}]}]}


def answered(**message):
    return {"messages": [USER, {"role": "assistant", **message}]}


BAD_ROWS = [
    ([1], "the row is a list"),
    ("text", "the row is a string"),
    (None, "the row is missing"),
    ({}, "no 'messages' column, nor 'prompt' and 'completion' (found: none)"),
    ({"dialogue": [USER]}, "(found: 'dialogue'); rename yours, see docs/data_format.md"),
    ({"conversations": [{"from": "human", "value": "hi"}]}, "'from' to 'role' (human to user"),
    ({"instruction": "a", "input": "b", "output": "c"}, "put 'instruction' and 'input' into"),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "keep the chosen answer"),
    ({"data": [GOOD]}, "write that list alone into the file"),
    ({"prompt": "a"}, "no 'messages' column, nor 'prompt' and 'completion' (found: 'prompt')"),
    ({**GOOD, "prompt": "a"}, "has both 'messages' and 'prompt'/'completion'"),
    ({"prompt": "a", "completion": "b"}, "has prompt and completion, but the first row"),
    ({"prompt": "a", "completion": [REPLY]}, "both must be strings, or both lists of messages"),
    ({"prompt": 1, "completion": 2}, "'prompt' is a number and 'completion' is a number"),
    ({"prompt": "", "completion": "b"}, "'prompt' is empty"),
    ({"prompt": "a", "completion": ""}, "'completion' is empty"),
    ({"prompt": [USER], "completion": []}, "'completion' is empty"),
    ({"prompt": [USER, REPLY], "completion": [USER]}, "'completion' has no assistant message"),
    ({"prompt": "a", "completion": "b", "enable_thinking": True}, "need a chat template"),
    ({"messages": "hi"}, "'messages' is a string that is not valid JSON"),
    ({"messages": '{"a": 1}'}, "'messages' is an object; it must be a list"),
    ({"messages": []}, "'messages' is empty"),
    ({"messages": [USER]}, "no assistant message, so there is nothing to train on"),
    ({"messages": [REPLY, USER]}, "message 1 is from the assistant"),
    ({"messages": [USER, {"role": "system", "content": ""}, REPLY]}, "message 2 is a system"),
    ({"messages": [USER, {"role": "tool", "content": ""}, REPLY]}, "message 2 is a tool result"),
    ({"messages": [USER, {"role": "bot", "content": ""}]}, "message 2 has the unknown role 'bot'"),
    ({"messages": [USER, {"content": "x"}]}, "message 2 has no 'role'"),
    ({"messages": [USER, "ho"]}, "message 2 is a string; it must be an object"),
    (answered(content=None), "message 2 (assistant) has no 'content'"),
    (answered(content=[{"type": "text", "text": "ho"}]), "join the texts of its parts into one"),
    (answered(content=""), "message 2 (assistant) is empty; fill it or remove the row"),
    (answered(content=" \n", tool_calls=[]), "message 2 (assistant) is empty"),
    (answered(content="ho", weight=0.5), "message 2 (assistant): 'weight' is 0.5; use 1, or 0"),
    (answered(content="ho", weight=True), "message 2 (assistant): 'weight' is True"),
    ({"messages": [{**USER, "weight": 1}, REPLY]}, "message 1 (user) has a 'weight'"),
    (answered(content=3.5), "message 2 (assistant): 'content' is a number"),
    (answered(content="\ud83e"), "message 2 (assistant) holds half a surrogate pair"),
    ({"messages": [{**USER, "content": None}, REPLY]}, "message 1 (user) has no 'content'"),
    ({"messages": [{**USER, "tool_calls": [1]}, REPLY]}, "only the assistant can call tools"),
    (answered(tool_calls="f()"), "message 2 (assistant): 'tool_calls' is a string"),
    (answered(tool_calls=["f"]), "tool call 1 is a string"),
    (calling(arguments={}), "tool call 1 has no function name"),
    (calling(name="f", arguments='{"a":'), "tool call 1: 'arguments' is not valid JSON"),
    (calling(name="f", arguments="[1]"), "tool call 1: 'arguments' is a list"),
    ({**GOOD, "tools": "[{"}, "'tools' is not valid JSON"),
    ({**GOOD, "tools": {"name": "f"}}, "'tools' is an object; it must be a list"),
    ({**GOOD, "tools": [{"type": "function"}]}, "tool 1 of 'tools' has no name"),
    ({**GOOD, "enable_thinking": "no"}, "'enable_thinking' is a string; it must be true or false"),
    ({**GOOD, "chat_template_kwargs": [1]}, "'chat_template_kwargs' is a list"),
    ({**GOOD, "chat_template_kwargs": {"tokenize": False}}, "may not set 'tokenize'"),
]


@pytest.mark.parametrize(("row", "problem"), BAD_ROWS)
def test_bad_rows(tmp_path, row, problem):
    file = tmp_path / "train.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps(row)}\n")
    assert_one_line(file, f"{file}: line 3: ", problem)


BAD_FILES = [
    ("empty.jsonl", b"", "the file is empty"),
    ("empty.parquet", b"", "the file is empty"),
    ("blank.jsonl", b"\n \n", "the file has no rows"),
    ("none.json", b"[]", "the file has no rows"),
    ("broken.json", b"[{]", "not valid JSON"),
    ("broken.parquet", b"PAR1 nonsense", "not a readable parquet file"),
    ("latin.jsonl", b'{"prompt": "caf\xe9"}', "not UTF-8 text"),
    ("parquet.jsonl", b"PAR1\x15\x04", "is a parquet file; name it .parquet"),
    ("gzip.json", b"\x1f\x8b\x08\x00", "is packed with gzip; name it .gz and unpack it"),
    ("rows.jsonl.gz", b"\x1f\x8b\x08\x00", "is packed (.gz); unpack it"),
    ("list.jsonl", json.dumps([GOOD]).encode(), "is one JSON list, not one row per line; name it"),
    ("list.JSONL", json.dumps([GOOD], indent=1).encode(), "is one JSON list"),
    ("lists.jsonl", b"[1]\n[2]", "2 of 2 rows cannot be used"),
    ("long.json", json.dumps(GOOD, indent=1).encode(), "line 1: an object goes over several"),
    ("rows.csv", b"prompt,completion", "unsupported extension '.csv'"),
    ("rows.pkl", b"x", "unsupported extension '.pkl'"),
    ("rows", b"x", "unsupported extension ''"),
]


@pytest.mark.parametrize(("name", "content", "problem"), BAD_FILES)
def test_bad_files(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    assert_one_line(tmp_path / name, f"{tmp_path / name}: ", problem)


def test_an_extension_in_capitals_is_no_hub_name():
    assert_one_line("data/train.JSONL", "data/train.JSONL: no such file")


def test_not_json_on_a_line(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("{'messages': []}\n")
    assert_one_line(file, f"{file}: line 1: ", "not valid JSON")


def test_missing_file_folder_and_nothing(tmp_path):
    assert_one_line(tmp_path / "no.jsonl", "no.jsonl: ", "no such file; check the path")
    assert_one_line(tmp_path, str(tmp_path), "is a folder")
    with pytest.raises(DataError, match="no data file is given"):
        load_rows([])


def test_unknown_hub_name(monkeypatch):
    def refuse(name, config, split):
        raise ConnectionError(f"no\nnetwork for {name} {split}")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    assert_one_line("org/set:test", "org/set:test: ", "no network for org/set test")


def test_many_bad_rows_are_counted_and_the_first_listed(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in [GOOD] * 3 + [{}] * 8))
    with pytest.raises(DataError) as raised:
        load_rows(file)
    message = str(raised.value)
    assert message.startswith("8 of 11 rows cannot be used: ") and message.endswith("and 3 more")
    assert [n for n in range(1, 12) if f"line {n}:" in message] == [4, 5, 6, 7, 8]


def assert_one_line(path, *parts):
    with pytest.raises(DataError) as raised:
        load_rows(path)
    message = str(raised.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_all_formats_give_the_same_rows(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    other = {"type": "function", "function": {"name": "g", "arguments": {"b": "x"}}}
    rows = [
        {"messages": [USER, {"role": "assistant", "tool_calls": [call]}], "source": "x"},
        {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [other]}]},
        {**GOOD, "tools": '[{"name": "f"}]', "enable_thinking": False},
        {**GOOD, "chat_template_kwargs": '{"date_string": "today"}'},
    ]
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema(rows)), tmp_path / "a.parquet")
    as_text = [row | {"messages": json.dumps(row["messages"])} for row in rows]
    (tmp_path / "text.JSON").write_text(json.dumps(as_text))
    first = load_rows(tmp_path / "a.jsonl")
    assert first == load_rows(tmp_path / "a.json")
    assert first == load_rows([str(tmp_path / "a.parquet")])
    assert first == load_rows(tmp_path / "text.JSON")
    assert first[0]["messages"][1]["tool_calls"] == [call]
    assert first[2] == {
        **GOOD,
        "tools": [{"name": "f"}],
        "template_kwargs": {"enable_thinking": False},
    }


def arrow_schema(rows):
    """All columns: Arrow itself infers them from the first row only."""
    every = {key: value for row in rows for key, value in row.items()}
    table = pa.Table.from_pylist([every])
    messages = pa.array([row["messages"] for row in rows]).type
    return pa.schema(
        [pa.field(f.name, messages if f.name == "messages" else f.type) for f in table.schema]
    )


def test_null_arguments_of_json_are_kept(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(calling(name="f", arguments={"a": None})))
    row = load_rows(tmp_path / "a.jsonl")[0]
    assert row["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"a": None}


def test_hub_rows(monkeypatch):
    seen = []

    def load(name, config, split):
        seen.append((name, config, split))
        return datasets.Dataset.from_list([GOOD])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_rows(["org/set", "org/set:test"])[1]["messages"] == GOOD["messages"]
    assert seen == [("org/set", None, "train"), ("org/set", None, "test")]


def test_direct_calls_are_checked_too():
    with pytest.raises(DataError, match="no assistant message"):
        tokenise_conversation(make_tokenizer("smollm2"), [USER])
    with pytest.raises(DataError, match="may not set 'tokenize'"):
        tokenise_conversation(
            make_tokenizer("smollm2"), GOOD["messages"], template_kwargs={"tokenize": False}
        )
