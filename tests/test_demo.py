"""The demo end to end on a tiny model."""

import io
import json

import pytest
from rich.console import Console

from focusft.demo import DemoSettings, is_exact_match, names_only, run_demo
from tests.tiny_models import tiny_model, tiny_tokenizer

FIGURES = ("accuracy", "response_loss", "sink_mass", "context_engagement")


def test_the_demo_measures_trains_and_saves(tmp_path):
    tokenizer = tiny_tokenizer()
    folder = tmp_path / "model"
    tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=2048).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    out = tmp_path / "out"
    terminal = io.StringIO()
    settings = DemoSettings(
        train_examples=8, held_out_examples=4, probed_examples=2, context_tokens=400
    )
    run_demo(out, str(folder), settings, Console(file=terminal, width=100))
    results = json.loads((out / "results.json").read_text())
    for figures in (results["before"], results["after"]):
        assert all(isinstance(figures[name], float) for name in FIGURES)
        assert figures["sink_mass"] > 0
    assert results["after"]["response_loss"] != results["before"]["response_loss"]
    assert results["seconds"]["train"] <= results["seconds"]["total"]
    assert "focusft chat" in terminal.getvalue()
    assert (out / "model" / "model.safetensors").is_file()
    assert f"report: {out / 'report.html'}" in terminal.getvalue()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert results["questions"][0]["question"] in page
    assert "Before and after the demo" in page


@pytest.mark.parametrize(
    ("answer", "exact", "named"),
    [
        ("kitchen", True, True),
        (" Kitchen. ", True, True),
        ("Mary is in the kitchen.", False, True),
        ("kitchen or garden", False, False),
        ("", False, False),
        ("garden", False, False),
    ],
)
def test_scores(answer, exact, named):
    assert is_exact_match(answer, "kitchen") == exact
    assert names_only(answer, "kitchen") == named
