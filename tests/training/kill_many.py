"""Kill and damage a run again and again; it must go on as if nothing had happened, or say why not.

    python -m tests.training.kill_many --kills 50

Every case trains a tiny model through the command line in a forked process, ends it in one of the
ways below, and runs the same command again until it is done. Checked are the losses, the bytes of
the trained weights, that no whole checkpoint is lost, the exit code, and that nothing but one line
is said. The last line is a summary as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import torch
from transformers import TrainerCallback

from focusft.cli import main as focusft
from focusft.training import checkpoints, resume
from focusft.training import run as training_run
from tests.tiny_models import tiny_model, tiny_tokenizer

STEPS = 12
SAVE_STEPS = 2
LIMIT = 2
KINDS = (
    "SIGKILL at a random moment",
    "SIGTERM at a random moment",
    "SIGINT at a random moment",
    "SIGKILL in a checkpoint write",
    "SIGTERM in a checkpoint write",
    "disk full",
    "newest checkpoint cut",
    "newest checkpoint flipped",
    "file of the newest checkpoint gone",
    "all checkpoints damaged",
)


@dataclass
class Child:
    """How one process ended."""

    exit_code: int
    errors: str
    seconds: float


@dataclass
class Summary:
    """Counts over all cases."""

    cases: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    stopped_with_checkpoint: int = 0
    damaged_passed_over: int = 0
    refused_clearly: int = 0
    failures: list[str] = field(default_factory=list)


class Workshop:
    """A tiny model, its data, and the command that trains it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tokenizer = tiny_tokenizer()
        tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"What is {n} and {n}?"},
                    {"role": "assistant", "content": str(2 * n)},
                ]
            }
            for n in range(10)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "data.jsonl").write_text(lines)

    def command(self, out: Path) -> list[str]:
        """Five steps an epoch, so that runs stop within epochs and at their ends."""
        options = {
            "model_name_or_path": self.folder / "model",
            "train_data": self.folder / "data.jsonl",
            "output_dir": out,
            "inner_lr": 0.1,
            "inner_rank": 4,
            "inner_dropout": 0.1,
            "learning_rate": 1e-3,
            "max_steps": STEPS,
            "gradient_accumulation_steps": 2,
            "logging_steps": 3,
            "save_steps": SAVE_STEPS,
            "save_total_limit": LIMIT,
            "use_cpu": "true",
            "report_to": "none",
            "disable_tqdm": "true",
        }
        return ["train", *(f"--{name}={value}" for name, value in options.items())]


def in_child(work: Workshop, out: Path, sabotage=lambda: None) -> Child:
    """Run the command in a forked process, which imports nothing again."""
    log = work.folder / "stderr.txt"
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 99
        with open(log, "w") as errors:
            os.dup2(errors.fileno(), 2)
            sys.stderr = errors
            try:
                # A shell's background jobs ignore SIGINT.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                sabotage()
                with contextlib.redirect_stdout(io.StringIO()):
                    code = focusft(work.command(out))
            except BaseException:
                traceback.print_exc()
            errors.flush()
        os._exit(code)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return Child(code, log.read_text(errors="replace"), time.monotonic() - started)


class SignalAt(TrainerCallback):
    """Sends a signal a moment after a step has begun, from another thread."""

    def __init__(self, number: int, step: int, delay: float) -> None:
        self.number, self.step, self.delay = number, step, delay

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            threading.Timer(self.delay, os.kill, (os.getpid(), self.number)).start()


def at_random_moment(number: int, chance: random.Random):
    step, delay = chance.randrange(STEPS), chance.uniform(0, 0.2)

    def sabotage() -> None:
        trainer_class = training_run.FocuSFTTrainer

        def build(**kwargs):
            kwargs["callbacks"] = [*kwargs["callbacks"], SignalAt(number, step, delay)]
            return trainer_class(**kwargs)

        training_run.FocuSFTTrainer = build

    return sabotage


def in_a_write(number: int, chance: random.Random):
    """A signal at the n-th of the operations that write checkpoints."""
    countdown = chance.randrange(1, 90)

    def sabotage() -> None:
        def counted(operation):
            def run(*args, **kwargs):
                nonlocal countdown
                countdown -= 1
                if countdown == 0:
                    os.kill(os.getpid(), number)
                return operation(*args, **kwargs)

            return run

        checkpoints._flush = counted(checkpoints._flush)
        checkpoints._sha256 = counted(checkpoints._sha256)
        checkpoints._remove = counted(checkpoints._remove)
        os.rename = counted(os.rename)
        shutil.rmtree = counted(shutil.rmtree)
        torch.save = counted(torch.save)
        resume.seal = counted(resume.seal)
        resume.publish = counted(resume.publish)
        resume.rotate = counted(resume.rotate)

    return sabotage


def disk_full(chance: random.Random):
    """No file may grow beyond a size from some save on: some fit, some do not."""
    save, size = chance.randrange(1, 6), chance.choice([100, 5_000, 20_000, 100_000, 200_000])

    def sabotage() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        original = resume.ResumableTrainer._save_checkpoint
        count = 0

        def limited(self, *args):
            nonlocal count
            count += 1
            if count == save:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            original(self, *args)

        resume.ResumableTrainer._save_checkpoint = limited

    return sabotage


def damage(checkpoint: Path, kind: str, chance: random.Random) -> None:
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.stat().st_size)
    victim = chance.choice(files)
    if kind == "newest checkpoint cut":
        os.truncate(victim, chance.randrange(victim.stat().st_size))
    elif kind == "file of the newest checkpoint gone":
        victim.unlink()
    else:
        content = bytearray(victim.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        victim.write_bytes(content)


def outcome(out: Path) -> tuple[list, str]:
    """Losses of the run and a hash of the trained weights."""
    log = json.loads((out / "results.json").read_text())["log"]
    losses = [(line["step"], line["loss"]) for line in log if "loss" in line]
    return losses, hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def whole(out: Path) -> list[int]:
    return [
        checkpoints.step_of(path)
        for path in checkpoints.list_checkpoints(out)
        if checkpoints.find_damage(path) is None
    ]


def one_case(work: Workshop, number: int, expected, summary: Summary) -> None:
    kind = KINDS[number % len(KINDS)]
    chance = random.Random(f"kill {number}")
    out = work.folder / f"case-{number}"

    def check(holds: bool, what: str, errors: str = "") -> None:
        if not holds:
            summary.failures.append(f"case {number} ({kind}): {what} {errors[-1500:]}")

    sabotage = {
        "SIGKILL at a random moment": lambda: at_random_moment(signal.SIGKILL, chance),
        "SIGTERM at a random moment": lambda: at_random_moment(signal.SIGTERM, chance),
        "SIGINT at a random moment": lambda: at_random_moment(signal.SIGINT, chance),
        "SIGKILL in a checkpoint write": lambda: in_a_write(signal.SIGKILL, chance),
        "SIGTERM in a checkpoint write": lambda: in_a_write(signal.SIGTERM, chance),
        "disk full": lambda: disk_full(chance),
    }.get(kind, lambda: at_random_moment(signal.SIGKILL, chance))()
    child = in_child(work, out, sabotage)
    summary.cases += 1
    ended = f"exit {child.exit_code}"
    summary.ended[ended] = summary.ended.get(ended, 0) + 1
    check("Traceback" not in child.errors, "a traceback", child.errors)
    # 0: the moment never came; the others are what each kind may end with.
    allowed = {0, -9} if "SIG" not in kind or "KILL" in kind else {0, 130, 143}
    check(child.exit_code in ({0, 2} if kind == "disk full" else allowed), ended, child.errors)
    left = whole(out)
    listed = [checkpoints.step_of(path) for path in checkpoints.list_checkpoints(out)]
    check(left == listed, f"of {listed} only {left} are whole")
    if child.exit_code in (130, 143):
        summary.stopped_with_checkpoint += 1
        check("run the same command again" in child.errors, "no way to go on", child.errors)
    if child.exit_code == 2:
        summary.refused_clearly += 1
        check("cannot be written" in child.errors, "not a clear line", child.errors)
        lines = [line for line in child.errors.splitlines() if line.startswith("focusft: error")]
        check(len(lines) == 1, "not one line", child.errors)
    damaged = 0
    if "checkpoint" in kind and "write" not in kind and left:
        victims = left if kind == "all checkpoints damaged" else left[-1:]
        for step in victims:
            damage(out / f"checkpoint-{step}", kind, chance)
        damaged = len(victims)
    if damaged and damaged == len(left):
        refused = in_child(work, out)
        check(refused.exit_code == 2, f"exit {refused.exit_code}", refused.errors)
        check("no checkpoint is whole" in refused.errors, "no refusal", refused.errors)
        summary.refused_clearly += 1
        shutil.rmtree(out)
    elif damaged:
        summary.damaged_passed_over += 1
    last = in_child(work, out)
    check(last.exit_code == 0, f"resumed: exit {last.exit_code}", last.errors)
    if last.exit_code == 0:
        check(outcome(out) == expected, f"{outcome(out)} instead of {expected}")
        check(whole(out)[-1] == STEPS, "the last checkpoint is not there")
        check(not (out / checkpoints.UNFINISHED).exists(), "something unfinished is left")
    shutil.rmtree(out, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    summary = Summary()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder)
        work = Workshop(Path(folder))
        whole_run = in_child(work, work.folder / "whole")
        if whole_run.exit_code != 0:
            print(whole_run.errors)
            return 1
        expected = outcome(work.folder / "whole")
        for number in range(options.first, options.first + options.kills):
            one_case(work, number, expected, summary)
            print(f"case {number}: {KINDS[number % len(KINDS)]}", flush=True)
    for failure in summary.failures:
        print("FAILED", failure)
    print(json.dumps(vars(summary) | {"seconds": round(time.monotonic() - started)}))
    return 1 if summary.failures else 0


if __name__ == "__main__":
    sys.exit(main())
