"""The YAML files that lm-eval finds our tasks by: one per task and length, one per group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from focusft.errors import ConfigError
from focusft.evaluation import babilong, ruler
from focusft.evaluation.items import SHORTEST, SUITES
from focusft.evaluation.worlds import TASKS as BABI_TASKS

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
# As many as the benchmarks themselves have in a cell.
SAMPLES = {"babilong": 100, "ruler": 500}
# Tasks beyond those of the group exist in the published data only.
_TASKS = {"babilong": babilong.DATA_TASKS, "ruler": ruler.TASKS}
_GROUPED = {"babilong": BABI_TASKS, "ruler": ruler.TASKS}

_TASK_FILE = """\
task: {name}
class: !function focusft.evaluation.lm_eval.task.BenchmarkTask
metadata:
  benchmark: {{suite: {suite}, task: {task}, length: {length}}}
  samples: {samples}
  seed: 42
"""
_GROUP_FILE = """\
group: {name}
task: [{tasks}]
aggregate_metric_list: [{metrics}]
metadata: {{version: 1}}
"""


def write_task_files(folder: Path, lengths: Sequence[int]) -> None:
    """Write the files of all tasks: `focusft_ruler_vt_4096`, .., and groups `focusft_ruler_4096`.

    Args:
        folder: Where they go; it is made if it is not there.
        lengths: Most tokens of prompt and answer together.

    Raises:
        ConfigError: A length is too short, or the folder cannot be written.
    """
    files: dict[str, str] = {}
    for length in lengths:
        if length < SHORTEST:
            raise ConfigError(f"--lengths: {length} is too short; use {SHORTEST} tokens or more")
        for suite in SUITES:
            files |= _files(suite, length)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--out: {folder} cannot be written ({error.strerror}); name another folder"
        ) from error


def metrics(suite: str) -> tuple[str, ...]:
    """Names of what is measured; ruler's score has one rule, babilong's a lenient one too."""
    return ("score", *(("score_lenient",) if suite == "babilong" else ()), "no_answer")


def _files(suite: str, length: int) -> dict[str, str]:
    """Name and text of every file of a suite at one length."""
    texts = {
        f"focusft_{suite}_{task}_{length}": _TASK_FILE.format(
            name=f"focusft_{suite}_{task}_{length}",
            suite=suite,
            task=task,
            length=length,
            samples=SAMPLES[suite],
        )
        for task in _TASKS[suite]
    }
    group = f"focusft_{suite}_{length}"
    texts[group] = _GROUP_FILE.format(
        name=group,
        tasks=", ".join(f"focusft_{suite}_{task}_{length}" for task in _GROUPED[suite]),
        metrics=", ".join(f"{{metric: {m}, weight_by_size: false}}" for m in metrics(suite)),
    )
    return texts
