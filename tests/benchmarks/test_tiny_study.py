"""The study on the small model: what it learns from, what counts, and its pages."""

import json
import random
import re
from itertools import pairwise

import pytest
import torch

from benchmarks import tiny_study
from benchmarks.study_cells import Cells, read_cells
from benchmarks.study_tables import study_page
from benchmarks.tiny_model import make_tiny
from benchmarks.tiny_pretrain import IGNORED, START, conversations, copying, label_loss, pretrain
from focusft.training.models import load_model, load_tokenizer


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """A quick study."""
    monkeypatch.setattr(tiny_study, "CONVERSATIONS", 8)
    monkeypatch.setattr(tiny_study, "RATES", (1e-3,))


def test_copies_are_labelled_where_they_repeat():
    for seed in range(20):
        ids, labels = copying(random.Random(seed), 64, 12, 100)
        assert len(ids) == len(labels) == 64
        pieces = " ".join(map(str, ids)).split(f"{START} ")
        assert len(set(pieces)) < len(pieces)
        for index, label in enumerate(labels):
            if label != IGNORED:
                # The pair of the token before and this one has been seen.
                assert (ids[index - 1], ids[index]) in pairwise(ids[:index])
                assert label == ids[index]


def test_pretraining_lowers_the_loss_of_copies_and_conversations(tmp_path):
    model = make_tiny(tmp_path, 32, 2, 4, seed=0).train()
    tokenizer = load_tokenizer(tmp_path)
    rows = conversations(tokenizer, 20, 0)
    for ids, labels in rows:
        response = tokenizer.decode(
            [i for i, label in zip(ids, labels, strict=True) if label != IGNORED]
        )
        assert response.endswith("<|im_end|>")
    copies = [copying(random.Random(9), 64, 12, len(tokenizer)) for _ in range(4)]
    before = [label_loss(model, some).item() for some in (rows, copies)]
    pretrain(model, rows, copy_steps=10, steps=20, learning_rate=3e-3, seed=0)
    after = [label_loss(model, some).item() for some in (rows, copies)]
    assert all(new < old for new, old in zip(after, before, strict=True))


def test_the_answer_is_found_in_a_row(tmp_path):
    make_tiny(tmp_path / "model", 32, 2, 4, seed=0)
    study = tiny_study.TinyStudy(tmp_path / "model", tmp_path / "out", items=10)
    tokenizer = load_tokenizer(tmp_path / "model")
    answers = [
        json.loads(line)["meta"]["answer"]
        for line in (tmp_path / "out" / "validation.jsonl").read_text().splitlines()
    ]
    for row, answer in zip(study.validation[tiny_study.TRAINED_TOKENS], answers, strict=True):
        start, stop = row["answer"]
        assert tokenizer.decode(row["input_ids"][start:stop]).strip() == answer


def test_a_cell_is_made_resumed_and_shown(tmp_path, monkeypatch, capsys):
    make_tiny(tmp_path / "model", 32, 2, 4, seed=0)
    monkeypatch.setattr(tiny_study, "SEARCHED", {k: tiny_study.ARMS[k] for k in ("sft", "focusft")})
    monkeypatch.setattr(
        tiny_study, "ARMS", {k: tiny_study.ARMS[k] for k in ("sft", "focusft", "one_step")}
    )
    results = tmp_path / "results"
    arguments = [str(tmp_path / "model"), "--seeds=1", "--items=10"]
    arguments += [f"--out={tmp_path / 'out'}", f"--results={results}"]
    tiny_study.main(arguments)
    assert "one_step-0" in capsys.readouterr().out
    cell = json.loads((results / "focusft-0.json").read_text())
    assert set(cell["evaluations"]) == {"held_out", "held_out_bidirectional"}
    assert set(json.loads((results / "sft-0.json").read_text())["evaluations"]) == {"held_out"}
    (results / "one_step-0.json").unlink()
    tiny_study.main(arguments)
    assert re.findall(r"(\w+-0):", capsys.readouterr().out) == ["one_step-0"]
    cell["model"] = "another"
    (results / "focusft-0.json").write_text(json.dumps(cell))
    with pytest.raises(SystemExit):
        tiny_study.main(arguments)
    assert "focusft-0.json is of another model" in capsys.readouterr().err
    files = study_page([], read_cells(results))
    page = files["study_results.md"]
    assert "| one_step | focusft | held_out | 1 |" in page
    assert "paper" not in page and "study_results.svg" in files
    assert "tiny" not in study_page([], Cells("tiny", {}))["study_results.md"]


def test_the_score_is_the_share_of_right_tokens(tmp_path):
    make_tiny(tmp_path / "model", 32, 2, 4, seed=0)
    study = tiny_study.TinyStudy(tmp_path / "model", tmp_path / "out", items=5)
    model = load_model(tmp_path / "model")
    row = study.validation[tiny_study.TRAINED_TOKENS][0]
    start, stop = row["answer"]
    with torch.no_grad():
        likeliest = model(torch.tensor([row["input_ids"]])).logits[0].argmax(-1)
    row["input_ids"][stop - 1] = likeliest[stop - 2].item()
    found = tiny_study.score(model, {200: [row]}, "causal")
    assert found[row["task"]]["200"][0] >= round(1 / (stop - start), 4)
