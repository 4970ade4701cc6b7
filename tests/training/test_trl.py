"""TRL's SFTTrainer with FocuSFT: the steps are those of our own trainer."""

import pytest
import torch
from datasets import Dataset

import focusft
from focusft.errors import ConfigError
from focusft.method.inner_loop import NonFiniteLossError
from focusft.training.config import FocuSFTConfig
from focusft.training.trainer import FocuSFTTrainer
from tests.method.helpers import conversation
from tests.tiny_models import tiny_model, tiny_tokenizer

trl = pytest.importorskip("trl")
from focusft.training.integrations.trl import FocuSFTSFTTrainer  # noqa: E402

FOCUS = {"inner_lr": 0.1, "inner_rank": 4}
SHARED = {
    "max_steps": 3,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "train_sampling_strategy": "sequential",
}


def rows(count=12):
    conversations = [conversation([(6 + n % 5, 3), (4, 2 + n % 3)], seed=n) for n in range(count)]
    return [{"input_ids": ids.tolist(), "labels": labels.tolist()} for ids, labels in conversations]


def trl_trainer(folder, model=None, focus_config=None, **options):
    settings = SHARED | {
        "weight_decay": 0.01,
        "loss_type": "nll",
        "activation_checkpointing": False,
        "bf16": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    return FocuSFTSFTTrainer(
        model=model or tiny_model("llama", vocab_size=260),
        args=trl.SFTConfig(output_dir=str(folder), **(settings | options)),
        train_dataset=Dataset.from_list(rows()),
        eval_dataset=Dataset.from_list(rows(4)),
        processing_class=tiny_tokenizer(),
        focus_config=focus_config or focusft.FocusConfig(**FOCUS),
    )


def logged(run, name):
    return [entry[name] for entry in run.state.log_history if name in entry]


def test_the_steps_are_those_of_our_trainer(tmp_path):
    theirs = trl_trainer(tmp_path / "a")
    theirs.train()
    turn_ids = [{**row, "turn_ids": _turn_ids(row["labels"])} for row in rows()]
    ours = FocuSFTTrainer(
        model=tiny_model("llama", vocab_size=260),
        args=FocuSFTConfig(output_dir=str(tmp_path / "b"), packing=False, **SHARED, **FOCUS),
        train_dataset=Dataset.from_list(turn_ids),
    )
    ours.train()
    assert logged(theirs, "loss") == pytest.approx(logged(ours, "loss"), rel=1e-5)
    assert logged(theirs, "inner_loss_0") == pytest.approx(logged(ours, "inner_loss_0"), rel=1e-5)
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_a_line_of_the_log_over_steps_with_different_masks(tmp_path):
    run = trl_trainer(
        tmp_path, focus_config=focusft.FocusConfig(causal_share=0.5, **FOCUS), logging_steps=2
    )
    run.train()
    first = next(line for line in run.state.log_history if "loss" in line)
    # Two inner steps; the loss after the last is known where both loops have one mask.
    assert [f"inner_loss_{step}" in first for step in range(4)] == [True, True, True, False]


def test_evaluation_is_that_of_trl(tmp_path):
    ours = trl_trainer(tmp_path / "a").evaluate()
    plain = trl.SFTTrainer(
        model=tiny_model("llama", vocab_size=260),
        args=trl_trainer(tmp_path / "b").args,
        train_dataset=Dataset.from_list(rows()),
        eval_dataset=Dataset.from_list(rows(4)),
        processing_class=tiny_tokenizer(),
    ).evaluate()
    assert ours["eval_loss"] == plain["eval_loss"]


@pytest.mark.parametrize("option", [{"loss_type": "dft"}, {"label_smoothing_factor": 0.1}])
def test_other_losses_are_refused(tmp_path, option):
    with pytest.raises(ConfigError, match=next(iter(option))) as caught:
        trl_trainer(tmp_path, **option)
    assert "\n" not in str(caught.value)


def _turn_ids(labels):
    numbers, number, before = [], 0, None
    for label in labels:
        is_response = label != -100
        number += is_response != before
        before = is_response
        numbers.append(-number if is_response else number)
    return numbers


def test_a_gradient_that_is_not_finite_stops(tmp_path):
    run = trl_trainer(tmp_path)
    assert run.engine.stops_on_non_finite
    run.model.lm_head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteLossError, match="step 1: the gradient norm is"):
        run.train()
