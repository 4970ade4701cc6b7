"""What `focusft train` refuses once data and model are there."""

import json

import pytest
from rich.console import Console
from tokenizers import AddedToken

from focusft.errors import ConfigError
from focusft.training.config import load_train_config
from focusft.training.run import train
from tests.tiny_models import tiny_model, tiny_tokenizer


def test_text_with_a_token_that_has_no_embedding_is_refused(tmp_path):
    tokenizer = tiny_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.add_tokens([AddedToken("<image_soft_token>", special=True)])
    tokenizer.save_pretrained(tmp_path / "model")
    for name, text in (("plain", "a picture"), ("odd", "<image_soft_token>")):
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"messages": messages}) + "\n")

    def run(data):
        options = {
            "model_name_or_path": tmp_path / "model",
            "train_data": tmp_path / f"{data}.jsonl",
            "output_dir": tmp_path / data,
            "max_steps": 1,
            "inner_lr": 0.1,
            "inner_rank": 4,
            "probe_steps": 0,
            "report_to": "none",
            "use_cpu": "true",
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        return train(load_train_config(None, words), Console(quiet=True))

    with pytest.raises(ConfigError, match=r"train_data: .* token '<image_soft_token>'"):
        run("odd")
    assert run("plain")["data"]["train"]["used"] == 1
