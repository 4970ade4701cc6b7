"""Tool-use conversations: real outputs, disjoint splits, and answers that are right."""

import contextlib
import io
import json
import random
from collections import Counter

import pytest

from focusft.data import prepare_dataset, tool_kinds
from focusft.data.chat import encode_conversation
from focusft.data.multiple_choice import CODE_INTERPRETER
from focusft.data.tool_kinds import HELD_OUT_KINDS, KINDS, draw_problem
from focusft.data.tool_use import make_tool_conversations, select_kinds
from focusft.errors import ConfigError
from tests.data.small_tokenizer import make_tokenizer


def run_here(code):
    """Stands in for the sandbox; the code is this project's own."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            exec(code, {})
    except Exception as error:
        return f"{out.getvalue()}{type(error).__name__}: {error}"
    return out.getvalue().rstrip("\n")


def make(count=300, run_code=run_here, **options):
    options = {"seed": 1, "count_tokens": len, **options}
    return list(make_tool_conversations(count=count, run_code=run_code, **options))


@pytest.fixture(scope="module")
def rows():
    return make(600)


def test_every_kind_of_every_subject(rows):
    kinds = Counter(row["meta"]["kind"] for row in rows)
    assert set(kinds) == {kind.name for kind in KINDS} and set(kinds.values()) == {50}
    assert len(KINDS) >= 8 and len(HELD_OUT_KINDS) >= 2
    for group in (KINDS, HELD_OUT_KINDS):
        assert {kind.domain for kind in group} == {
            "Physics",
            "Chemistry",
            "Biology",
            "Mathematics",
        }
    assert not {k.name for k in KINDS} & {k.name for k in HELD_OUT_KINDS}


def test_the_named_answer_is_what_the_last_call_printed(rows):
    for row in rows:
        meta, messages = row["meta"], row["messages"]
        options, right = meta["options"], meta["options"]["ABCD".index(meta["answer"])]
        assert len(set(options)) == 4
        assert messages[-1]["content"].endswith(f"\\boxed{{{meta['answer']}}}")
        assert all(f"({letter}) {option}" in messages[0]["content"]
                   for letter, option in zip("ABCD", options, strict=True))  # fmt: skip
        if meta["style"] == "no_tool":
            assert len(messages) == 2 and "tools" not in row
            continue
        assert row["tools"] == [CODE_INTERPRETER]
        output = messages[-2]["content"]
        code = messages[-3]["tool_calls"][0]["function"]["arguments"]["code"]
        assert output == run_here(code)
        if meta["style"] == "table":
            assert any(line.split()[1] == right for line in output.splitlines())
        else:
            assert output == right


def test_the_letters_say_nothing(rows):
    letters = Counter(row["meta"]["answer"] for row in rows)
    assert all(110 < letters[letter] < 190 for letter in "ABCD")


def test_styles(rows):
    by_style = {}
    for row in rows:
        by_style.setdefault(row["meta"]["style"], []).append(row["messages"])
    assert set(by_style) == {"direct", "repair", "table", "steps", "no_tool"}
    assert min(map(len, by_style.values())) > 30
    for messages in by_style["repair"]:
        assert "Error" in messages[2]["content"]
        assert "Error" not in messages[-2]["content"]
    responses = Counter(
        sum(m["role"] == "assistant" for m in row["messages"])
        for row in rows
        if row["meta"]["style"] != "no_tool"
    )
    assert min(responses) == 2 and {3, 4, 10} <= set(responses)


def test_long_outputs_have_the_length_that_is_asked_for():
    for tokens in (200, 4000):
        tables = [r for r in make(60, long_output_tokens=tokens) if r["meta"]["style"] == "table"]
        assert tables
        for row in tables:
            assert 0.5 * tokens < len(row["messages"][-2]["content"]) < 2.5 * tokens
    assert not [r for r in make(60, long_output_tokens=0) if r["meta"]["style"] == "table"]


def test_a_cut_output_is_an_error():
    with pytest.raises(ConfigError, match="raise output_characters") as caught:
        make(run_code=lambda code: run_here(code)[:40])
    assert "\n" not in str(caught.value)


def test_splits_share_no_numbers(rows):
    held_out = make(300, split="held_out", seed=2)
    for name in ("question", "id"):
        assert not {r["meta"][name] for r in rows} & {r["meta"][name] for r in held_out}
    assert len({row["meta"]["question"] for row in rows}) == 600
    problems = [draw_problem(KINDS[0], random.Random(n)) for n in range(50)]
    assert len({problem.key for problem in problems if problem}) > 40


def test_the_seed_decides_all(rows):
    assert make(20) == make(20)
    assert make(20) != make(20, seed=2)


def test_a_plain_template_can_be_trained_on_them(rows, tmp_path):
    tokenizer = make_tokenizer("smollm2")
    for row in rows[:40]:
        json.dumps(row)
        encoded = encode_conversation(tokenizer, row["messages"], tools=row.get("tools"))
        said = [m for m in row["messages"] if m["role"] == "assistant"]
        assert sum(turn < 0 for turn in set(encoded.turn_ids)) == len(said)
        assert encoded.rewritten == 0
    file = tmp_path / "tools.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:40]))
    _, report = prepare_dataset(file, tokenizer, max_length=None, cache_dir=tmp_path)
    assert (report.used, report.dropped) == (40, {})
    assert report.tools_as_text == sum("tools" in row for row in rows[:40]) > 30
    assert f"{report.tools_as_text} with tools as plain text" in report.one_line()


def test_wrong_arguments():
    assert select_kinds("heat,product") == select_kinds("heat") + select_kinds("product")
    assert select_kinds("all") == KINDS + HELD_OUT_KINDS
    with pytest.raises(ConfigError, match="'colour' is none of seen, held_out, all, kinetic"):
        select_kinds("heat,colour")
    for options in ({"split": "test"}, {"count": 0}, {"long_output_tokens": -1}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            make(**options)
    small = tool_kinds.Kind("k", "", ("{a}",), "", "{a} + 1", ("1", "2", "3"), {"a": (5, 9)})
    with pytest.raises(ConfigError, match="k has too few different questions"):
        make(kinds=(small,))
