"""A tiny model, a few conversations, and a study over them."""

import json
from pathlib import Path

import pytest
import yaml

from focusft.cli import main
from tests.tiny_models import tiny_model, tiny_tokenizer

# In process: a process of its own takes seconds to import torch.
SUITE = {
    "suite": "ruler", "tasks": "niah_single_1", "lengths": "1k", "samples": 2, "batch_size": 2,
    "max_new_tokens": 4,
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=8192)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def write_study(tmp_path, tiny_folder, monkeypatch):
    """Writes study.yaml into the working directory, with some keys changed."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{number} and two?"},
                {"role": "assistant", "content": f"{number + 2}."},
            ]
        }
        for number in range(8)
    ]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(**changes):
        options = {
            "name": "tiny",
            "model": str(tiny_folder),
            "out": "runs",
            "results": "results",
            "seeds": [0, 1],
            "train": {
                "train_data": "train.jsonl", "use_cpu": True, "num_train_epochs": 1,
                "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
                "save_steps": 2, "logging_steps": 1, "probe_steps": 2, "inner_lr": 0.1,
            },
            "arms": {"base": None, "sft": {"method": "sft"}, "focusft": {}},
            "evaluations": [{"name": "needle", **SUITE}],
            "probe": {"data": "train.jsonl", "samples": 2},
        }  # fmt: skip
        for name, value in changes.items():
            if value is None:
                options.pop(name, None)
            else:
                options[name] = value
        path = Path("study.yaml")
        path.write_text(yaml.safe_dump(options, sort_keys=False))
        return path

    return write


class InProcess:
    """Runs commands here, and notes them; raises before the command of a given number."""

    def __init__(self, interrupt_at=None):
        self.calls = []
        self.interrupt_at = interrupt_at

    def __call__(self, words, log, end, lock):
        if len(self.calls) == self.interrupt_at:
            raise KeyboardInterrupt
        self.calls.append(words)
        code = main(list(words))
        log.write_text("focusft: error: what went wrong\n" if code else "")
        return code

    def stages(self):
        return [
            " ".join(Path(word).name if "runs/" in word else word for word in words[:2])
            for words in self.calls
        ]
