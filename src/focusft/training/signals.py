"""SIGTERM and SIGINT end a run with a checkpoint instead of losing what was done since the last."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from focusft.errors import RunInterrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_STOP_AT = "focusft/stop_at"


class StopOnSignal(TrainerCallback):
    """Saves and stops after the micro-batch in which SIGTERM or SIGINT arrives.

    The gradients of an unfinished step are dropped: the checkpoint holds the state from before it.
    A second signal acts at once, as if there were no handler. Several processes stop after the
    same step; they agree on it through torch's store, without a collective operation.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.stopped_at: int | None = None
        self._ended_epoch = False
        self._previous: dict[int, Any] = {}

    @contextmanager
    def catch(self, output_dir: Path) -> Iterator[None]:
        """Catch the signals while a run trains in the main thread.

        Raises:
            RunInterrupted: A signal stopped the run.
        """
        # What is ignored stays so, for instance SIGINT below nohup.
        caught = [n for n in _SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._receive) for number in caught}
        try:
            yield
        finally:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
        if self.stopped_at is None:
            return
        received = self.received or signal.SIGTERM  # another process may have got it
        checkpoint = output_dir / f"checkpoint-{self.stopped_at}"
        then = f"it goes on from {checkpoint}" if self.stopped_at else "it starts anew"
        raise RunInterrupted(
            f"{received.name}: stopped after step {self.stopped_at}; run the same command again, "
            f"{then}",
            received,
        )

    def on_substep_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Stop inside a step; several processes are not at the same place then."""
        if args.world_size == 1:
            self._stop_if_asked(args, state, control)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Stop after a step."""
        was_going_on = self.stopped_at is None
        self._stop_if_asked(args, state, control)
        is_last_of_epoch = state.epoch is not None and float(state.epoch).is_integer()
        self._ended_epoch = was_going_on and self.stopped_at is not None and is_last_of_epoch

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """A stop within an epoch is not its end: nothing is logged or measured."""
        if self.stopped_at is None:
            return
        if self._ended_epoch:
            # The checkpoint of the step has no line of this epoch's end yet.
            control.should_save = True
        else:
            control.should_log = control.should_evaluate = False

    def _stop_if_asked(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> None:
        if self.stopped_at is None and self._is_asked(args, state):
            self.stopped_at = state.global_step
            control.should_save = control.should_training_stop = True

    def _is_asked(self, args: TrainingArguments, state: TrainerState) -> bool:
        if args.world_size == 1:
            return self.received is not None
        store = torch.distributed.distributed_c10d._get_default_store()
        if self.received is not None:
            # A process is never two steps ahead of another: gradients join them in each.
            store.compare_set(_STOP_AT, "", str(state.global_step + 2))
        return store.check([_STOP_AT]) and state.global_step >= int(store.get(_STOP_AT))

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)
            return
        self.received = signal.Signals(number)
        # Not print: the signal may have come in the middle of one.
        os.write(2, f"focusft: {self.received.name}: saving; again to stop at once\n".encode())
