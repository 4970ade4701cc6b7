"""Two hundred configs at random: each trains, or is refused in one line; none shows a traceback."""

from __future__ import annotations

import dataclasses
import json

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from focusft.cli import main
from focusft.training.config import TrainConfig
from tests.tiny_models import tiny_model, tiny_tokenizer

CONFIGS = 200
OPTIONS = sorted(
    {option.name for option in dataclasses.fields(TrainConfig)} - {"output_dir", "train_data"}
)
NAMES = st.sampled_from(OPTIONS) | st.sampled_from(["inner_rate", "lr", "", "a b"])
VALUES = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, 2, 3, -1, 2**70, 0.1, 0.5, 1e-5, -1.0, float("inf"), float("nan")])
    | st.sampled_from(
        ["", "no", "steps", "epoch", "cosine", "auto", "true", "1e-4", "none", "../x"]
    )
    | st.text("abcXYZ0123456789-_. {}[]:#\n", max_size=12)
    | st.lists(st.integers() | st.text("ab,", max_size=3), max_size=3)
    | st.dictionaries(st.text("abc", max_size=3), st.integers() | st.booleans(), max_size=2)
)

# Options that go together, so that a good share of the configs is accepted.
SOUND = st.fixed_dictionaries(
    {},
    optional={
        "num_inner_steps": st.integers(0, 3),
        "inner_step": st.sampled_from(["fixed", "backtracking"]),
        "context_attention": st.sampled_from(["causal", "bidirectional"]),
        "activation_checkpointing": st.booleans(),
        "packing": st.booleans(),
        "seed": st.integers(0, 9),
    },
)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workshop")
    tokenizer = tiny_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    row = {
        "messages": [
            {"role": "user", "content": "What is two and two?"},
            {"role": "assistant", "content": "Four."},
        ]
    }
    (folder / "data.jsonl").write_text(4 * (json.dumps(row) + "\n"))
    return folder


def run(folder, options, capsys):
    """Exit code and what was printed for errors."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(options))
    capsys.readouterr()
    code = main(["train", "--config", str(path)])
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    if code != 0:
        # 3: the loss is not finite, as with an inner_lr of 1e6.
        assert code in (2, 3)
        lines = [line for line in errors.splitlines() if line.startswith("focusft: error: ")]
        assert len(lines) == 1
        return code, lines[0]
    return code, ""


def test_any_options_are_checked_before_anything_is_trained(workshop, capsys):
    seen = {"refused": 0, "accepted": 0}

    @settings(
        max_examples=CONFIGS,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(SOUND, st.dictionaries(NAMES, VALUES, max_size=2))
    def check(sound, odd):
        options = sound | odd
        base = {
            "output_dir": str(workshop / "out"),
            "model_name_or_path": str(workshop / "model"),
            "use_cpu": True,
            "report_to": "none",
        }
        # The data come after the options: a config that is accepted ends at their absence.
        code, line = run(workshop, base | options | {"train_data": "nowhere.jsonl"}, capsys)
        assert code == 2
        seen["accepted" if "nowhere.jsonl" in line else "refused"] += 1

    check()
    assert sum(seen.values()) >= CONFIGS
    assert min(seen.values()) > CONFIGS // 20, seen


@pytest.mark.parametrize(
    ("option", "value"), [("optim", "galore_adamw"), ("lr_scheduler_type", "cosine_with_min_lr")]
)
def test_options_that_lack_something_are_refused_by_name(workshop, capsys, option, value):
    options = {
        "output_dir": str(workshop / f"out_{option}"),
        "model_name_or_path": str(workshop / "model"),
        "train_data": str(workshop / "data.jsonl"),
        "use_cpu": True,
        "report_to": "none",
        option: value,
    }
    code, line = run(workshop, options, capsys)
    assert code == 2
    assert line.startswith(f"focusft: error: {option}: ")


CHOICES = {
    "method": ["focusft", "sft"],
    "packing": [True, False],
    "num_inner_steps": [0, 1, 3],
    "inner_lr": [0.0, 0.1, 1e6],
    "inner_rank": [1, 64],
    "inner_layer_fraction": [0.01, 0.5, 1.0],
    "inner_objective": ["response", "context", "held_out_turns"],
    "inner_step": ["fixed", "backtracking"],
    "inner_order": [1, 2],
    "inner_target_modules": ["down_proj", "q_proj", "nothing"],
    "context_attention": ["bidirectional", "causal"],
    "inner_context_attention": ["same", "causal"],
    "causal_share": [0.0, 0.5],
    "context_blocks": ["merged", "per_turn"],
    "attention_backend": ["auto", "segments", "dense", "flex"],
    "attn_implementation": ["sdpa", "eager"],
    "activation_checkpointing": [True, False],
    "per_device_train_batch_size": [1, 3, 7],
    "gradient_accumulation_steps": [1, 2],
    "max_length": [2, 10, 4096],
    "length_policy": ["drop", "error", "truncate_context"],
    "learning_rate": [0.0, 1e-3, 1e9],
    "max_grad_norm": [0.0, 1.0],
    "lr_scheduler_type": ["cosine", "reduce_lr_on_plateau", "cosine_with_min_lr"],
    "warmup_steps": [0, 0.5, 100],
    "optim": ["adamw_torch", "sgd", "adafactor", "galore_adamw"],
    "eval_strategy": ["no", "steps", "epoch"],
    "save_strategy": ["no", "steps", "epoch", "best"],
    "load_best_model_at_end": [True, False],
    "train_sampling_strategy": ["random", "sequential", "group_by_length"],
    "dataloader_num_workers": [0, 1],
    "dataloader_drop_last": [True, False],
    "neftune_noise_alpha": [None, 5.0],
    "label_smoothing_factor": [0.0, 0.1],
    "torch_empty_cache_steps": [None, 1],
    "include_num_input_tokens_seen": ["no", "all"],
    "bf16": [True, False],
    "dtype": ["auto", "float32", "bfloat16"],
}


@pytest.mark.slow
def test_sensible_options_in_any_combination_train_or_say_why_not(workshop, capsys):
    seen = {0: 0, 2: 0, 3: 0}

    @settings(
        max_examples=CONFIGS,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.lists(
            st.sampled_from(sorted(CHOICES)).flatmap(
                lambda name: st.tuples(st.just(name), st.sampled_from(CHOICES[name]))
            ),
            max_size=6,
        ),
        st.booleans(),
    )
    def check(options, has_validation):
        base = {
            "output_dir": str(workshop / f"out-{sum(seen.values())}"),
            "model_name_or_path": str(workshop / "model"),
            "train_data": str(workshop / "data.jsonl"),
            "max_steps": 2,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
        }
        if has_validation:
            base["val_data"] = base["train_data"]
        code, _ = run(workshop, base | dict(options), capsys)
        seen[code] += 1

    check()
    assert min(seen[0], seen[2]) > 10, seen
