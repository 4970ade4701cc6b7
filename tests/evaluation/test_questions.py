import json

import pytest

from focusft.errors import ConfigError, DataError
from focusft.evaluation.questions import describe, load_questions, select_questions
from tests.data.test_tool_use import make

META = {"id": "a", "question": "1 + 1?", "options": ["1", "2"], "answer": "B"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_generated_conversations_are_questions(tmp_path):
    rows = make(30, split="held_out")
    questions = load_questions(write(tmp_path / "set.jsonl", rows))
    for row, question in zip(rows, questions, strict=True):
        meta = row["meta"]
        assert (question.id, question.text) == (meta["id"], meta["question"])
        assert question.options == tuple(meta["options"])
        assert question.answer == meta["answer"] and question.kind == meta["kind"]
        assert question.domain == meta["domain"]
    chosen = select_questions(questions, ["Physics", "product"])
    assert {q.kind for q in chosen if q.domain != "Physics"} == {"product"}
    assert [q for q in questions if q.domain == "Physics" or q.kind == "product"] == chosen
    with pytest.raises(ConfigError, match="--tasks: 'colour' is none of Biology"):
        select_questions(questions, ["Physics", "colour"])
    assert describe(questions) == describe(list(questions))
    assert describe(questions)["n"] == len(questions)
    assert describe(questions)["sha256"] != describe(questions[::-1])["sha256"]


@pytest.mark.parametrize(
    "row, problem",
    [
        ([], "has no 'meta'"),
        ({"messages": []}, "has no 'meta'"),
        ({"meta": {**META, "options": "12"}}, "'options' of 'meta' must be a list"),
        ({"meta": {**META, "options": ["1"]}}, "'options' of 'meta' must be a list"),
        ({"meta": {**META, "options": ["1", 2]}}, "'options' of 'meta' must be texts"),
        ({"meta": {**META, "answer": "C"}}, "'answer' of 'meta' is 'C'; it must be one of AB"),
        ({"meta": {**META, "answer": "AB"}}, "'answer' of 'meta' is 'AB'"),
        ({"meta": {**META, "question": " "}}, "'question' of 'meta' must be a text"),
        ({"meta": {**META, "id": 3}}, "'id' of 'meta' must be a text"),
    ],
)
def test_malformed_rows_are_one_line(tmp_path, row, problem):
    path = write(tmp_path / "set.jsonl", [{"meta": META}, row])
    with pytest.raises(DataError, match=problem) as caught:
        load_questions(path)
    assert str(caught.value).startswith(f"{path}: line 2: ") and "\n" not in str(caught.value)


def test_unreadable_files_are_one_line(tmp_path):
    for name, content, problem in (
        ("empty.jsonl", b"\n\n", "has no questions"),
        ("broken.jsonl", b"{", "line 1: not valid JSON"),
        ("binary.jsonl", b"\xff\xfe", "cannot be read"),
        ("none.jsonl", None, "cannot be read"),
        ("none.csv", None, "cannot be read"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=problem) as caught:
            load_questions(str(tmp_path / name))
        assert name in str(caught.value) and "\n" not in str(caught.value)
    twice = write(tmp_path / "twice.jsonl", [{"meta": META}, {"meta": META}])
    with pytest.raises(DataError, match="two questions have the id 'a'"):
        load_questions(twice)
