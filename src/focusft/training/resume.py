"""A Trainer whose checkpoints are whole and whose resumed runs are those that never stopped.

What transformers leaves open and this closes: a kill during a write leaves a torn checkpoint; a
stop between two lines of the log changes the next line, and any stop the mean loss of the run; with
several processes, a run resumed within its second epoch draws the order of the first; changed data
are read from a cursor that no longer fits them; a stop in the middle of a step cannot be saved.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import nested_gather

from focusft.errors import ConfigError
from focusft.training.checkpoints import (
    UNFINISHED,
    CheckpointError,
    clear_unfinished,
    find_damage,
    list_checkpoints,
    publish,
    rotate,
    seal,
    storage_errors,
)

logger = logging.getLogger(__name__)

PROGRESS = "progress.json"
# Where transformers keeps the state of the learning rate, unless it saves the model alone.
SCHEDULE = "scheduler.pt"
# Under which name the place in the data has a hash of all of them.
CONTENT = "data_sha256"


@dataclass(frozen=True)
class _Boundary:
    """What a checkpoint holds that a step changes before its end."""

    rng: dict[str, Any]
    loss_since_log: Tensor
    counts: dict[str, int]
    lines_logged: int


class ResumableTrainer(Trainer):
    """Writes checkpoints at once or not at all, checks them, and goes on from them exactly."""

    _staging: Path | None = None
    _boundary: _Boundary | None = None
    _step_in_progress: int | None = None
    _saved_step: int | None = None
    _loss_before = 0.0
    _best_before: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._progress: dict[str, Any] | None = None
        self.add_callback(_RestoreProgress(self))

    def train(
        self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train; a checkpoint to go on from is checked against its manifest first.

        Args:
            resume_from_checkpoint: The checkpoint; True for the newest one in `output_dir`.
            args: As for `transformers.Trainer.train`.
            kwargs: As for `transformers.Trainer.train`.

        Raises:
            CheckpointError: It is damaged, or the disk is full.
            ConfigError: It belongs to other data or another number of examples a step, holds the
                model alone, or there is none.
        """
        self._boundary = self._step_in_progress = self._saved_step = self._progress = None
        self._loss_before, self._best_before = 0.0, None
        checkpoint = self._checkpoint_of(resume_from_checkpoint)
        if checkpoint is not None:
            # One process reads it all; the others would only wait for the same disk.
            damage = find_damage(checkpoint) if self.args.should_save else None
            if damage is not None:
                raise CheckpointError(
                    f"{checkpoint}: the checkpoint is damaged: {damage}; go on from another one"
                )
            if not (checkpoint / SCHEDULE).exists():
                raise ConfigError(
                    f"{checkpoint}: holds the model alone (save_only_model), so training cannot go "
                    f"on from it; name another output_dir, with model_name_or_path={checkpoint} to "
                    "start from these weights"
                )
            self._progress = json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))
            state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
            if state.best_model_checkpoint is not None:
                self._best_before = Path(state.best_model_checkpoint).name
            self._check_same_data(checkpoint)
        if self.args.should_save:
            clear_unfinished(Path(str(self.args.output_dir)))
        return super().train(str(checkpoint) if checkpoint else None, *args, **kwargs)

    def save_step_start(self) -> Path | None:
        """Save the state from before the step that is being computed; it must not go on then.

        Returns:
            The checkpoint to go on from; None if no step is done yet.
        """
        if self.state.global_step == 0:
            return None
        self._save_checkpoint(self.model, None)
        return Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Note that the state is now between two steps."""
        self._step_in_progress = self.state.global_step
        return super().training_step(*args, **kwargs)

    def progress(self) -> dict[str, Any]:
        """What a resumed run needs beyond the state of transformers, ready for JSON."""
        loss, counts = self._tr_loss, self.counts()
        if self._is_mid_step and self._boundary is not None:
            loss, counts = self._boundary.loss_since_log, self._boundary.counts
        return {
            "loss_since_log": nested_gather(loss, self.args.parallel_mode).mean().item(),
            "last_logged_step": self._globalstep_last_logged,
            "loss_until_log": self._loss_before + self._total_loss_scalar,
            "counts": counts,
            "data": self._data_cursor(),
        }

    def counts(self) -> dict[str, int]:
        """Attributes of the trainer that count over the whole run, by name."""
        return {}

    def restore_progress(self, progress: dict[str, Any]) -> None:
        """Take up what `progress` wrote."""
        self._tr_loss.fill_(progress["loss_since_log"])
        self._globalstep_last_logged = progress["last_logged_step"]
        self._loss_before = progress["loss_until_log"]
        vars(self).update(progress["counts"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Let the mean loss be that of the whole run, not of the steps since it went on."""
        if "train_loss" in logs:
            total = self._loss_before + self._total_loss_scalar
            # In place: these are the metrics that `train` returns, too.
            logs["train_loss"] = total / max(self.state.global_step, 1)
        super().log(logs, start_time)

    @property
    def _is_mid_step(self) -> bool:
        return self._step_in_progress == self.state.global_step

    @property
    def _is_saved(self) -> bool:
        return self._saved_step == self.state.global_step

    def _checkpoint_of(self, given: str | Path | bool | None) -> Path | None:
        if given is not True:
            return Path(given) if given else None
        output_dir = Path(str(self.args.output_dir))
        checkpoints = list_checkpoints(output_dir)
        if not checkpoints:
            raise ConfigError(f"resume_from_checkpoint: {output_dir} holds no checkpoint")
        return checkpoints[-1]

    def _data_cursor(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be an earlier state of this run."""
        args = self.args
        dataset: Any = self.train_dataset
        cursor = {
            "examples_per_step": args.train_batch_size
            * args.gradient_accumulation_steps
            * args.world_size,
            "data_seed": args.seed if args.data_seed is None else args.data_seed,
            "train_sampling_strategy": args.train_sampling_strategy,
        }
        return cursor | ({"rows": len(dataset)} if hasattr(dataset, "__len__") else {})

    def _check_same_data(self, checkpoint: Path) -> None:
        assert self._progress is not None
        cursor = self._data_cursor()
        for name, then in self._progress["data"].items():
            now = cursor.get(name)
            if name == CONTENT and now is None:
                continue  # rows that are made on the way have no hash
            if then != now:
                raise ConfigError(
                    f"{checkpoint}: was trained with {name.replace('_', ' ')} {then}, this run has "
                    f"{now}, so it is another run; restore it, or name another output_dir "
                    f"(with model_name_or_path={checkpoint} to go on from these weights)"
                )

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        # With a limit of 1 it would keep the best checkpoint alone, and what the run goes on from
        # would be gone: `rotate` has kept the limit already.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if 0 < self.state.max_steps <= self.state.global_step:
            # A finished run that is started again: transformers would do one more step.
            self.control.should_training_stop = True
            return
        # The loader that skips to the cursor does not hand the epoch on when batches are sharded
        # over processes; it shares the sampler of this one, which does.
        if hasattr(kwargs["train_dataloader"], "set_epoch"):
            kwargs["train_dataloader"].set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if not self.control.should_training_stop:
            self._boundary = _Boundary(
                _rng_state(), self._tr_loss.clone(), self.counts(), len(self.state.log_history)
            )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load their state, but keep this run's learning rate where it was changed meanwhile."""
        schedule = self.lr_scheduler if isinstance(self.lr_scheduler, LambdaLR) else None
        wanted = None if schedule is None else list(schedule.base_lrs)
        super()._load_optimizer_and_scheduler(checkpoint)
        if schedule is None or wanted is None or schedule.base_lrs == wanted:
            return
        logger.warning(
            "learning_rate: %s is used from here on; the checkpoint was trained with %s",
            wanted[0],
            schedule.base_lrs[0],
        )
        schedule.base_lrs = wanted
        rates = [
            rate * factor(schedule.last_epoch)
            for rate, factor in zip(wanted, schedule.lr_lambdas, strict=True)
        ]
        schedule._last_lr = rates
        for group, base, rate in zip(schedule.optimizer.param_groups, wanted, rates, strict=True):
            group["initial_lr"], group["lr"] = base, rate

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Between two steps the last checkpoint may already hold the state from before them; and
        # without a boundary this is the first step, of the run or after that checkpoint.
        if self._is_mid_step and (self._boundary is None or self._is_saved):
            return
        if self._is_mid_step and self._boundary is not None:
            del self.state.log_history[self._boundary.lines_logged :]
        output_dir = Path(super()._get_output_dir(trial))
        staging = output_dir / UNFINISHED
        with storage_errors(output_dir, f"the checkpoint of step {self.state.global_step}"):
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir(parents=True)
            progress = self.progress()
            self.accelerator.wait_for_everyone()
            self._staging = staging
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None
            best = self.state.best_model_checkpoint
            if best is not None and Path(best).parent == staging:
                # In every process: each loads the best weights at the end.
                self.state.best_model_checkpoint = str(output_dir / Path(best).name)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._publish(staging, output_dir, progress)
            self.accelerator.wait_for_everyone()
        self._saved_step = self.state.global_step
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(output_dir / f"checkpoint-{self.state.global_step}"))

    def _publish(self, staging: Path, output_dir: Path, progress: dict[str, Any]) -> None:
        staged = staging / f"checkpoint-{self.state.global_step}"
        best = self.state.best_model_checkpoint
        if best is not None and Path(best).name == staged.name:
            self.state.save_to_json(str(staged / "trainer_state.json"))
        (staged / PROGRESS).write_text(json.dumps(progress, indent=1), encoding="utf-8")
        seal(staged)
        checkpoint = publish(staged, output_dir)
        rotate(output_dir, self.args.save_total_limit, checkpoint, best)
        clear_unfinished(output_dir)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # An upload goes on in the background: it must read the folder under its final name.
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_rng_state(self, output_dir: str) -> None:
        if not self._is_mid_step or self._boundary is None:
            super()._save_rng_state(output_dir)
            return
        now = _rng_state()
        _set_rng_state(self._boundary.rng)
        try:
            super()._save_rng_state(output_dir)
        finally:
            _set_rng_state(now)


class _RestoreProgress(TrainerCallback):
    """Training begins by resetting what a checkpoint holds; this puts it back."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self.trainer._progress is not None:
            self.trainer.restore_progress(self.trainer._progress)
            best = self.trainer._best_before
            if best is not None and (here := Path(str(args.output_dir)) / best).is_dir():
                # transformers forgets it where the folder of the run was moved.
                state.best_model_checkpoint = str(here)


def _rng_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def _set_rng_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
