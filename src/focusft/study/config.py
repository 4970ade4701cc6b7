"""The YAML file of a study (docs/study.md)."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from focusft.cli import make_parser
from focusft.errors import ConfigError
from focusft.training.config import read_yaml
from focusft.training.option_names import unknown_option

_KEYS = (
    "name", "model", "out", "results", "seeds", "train", "arms", "evaluations", "probe", "tune",
)  # fmt: skip
_REQUIRED = ("name", "model", "out", "results", "seeds", "arms", "evaluations")
_TUNE_KEYS = (
    "option", "values", "arms", "evaluation", "items_seed", "samples", "lengths", "seed", "train",
)  # fmt: skip
# The study sets these itself, for every cell.
_OWN_TRAIN_OPTIONS = (
    "model_name_or_path", "output_dir", "seed", "data_seed", "resume",
)  # fmt: skip
_OWN_COMMAND_OPTIONS = ("model", "out", "compare")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

# Stages that every cell may have, beside one for each evaluation.
TRAIN, PROBE = "train", "probe"
# The training seed of a model that is evaluated as it is.
BASE_SEED = 0


@dataclass(frozen=True)
class Evaluation:
    """One run of `focusft eval` on a model.

    Attributes:
        name: Unique among those of an arm.
        options: Options of the command, by name.
    """

    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
        name: Unique in the study.
        overrides: Training options on top of the common ones; None for the model as it is.
        evaluations: Those of all arms, and then its own.
    """

    name: str
    overrides: dict[str, Any] | None
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True)
class Tuning:
    """A choice of one option by a validation score.

    Attributes:
        option: The training option.
        values: To choose from.
        arms: For which arms.
        evaluations: On items of another seed than those of all evaluations.
        seed: Training seed.
        train: Training options of the search alone, such as fewer steps.
    """

    option: str
    values: tuple[Any, ...]
    arms: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]
    seed: int
    train: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A grid of arms and training seeds.

    Attributes:
        path: The YAML file.
        name: Names the study in its results.
        model: What every arm starts from.
        out: Folder for models and logs.
        results: Folder for the results of the cells, small enough to commit.
        seeds: Training seeds.
        train: Training options of all arms.
        arms: In the order of the file.
        probe: Options of `focusft probe`, or None for no probe.
        tunings: Choices to make before, one after the other.
    """

    path: Path
    name: str
    model: str
    out: Path
    results: Path
    seeds: tuple[int, ...]
    train: dict[str, Any]
    arms: tuple[Arm, ...]
    probe: dict[str, Any] | None
    tunings: tuple[Tuning, ...]

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)


def load_study(path: Path) -> Study:
    """Read the YAML file of a study.

    The training options themselves are checked where the cells are made.

    Raises:
        ConfigError: A key is missing, unknown, of the wrong type, or contradicts another one.
    """
    options = read_yaml(path)
    for key in options:
        if key not in _KEYS:
            raise ConfigError(f"{path}: {unknown_option(key, _KEYS, 'see docs/study.md')}")
    for key in _REQUIRED:
        if options.get(key) is None:
            raise ConfigError(f"{path}: {key}: missing; see docs/study.md")
    for key in ("name", "model", "out", "results"):
        if not isinstance(options[key], str):
            raise ConfigError(f"{path}: {key}: {options[key]!r} must be text")
    _check_name(options["name"], f"{path}: name")
    evaluations = _evaluations(options["evaluations"], (), f"{path}: evaluations")
    if not evaluations:
        raise ConfigError(f"{path}: evaluations: none is given; list at least one")
    arms = _arms(options["arms"], evaluations, path)
    return Study(
        path=path,
        name=options["name"],
        model=options["model"],
        out=Path(options["out"]),
        results=Path(options["results"]),
        seeds=_seeds(options["seeds"], f"{path}: seeds"),
        train=_train_options(options.get("train"), path),
        arms=arms,
        probe=_probe(options.get("probe"), path),
        tunings=_tunings(options.get("tune"), arms, evaluations, path),
    )


def command_words(options: Mapping[str, Any]) -> list[str]:
    """Options of a command as words of a command line; lists get commas."""
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list):
            parts = [str(part) for part in value]
            words += [f"--{name}", *(parts if name == "prose" else [",".join(parts)])]
        else:
            words += [f"--{name}", str(value)]
    return words


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{where}: {value!r} is no list; write one, such as [0, 1, 2]")
    seeds = [_seed(seed, where) for seed in value]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{where}: {seeds} must be different numbers, at least one")
    return tuple(seeds)


def _seed(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{where}: {value!r} must be a whole number, 0 or more")
    return value


def _train_options(value: Any, path: Path) -> dict[str, Any]:
    """Inline options, or those of a YAML file of `focusft train` without what a study sets."""
    if isinstance(value, str):
        options = read_yaml(Path(value))
        return {name: v for name, v in options.items() if name not in _OWN_TRAIN_OPTIONS}
    options = _mapping(value if value is not None else {}, f"{path}: train")
    _refuse(options, _OWN_TRAIN_OPTIONS, f"{path}: train")
    return options


def _arms(value: Any, common: tuple[Evaluation, ...], path: Path) -> tuple[Arm, ...]:
    arms = []
    for name, options in _mapping(value, f"{path}: arms").items():
        where = f"{path}: arms.{name}"
        _check_name(name, where)
        if options is None:
            arms.append(Arm(name, None, common))
            continue
        overrides = dict(_mapping(options, where))
        own = _evaluations(overrides.pop("evaluations", []), common, f"{where}.evaluations")
        _refuse(overrides, _OWN_TRAIN_OPTIONS, where)
        arms.append(Arm(name, overrides, (*common, *own)))
    if not arms:
        raise ConfigError(f"{path}: arms: none is given; name at least one")
    if sum(arm.overrides is None for arm in arms) > 1:
        raise ConfigError(f"{path}: arms: two of them are null, the same model; keep one")
    return tuple(arms)


def _evaluations(value: Any, common: Sequence[Evaluation], where: str) -> tuple[Evaluation, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{where}: must be a list, each with a name and options of focusft eval")
    found: list[Evaluation] = []
    for number, entry in enumerate(value, 1):
        options = dict(_mapping(entry, f"{where}: entry {number}"))
        name = options.pop("name", None)
        _check_name(name, f"{where}: entry {number}: name")
        place = f"{where}: {name}"
        if name in (TRAIN, PROBE):
            raise ConfigError(f"{place}: is the name of a stage of its own; use another")
        by_name = {known.name: known for known in (*common, *found)}
        if name in by_name:
            raise ConfigError(f"{place}: the name is there twice; use another")
        if "like" in options:
            like = options.pop("like")
            if like not in by_name:
                raise ConfigError(f"{place}: like: there is no evaluation {like!r} before it")
            options = by_name[like].options | options
        _refuse(options, _OWN_COMMAND_OPTIONS, place)
        if "suite" not in options:
            raise ConfigError(f"{place}: suite: missing; use babilong or ruler")
        if options["suite"] not in ("babilong", "ruler"):
            raise ConfigError(f"{place}: suite: {options['suite']!r} is none of babilong, ruler")
        # Items must not follow a default that a later version may change.
        options.setdefault("seed", 42)
        found.append(Evaluation(name, _command_options("eval", options, place)))
    return tuple(found)


def _probe(value: Any, path: Path) -> dict[str, Any] | None:
    if value is None:
        return None
    where = f"{path}: probe"
    options = _mapping(value, where)
    _refuse(options, _OWN_COMMAND_OPTIONS, where)
    if "data" not in options:
        raise ConfigError(f"{where}: data: missing; name a file of conversations")
    if isinstance(options["data"], list):
        options = {**options, "data": ",".join(map(str, options["data"]))}
    return _command_options("probe", options, where)


def _tunings(
    value: Any, arms: Sequence[Arm], evaluations: Sequence[Evaluation], path: Path
) -> tuple[Tuning, ...]:
    entries = value if isinstance(value, list) else [] if value is None else [value]
    tunings = []
    for entry in entries:
        where = f"{path}: tune"
        options = dict(_mapping(entry, where))
        for key in options:
            if key not in _TUNE_KEYS:
                raise ConfigError(
                    f"{where}: {unknown_option(key, _TUNE_KEYS, 'see docs/study.md')}"
                )
        for key in ("option", "values", "evaluation", "items_seed"):
            if key not in options:
                raise ConfigError(f"{where}: {key}: missing; see docs/study.md")
        values = options["values"]
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}: values: must be a list with at least one value")
        trained = [arm.name for arm in arms if arm.overrides is not None]
        chosen = options.get("arms") or trained
        if not isinstance(chosen, list):
            raise ConfigError(f"{where}: arms: must be a list of names")
        for name in chosen:
            if name not in trained:
                raise ConfigError(f"{where}: arms: {name!r} is none of {', '.join(trained)}")
        train = _mapping(options.get("train", {}), f"{where}: train")
        _refuse([options["option"], *train], _OWN_TRAIN_OPTIONS, where)
        tunings.append(
            Tuning(
                option=options["option"],
                values=tuple(values),
                arms=tuple(chosen),
                evaluations=_validation(options, evaluations, where),
                seed=_seed(options.get("seed", 0), f"{where}: seed"),
                train=train,
            )
        )
    return tuple(tunings)


def _validation(
    options: Mapping[str, Any], evaluations: Sequence[Evaluation], where: str
) -> tuple[Evaluation, ...]:
    """The named evaluations with items of another seed, and fewer of them if so said."""
    by_name = {evaluation.name: evaluation for evaluation in evaluations}
    names = options["evaluation"]
    seed = options["items_seed"]
    changes = {key: options[key] for key in ("samples", "lengths") if key in options}
    found = []
    for name in names if isinstance(names, list) else [names]:
        if name not in by_name:
            raise ConfigError(f"{where}: evaluation: {name!r} is none of {', '.join(by_name)}")
        if seed in [evaluation.options["seed"] for evaluation in evaluations]:
            raise ConfigError(
                f"{where}: items_seed: {seed} is that of an evaluation, whose items must not "
                "choose the options; use another"
            )
        changed = by_name[name].options | changes | {"seed": seed}
        found.append(Evaluation(name, _command_options("eval", changed, f"{where}: {name}")))
    return tuple(found)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{where}: must hold 'option: value' lines, not {value!r}")
    return value


def _check_name(value: Any, where: str) -> None:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ConfigError(f"{where}: {value!r} must be a name of letters, digits, '_', '-' and '.'")


def _refuse(options: Iterable[str], names: Sequence[str], where: str) -> None:
    for name in options:
        if name in names:
            raise ConfigError(f"{where}: {name}: the study sets it itself; leave it out")


def _command_options(command: str, options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options after a look of the command's own parser, without flags that are off.

    Such a flag has no word for false, unlike one with `--no-`.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed, unknown = make_parser().parse_known_args(
                [command, "MODEL", *command_words(options), "--out", "OUT"]
            )
    except SystemExit:
        problem = said.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise ConfigError(f"{where}: {problem}") from None
    off = []
    for name in options:
        # The parser takes abbreviations; two spellings of one option would be two settings.
        if name not in vars(parsed):
            otherwise = f"see 'focusft {command} --help'"
            raise ConfigError(f"{where}: {unknown_option(name, vars(parsed), otherwise)}")
        if f"--no-{name}" in unknown and vars(parsed)[name] is False:
            unknown.remove(f"--no-{name}")
            off.append(name)
    if unknown:
        raise ConfigError(
            f"{where}: 'focusft {command}' does not know {' '.join(unknown)}; give each option "
            f"a value that it takes, see 'focusft {command} --help'"
        )
    return {name: value for name, value in options.items() if name not in off}
