"""`focusft probe`: what it writes, against measurements made one by one."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import focusft
from focusft.analysis.dilution import measure_dilution
from focusft.cli import main
from focusft.data.marked import read_marked
from focusft.data.synthetic import make_conversations
from focusft.errors import ConfigError
from focusft.training.models import load_model
from focusft.training.probe import ProbeSettings, run_probe
from tests.tiny_models import tiny_model, tiny_tokenizer


def save_model(folder, seed=0):
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", seed=seed, vocab_size=len(tokenizer), max_position_embeddings=2048)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def model(tmp_path):
    return save_model(tmp_path / "model")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "held_out.jsonl"
    rows = make_conversations("qa1", count=4, context_tokens=330, seed=1, count_tokens=len)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def probe(model, data, out, *, compare=None, terminal=None, **options):
    settings = ProbeSettings(str(data), max_length=2000, **options)
    console = Console(file=terminal or io.StringIO(), width=160)
    run_probe(model, compare, settings, out, console)
    return json.loads((out / "results.json").read_text())


def test_results_are_those_of_single_measurements(model, data, tmp_path):
    terminal = io.StringIO()
    results = probe(model, data, tmp_path / "out", terminal=terminal, samples=3)
    tokenizer = tiny_tokenizer()
    examples = read_marked(data, tokenizer, samples=3, max_length=None).examples
    loaded = load_model(model)
    for mask in ("causal", "bidirectional"):
        single = [measure_dilution(loaded, [e.batch()], mask) for e in examples]
        for figure in ("sink_mass", "context_engagement", "needle_mass"):
            values = [d.means[figure] for d in single]
            assert [e[mask][figure] for e in results["examples"]] == pytest.approx(values)
            assert results[mask][figure] == pytest.approx(sum(values) / 3)
            low, high = results[mask]["intervals"][figure]
            assert low < results[mask][figure] < high
        assert len(results[mask]["per_layer"]) == 4
        assert results[mask]["context_queries"]["queries"] == 3 * 128
    ratios = results["ratios"]
    sinks = [[e[mask]["sink_mass"] for e in results["examples"]] for mask in
             ("causal", "bidirectional")]  # fmt: skip
    assert ratios["sink_mass"] == pytest.approx(sum(sinks[0]) / sum(sinks[1]))
    assert ratios["sink_mass_low"] <= ratios["sink_mass_median"] <= ratios["sink_mass_high"]
    assert ratios["context_engagement"] == pytest.approx(
        results["bidirectional"]["context_engagement"] / results["causal"]["context_engagement"]
    )
    tokens = results["tokens_of_first_example"]
    assert "".join(tokens["text"]).startswith("<|im_start|>user")
    assert sum(tokens["received"]["causal"]) == pytest.approx(1, abs=1e-5)
    assert {"config", "versions", "data", "seconds"} <= set(results)
    assert "sink mass, causal / bidirectional" in terminal.getvalue()


def test_fast_weights_are_those_of_a_training_call(model, data, tmp_path):
    results = probe(model, data, tmp_path / "out", samples=1, with_fast_weights=True, inner_lr=0.05)
    example = read_marked(data, tiny_tokenizer(), samples=1, max_length=None).examples[0]
    loaded = load_model(model).train()
    config = focusft.FocusConfig(inner_lr=0.05)
    engine = focusft.attach(loaded, config)
    loaded(**{name: t for name, t in example.batch().items() if not name.endswith("_mask")})
    losses = results["examples"][0]["inner_losses"]["bidirectional_fast_weights"]
    assert losses == pytest.approx(engine.trace.mean_losses)
    plain, adapted = results["bidirectional"], results["bidirectional_fast_weights"]
    shifts = [
        abs(a["context_engagement"] - p["context_engagement"])
        for a, p in zip(adapted["per_layer"], plain["per_layer"], strict=True)
    ]
    # Fast weights sit in the MLPs of layers 2 and 3: attention changes from layer 3 on.
    assert max(shifts[:3]) < 1e-6 < shifts[3]
    assert {"sink_mass", "sink_mass_low"} <= set(results["ratios_fast_weights"])


def test_two_models_are_compared_on_the_same_examples(model, data, tmp_path):
    terminal = io.StringIO()
    other = save_model(tmp_path / "other", seed=1)
    results = probe(model, data, tmp_path / "out", compare=other, terminal=terminal)
    differences = results["compare"]["differences"]
    assert differences["examples"] == 4
    for mask in ("causal", "bidirectional"):
        expected = results["compare"][mask]["sink_mass"] - results[mask]["sink_mass"]
        assert differences[mask]["sink_mass"]["value"] == pytest.approx(expected)
    assert f"{other} minus {model}" in " ".join(terminal.getvalue().split())


def test_the_same_model_twice_differs_by_nothing(model, data, tmp_path):
    results = probe(model, data, tmp_path / "out", compare=model, samples=2)
    sink = results["compare"]["differences"]["causal"]["sink_mass"]
    assert sink == {"value": 0, "low": 0, "high": 0}


def test_command_line(model, data, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    command = ["probe", model, "--data", str(data), "--out", str(out), "--samples", "2"]
    assert main(command) == 0
    assert json.loads((out / "results.json").read_text())["config"]["samples"] == 2
    assert "2 examples of 2 rows read" in capsys.readouterr().out
    for wrong in (
        [*command, "--samples", "0"],
        [*command, "--max_length", "10"],
        [*command, "--data", "nowhere.jsonl"],
        [*command, "--compare", "no/such/model/here"],
        [*command, "--context_queries", "0"],
        [*command, "--out", str(data)],
        [*command, "--with_fast_weights", "--num_inner_steps", "0"],
    ):
        assert main(wrong) == 2, wrong
        (error,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert error.startswith("focusft: error: ")


def test_examples_without_context_have_no_engagement_ratio(model, tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    results = probe(model, data, tmp_path / "out")
    assert results["ratios"]["context_engagement"] is None
    assert results["causal"]["context_queries"] is None
    assert results["causal"]["needle_mass"] is None


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="context_queries"):
        ProbeSettings("d", context_queries=-1)


def test_a_model_is_measured_with_the_blocks_of_its_training(model, tmp_path):
    messages = [
        {"role": "system", "content": "Answer from the text."},
        {"role": "user", "content": "The key is in the box. Where is it?"},
        {"role": "assistant", "content": "In the box."},
    ]
    data = tmp_path / "two_turns.jsonl"
    data.write_text(json.dumps({"messages": messages}) + "\n")
    merged = probe(model, data, tmp_path / "merged")
    (Path(model) / "focusft_config.yaml").write_text("context_blocks: per_turn\n")
    apart = probe(model, data, tmp_path / "apart")
    assert (merged["context_blocks"], apart["context_blocks"]) == ("merged", "per_turn")
    (together,), (alone,) = merged["examples"], apart["examples"]
    assert together["causal"] == alone["causal"]
    assert together["bidirectional"] != alone["bidirectional"]


def test_fast_weights_that_cannot_be_are_refused_before_anything_is_measured():
    with pytest.raises(ConfigError, match="inner_lr"):
        ProbeSettings("d", with_fast_weights=True, inner_lr=0)
