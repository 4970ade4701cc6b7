"""Run what is left of a study: the search for options first, then the cells, seed after seed."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import yaml
from rich.console import Console
from rich.table import Table

from focusft.errors import ConfigError, RunInterrupted, UserError
from focusft.study.cells import TRAIN, Cell, Stage, candidate_cells, final_cells, note_settings
from focusft.study.config import Study
from focusft.study.estimates import Estimates, duration
from focusft.study.launch import (
    Launch,
    OutOfTimeError,
    StageFailedError,
    check_exit,
    launch_process,
)
from focusft.study.results import cell_results, write_result
from focusft.study.tuning import Choices, choose, write_choices


def run_study(
    study: Study,
    console: Console,
    *,
    only: Sequence[str] | None = None,
    max_hours: float | None = None,
    launch: Launch = launch_process,
) -> None:
    """Run every stage that is not done, and write a result for each finished cell.

    Args:
        study: The study.
        console: Where the progress goes.
        only: Names of arms; all if None.
        max_hours: When to stop; the stage at work then goes on in the next call.
        launch: Runs a command.

    Raises:
        UserError: Something in the study or its folders cannot be used, or cells failed.
        RunInterrupted: SIGTERM stopped the study.
    """
    arms = _chosen_arms(study, only)
    end = None if max_hours is None else time.monotonic() + 3600 * max_hours
    with _locked(study) as lock, _stopping_on_sigterm():
        runner = _Runner(study, console, launch, end, lock)
        try:
            choices = _search(study, arms, runner)
            # Settings that do not fit show before hours are spent.
            cells = list(final_cells(study, arms, choices.options))
            runner.run_all(cells)
        except OutOfTimeError:
            console.print(f"time is up after {max_hours:g} h; run the same command to go on")
            runner.report_failures()
            return
    runner.report_failures()
    console.print(f"all cells are done: {study.results}", soft_wrap=True)


def print_plan(study: Study, console: Console, *, only: Sequence[str] | None = None) -> None:
    """Print the cells, what of each is done, and how long the rest may take."""
    arms = _chosen_arms(study, only)
    cells: list[Cell] = []
    for number, tuning in enumerate(study.tunings):
        before = choose(study, arms, study.tunings[:number])
        cells += candidate_cells(study, tuning, arms, before.options)
    choices = choose(study, arms, study.tunings)
    cells += final_cells(study, arms, choices.options)
    estimates = Estimates.of(study)
    table = Table("cell", "done", "left", "about", title=f"{study.name}: {len(cells)} cells")
    seconds = []
    for cell in cells:
        left = _left(cell)
        done = [stage.name for stage in cell.stages if stage not in left]
        seconds.append(estimates.of_stages(cell.arm, left))
        about = duration(seconds[-1]) if left else ""
        table.add_row(cell.name, ", ".join(done), ", ".join(s.name for s in left), about)
    console.print(table)
    for text in choices.open:
        console.print(f"to be chosen first: {text}", markup=False)
    unknown = sum(value is None for value in seconds)
    console.print(
        f"{sum(cell.is_done() for cell in cells)} of {len(cells)} cells done, about "
        f"{duration(sum(value or 0 for value in seconds))} left"
        + (f" and {unknown} cells of which nothing is timed yet" if unknown else "")
    )


class _Runner:
    """Runs cells.

    Attributes:
        failed: Problems by the name of the cell.
    """

    def __init__(
        self, study: Study, console: Console, launch: Launch, end: float | None, lock: int
    ) -> None:
        self.failed: dict[str, str] = {}
        self._study = study
        self._console = console
        self._launch = launch
        self._end = end
        self._lock = lock

    def run_all(self, cells: Sequence[Cell]) -> None:
        """Run what is left of some cells; one that fails does not stop the others."""
        left = [cell for cell in cells if not cell.is_done()]
        if len(left) < len(cells):
            self.say(f"{len(cells) - len(left)} of {len(cells)} cells are done")
        for number, cell in enumerate(left, 1):
            head = f"[{number}/{len(left)}] {cell.name}"
            try:
                self._run(cell, head, left[number:])
            except StageFailedError as error:
                self.say(f"{head}: failed: {error}")
                if cell.candidate is not None and error.is_final:
                    failed = {"arm": cell.arm, "failed": str(error), "settings": cell.settings}
                    write_result(cell.result, failed)
                else:
                    self.failed[cell.name] = str(error)

    def say(self, line: str) -> None:
        """Print a line as it is."""
        self._console.print(line, markup=False, soft_wrap=True)

    def report_failures(self) -> None:
        """Raise if a cell failed.

        Raises:
            UserError: One line for all of them.
        """
        if self.failed:
            raise UserError(
                f"{len(self.failed)} cells failed, the same command tries them again: "
                + "; ".join(f"{name}: {problem}" for name, problem in self.failed.items())
            )

    def _run(self, cell: Cell, head: str, later: Sequence[Cell]) -> None:
        for stage in cell.stages:
            if stage.is_done():
                continue
            if self._end is not None and time.monotonic() >= self._end:
                raise OutOfTimeError
            estimates = Estimates.of(self._study)
            rest = [estimates.of_stages(other.arm, _left(other)) for other in (cell, *later)]
            known = [seconds for seconds in rest if seconds is not None]
            self.say(
                f"{time.strftime('%H:%M')} {head} {stage.name}: about "
                f"{duration(estimates.of_stages(cell.arm, [stage]))}; the study: about "
                f"{duration(sum(known) if known else None)}; log: {stage.log}"
            )
            note_settings(stage)
            if stage.train_options is not None:
                stage.config_file.write_text(yaml.safe_dump(stage.train_options), encoding="utf-8")
            check_exit(self._launch(stage.words, stage.log, self._end, self._lock), stage.log)
            if stage.name == TRAIN:
                # They are large, and only for going on.
                for checkpoint in stage.folder.glob("checkpoint-*"):
                    shutil.rmtree(checkpoint)
        write_result(cell.result, cell_results(self._study, cell))


def _search(study: Study, arms: tuple[str, ...], runner: _Runner) -> Choices:
    """Try the values of every option that is to be chosen.

    Raises:
        UserError: Cells failed, so that a choice cannot be made.
    """
    for number, tuning in enumerate(study.tunings):
        before = choose(study, arms, study.tunings[:number])
        runner.run_all(list(candidate_cells(study, tuning, arms, before.options)))
        runner.report_failures()
    choices = choose(study, arms, study.tunings)
    if study.tunings:
        # Those of other arms as well: they may have been made by another call.
        everything = tuple(arm.name for arm in study.arms)
        write_choices(study, choose(study, everything, study.tunings))
    for line in choices.lines():
        runner.say(line)
    return choices


def _chosen_arms(study: Study, only: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(arm.name for arm in study.arms)
    for name in only or ():
        if name not in names:
            raise ConfigError(f"--only: {name!r} is none of {', '.join(names)}")
    return tuple(name for name in names if only is None or name in only)


def _left(cell: Cell) -> list[Stage]:
    if cell.is_done():
        return []
    return [stage for stage in cell.stages if not stage.is_done()]


@contextmanager
def _locked(study: Study) -> Iterator[int]:
    """Let only one study work in a folder; commands keep the lock where this process is killed.

    Raises:
        UserError: Another one works there.
    """
    study.out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(study.out / "lock", os.O_CREAT | os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{study.out}: another study, or a command of one that was killed, works there; "
                "wait for it, or stop it"
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _stopping_on_sigterm() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise RunInterrupted("SIGTERM: stopped; run the same command to go on", number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
