"""What SECURITY.md promises."""

import json
import logging
import os
from pathlib import Path

import pytest
import torch

from focusft.cli import main
from tests.tiny_models import tiny_model, tiny_tokenizer

SECRETS = {
    "HF_TOKEN": "hf_canary0000000000000000000000000001",
    "HUGGING_FACE_HUB_TOKEN": "hf_canary0000000000000000000000000002",
    "WANDB_API_KEY": "canary00000000000000000000000000000003",
    "OPENAI_API_KEY": "sk-canary00000000000000000000000000004",
}
HUB_TOKEN = "hf_canary0000000000000000000000000005"


@pytest.fixture
def model_folder(tmp_path):
    tokenizer = tiny_tokenizer()
    folder = tmp_path / "model"
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(model_folder, out, *more):
    row = {
        "messages": [
            {"role": "user", "content": "Two and two?"},
            {"role": "assistant", "content": "Four."},
        ]
    }
    data = model_folder.parent / "data.jsonl"
    data.write_text(4 * (json.dumps(row) + "\n"))
    options = {
        "model_name_or_path": model_folder,
        "train_data": data,
        "output_dir": out,
        "max_steps": 2,
        "save_steps": 1,
        "inner_lr": 0.1,
        "inner_rank": 4,
        "use_cpu": "true",
        "report_to": "none",
    }
    return main(["train", *(f"--{name}={value}" for name, value in options.items()), *more])


def test_secrets_appear_nowhere(model_folder, tmp_path, monkeypatch, capfd, caplog):
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    out = tmp_path / "out"
    with caplog.at_level(logging.DEBUG):
        assert train(model_folder, out, f"--hub_token={HUB_TOKEN}") == 0
        assert train(tmp_path / "no-such-model", tmp_path / "other") == 2
        assert main(["chat", "no-such/model"]) == 2
    printed = capfd.readouterr()
    written = [path for path in out.rglob("*") if path.is_file()]
    assert {"results.json", "focusft_config.yaml", "trainer_state.json"} <= {
        path.name for path in written
    }
    everything = [path.read_bytes() for path in written]
    everything += [text.encode() for text in (printed.out, printed.err, caplog.text)]
    for secret in (*SECRETS.values(), HUB_TOKEN):
        assert not any(secret.encode() in content for content in everything)
    assert not any(b"canary" in content for content in everything)


def refused_in_one_line(capsys, *parts):
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("focusft: error: ")
    assert not any("Traceback" in line for line in lines)
    for part in parts:
        assert part in lines[-1]


class Exploit:
    """Unpickling it leaves a file behind."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


def test_a_folder_with_only_pickled_weights_is_refused(model_folder, tmp_path, capsys):
    (model_folder / "model.safetensors").unlink()
    torch.save(Exploit(tmp_path / "witness"), model_folder / "pytorch_model.bin")
    assert train(model_folder, tmp_path / "out") == 2
    refused_in_one_line(capsys, "only pickle weights", str(model_folder))
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize("model_type", ["own", "llama"])
def test_code_in_a_model_folder_never_runs(model_folder, tmp_path, capsys, caplog, model_type):
    witness = tmp_path / "witness"
    code = f"import os\nos.mkdir({str(witness)!r})\nclass Own: pass\n"
    (model_folder / "own.py").write_text(code)
    config = json.loads((model_folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    config["model_type"] = model_type
    (model_folder / "config.json").write_text(json.dumps(config))
    code = train(model_folder, tmp_path / "out")
    assert not witness.exists()
    if model_type == "own":
        assert code == 2
        refused_in_one_line(capsys, str(model_folder))
    else:
        assert code == 0
        assert "names code of its own (auto_map), which is not run" in caplog.text


def test_remote_code_cannot_be_asked_for(model_folder, tmp_path, capsys):
    assert train(model_folder, tmp_path / "out", "--trust_remote_code=true") == 2
    refused_in_one_line(capsys, "never runs code from a model folder")


def test_a_pickle_in_a_checkpoint_does_not_run(model_folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert train(model_folder, out) == 0
    checkpoint = out / "checkpoint-2"
    torch.save(Exploit(tmp_path / "witness"), checkpoint / "optimizer.pt")
    assert train(model_folder, out) == 0
    assert "checkpoint-2 is damaged" in capsys.readouterr().out.replace("\n", "")
    assert not (tmp_path / "witness").exists()
