"""A grid end to end with a tiny model: order, going on, refusals, pairing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from focusft.cli import main
from focusft.errors import UserError
from focusft.study import run as run_module
from focusft.study.config import load_study
from focusft.study.launch import OutOfTimeError
from focusft.study.run import print_plan, run_study
from tests.study.conftest import InProcess


def go(path, launch, **options):
    console = Console(record=True, width=200)
    run_study(load_study(path), console, launch=launch, **options)
    return console.export_text()


def plan(path, **options):
    console = Console(record=True, width=200)
    print_plan(load_study(path), console, **options)
    return console.export_text()


def read(name):
    return json.loads(Path("results", f"{name}.json").read_text())


def without_times(value):
    """Also without the commit (this repository may get one meanwhile) and the data cache."""
    if isinstance(value, dict):
        left_out = ("seconds", "resumed", "commit", "cached")
        return {k: without_times(v) for k, v in value.items() if k not in left_out}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def all_results():
    files = sorted(Path("results").rglob("*.json"))
    return {str(file): without_times(json.loads(file.read_text())) for file in files}


def test_a_grid_runs_and_goes_on_to_the_same_results(write_study, tmp_path, monkeypatch):
    path = write_study()
    launch = InProcess()
    assert "0 of 5 cells done" in plan(path)
    said = go(path, launch)
    # All arms of the first seed come before the second seed; the base needs no seed.
    written = sorted(Path("results").iterdir(), key=os.path.getmtime)
    order = ["base-0", "sft-0", "focusft-0", "sft-1", "focusft-1"]
    assert [file.stem for file in written] == order
    assert len(launch.calls) == 2 + 4 * 3
    assert re.search(r"\[5/5\] focusft-1 probe: about \d+ min; the study: about \d+ min", said)
    cell = read("focusft-0")
    assert cell["evaluations"]["needle"]["scores"] == {"niah_single_1": {"1024": [0.0, 0.0]}}
    assert cell["train"]["inner_steps_watched"] > 0
    assert set(cell["probe"]["causal"]) >= {"sink_mass", "context_engagement"}
    assert cell["settings"]["train"]["resolved"]["inner_lr"] == 0.1
    assert cell["settings"]["train"]["given"]["data_seed"] == 0
    assert cell["versions"]["torch"]
    assert read("base-0")["train"] is None
    hashes = {read(n)["evaluations"]["needle"]["prompts_sha256"] for n in ("base-0", "sft-1")}
    assert len(hashes) == 1
    assert not list(Path("runs").rglob("checkpoint-*"))

    again = InProcess()
    assert "5 of 5 cells are done" in go(path, again)
    assert again.calls == []
    assert "5 of 5 cells done, about 0 min left" in plan(path)
    # The committed results alone are enough.
    whole = all_results()
    Path("runs").rename("elsewhere")
    go(path, again)
    assert again.calls == []

    # Stopped anywhere, it ends with the same results.
    Path("results").rename("first")
    for interrupt_at in (0, 1, 3):
        with pytest.raises(KeyboardInterrupt):
            go(path, InProcess(interrupt_at))
    last = InProcess()
    go(path, last)
    assert len(last.calls) == 14 - (0 + 1 + 3)
    assert all_results() == whole


def test_the_order_of_the_data_is_that_of_the_seed_in_every_arm(write_study, monkeypatch):
    from focusft.data import ConversationCollator

    orders = []
    collate = ConversationCollator.__call__

    def noting(self, examples):
        orders[-1].append([list(example["input_ids"]) for example in examples])
        return collate(self, examples)

    monkeypatch.setattr(ConversationCollator, "__call__", noting)
    train = {
        "train_data": "train.jsonl", "use_cpu": True, "num_train_epochs": 2,
        "per_device_train_batch_size": 2, "probe_steps": 0,
    }  # fmt: skip
    arms = {
        "sft": {"method": "sft"},
        "masked": {"num_inner_steps": 0},
        "deep": {"inner_lr": 0.1, "inner_layer_fraction": 1.0, "inner_order": 2},
        "inner": {"inner_lr": 0.1, "context_attention": "causal",
                  "inner_context_attention": "bidirectional"},
    }  # fmt: skip

    def launch(words, log, end, lock):
        if words[0] == "train":
            orders.append([])
        return main(list(words))

    go(write_study(train=train, arms=arms, probe=None), launch)
    assert len(orders) == 8 and orders[0]
    assert all(order == orders[0] for order in orders[:4])
    assert all(order == orders[4] for order in orders[4:])
    assert orders[0] != orders[4]


def test_other_settings_are_one_clear_line(write_study, capsys):
    path = write_study(arms={"sft": {"method": "sft"}}, seeds=[0], probe=None)
    go(path, InProcess())
    train = load_study(path).train
    capsys.readouterr()
    write_study(
        arms={"sft": {"method": "sft"}}, seeds=[0], probe=None, train=train | {"learning_rate": 0.1}
    )
    assert main(["study", "--config", str(path)]) == 2
    said = capsys.readouterr().err.strip()
    assert re.fullmatch(
        "focusft: error: learning_rate: results/sft-0.json was made with null, not 0.1; use the "
        "same, delete it, or give the study another 'results'",
        said,
    ), said
    Path("results/sft-0.json").unlink()
    assert main(["study", "--config", str(path), "--dry_run"]) == 2
    assert "runs/sft-0/train was made with null" in capsys.readouterr().err
    write_study(arms={"sft": {"method": "sft"}}, seeds=[0], probe=None)
    Path("train.jsonl").write_text(Path("train.jsonl").read_text() * 2)
    assert main(["study", "--config", str(path)]) == 2
    assert "data.train.jsonl: runs/sft-0/train was made with" in capsys.readouterr().err


def test_an_evaluation_that_is_added_runs_alone(write_study):
    arms = {"sft": {"method": "sft"}}
    go(write_study(arms=arms, seeds=[0], probe=None), InProcess())
    arms["sft"]["evaluations"] = [
        {"name": "both_ways", "like": "needle", "prefill": "bidirectional"}
    ]
    path = write_study(arms=arms, seeds=[0], probe=None)
    assert re.search(r"sft-0 +│ train, needle +│ both_ways", plan(path))
    launch = InProcess()
    go(path, launch)
    assert [words[0] for words in launch.calls] == ["eval"]
    assert set(read("sft-0")["evaluations"]) == {"needle", "both_ways"}


def test_a_failed_cell_does_not_stop_the_others(write_study):
    path = write_study(arms={"bad": {"max_length": 3}, "sft": {"method": "sft"}}, seeds=[0])
    with pytest.raises(UserError, match=r"1 cells failed.*bad-0: what went wrong"):
        go(path, InProcess())
    assert read("sft-0") and not Path("results/bad-0.json").exists()


def test_a_search_forgets_a_failure_that_is_not_the_value_s_fault(write_study):
    tune = {
        "option": "learning_rate", "values": [1e-4], "evaluation": "needle", "items_seed": 7,
        "train": {"max_steps": 1},
    }  # fmt: skip
    path = write_study(arms={"sft": {"method": "sft"}}, seeds=[1], tune=tune, probe=None)

    def full_disk(words, log, end, lock):
        log.write_text("focusft: error: no space is left")
        return 2

    with pytest.raises(UserError, match="no space is left"):
        go(path, full_disk)
    assert not list(Path("results").rglob("sft-learning_rate*.json"))


def test_only_some_arms(write_study):
    path = write_study(probe=None, seeds=[3])
    launch = InProcess()
    go(path, launch, only=["base", "sft"])
    assert sorted(p.stem for p in Path("results").iterdir()) == ["base-0", "sft-3"]
    with pytest.raises(UserError, match="--only: 'stf' is none of base, sft, focusft"):
        go(path, launch, only=["stf"])


def test_time_that_is_up_is_no_error(write_study):
    path = write_study(probe=None)

    def launch(words, log, end, lock):
        assert end is not None
        raise OutOfTimeError

    said = go(path, launch, max_hours=2)
    assert "time is up after 2 h" in said
    assert not Path("results").exists()
    launch = InProcess()
    go(path, launch, max_hours=0)
    assert launch.calls == []


def test_two_studies_do_not_work_in_one_folder(write_study):
    path = write_study()
    study = load_study(path)
    with run_module._locked(study), pytest.raises(UserError, match="runs: another study"):
        go(path, InProcess())


# --- the search ----------------------------------------------------------------------------------


def test_the_best_value_is_used(write_study, monkeypatch):
    tune = {
        "option": "learning_rate", "values": [1e-5, 1e-3, 1e9], "evaluation": "needle",
        "items_seed": 7, "samples": 1, "train": {"max_steps": 2},
    }  # fmt: skip
    path = write_study(
        arms={"base": None, "sft": {"method": "sft"}}, seeds=[1], tune=tune, probe=None
    )
    assert "to be chosen first: sft: learning_rate" in plan(path)
    from focusft.study import results

    gather = results._evaluation

    def scored(stage):
        found = gather(stage)
        if "learning_rate-0.001" in str(stage.folder):
            found["scores"] = {"niah_single_1": {"1024": [0.5]}}
        return found

    monkeypatch.setattr(results, "_evaluation", scored)
    said = go(path, InProcess())
    assert "sft: learning_rate = 0.001 (1e-05: 0.000, 0.001: 0.500" in said
    chosen = json.loads(Path("results/tuning.json").read_text())["sft"]["learning_rate"]
    assert chosen["chosen"] == 1e-3
    assert read("sft-1")["settings"]["train"]["resolved"]["learning_rate"] == 1e-3
    assert read("sft-1")["tuned"] == {"learning_rate": 1e-3}
    assert "max_steps" not in read("sft-1")["settings"]["train"]["given"]
    candidate = read("tuning/sft-learning_rate-0.001")["settings"]
    assert candidate["train"]["given"]["max_steps"] == 2
    items = candidate["needle"]["given"]
    assert (items["seed"], items["samples"]) == (7, 1)
    launch = InProcess()
    go(path, launch)
    assert launch.calls == []


# --- real processes ------------------------------------------------------------------------------


def study_process(path):
    source = str(Path(run_module.__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-m", "focusft", "study", "--config", str(path)],
        env=os.environ | {"PYTHONPATH": source}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_killed_processes_end_with_the_same_results(write_study):
    arms = {"sft": {"method": "sft"}, "focusft": {}}
    train = load_study(write_study()).train | {"num_train_epochs": 30, "save_steps": 10}
    path = write_study(arms=arms, train=train, probe=None)
    said = study_process(path).communicate()[0]
    assert "all cells are done" in said, said
    expected = all_results()
    assert len(expected) == 4
    for folder in ("runs", "results"):
        Path(folder).rename(f"whole-{folder}")
    for wanted, sent in (("sft-0", signal.SIGTERM), ("focusft-0", signal.SIGKILL)):
        process = study_process(path)
        while not list(Path("runs", wanted).glob("train/checkpoint-*")):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        process.send_signal(sent)
        assert process.wait() == (143 if sent == signal.SIGTERM else -9)
    # The command of the killed one goes on alone; nobody else works there until it has ended.
    while "another study" in (said := study_process(path).communicate()[0]):
        pass
    assert "all cells are done" in said
    assert all_results() == expected


def test_failed_cells_are_an_error_also_when_the_time_is_up(write_study):
    path = write_study(probe=None)
    codes = iter([1])

    def launch(words, log, end, lock):
        log.write_text("focusft: error: out of memory\n")
        code = next(codes, None)
        if code is None:
            raise OutOfTimeError
        return code

    with pytest.raises(UserError, match="out of memory"):
        go(path, launch, max_hours=2)
