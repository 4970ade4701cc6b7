"""From files to a cached data set, a batch and a picture."""

from __future__ import annotations

import json
import re
import shutil

import datasets
import pytest
import torch
from rich.console import Console

from focusft.data import (
    ConversationCollator,
    prepare_dataset,
    render_example,
    tokenise_conversation,
    tokenise_prompt_completion,
)
from focusft.data import tokenise as tokenise_module
from focusft.errors import ConfigError, DataError
from tests.data.small_tokenizer import make_tokenizer

ROWS = [
    {
        "messages": [
            {"role": "user", "content": "fox " * length},
            {"role": "assistant", "content": f"<think>\nwhy\n</think>\n\nanswer {length}"},
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "yes"},
        ]
    }
    for length in (3, 400, 20, 5)
]


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    return file


@pytest.mark.parametrize("num_proc", [1, 2])
def test_rows_come_in_order_and_are_counted(data, tmp_path, num_proc):
    tokenizer = make_tokenizer("qwen3")
    dataset, report = prepare_dataset(
        data, tokenizer, max_length=200, num_proc=num_proc, cache_dir=tmp_path / "cache"
    )
    expected = [
        tokenise_conversation(tokenizer, row["messages"]) for row in (ROWS[0], ROWS[2], ROWS[3])
    ]
    assert list(dataset) == expected
    assert (report.rows, report.used, report.dropped) == (4, 3, {"too_long": 1})
    assert report.tokens == sum(len(example["input_ids"]) for example in expected)
    labels = sum(label != -100 for example in expected for label in example["labels"])
    assert report.response_tokens == labels
    assert report.longest_read > 400 > report.max_tokens
    assert report.rewritten_turns == 3  # the thought of each first answer
    assert (report.mean_turns, report.mean_responses) == (4, 2)
    assert "3 of 4 rows used; 1 dropped (longer than max_length)" in report.one_line()
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_second_call_hits_the_cache(data, tmp_path, monkeypatch):
    def prepare(name="smollm2", **changes):
        options = {"max_length": 2000, "cache_dir": tmp_path / "cache", **changes}
        return prepare_dataset([data], make_tokenizer(name), **options)

    dataset, report = prepare()
    assert not report.cached
    count = []
    plain = tokenise_module._tokenise

    def counting(*args):
        count.append(1)
        return plain(*args)

    monkeypatch.setattr(tokenise_module, "_tokenise", counting)
    again, cached = prepare()
    assert cached.cached and cached == report and list(again) == list(dataset) and not count
    prepare(max_length=200)
    prepare(length_policy="truncate_context")
    assert len(count) == 2
    prepare("llama3")
    assert len(count) == 3
    data.write_text(json.dumps(ROWS[0]))
    assert prepare()[1].rows == 1 and len(count) == 4


def test_truncation_is_reported(data, tmp_path):
    tokenizer = make_tokenizer("smollm2")
    dataset, report = prepare_dataset(
        data,
        tokenizer,
        max_length=200,
        length_policy="truncate_context",
        cache_dir=tmp_path,
    )
    assert (report.used, report.truncated, report.dropped) == (4, 1, {})
    assert max(map(len, dataset["input_ids"])) == report.max_tokens == 200
    assert report.removed_tokens == report.longest_read - 200
    assert "1 truncated" in report.one_line()


def test_rows_that_the_template_refuses_are_all_named(tmp_path):
    rows = [ROWS[0], {"messages": [{"role": "system", "content": "s"}, *ROWS[0]["messages"]]}]
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"train.jsonl: line 2: the chat template cannot render"):
        prepare_dataset(file, make_tokenizer("gemma"), max_length=99, cache_dir=tmp_path)


def test_errors_of_the_length_policy(data, tmp_path):
    options = {"tokenizer": make_tokenizer("smollm2"), "cache_dir": tmp_path / "cache"}
    with pytest.raises(DataError, match=r"line 2: \d+ tokens exceed max_length 200; raise it"):
        prepare_dataset(data, max_length=200, length_policy="error", **options)
    for policy, why in (("drop", "longer than"), ("truncate_context", "no room")):
        with pytest.raises(DataError, match=f"no row is left to train on .*{why}") as raised:
            prepare_dataset(data, max_length=9, length_policy=policy, **options)
        longest = re.search(r"the longest read has (\d+) tokens", str(raised.value))[1]
        assert f"raise max_length ({longest} takes every row)" in str(raised.value)
    assert prepare_dataset(data, max_length=int(longest), **options)[1].used == 4
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ConfigError, match="num_proc: 0"):
        prepare_dataset(data, max_length=9, num_proc=0, **options)
    with pytest.raises(DataError, match="no such file"):
        prepare_dataset("missing.jsonl", max_length=9, **options)
    assert not list((tmp_path / "cache").iterdir())


def test_rows_of_weight_0_are_counted(tmp_path):
    user, reply = ROWS[0]["messages"][2:]
    untrained = reply | {"weight": 0}
    rows = [{"messages": [user, untrained, user, reply]}, {"messages": [user, untrained]}]
    file = tmp_path / "train.jsonl"
    options = {"tokenizer": make_tokenizer("smollm2"), "max_length": 99, "cache_dir": tmp_path}
    file.write_text("\n".join(map(json.dumps, rows)))
    _, report = prepare_dataset(file, **options)
    assert (report.used, report.dropped, report.untrained_turns) == (1, {"no_labels": 1}, 1)
    assert "1 response turns without labels" in report.one_line()
    file.write_text(json.dumps(rows[1]))
    with pytest.raises(DataError, match=r"nothing to train on.*; look at one with") as raised:
        prepare_dataset(file, **options)
    assert "max_length" not in str(raised.value)


def test_bad_rows_come_without_a_bar(tmp_path, capfd):
    datasets.enable_progress_bars()
    file = tmp_path / "train.jsonl"
    file.write_text("{}")
    with pytest.raises(DataError):
        prepare_dataset(file, make_tokenizer("smollm2"), max_length=9, cache_dir=tmp_path)
    assert "Generating" not in capfd.readouterr().err
    file.write_text(json.dumps(ROWS[0]))
    prepare_dataset(file, make_tokenizer("smollm2"), max_length=200, cache_dir=tmp_path)
    assert "Tokenising" in capfd.readouterr().err


def test_collator():
    short = {"input_ids": [5, 6], "labels": [-100, 6], "turn_ids": [1, -2]}
    long = {"input_ids": [7, 8, 9], "labels": [-100, -100, 9], "turn_ids": [1, 1, -2]}
    batch = ConversationCollator(pad_token_id=0, pad_to_multiple_of=4)([short, long])
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[5, 6, 0, 0], [7, 8, 9, 0]],
        "attention_mask": [[1, 1, 0, 0], [1, 1, 1, 0]],
        "position_ids": [[0, 1, 2, 3], [0, 1, 2, 3]],
        "labels": [[-100, 6, -100, -100], [-100, -100, 9, -100]],
        "turn_ids": [[1, -2, 0, 0], [1, 1, -2, 0]],
    }
    assert all(value.dtype == torch.int64 for value in batch.values())
    assert ConversationCollator(0)([short])["input_ids"].shape == (1, 2)


def test_packing_collator():
    short = {"input_ids": [5, 6], "labels": [-100, 6], "turn_ids": [1, -2]}
    long = {"input_ids": [7, 8, 9], "labels": [-100, -100, 9], "turn_ids": [1, 1, -2]}
    collate = ConversationCollator(pad_token_id=0, packing=True, pad_to_multiple_of=4)
    assert {name: value.tolist() for name, value in collate([short, long]).items()} == {
        "input_ids": [[5, 6, 7, 8, 9, 0, 0, 0]],
        "attention_mask": [[1, 1, 1, 1, 1, 0, 0, 0]],
        "position_ids": [[0, 1, 0, 1, 2, 5, 6, 7]],
        "labels": [[-100, 6, -100, -100, 9, -100, -100, -100]],
        "turn_ids": [[1, -2, 1, 1, -2, 0, 0, 0]],
    }


def test_pictures(data, tmp_path):
    tokenizer = make_tokenizer("smollm2")
    message = {"role": "assistant", "content": "b"}
    prompt = [{"role": "user", "content": "a"}, message, {"role": "user", "content": "c"}]
    example = tokenise_prompt_completion(tokenizer, prompt, [{**message, "content": "d"}])
    text = render_example(tokenizer, example)
    assert text.plain.endswith(tokenizer.decode(example["input_ids"]))
    shown = {str(span.style): text.plain[span.start : span.end] for span in text.spans}
    assert shown["bold green"] == "d<|im_end|>\n"
    assert shown["yellow"] == "b<|im_end|>\n"
    assert "response: 3 tokens" in text.plain

    _, report = prepare_dataset(data, tokenizer, max_length=200, cache_dir=tmp_path)
    console = Console(width=100)
    with console.capture() as capture:
        console.print(report.table())
    assert "share of labels" in capture.get() and "dropped: longer than" in capture.get()
    assert json.dumps(report.to_dict())
