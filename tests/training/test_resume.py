"""Whole checkpoints, exact resume, and what stops or warns."""

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, skip_first_batches
from torch.utils.data import BatchSampler
from transformers import TrainerCallback

from focusft.data import LengthBucketedSampler
from focusft.errors import ConfigError, RunInterrupted
from focusft.training import checkpoints, watchdogs
from focusft.training.checkpoints import (
    CheckpointError,
    find_damage,
    last_good_checkpoint,
    list_checkpoints,
    publish,
    rotate,
    seal,
    storage_errors,
)
from focusft.training.signals import StopOnSignal
from focusft.training.watchdogs import TrainingStopped
from tests.training.test_trainer import losses, trainer, weights


def make_checkpoint(output_dir, step):
    staged = output_dir / checkpoints.UNFINISHED / f"checkpoint-{step}"
    (staged / "inner").mkdir(parents=True)
    (staged / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    (staged / "inner" / "state.json").write_text("{}")
    seal(staged)
    return publish(staged, output_dir)


def test_a_sealed_checkpoint_is_whole_and_every_damage_shows(tmp_path):
    def damage_after(change):
        shutil.rmtree(tmp_path / "checkpoint-2", ignore_errors=True)
        checkpoint = make_checkpoint(tmp_path, 2)
        assert find_damage(checkpoint) is None
        change(checkpoint)
        return find_damage(checkpoint)

    def flip(checkpoint):
        content = bytearray((checkpoint / "model.safetensors").read_bytes())
        content[1000] ^= 1
        (checkpoint / "model.safetensors").write_bytes(content)

    assert "content of model.safetensors" in damage_after(flip)
    assert "2,047 bytes instead of 2,048" in damage_after(
        lambda c: os.truncate(c / "model.safetensors", 2047)
    )
    assert damage_after(lambda c: (c / "inner" / "state.json").unlink()) == (
        "inner/state.json is missing"
    )
    assert "extra.bin is not in" in damage_after(lambda c: (c / "extra.bin").touch())
    assert "no manifest.json" in damage_after(lambda c: (c / "manifest.json").unlink())
    for content in ("", "[]", '{"files": {"a": 1}}', '{"files": []}', "\x00"):
        change = (lambda text: lambda c: (c / "manifest.json").write_text(text))(content)
        assert "manifest.json is damaged" in damage_after(change)


def test_the_newest_whole_checkpoint_is_used_and_the_others_are_named(tmp_path):
    assert last_good_checkpoint(tmp_path / "nowhere") == (None, [])
    for step in (2, 4, 10):
        make_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-10" / "model.safetensors").unlink()
    checkpoint, problems = last_good_checkpoint(tmp_path)
    assert checkpoint == tmp_path / "checkpoint-4"
    assert len(problems) == 1 and "checkpoint-10 is damaged and not used" in problems[0]
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint is whole") as caught:
        last_good_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def test_rotation_keeps_the_newest_the_best_and_later_ones(tmp_path):
    for step in (2, 4, 6, 8, 99):
        make_checkpoint(tmp_path, step)

    def left_after(limit, best=None):
        rotate(tmp_path, limit, tmp_path / "checkpoint-8", best)
        return [checkpoints.step_of(path) for path in list_checkpoints(tmp_path)]

    assert left_after(None) == left_after(0) == left_after(4) == [2, 4, 6, 8, 99]
    assert left_after(3, str(tmp_path / "checkpoint-2")) == [2, 6, 8, 99]
    assert left_after(1) == [8, 99]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    make_checkpoint(tmp_path, 2)
    (tmp_path / "checkpoint-2" / "model.safetensors").unlink()
    make_checkpoint(tmp_path, 2)
    assert find_damage(tmp_path / "checkpoint-2") is None


def test_only_errors_of_the_disk_become_a_line(tmp_path):
    make_checkpoint(tmp_path, 2)
    what = "the checkpoint of step 4"
    message = r"No space left.*goes on from .*checkpoint-2"
    with pytest.raises(CheckpointError, match=message), storage_errors(tmp_path, what):
        raise OSError(28, "No space left on device")
    with pytest.raises(RuntimeError, match="a mistake"), storage_errors(tmp_path, what):
        raise RuntimeError("a mistake")


class DrawRandomNumbers(TrainerCallback):
    """Uses every generator in each step, as dropout and augmentation do."""

    def __init__(self):
        self.drawn = {}

    def on_step_begin(self, args, state, control, **kwargs):
        numbers = (torch.rand(1).item(), random.random(), float(np.random.rand()))
        self.drawn[state.global_step] = numbers


class SendSignal(TrainerCallback):
    def __init__(self, number, substep):
        self.number, self.left = number, substep

    def on_substep_end(self, args, state, control, **kwargs):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.number)

    on_step_end = on_substep_end


LONG = {
    "max_steps": 6,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 3,
    "logging_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "inner_dropout": 0.2,
}


def run(folder, callbacks=(), checkpoint=None, **options):
    draws = DrawRandomNumbers()
    built = trainer(folder, **(LONG | options))
    for callback in (draws, *callbacks):
        built.add_callback(callback)
    built.train(resume_from_checkpoint=checkpoint)
    return built, draws.drawn


def mean_loss(trained):
    return next(line["train_loss"] for line in trained.state.log_history if "train_loss" in line)


@pytest.fixture(autouse=True)
def _usual_handlers():
    """A shell's background jobs ignore SIGINT."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    return run(tmp_path_factory.mktemp("whole"))


# Four steps an epoch of three micro-batches: 12 is an epoch's end, 13 the first of the next.
@pytest.mark.parametrize("substep", [4, 12, 13])
def test_a_signal_anywhere_in_a_step_resumes_exactly(tmp_path, uninterrupted, substep):
    whole, expected_draws = uninterrupted
    stop = StopOnSignal()
    with pytest.raises(RunInterrupted) as caught, stop.catch(tmp_path):
        run(tmp_path, [SendSignal(signal.SIGTERM, substep), stop])
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    checkpoint, problems = last_good_checkpoint(tmp_path)
    assert checkpoints.step_of(checkpoint) == substep // 3 and not problems
    assert str(checkpoint) in str(caught.value) and "\n" not in str(caught.value)
    resumed, draws = run(tmp_path, checkpoint=str(checkpoint))
    assert losses(resumed) == losses(whole)
    assert mean_loss(resumed) == pytest.approx(mean_loss(whole), rel=1e-9)
    assert draws == {step: expected_draws[step] for step in range(substep // 3, 6)}
    assert resumed.inner_steps_watched == whole.inner_steps_watched
    for name, weight in weights(whole).items():
        assert torch.equal(weights(resumed)[name], weight), name


def test_a_signal_at_the_end_of_an_epoch_keeps_what_its_end_measures(tmp_path):
    by_epoch = {"eval_strategy": "epoch", "logging_strategy": "epoch", "save_strategy": "epoch"}

    def lines(trained):
        shown = ("step", "loss", "eval_loss")
        log = [{k: line[k] for k in shown if k in line} for line in trained.state.log_history]
        return [line for line in log if len(line) > 1]

    whole, _ = run(tmp_path / "whole", **by_epoch)
    stop, folder = StopOnSignal(), tmp_path / "stopped"
    with pytest.raises(RunInterrupted), stop.catch(folder):
        run(folder, [SendSignal(signal.SIGTERM, 12), stop], **by_epoch)
    resumed, _ = run(folder, checkpoint=True, **by_epoch)
    assert [line["step"] for line in lines(whole)] == [4, 4, 6, 6]
    assert lines(resumed) == lines(whole)


def test_a_signal_before_the_first_step_starts_anew(tmp_path):
    stop = StopOnSignal()
    message = r"SIGINT: .*it starts anew"
    with pytest.raises(RunInterrupted, match=message) as caught, stop.catch(tmp_path):
        run(tmp_path, [SendSignal(signal.SIGINT, 1), stop])
    assert caught.value.exit_code == 130
    assert last_good_checkpoint(tmp_path) == (None, [])


def test_a_second_signal_acts_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt), StopOnSignal().catch(tmp_path):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_was_ignored_stays_so(tmp_path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = StopOnSignal()
    with stop.catch(tmp_path):
        signal.raise_signal(signal.SIGINT)
    assert stop.received is None


def test_no_row_before_the_cursor_is_read(tmp_path):
    first = trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=4)
    first.train()
    second = trainer(tmp_path, max_steps=5)
    read = []
    rows = second.train_dataset

    class Counting(torch.utils.data.Dataset):
        def __len__(self):
            return len(rows)

        def __getitem__(self, index):
            read.append(index)
            return rows[index]

    second.train_dataset = Counting()
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    # Two rows a step; the loader looks one batch ahead.
    assert 2 <= len(read) <= 4


def test_the_epoch_reaches_the_sampler_behind_shards_and_a_cursor(tmp_path):
    sampler = LengthBucketedSampler([3] * 12, 2, seed=0)
    shards = BatchSamplerShard(BatchSampler(sampler, 1, False), num_processes=2, process_index=1)
    loader = DataLoaderShard(list(range(12)), batch_sampler=shards, collate_fn=list)
    run = trainer(tmp_path)
    seen = []

    def epoch(self, **kwargs):
        seen.extend(skip_first_batches(kwargs["train_dataloader"], 2))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.Trainer._run_epoch", epoch)
        run._run_epoch(train_dataloader=loader, epoch=1)
    sampler.set_epoch(1)
    assert seen == [[index] for index in list(sampler)[1::2][2:]]


CHANGES = {
    "rows": {"rows": 11},
    "examples per step": {"per_device_train_batch_size": 4},
    "seed": {"seed": 5, "data_seed": 1234},
    "data seed": {"data_seed": 5},
    "packing": {"packing": False},
    "train sampling strategy": {"train_sampling_strategy": "sequential"},
    "method": {"method": "sft"},
    "inner rank": {"inner_rank": 8},
    "data sha256": {},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_place_in_the_data_is_refused(tmp_path, name):
    trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    options = dict(CHANGES[name])
    rows = options.pop("rows", 12)
    changed = trainer(tmp_path, max_steps=4, **options)
    changed.train_dataset = changed.train_dataset.select(range(rows))
    if name == "data sha256":
        changed.train_dataset = changed.train_dataset.map(lambda row: {"labels": row["input_ids"]})
    with pytest.raises(ConfigError, match=f"was trained with {name}") as caught:
        changed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "\n" not in str(caught.value)


def test_a_finished_run_takes_no_further_step(tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    first = trainer(tmp_path, **options)
    first.train()
    again = trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4 and len(losses(again)) == 4
    assert mean_loss(again) == pytest.approx(mean_loss(first), rel=1e-9)
    for name, weight in weights(first).items():
        assert torch.equal(weights(again)[name], weight), name


def test_the_order_by_length_is_that_of_the_epoch_after_a_resume(tmp_path):
    options = {"train_sampling_strategy": "group_by_length", "packing": False, "max_steps": 10}
    whole = trainer(tmp_path / "a", **options)
    whole.train()
    trainer(tmp_path / "b", save_strategy="steps", save_steps=8, **options).train()
    resumed = trainer(tmp_path / "b", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-8"))
    assert losses(resumed) == losses(whole)


def test_a_checkpoint_of_the_model_alone_is_no_place_to_go_on_from(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "save_only_model": True}
    trainer(tmp_path, **options).train()
    with pytest.raises(ConfigError, match=r"holds the model alone.*model_name_or_path="):
        trainer(tmp_path, **options).train(resume_from_checkpoint=True)


def test_the_best_checkpoint_is_found_in_a_folder_that_was_moved(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    before, after = tmp_path / "before", tmp_path / "after"
    trainer(before, load_best_model_at_end=True, **options).train()
    before.rename(after)
    moved = trainer(after, load_best_model_at_end=True, max_steps=6, **options)
    best = []

    class KeepBest(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            best.append(state.best_model_checkpoint)

    moved.add_callback(KeepBest())
    moved.train(resume_from_checkpoint=str(after / "checkpoint-4"))
    assert Path(best[0]).parent == after


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    (tmp_path / "checkpoint-2" / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-2.*optimizer\.pt is missing"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_the_newest_checkpoint_is_found_and_checked(tmp_path):
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
    trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=1).train()
    checkpoint = tmp_path / "checkpoint-2"
    for given in (True, checkpoint):
        run = trainer(tmp_path)
        run.train(resume_from_checkpoint=given)
        assert len(losses(run)) == 4
    (checkpoint / "optimizer.pt").unlink()
    for given in (True, checkpoint):
        with pytest.raises(CheckpointError, match=r"optimizer\.pt is missing"):
            trainer(tmp_path).train(resume_from_checkpoint=given)


def test_a_changed_learning_rate_is_used_and_said(tmp_path, caplog):
    def rates(run):
        return [line["learning_rate"] for line in run.state.log_history if "learning_rate" in line]

    whole = trainer(tmp_path / "whole", learning_rate=2e-4)
    whole.train()
    trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2, learning_rate=1e-3).train()
    run = trainer(tmp_path, learning_rate=2e-4)
    with caplog.at_level(logging.WARNING):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "learning_rate: 0.0002 is used from here on" in caplog.text
    assert rates(run)[2:] == rates(whole)[2:]


class Spoil(TrainerCallback):
    """Makes the hidden states of a step not a number, or its gradient infinite."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step and self.what != "gradient norm":
            embed = model.get_input_embeddings()
            embed.register_forward_hook(lambda *call: call[2] * float("nan"))

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if self.what == "gradient norm":
            model.lm_head.weight.register_hook(
                lambda grad: grad * float("inf") if state.global_step == self.step else grad
            )


@pytest.mark.parametrize("what", ["inner losses", "gradient norm"])
def test_a_non_finite_figure_stops_with_the_state_before_it(tmp_path, uninterrupted, what):
    with pytest.raises(TrainingStopped, match=rf"step 3: .*{what} .*checkpoint-2") as caught:
        run(tmp_path, [Spoil(2, what)])
    assert "\n" not in str(caught.value)
    resumed, _ = run(tmp_path, checkpoint=str(tmp_path / "checkpoint-2"))
    assert losses(resumed) == losses(uninterrupted[0])


def test_a_non_finite_first_loss_leaves_nothing_to_save(tmp_path):
    with pytest.raises(TrainingStopped, match=r"step 1: the loss is nan; nothing was trained yet"):
        run(tmp_path, [Spoil(0, "loss")], num_inner_steps=0)
    assert list_checkpoints(tmp_path) == []


def test_a_rising_inner_loss_is_said_while_it_happens(tmp_path, caplog, monkeypatch):
    # Large steps raise about half of the losses, which half is a matter of rounding.
    monkeypatch.setattr(watchdogs, "_RAISED_TOO_OFTEN", 0.1)
    with caplog.at_level(logging.WARNING):
        run(tmp_path, inner_lr=50.0, inner_grad_clip=0.0, max_steps=4, eval_strategy="no")
    lines = [r.getMessage() for r in caplog.records if "of the inner steps raised" in r.message]
    assert len(lines) == 1 and lines[0].startswith("step 4: ")


def test_kills_and_damage_end_in_the_same_model():
    arguments = [sys.executable, "-m", "tests.training.kill_many", "--kills", "5", "--first", "3"]
    environment = os.environ | {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["cases"] == 5


def test_a_limit_of_one_keeps_what_a_signal_has_saved(tmp_path):
    stop = StopOnSignal()
    options = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    limited = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, **options}
    with pytest.raises(RunInterrupted) as caught, stop.catch(tmp_path):
        run(tmp_path, [SendSignal(signal.SIGTERM, 10), stop], **limited)
    checkpoint, _ = last_good_checkpoint(tmp_path)
    assert checkpoints.step_of(checkpoint) == 3
    assert str(checkpoint) in str(caught.value)
