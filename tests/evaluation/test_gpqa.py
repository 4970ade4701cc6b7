import csv

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from focusft.data.multiple_choice import ask
from focusft.errors import DataError
from focusft.evaluation.gpqa import COLUMNS, load_gpqa

# Made for this test; no question of GPQA.
ROWS = [
    {
        "Question": f"What is {n} * 7,\nin full?",
        "Correct Answer": f"{n * 7}\n",
        "Incorrect Answer 1": f" {n * 7 + 1}",
        "Incorrect Answer 2": f'"{n}", {n}',
        "Incorrect Answer 3": f"{n * 6}",
        "High-level domain": ("Physics", "Chemistry", "Biology")[n % 3],
        "Extra": "kept out",
    }
    for n in range(1, 41)
]


def write_csv(path, rows=ROWS, columns=None, **options):
    with open(path, "w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), extrasaction="ignore", **options)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path, rows=ROWS):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_csv_and_parquet_give_the_same_questions(tmp_path):
    questions = load_gpqa(write_csv(tmp_path / "set.csv"))
    assert questions == load_gpqa(write_parquet(tmp_path / "set.parquet"))
    assert questions == load_gpqa(write_csv(tmp_path / "bom.csv", encoding="utf-8-sig"))
    assert len(questions) == 40 and len({q.id for q in questions}) == 40
    for number, question in enumerate(questions, 1):
        assert question.text == f"What is {number} * 7,\nin full?"
        assert question.options["ABCD".index(question.answer)] == str(number * 7)
        assert sorted(question.options) == sorted(
            [f"{number * 7}", f"{number * 7 + 1}", f'"{number}", {number}', f"{number * 6}"]
        )
    assert questions[0].domain == "Chemistry"


def test_options_are_shuffled_by_the_seed(tmp_path):
    path = write_csv(tmp_path / "set.csv")
    first, again, other = load_gpqa(path), load_gpqa(path), load_gpqa(path, seed=1)
    assert first == again != other
    assert {q.answer for q in first} == set("ABCD")
    # A question keeps its order when the rows around it change.
    part = load_gpqa(write_csv(tmp_path / "part.csv", ROWS[20:]))
    assert [q.options for q in part] == [q.options for q in first[20:]]


def test_prompt_shows_the_question_and_its_options(tmp_path):
    question = load_gpqa(write_csv(tmp_path / "set.csv"))[0]
    (message,) = ask(question, with_tools=True)
    assert message["role"] == "user"
    assert "chemistry problem" in message["content"] and "\\boxed{}" in message["content"]
    assert "code_interpreter" in message["content"]
    for letter, option in zip("ABCD", question.options, strict=True):
        assert f"\n({letter}) {option}" in message["content"]
    (plain,) = ask(question, with_tools=False)
    assert "code_interpreter" not in plain["content"] and question.text in plain["content"]


def test_domain_may_be_empty(tmp_path):
    (question,) = load_gpqa(
        write_parquet(tmp_path / "x.parquet", [ROWS[0] | {"High-level domain": None}])
    )
    assert question.domain == ""
    assert "following problem" in ask(question, with_tools=False)[0]["content"]


def wrong_files(folder):
    def text(name, content):
        (folder / name).write_bytes(content)
        return folder / name

    header = ",".join(COLUMNS).encode()
    (folder / "folder.csv").mkdir()
    short = [name for name in ROWS[0] if name != "Incorrect Answer 2"]
    return {
        "neither a .csv": text("set.txt", b"x"),
        "hub id org/set:config": folder / "set.jsonl",
        "is a folder": folder / "folder.csv",
        "No such file": folder / "none.csv",
        "no such file": folder / "none.parquet",
        "lacks the columns 'Incorrect Answer 2' (found": write_csv(
            folder / "short.csv", columns=short
        ),
        "lacks the columns 'Question', 'Correct": text("other.csv", b"a,b\n1,2\n"),
        "lacks the columns 'Question'": write_parquet(folder / "other.parquet", [{"a": 1}]),
        "(found: none)": text("empty.csv", b""),
        "has no rows": text("header.csv", header + b"\n"),
        "row 2: the column 'Correct Answer' is empty": write_csv(
            folder / "hole.csv", [ROWS[0], ROWS[1] | {"Correct Answer": " "}]
        ),
        "row 1: the column 'Incorrect Answer 3' is empty": write_parquet(
            folder / "hole.parquet", [ROWS[0] | {"Incorrect Answer 3": None}]
        ),
        "row 1: the column 'Incorrect Answer 1' is empty": text(
            "ragged.csv", header + b"\nq,right\n"
        ),
        "row 1: has more cells": text("wide.csv", header + b"\n1,2,3,4,5,6,7\n"),
        "not UTF-8": text("latin.csv", header + b"\n\xe9,2,3,4,5,6\n"),
        "not a readable CSV": text("quote.csv", header + b'\n"1" x,2,3,4,5,6\n'),
        "not a readable parquet": text("false.parquet", header),
    }


def test_wrong_files_give_one_clear_line(tmp_path):
    for reason, path in wrong_files(tmp_path).items():
        with pytest.raises(DataError) as error:
            load_gpqa(path)
        line = str(error.value)
        assert reason.lower() in line.lower(), (reason, line)
        assert line.startswith(str(path)) and "\n" not in line
        assert ";" in line, "no mend"


def test_hub_ids_are_asked_for_by_their_config(monkeypatch):
    asked = []

    class Rows(list):
        column_names = COLUMNS

    def load(*arguments, **options):
        asked.append((arguments, options))
        return Rows(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(load_gpqa("Idavidrein/gpqa:gpqa_diamond")) == 40
    assert asked == [(("Idavidrein/gpqa", "gpqa_diamond"), {"split": "train"})]


def test_unreachable_hub_is_one_line(monkeypatch):
    def load(*arguments, **options):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match=r"org/set is .*no route.*accept the set's terms") as error:
        load_gpqa("org/set")
    assert "\n" not in str(error.value)
