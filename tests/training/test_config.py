"""Options from YAML and the command line."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from focusft.errors import ConfigError
from focusft.training.config import FocuSFTConfig, load_train_config


def test_overrides_win_and_numbers_are_read(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train_data: a.jsonl\noutput_dir: out\nlearning_rate: 1e-4\ninner_lr: 1\n")
    config = load_train_config(path, ["--inner_lr=0.1", "--num_train_epochs", "2", "--use_cpu"])
    assert config.learning_rate == 1e-4
    assert config.inner_lr == 0.1
    assert config.num_train_epochs == 2.0
    assert config.use_cpu is True


def test_the_resolved_options_load_again(tmp_path):
    config = load_train_config(
        None, ["--train_data", "a", "--output_dir", str(tmp_path), "--use_cpu", "--inner_lr", "0.2"]
    )
    path = tmp_path / "resolved.yaml"
    path.write_text(yaml.safe_dump(config.resolved()))
    again = load_train_config(path)
    assert again.resolved() == config.resolved()


OF_TRANSFORMERS = {
    "learning_rate": 5e-5,
    "num_train_epochs": 3,
    "seed": 42,
    "gradient_accumulation_steps": 1,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "weight_decay": 0,
    "warmup_steps": 0,
    "lr_scheduler_type": "linear",
    "logging_steps": 500,
    "save_total_limit": None,
    "logging_nan_inf_filter": True,
    "accelerator_config": {"split_batches": True},
    "debug": "underflow_overflow",
}


def test_the_resolved_options_load_again_where_they_are_the_defaults_of_transformers(tmp_path):
    given, resolved = tmp_path / "given.yaml", tmp_path / "resolved.yaml"
    own = {"train_data": "a", "output_dir": str(tmp_path), "use_cpu": True}
    given.write_text(yaml.safe_dump(own | OF_TRANSFORMERS))
    config = load_train_config(given)
    resolved.write_text(yaml.safe_dump(config.resolved()))
    again = load_train_config(resolved)
    for option in dataclasses.fields(config):
        if option.init:
            assert vars(again)[option.name] == vars(config)[option.name], option.name


@pytest.mark.parametrize(
    ("options", "is_higher_better"),
    [
        ({"metric_for_best_model": "loss"}, False),
        ({"metric_for_best_model": "eval_loss_bidirectional"}, False),
        ({"metric_for_best_model": "loss_bidirectional", "greater_is_better": True}, True),
        ({}, None),
    ],
)
def test_the_best_loss_is_the_lowest(tmp_path, options, is_higher_better):
    config = FocuSFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **options)
    assert config.greater_is_better is is_higher_better


BASE = ["--train_data", "a.jsonl", "--output_dir", "out", "--use_cpu"]
BAD_ARGUMENTS = {
    "no such file": ([*BASE, "--accelerator_config", "0"], "No such file"),
    "unknown": ([*BASE, "--inner_steps", "2"], "did you mean"),
    "gone": ([*BASE, "--warmup_ratio", "0.1"], "warmup_steps"),
    "remote code": ([*BASE, "--trust_remote_code", "true"], "never runs code"),
    "text for a number": ([*BASE, "--inner_lr", "abc"], "is not a number"),
    "fraction for a count": ([*BASE, "--inner_rank", "1.5"], "is not a whole number"),
    "number for a switch": ([*BASE, "--bf16", "7"], "is not true or false"),
    "choice": ([*BASE, "--inner_objective", "loss"], "is not one of"),
    "method": ([*BASE, "--method", "dpo"], "is not one of"),
    "dtype": ([*BASE, "--dtype", "int8"], "is not one of"),
    "scheduler": ([*BASE, "--lr_scheduler_type", "foo"], "SchedulerType"),
    "no dashes": (["inner_lr", "1", *BASE], "unexpected 'inner_lr'"),
    "twice": ([*BASE, "--inner_lr", "1", "--inner_lr", "2"], "twice"),
    "no data": (["--output_dir", "out"], "train_data: missing"),
    "no folder": (["--train_data", "a.jsonl"], "output_dir: missing"),
    "length": ([*BASE, "--max_length", "1"], "max_length"),
    "resume from": ([*BASE, "--resume_from_checkpoint", "a"], "from the newest checkpoint in outp"),
    "columns": ([*BASE, "--remove_unused_columns"], "remove_unused_columns: .* leave it out"),
    "no batches": ([*BASE, "--gradient_accumulation_steps=0"], "steps: 0 must be 1 or more"),
    "no rows": ([*BASE, "--per_device_train_batch_size=0"], "size: 0 must be 1 or more"),
    "no rows of val_data": ([*BASE, "--per_device_eval_batch_size=0"], "size: 0 must be 1 or more"),
    "metric": ([*BASE, "--metric_for_best_model=accuracy"], "not one of loss, loss_bidirectional"),
    "negative": ([*BASE, "--num_inner_steps", "-1"], "num_inner_steps"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_are_one_line(name):
    arguments, message = BAD_ARGUMENTS[name]
    with pytest.raises(ConfigError, match=message) as caught:
        load_train_config(None, arguments)
    assert "\n" not in str(caught.value)


BAD_FILES = {
    "list": (b"- a\n", "option: value"),
    "not yaml": (b"a: [1\n", "not valid YAML"),
    "twice": (b"inner_lr: 1\ninner_lr: 2\n", "twice"),
    "binary": (b"\xff\xfe\x00", "cannot be read"),
    "unknown": (b"inner_learning_rate: 1\n", "unknown option"),
    "another trainer's name": (b"model: x\n", "did you mean 'model_name_or_path'?"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_one_line(name, tmp_path):
    content, message = BAD_FILES[name]
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_train_config(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        load_train_config(Path("nowhere.yaml"))


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_checkpointing_by_either_name(tmp_path, name):
    def config(**options):
        return FocuSFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **options)

    assert not config().activation_checkpointing
    assert config(**{name: True}).activation_checkpointing


def test_bf16_needs_no_accelerator(tmp_path):
    config = load_train_config(
        None, ["--train_data", "x.jsonl", "--output_dir", str(tmp_path), "--bf16", "true"]
    )
    assert config.bf16
    assert config.use_cpu == (not torch.accelerator.is_available())


def test_text_of_the_command_line_stays_as_it_is(tmp_path):
    folder = f"{tmp_path}/run #2"
    config = load_train_config(
        None, ["--train_data", "2024-05-01", "--output_dir", folder, "--run_name", "010"]
    )
    assert (config.output_dir, config.train_data, config.run_name) == (folder, "2024-05-01", "010")


def test_the_command_line_wins_over_the_file_by_either_name(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(f"train_data: x.jsonl\noutput_dir: {tmp_path}\ngradient_checkpointing: false\n")
    config = load_train_config(file, ["--activation_checkpointing", "true"])
    assert config.activation_checkpointing
    names = ["--activation_checkpointing", "--gradient_checkpointing"]
    with pytest.raises(ConfigError, match="command line: gradient_checkpointing and activation_"):
        load_train_config(file, names)
