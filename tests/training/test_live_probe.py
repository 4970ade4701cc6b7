"""The probe during training: what it logs, and that it changes nothing."""

import json
import os
import subprocess
import sys

import pytest
import torch

from focusft.analysis.dilution import measure_dilution
from focusft.data import ConversationCollator
from focusft.errors import ConfigError, DataError
from focusft.training.config import FocuSFTConfig
from focusft.training.live_probe import LiveProbe
from focusft.training.trainer import FocuSFTTrainer
from tests.tiny_models import tiny_model
from tests.training.test_trainer import dataset, losses, trainer, weights

SET_FIGURES = ("sink_mass", "context_engagement", "entropy")


def probe_lines(run):
    return {
        entry["step"]: entry
        for entry in run.state.log_history
        if any(name.startswith("probe/") for name in entry)
    }


VARIANTS = {
    "packed": {},
    "padded": {"packing": False},
    "accumulated": {"gradient_accumulation_steps": 2},
    "full checkpointing": {"activation_checkpointing": True},
    "no checkpointing": {"selective_checkpointing": False},
    "sft": {"method": "sft"},
    "stock sft": {"method": "sft", "packing": False},
    "dropout": {"inner_dropout": 0.1},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_training_is_the_same_to_the_last_bit(name, tmp_path):
    def run(probe_steps):
        attention_dropout = 0.1 if name == "dropout" else 0.0
        model = tiny_model("llama", attention_dropout=attention_dropout)
        torch.manual_seed(0)
        trained = trainer(
            tmp_path / str(probe_steps),
            model,
            probe_steps=probe_steps,
            max_steps=2,
            **VARIANTS[name],
        )
        trained.train()
        return trained

    without, probed = run(0), run(1)
    assert not probe_lines(without)
    assert set(probe_lines(probed)) == {0, 1, 2}
    assert losses(probed) == losses(without)
    for parameter, weight in weights(without).items():
        assert torch.equal(weights(probed)[parameter], weight), parameter
    hooks = [
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in run.model.modules()]
        for run in (without, probed)
    ]
    assert hooks[0] == hooks[1]
    assert without.model.config._attn_implementation == probed.model.config._attn_implementation


def test_the_log_holds_the_figures_of_the_model(tmp_path):
    run = trainer(tmp_path, probe_steps=3)
    batches = [ConversationCollator(0, packing=True)([row]) for row in dataset(4)]
    before = {mask: measure_dilution(run.model, batches, mask) for mask in
              ("causal", "bidirectional")}  # fmt: skip
    run.train()
    lines = probe_lines(run)
    assert set(lines) == {0, 3, 4}
    for mask, measured in before.items():
        for figure in SET_FIGURES:
            name = f"probe/{figure}_{mask}"
            assert lines[0][name] == pytest.approx(measured.means[figure], rel=1e-5)
            assert lines[4][name] != lines[0][name]
    after = measure_dilution(run.model, batches, "causal")
    assert lines[4]["probe/sink_mass_causal"] == pytest.approx(after.sink_mass, rel=1e-5)
    assert "probe/needle_mass_causal" not in lines[0]
    assert lines[0]["probe/seconds"] > 0


@pytest.mark.parametrize("options", [{}, {"packing": False}, {"method": "sft"}])
def test_the_batch_is_that_of_the_training_call(options, tmp_path):
    """With a tiny step size the fast weights change next to nothing."""
    run = trainer(tmp_path, probe_steps=10, max_steps=1, inner_lr=1e-6, **options)
    batch = next(iter(run.get_train_dataloader()))
    mask = "causal" if options.get("method") == "sft" else "bidirectional"
    expected = measure_dilution(run.model, [batch], mask)
    run.train()
    line = probe_lines(run)[0]
    for figure in ("sink_mass", "context_mass", "entropy"):
        assert line[f"probe/batch_{figure}"] == pytest.approx(expected.means[figure], rel=1e-4)


def test_a_stock_batch_is_not_watched(tmp_path):
    run = trainer(tmp_path, probe_steps=10, max_steps=1, method="sft", packing=False)
    run.train()
    line = probe_lines(run)[0]
    assert "probe/sink_mass_causal" in line
    assert not any(name.startswith("probe/batch_") for name in line)


def test_the_probe_set_comes_from_the_training_data_without_other(tmp_path):
    run = trainer(tmp_path, probe_steps=10, max_steps=1)
    run.eval_dataset = None
    batches = run._first_examples()
    assert [b["input_ids"][0].tolist() for b in batches] == dataset(12)["input_ids"][:4]


def test_a_given_probe_set_has_content_and_needles(tmp_path):
    run = trainer(tmp_path, probe_steps=10, max_steps=1)
    (batch,) = [ConversationCollator(0)([row]) for row in dataset(1)]
    context = (batch["turn_ids"] > 0).long()
    marked = batch | {"content_mask": context, "needle_mask": context}
    probe = LiveProbe(run.model, run.focus_config, [marked], 1, watches_batch=False)
    metrics = probe.measure_set(0)
    whole = metrics["probe/needle_mass_causal"]
    assert whole > metrics["probe/context_engagement_causal"] > 0


def test_a_sink_that_does_not_fall_is_named_with_its_mend(tmp_path, caplog):
    """With a context of one token the two masks are the same."""
    run = trainer(tmp_path, probe_steps=1)
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8], "turn_ids": [1, -2, -2, -2]}]
    batches = [ConversationCollator(0)(rows)]
    probe = LiveProbe(run.model, run.focus_config, batches, 1, watches_batch=False)
    probe.measure_set(0)
    probe.measure_set(1)
    (warning,) = [r.getMessage() for r in caplog.records if "sink mass" in r.getMessage()]
    assert warning.startswith("step 0: ")
    assert "set context_attention=causal" in warning


def test_a_model_that_cannot_be_probed_trains_without(tmp_path, caplog):
    model = tiny_model("mistral", sliding_window=4)
    run = trainer(tmp_path, model, method="sft", packing=False, probe_steps=1)
    run.train()
    assert len(losses(run)) == 4
    assert not probe_lines(run)
    (warning,) = [r.getMessage() for r in caplog.records if "probe is off" in r.getMessage()]
    assert "probe another model" in warning


TWO_RANKS = """
import json
import os
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from tests.training.test_trainer import trainer, weights
logs, checksums = [], []
for probe_steps in (0, 1):
    run = trainer(Path({folder!r}) / str(probe_steps), max_steps=2, probe_steps=probe_steps)
    run.train()
    logs.append(run.state.log_history)
    checksums.append([weight.double().sum().item() for weight in weights(run).values()])
rank = os.environ["RANK"]
Path({folder!r}, f"rank{{rank}}.json").write_text(json.dumps([logs, checksums]))
"""


@pytest.mark.slow
def test_two_ranks_log_the_same_and_train_as_without(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(TWO_RANKS.format(root=os.getcwd(), folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    subprocess.run([*command, "--nproc_per_node=2", str(script)], check=True, timeout=300)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    lines = []
    for (_, log), (without, probed) in ranks:
        assert without == probed
        lines.append([{k: v for k, v in entry.items() if k.startswith("probe/")} for entry in log])
    for first, second in zip(*lines, strict=True):
        first.pop("probe/seconds", None)
        second.pop("probe/seconds", None)
        assert first == second
    assert {"probe/batch_sink_mass", "probe/sink_mass_causal"} <= set(lines[0][0])


def test_steps_are_checked():
    with pytest.raises(ConfigError, match="probe_steps: -1"):
        FocuSFTConfig(output_dir="x", probe_steps=-1)


def test_a_probe_set_without_a_label_is_left_out(tmp_path, caplog):
    without = {"input_ids": torch.arange(3, 12)[None], "labels": torch.full((1, 9), -100)}
    run = FocuSFTTrainer(
        model=tiny_model("llama"),
        args=trainer(tmp_path, max_steps=1, probe_steps=1).args,
        train_dataset=dataset(),
        probe_set=[without],
    )
    run.train()
    assert "leaves out 1 of 1 examples" in caplog.text
    with pytest.raises(DataError, match="no example has a label"):
        measure_dilution(tiny_model("llama"), [without], "causal")
