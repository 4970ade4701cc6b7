"""The YAML file of a study: what is read, and what is refused in one line."""

import json
import re
from pathlib import Path

import pytest
import yaml

from benchmarks.tiny_model import make_tiny
from focusft.cli import main
from focusft.errors import ConfigError
from focusft.study.cells import final_cells, train_config, train_options
from focusft.study.config import load_study
from focusft.training.models import load_model, load_tokenizer
from tests.study.conftest import SUITE

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CHOSEN = CONFIGS.parent / "benchmarks/results/study/smollm2/tuning.json"
STUDIES = [
    path for path in sorted(CONFIGS.glob("*.yaml")) if "arms" in yaml.safe_load(path.read_text())
]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies_of_the_repository_are_taken(path, tmp_path):
    study = load_study(path)
    assert len(study.seeds) >= 3
    trained = [arm for arm in study.arms if arm.overrides is not None]
    for arm in trained:
        options = train_options(study, arm, study.seeds[0], {}) | {"output_dir": str(tmp_path)}
        config = train_config(study, arm, options | {"use_cpu": True})
        assert config.data_seed == config.seed == study.seeds[0]
    # Every arm gets its rate from at least three, on items that are in no evaluation; or the one
    # that this gave it in the first study; or all have the same one.
    for tuning in study.tunings:
        assert tuning.option == "learning_rate" and len(tuning.values) >= 3
        assert tuning.arms == tuple(arm.name for arm in trained)
    chosen = json.loads(CHOSEN.read_text())
    for arm in trained:
        if "learning_rate" in arm.overrides:
            assert arm.overrides["learning_rate"] == chosen[arm.name]["learning_rate"]["chosen"]
    searched = {e.options["seed"] for tuning in study.tunings for e in tuning.evaluations}
    for arm in study.arms:
        for evaluation in arm.evaluations:
            assert evaluation.options["samples"] >= 60
            assert evaluation.options["seed"] not in searched


def test_an_evaluation_like_another(write_study):
    arms = {"a": {"evaluations": [{"name": "wide", "like": "needle", "samples": 5}]}, "b": {}}
    study = load_study(write_study(arms=arms))
    needle, wide = study.arm("a").evaluations
    assert wide.options == needle.options | {"samples": 5}
    assert needle.options["seed"] == 42
    assert study.arm("b").evaluations == (needle,)


def test_a_flag_that_is_off_has_no_word_unless_the_command_knows_one(write_study):
    probe = {"data": "train.jsonl", "with_fast_weights": False}
    study = load_study(
        write_study(probe=probe, evaluations=[{"name": "x", **SUITE, "chat": False}])
    )
    assert study.probe == {"data": "train.jsonl"}
    assert study.arms[0].evaluations[0].options["chat"] is False
    study = load_study(write_study(probe=probe | {"with_fast_weights": True}))
    assert study.probe["with_fast_weights"] is True


def test_training_options_from_a_file(write_study):
    Path("recipe.yaml").write_text(
        "train_data: train.jsonl\nseed: 9\noutput_dir: x\nmax_length: 99"
    )
    study = load_study(write_study(train="recipe.yaml"))
    assert study.train == {"train_data": "train.jsonl", "max_length": 99}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nam": "x"}, "unknown option 'nam'; did you mean 'name'?"),
        ({"arms": None}, "arms: missing"),
        ({"arms": {}}, "arms: none is given"),
        ({"arms": {"a/b": {}}}, "arms.a/b: 'a/b' must be a name"),
        ({"arms": {"a": None, "b": None}}, "arms: two of them are null"),
        ({"arms": {"a": {"seed": 1}}}, "arms.a: seed: the study sets it itself"),
        ({"arms": {"a": {"inner_rl": 1}}}, "arms.a: unknown option 'inner_rl'; did you mean"),
        ({"arms": {"a": {"inner_lr": -1}}}, "arms.a: inner_lr: -1"),
        ({"arms": {"a": {"inner_lr": "high"}}}, "arms.a: inner_lr: 'high' is not a number"),
        ({"train": {"max_lenght": 1}}, "train: unknown option 'max_lenght'; did you mean"),
        ({"train": {"output_dir": "x"}}, "train: output_dir: the study sets it itself"),
        ({"train": {"train_data": "none.jsonl"}}, "none.jsonl: no such file; make it with"),
        ({"seeds": [1, 1]}, "seeds: .* must be different"),
        ({"seeds": ["a"]}, "seeds: 'a' must be a whole number"),
        ({"seeds": 3}, r"seeds: 3 is no list; write one, such as \[0, 1, 2\]"),
        ({"evaluations": []}, "evaluations: none is given"),
        ({"evaluations": [{"name": "x"}]}, "evaluations: x: suite: missing"),
        ({"evaluations": [{"name": "x", "suite": "agent"}]}, "x: suite: 'agent' is none of"),
        ({"evaluations": [{"name": "x", **SUITE, "sample": 1}]}, "x: unknown option 'sample'; did"),
        ({"evaluations": [{"name": "x", **SUITE, "samples": "a"}]}, "x: argument --samples: inv"),
        ({"evaluations": [{"name": "x", **SUITE, "out": "y"}]}, "x: out: the study sets it itself"),
        ({"evaluations": [{"name": "x", **SUITE}] * 2}, "x: the name is there twice"),
        ({"evaluations": [{"name": "x", "like": "y"}]}, "x: like: there is no evaluation 'y'"),
        ({"probe": {"samples": 3}}, "probe: data: missing"),
        ({"probe": {"data": "train.jsonl", "mask": 3}}, "probe: unknown option 'mask'"),
        ({"probe": {"data": "train.jsonl", "with_fast_weights": 3}}, "probe: .* does not know 3;"),
        ({"probe": {"data": "train.jsonl", "samples": False}}, "probe: .* know --no-samples;"),
        ({"tune": {"option": "learning_rate"}}, "tune: values: missing"),
        (
            {"tune": {"option": "learning_rate", "values": [1], "evaluation": "needle",
                      "items_seed": 42}},
            "tune: items_seed: 42 is that of an evaluation",
        ),
        (
            {"tune": {"option": "learning_rate", "values": [1], "evaluation": "x",
                      "items_seed": 1}},
            "tune: evaluation: 'x' is none of needle",
        ),
        (
            {"tune": {"option": "learning_rate", "values": [1], "evaluation": "needle",
                      "items_seed": 1, "arms": ["base"]}},
            "tune: arms: 'base' is none of sft, focusft",
        ),
        (
            {"tune": {"option": "learning_rate", "values": [1], "evaluation": "needle",
                      "items_seed": 1, "seed": [0]}},
            r"tune: seed: \[0\] must be a whole number",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(write_study, capsys, changes, said):
    path = write_study(**changes) if "nam" not in changes else write_study()
    if "nam" in changes:
        path.write_text(path.read_text().replace("name: tiny", "nam: tiny", 1))
    if changes.get("arms", 0) is None:
        path.write_text(re.sub(r"arms:\n(  .*\n)+", "", path.read_text()))
    assert main(["study", "--config", str(path), "--dry_run"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and re.search(said, lines[0]), lines


def test_a_tiny_model_is_a_plain_folder(tmp_path):
    made = make_tiny(tmp_path / "tiny", 32, 2, 4, seed=0)
    model, tokenizer = load_model(tmp_path / "tiny"), load_tokenizer(tmp_path / "tiny")
    assert model.num_parameters() == made.num_parameters()
    text = "Where is Mary? <é>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert "assistant" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )


def test_adapters_are_evaluated_merged_or_not_at_all(write_study):
    path = write_study(arms={"lora": {"use_peft": True}})
    with pytest.raises(ConfigError, match=r"arms\.lora: use_peft: .* merge_adapters"):
        list(final_cells(load_study(path), ("lora",), {}))
    path = write_study(arms={"lora": {"use_peft": True, "merge_adapters": True}})
    cell, *_ = final_cells(load_study(path), ("lora",), {})
    _, evaluation, *_ = cell.stages
    assert evaluation.words[1].endswith("lora-0/train/merged")


def test_an_override_wins_over_the_published_name(write_study):
    path = write_study(arms={"a": {"activation_checkpointing": True}})
    study = load_study(path)
    study.train["gradient_checkpointing"] = False
    assert train_options(study, study.arm("a"), 0, {})["activation_checkpointing"]
