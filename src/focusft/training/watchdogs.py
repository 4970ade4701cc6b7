"""What stops a run that has gone wrong, and what warns while it can still be mended."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from focusft.errors import UserError
from focusft.method.inner_loop import NonFiniteLossError
from focusft.training.resume import ResumableTrainer

logger = logging.getLogger(__name__)

# A few raised steps are normal late in training; half of them is a step size beyond the curvature.
_RAISED_TOO_OFTEN = 0.5


class TrainingStopped(UserError):
    """Training went astray; the message says how, and how to mend it.

    The exit code tells a study that the same command would do so again.
    """

    exit_code = 3


def stop_on_non_finite(trainer: ResumableTrainer, what: str, value: float) -> None:
    """Stop before the optimizer takes a step that would spoil the weights, and save them.

    Args:
        trainer: The trainer, inside a step.
        what: Name of the figure.
        value: The figure; nothing happens if it is finite.

    Raises:
        TrainingStopped: It is not finite.
    """
    if not math.isfinite(value):
        _save_and_stop(trainer, f"the {what} is {value}")


@contextmanager
def stop_on_non_finite_losses(trainer: ResumableTrainer) -> Iterator[None]:
    """Save the weights when the inner loop or its loss is not finite.

    Raises:
        TrainingStopped: Instead of `NonFiniteLossError`.
    """
    try:
        yield
    except NonFiniteLossError as error:
        if trainer.args.world_size > 1 or not trainer.is_in_train:
            raise
        _save_and_stop(trainer, str(error).partition(";")[0], error)


def _save_and_stop(
    trainer: ResumableTrainer, what: str, cause: BaseException | None = None
) -> NoReturn:
    checkpoint = trainer.save_step_start()
    where = f"the state before it is {checkpoint}" if checkpoint else "nothing was trained yet"
    raise TrainingStopped(
        f"step {trainer.state.global_step + 1}: {what}; {where}; lower learning_rate or inner_lr, "
        "or set inner_step=backtracking, and run the command again"
    ) from cause


class WatchInnerLoss(TrainerCallback):
    """Warns once when most inner steps between two lines of the log raised the inner loss."""

    def __init__(self, inner_lr: float) -> None:
        self.inner_lr = inner_lr
        self.has_warned = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at the line that is being logged."""
        raised = (logs or {}).get("inner_steps_raised", 0.0)
        if raised > _RAISED_TOO_OFTEN and not self.has_warned:
            self.has_warned = True
            logger.warning(
                "step %d: %.0f%% of the inner steps raised the inner loss (inner_lr=%g): lower "
                "inner_lr or set inner_step=backtracking",
                state.global_step,
                100 * raised,
                self.inner_lr,
            )
