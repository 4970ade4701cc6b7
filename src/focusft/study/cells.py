"""The cells of a study, the stages of a cell, and what each stage is made with.

A stage is one call of `focusft train`, `eval` or `probe`. Beside its folder lies a note of its
settings, so that nothing that was made with other ones counts as done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from focusft.errors import ConfigError, DataError
from focusft.evaluation.run_files import RESULTS_FILE
from focusft.evaluation.settings import differences
from focusft.study.config import (
    BASE_SEED,
    PROBE,
    TRAIN,
    Arm,
    Evaluation,
    Study,
    Tuning,
    command_words,
)
from focusft.training.adapters import MERGED
from focusft.training.config import TrainConfig, make_train_config, with_new_names
from focusft.training.provenance import write_json

# Options of `focusft eval` that name files.
_EVALUATION_DATA = ("prose", "squad", "hotpotqa", "babilong_data", "questions")
# Where and on what a cell runs, not what it computes.
_NOT_SETTINGS = (
    *("output_dir", "logging_dir", "run_name", "dataloader_pin_memory", "use_cpu"),
    "selective_checkpointing",
)


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: "train", "probe", or the name of an evaluation.
        words: The command line.
        folder: Where the command writes its results.json.
        settings: What the result depends on, as JSON values.
        train_options: What the YAML file of `focusft train` holds; None for other commands.
    """

    name: str
    words: tuple[str, ...]
    folder: Path
    settings: dict[str, Any]
    train_options: dict[str, Any] | None = None

    @property
    def note(self) -> Path:
        """The note of the settings."""
        return self.folder.with_name(f"{self.folder.name}.settings.json")

    @property
    def log(self) -> Path:
        """What the command prints."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def config_file(self) -> Path:
        """The YAML file of `focusft train`."""
        return self.folder.with_name(f"{self.folder.name}.yaml")

    def is_done(self) -> bool:
        """Whether the command has finished with these settings.

        Raises:
            ConfigError: It was begun with other ones.
        """
        if not self.note.exists():
            return False
        check_same(read_json(self.note), self.settings, self.folder, "study.out")
        return (self.folder / RESULTS_FILE).exists()

    def results(self) -> dict[str, Any]:
        """What the command wrote."""
        return read_json(self.folder / RESULTS_FILE)


@dataclass(frozen=True)
class Cell:
    """One model of the grid: trained (unless it is the base), evaluated, probed.

    Attributes:
        name: Such as "sft-0".
        arm: Name of its arm.
        seed: Training seed.
        result: The compact result, to be committed.
        stages: In order.
        tuned: Options that were chosen by validation, with their values.
        candidate: In a search, the value that is tried; else None.
    """

    name: str
    arm: str
    seed: int
    result: Path
    stages: tuple[Stage, ...]
    tuned: dict[str, Any]
    candidate: Any = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of all stages."""
        return {stage.name: stage.settings for stage in self.stages}

    def is_done(self) -> bool:
        """Whether the result is there, with every stage and the same settings.

        Raises:
            ConfigError: It was made with other settings.
        """
        if not self.result.exists():
            return False
        made_with = read_json(self.result)["settings"]
        for stage in self.stages:
            if stage.name in made_with:
                check_same(made_with[stage.name], stage.settings, self.result, "study.results")
        return all(stage.name in made_with for stage in self.stages)


def final_cells(
    study: Study, only: tuple[str, ...], tuned: Mapping[str, dict[str, Any]]
) -> Iterator[Cell]:
    """The cells of some arms, all of a seed before those of the next one.

    Args:
        study: The study.
        only: Names of the arms.
        tuned: Chosen options by arm.
    """
    for number, seed in enumerate(study.seeds):
        for arm in study.arms:
            if arm.name not in only:
                continue
            if arm.overrides is not None:
                yield _cell(study, arm, seed, arm.evaluations, tuned.get(arm.name, {}))
            elif number == 0:
                yield _cell(study, arm, BASE_SEED, arm.evaluations, {})


def candidate_cells(
    study: Study, tuning: Tuning, only: tuple[str, ...], tuned: Mapping[str, dict[str, Any]]
) -> Iterator[Cell]:
    """The cells that try the values of an option, value after value."""
    for value in tuning.values:
        for name in tuning.arms:
            if name in only:
                options = tuned.get(name, {}) | tuning.train | {tuning.option: value}
                label = f"{name}-{tuning.option}-{value}"
                yield _cell(
                    study, study.arm(name), tuning.seed, tuning.evaluations, options, label, value
                )


def _cell(
    study: Study,
    arm: Arm,
    seed: int,
    evaluations: tuple[Evaluation, ...],
    tuned: dict[str, Any],
    candidate_name: str = "",
    candidate: Any = None,
) -> Cell:
    name = candidate_name or f"{arm.name}-{seed}"
    subfolder = "tuning" if candidate_name else ""
    folder = study.out / subfolder / name
    stages = []
    model = study.model
    identity: dict[str, Any] = {"model": model, "files": file_hashes(model)}
    if arm.overrides is not None:
        train = _train_stage(study, arm, seed, tuned, folder / TRAIN)
        stages.append(train)
        made_from = {key: train.settings[key] for key in ("given", "data", "model")}
        saved = train.folder / MERGED if train.settings["resolved"]["use_peft"] else train.folder
        model, identity = str(saved), {"trained": _digest(made_from)}
    for evaluation in evaluations:
        words = ("eval", model, *command_words(evaluation.options))
        out = folder / f"eval-{evaluation.name}"
        settings = {"given": evaluation.options, **_read_by(evaluation), **identity}
        stages.append(Stage(evaluation.name, (*words, "--out", str(out)), out, settings))
    if study.probe is not None and not candidate_name:
        words = ("probe", model, *command_words(study.probe))
        settings = {"given": study.probe, "data": file_hashes(study.probe["data"]), **identity}
        out = folder / PROBE
        stages.append(Stage(PROBE, (*words, "--out", str(out)), out, settings))
    result = study.results / subfolder / f"{name}.json"
    return Cell(name, arm.name, seed, result, tuple(stages), tuned, candidate)


def _read_by(evaluation: Evaluation) -> dict[str, Any]:
    """The files of an evaluation, by their hashes; nothing where it makes its items itself."""
    names = [evaluation.options.get(option) or [] for option in _EVALUATION_DATA]
    paths = [Path(path) for name in names for path in (name if isinstance(name, list) else [name])]
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    found = file_hashes(",".join(map(str, files)))
    return {"data": found} if found else {}


def _train_stage(study: Study, arm: Arm, seed: int, tuned: dict[str, Any], folder: Path) -> Stage:
    """The data order comes from the seed alone, so that it is the same for every arm."""
    options = train_options(study, arm, seed, tuned) | {"output_dir": str(folder)}
    config = train_config(study, arm, options)
    if config.use_peft and not config.merge_adapters:
        raise ConfigError(
            f"{study.path}: arms.{arm.name}: use_peft: adapters alone cannot be evaluated; set "
            "merge_adapters as well"
        )
    settings = {
        "given": {name: value for name, value in options.items() if name != "output_dir"},
        "resolved": {k: v for k, v in config.resolved().items() if k not in _NOT_SETTINGS},
        "data": file_hashes(",".join(filter(None, (config.train_data, config.val_data)))),
        "model": file_hashes(study.model),
    }
    config_file = folder.with_name(f"{folder.name}.yaml")
    words = ("train", "--config", str(config_file))
    return Stage(TRAIN, words, folder, json.loads(json.dumps(settings)), options)


def train_options(study: Study, arm: Arm, seed: int, tuned: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `focusft train` for one model, without the folder."""
    own = {"model_name_or_path": study.model, "seed": seed, "data_seed": seed}
    place = f"{study.path}: arms.{arm.name}"
    layers = (study.train, arm.overrides or {}, tuned, own)
    return {k: v for layer in layers for k, v in with_new_names(layer, place).items()}


def train_config(study: Study, arm: Arm, options: dict[str, Any]) -> TrainConfig:
    """Check the options of an arm.

    Raises:
        ConfigError: `focusft train` does not take them.
    """
    where = dict.fromkeys(options, f"{study.path}: arms.{arm.name}")
    where |= dict.fromkeys(study.train, f"{study.path}: train")
    where |= dict.fromkeys(arm.overrides or {}, f"{study.path}: arms.{arm.name}")
    try:
        return make_train_config(options, where)
    except ConfigError as error:
        text = str(error)
        prefix = "" if text.startswith(str(study.path)) else f"{study.path}: arms.{arm.name}: "
        raise ConfigError(prefix + text) from None


def check_same(before: Any, now: Any, place: Path, key: str) -> None:
    """Check that settings are those that something was made with.

    A default that only one version of the package knows makes no difference.

    Raises:
        ConfigError: They are not.
    """
    for name, earlier, given in differences(before, json.loads(json.dumps(now))):
        if ".resolved." in f".{name}" and None in (earlier, given):
            continue
        option = name.removeprefix("given.").removeprefix("resolved.")
        raise ConfigError(
            f"{option}: {place} was made with {_shown(earlier)}, not {_shown(given)}; use the "
            f"same, delete it, or give the study another '{key.removeprefix('study.')}'"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file.

    Raises:
        DataError: It is none.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it to make it again") from error
    return content


def note_settings(stage: Stage) -> None:
    """Write down what a stage is begun with."""
    stage.folder.parent.mkdir(parents=True, exist_ok=True)
    write_json(stage.note, stage.settings)


def file_hashes(paths: str) -> dict[str, str]:
    """SHA-256 of local files, comma-separated, and of the weights in folders; not of hub ids.

    Raises:
        DataError: What has the name of a data file is not there.
    """
    hashes = {}
    for name in filter(None, (part.strip() for part in paths.split(","))):
        path = Path(name)
        if path.suffix in (".jsonl", ".parquet") and not path.is_file():
            raise DataError(f"{path}: no such file; make it with 'focusft data make' first")
        inside = [*path.glob("*.safetensors"), *path.glob("tokenizer.json")]
        for file in sorted(inside) if path.is_dir() else [path] if path.is_file() else []:
            stat = file.stat()
            hashes[str(file)] = _sha256(file, stat.st_mtime_ns, stat.st_size)
    return hashes


@lru_cache
def _sha256(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
