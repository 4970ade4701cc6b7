"""Read runs: find their results by content, and say which training they belong to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from focusft.analysis.report.redaction import redact, redact_text
from focusft.errors import ConfigError, DataError

Kind = Literal[
    "training", "demo", "probe", "babilong", "ruler", "agent", "step", "throughput", "length"
]
Method = Literal["FocuSFT", "SFT", "bidirectional SFT", "untrained", "unknown"]

ABOUT_MODELS: tuple[Kind, ...] = ("training", "demo", "probe", "babilong", "ruler", "agent")
RESULTS_FILE = "results.json"
# The single answers beside the results of an evaluation.
ANSWERS_FILES: dict[Kind, str] = {
    "babilong": "items.jsonl",
    "ruler": "items.jsonl",
    "agent": "episodes.jsonl",
}
# Where `focusft train --merge_adapters` puts the model of a run: the final one, not one aside.
MERGED = Path("merged")
# A prompt can have a hundred thousand characters; the question stands at its end.
_PROMPT_END = 400


@dataclass(frozen=True)
class Result:
    """One results file.

    Attributes:
        kind: What made it.
        label: Short name, unique among the results of its kind.
        run: Name of the run that it belongs to.
        method: How the model that it is about was trained.
        aside: Why it is shown but decides nothing, such as "bidirectional prefill"; mostly empty.
        content: The file's content without secrets.
        items: Single answers of an evaluation, where their file lies beside it; prompts are cut to
            their end, and `content` is a hash of the whole question.
    """

    kind: Kind
    label: str
    run: str
    method: Method
    aside: str
    content: dict[str, Any]
    items: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Runs:
    """Everything that was read.

    Attributes:
        results: In the order of the command line.
        unknown: Results files of a kind that the report has no view for.
    """

    results: list[Result]
    unknown: list[str]

    def of(self, *kinds: Kind) -> list[Result]:
        """The results of some kinds."""
        return [result for result in self.results if result.kind in kinds]


@dataclass(frozen=True)
class _File:
    path: Path
    kind: Kind
    content: dict[str, Any]
    owner: Path
    when: str


def read_runs(paths: Sequence[Path]) -> Runs:
    """Read the results files in some folders, at any depth.

    A results file belongs to the training that made the model it is about, if that is still
    there; otherwise to the training in the nearest folder above it; otherwise to the RUN. Only
    what is about a training's own model counts as its method.

    Args:
        paths: Folders, or JSON files of benchmarks.

    Raises:
        ConfigError: A path is missing, is there twice, or holds no results.
        DataError: A results file cannot be read.
    """
    found = _find(paths)
    trainings = {
        file.parent.resolve(): content
        for file, _, content in found
        if kind_of(content) == "training"
    }
    unknown, files = [], []
    for path, folder, content in found:
        kind = kind_of(content)
        if kind is None:
            unknown.append(redact_text(str(path)))
            continue
        for part_kind, part, when in _parts(kind, content):
            owner = _training_of_model(part, trainings) if kind in ABOUT_MODELS else None
            owner = owner or _nearest(path.parent.resolve(), trainings) or folder.resolve()
            files.append(_File(path, part_kind, part, owner, when))
    if not files:
        raise ConfigError(
            f"{', '.join(unknown)}: none is of a kind that the report knows; give runs of "
            "'focusft train', 'demo', 'eval' or 'probe'"
        )
    names = _short_names(list(dict.fromkeys(file.owner for file in files)))
    results = [
        Result(
            file.kind,
            redact_text(_label(file, files, names, trainings)),
            redact_text(names[file.owner]),
            _method(file, trainings),
            redact_text(_aside(file, trainings)),
            redact(file.content),
            tuple(map(redact, _answers(file))),
        )
        for file in files
    ]
    return Runs(results, unknown)


def _find(paths: Sequence[Path]) -> list[tuple[Path, Path, dict[str, Any]]]:
    """Each results file, the RUN that it was found in, and its content."""
    found = []
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path}: no such file or folder; give the folder of a run")
        if [p.resolve() for p in paths].count(path.resolve()) > 1:
            raise ConfigError(f"{path}: given twice; give each run once")
        files = list(_results_files(path))
        if not files:
            raise ConfigError(
                f"{path}: no {RESULTS_FILE} in it; give a folder that 'focusft train', 'demo', "
                "'eval' or 'probe' wrote, or a benchmark's JSON file"
            )
        folder = path if path.is_dir() else _folder_of(path)
        found += [(file, folder, _read_json(file)) for file in files]
    return found


def kind_of(content: Any) -> Kind | None:
    """What made a results file, by its keys; None for anything else."""
    if not isinstance(content, dict):
        return None
    keys = content.keys()
    if content.get("suite") in ("babilong", "ruler", "agent"):
        kind: Kind = content["suite"]
        return kind
    signatures: tuple[tuple[Kind, set[str]], ...] = (
        ("demo", {"before", "after", "log"}),
        ("training", {"log", "config", "inner_steps_watched"}),
        ("probe", {"causal", "bidirectional", "ratios"}),
        ("throughput", {"tokens_per_second", "lengths", "peak_gb"}),
        ("step", {"ratios", "seconds", "peak_gb", "rounds"}),
        ("length", {"steps", "settings"}),
    )
    return next((kind for kind, needed in signatures if needed <= keys), None)


def trained_how(config: dict[str, Any]) -> Method:
    """The method that a training's options amount to."""
    if config["method"] == "sft":
        return "SFT"
    if config["num_inner_steps"] > 0:
        return "FocuSFT"
    return "SFT" if config["context_attention"] == "causal" else "bidirectional SFT"


def model_of(content: dict[str, Any]) -> str | None:
    """The model that a probe or an evaluation is about, as the user named it."""
    for place in (content.get("config"), content.get("generator"), content):
        if isinstance(place, dict) and isinstance(place.get("model"), str):
            return str(place["model"])
    return None


def _results_files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    nested = sorted(path.rglob(RESULTS_FILE), key=lambda file: (len(file.parts), file))
    # Benchmarks write files with names of their own.
    yield from nested or sorted(path.glob("*.json"))


def _folder_of(file: Path) -> Path:
    """What a results file is called after: its folder, or itself where its name says more."""
    return file.parent if file.name == RESULTS_FILE else file.with_suffix("")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read as JSON ({error}); run the command that made it again"
        ) from None
    return content


def _parts(kind: Kind, content: dict[str, Any]) -> Iterator[tuple[Kind, dict[str, Any], str]]:
    """A file's content and the probes of other models inside it, with when they were made."""
    yield kind, content, ""
    if kind == "probe" and (other := content.get("compare")):
        config = content["config"] | {"model": other["model"]}
        yield "probe", {**content, **other, "config": config}, ""
    if kind == "demo":
        for when, probe in content.get("probes", {}).items():
            yield "probe", probe, f"{when} training"


def _answers(file: _File) -> Iterator[dict[str, Any]]:
    """The single answers of an evaluation; none where their file is missing."""
    if file.kind not in ANSWERS_FILES:
        return
    path = file.path.with_name(ANSWERS_FILES[file.kind])
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                answer = json.loads(line)
            except ValueError:
                raise DataError(
                    f"{path}: line {number} is no JSON; run 'focusft eval' again, it goes on from "
                    "the lines that are whole"
                ) from None
            if file.kind != "agent":
                yield _shortened(answer)
            elif answer["mode"] == "tools":
                # Without the conversation, which is long and may hold questions under a licence.
                yield {key: answer[key] for key in ("question", "sample", "right")}


def _shortened(item: dict[str, Any]) -> dict[str, Any]:
    whole = json.dumps([item["prompt"], item["answer_prefix"], item["references"]])
    content = hashlib.sha256(whole.encode()).hexdigest()
    return item | {"prompt": item["prompt"][-_PROMPT_END:], "content": content}


def _nearest(folder: Path, trainings: dict[Path, Any]) -> Path | None:
    return next((place for place in (folder, *folder.parents) if place in trainings), None)


def _training_of_model(content: dict[str, Any], trainings: dict[Path, Any]) -> Path | None:
    """The training that made a model, read from its folder if it was not named; adds it."""
    model = model_of(content)
    if model is None or not Path(model).is_dir():
        return None
    folder = Path(model).resolve()
    owner = _nearest(folder, trainings)
    if owner is None and (folder / RESULTS_FILE).is_file():
        training = _read_json(folder / RESULTS_FILE)
        if kind_of(training) == "training":
            trainings[folder] = training
            return folder
    return owner


def _method(file: _File, trainings: Mapping[Path, dict[str, Any]]) -> Method:
    if file.kind == "demo":
        return "FocuSFT"
    if file.kind not in ABOUT_MODELS:
        return "unknown"
    if file.when:
        return "untrained" if file.when == "before training" else "FocuSFT"
    owner = trainings.get(file.owner)
    model = model_of(file.content)
    # What one run trained another may start from.
    if owner and (file.kind == "training" or _place_in_owner(file, owner) is not None):
        return trained_how(owner["config"])
    starts = [training["config"]["model_name_or_path"] for training in trainings.values()]
    # One folder has many spellings; a hub id stays what it is.
    if model and Path(model).resolve() in map(Path.resolve, map(Path, starts)):
        return "untrained"
    return "unknown"


def _place_in_owner(file: _File, owner: Mapping[str, Any] | None) -> Path | None:
    """Where in its owner's folder the model lies that a result is about; None if not there."""
    model = model_of(file.content)
    if model is None:
        return None
    path = Path(os.path.normpath(model))
    here = path.resolve()
    if here == file.owner:
        return Path()
    candidates = [(here, file.owner)]
    if owner:
        config = owner["config"]
        # A training may have begun with a model in its own folder.
        if here == Path(config["model_name_or_path"]).resolve():
            return None
        # Seen from here, or after the run was moved, what was written there may lead elsewhere: it
        # is compared with the path that the training was told as well ..
        if output_dir := config.get("output_dir"):
            candidates.append((path, Path(os.path.normpath(output_dir))))
    if not path.is_absolute():
        # .. and with the end of the folder's own path.
        candidates += [
            (path, root)
            for root in (path, *path.parents)
            if root.parts == file.owner.parts[-len(root.parts) :]
        ]
    for place, root in candidates:
        if place.is_relative_to(root):
            inside = place.relative_to(root)
            # A hub id looks like a path, but nothing lies there.
            if path.is_absolute() or (file.owner / inside).exists():
                return inside
    return None


def _aside(file: _File, trainings: Mapping[Path, dict[str, Any]]) -> str:
    """What keeps a result from being that of the run's final model in ordinary use."""
    if file.content.get("generator", {}).get("prefill", "causal") != "causal":
        return "bidirectional prefill"
    inside = _place_in_owner(file, trainings.get(file.owner)) or Path()
    return str(inside) if file.kind in ABOUT_MODELS and inside not in (Path(), MERGED) else ""


def _label(
    file: _File,
    files: Sequence[_File],
    names: Mapping[Path, str],
    trainings: Mapping[Path, dict[str, Any]],
) -> str:
    """The run's name; with the folder inside the run, or the file, where that is not enough."""
    name = _name(file, names, trainings)
    if file.when:
        return name
    alike = [
        other
        for other in files
        if (other.kind, other.owner) == (file.kind, file.owner)
        and _name(other, names, trainings) == name
    ]
    if len(alike) == 1:
        return name
    if len({other.path for other in alike}) < len(alike):  # the two models of one probe
        return f"{name}, {Path(model_of(file.content) or file.path.stem).name}"
    if len({other.path.parent for other in alike}) < len(alike):
        return file.path.stem
    parent = file.path.parent.resolve()
    inside = parent.relative_to(file.owner) if parent.is_relative_to(file.owner) else parent.name
    return f"{name}/{inside}"


def _name(file: _File, names: Mapping[Path, str], trainings: Mapping[Path, dict[str, Any]]) -> str:
    """The run's name, and what model it is about where that is not the one it trained."""
    name = names[file.owner]
    if file.when:
        return f"{name}, {file.when}"
    if file.owner in trainings and file.kind in ABOUT_MODELS:
        method = _method(file, trainings)
        if method == "untrained":
            return f"{name}, before training"
        if method == "unknown":
            return f"{name}, {Path(model_of(file.content) or 'unknown model').name}"
    return name


def _short_names(folders: Sequence[Path]) -> dict[Path, str]:
    """The fewest last parts of each path that tell the folders apart."""
    names = {}
    for folder in folders:
        others = [other for other in folders if other != folder]
        parts = 1
        while any(o.parts[-parts:] == folder.parts[-parts:] for o in others):
            parts += 1
        names[folder] = "/".join(folder.parts[-parts:])
    return names
