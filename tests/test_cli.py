"""The command line: exit codes, one-line errors, and a whole training run."""

import io
import json

import pytest
from transformers import AutoModelForCausalLM

from focusft.cli import main
from tests.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture
def model_folder(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def data_file(tmp_path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n} and {n}?"},
                {"role": "assistant", "content": str(2 * n)},
                {"role": "user", "content": "And one more?"},
                {"role": "assistant", "content": str(2 * n + 1)},
            ]
        }
        for n in range(8)
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_train(model_folder, data_file, out, *more):
    arguments = [
        "train", "--model_name_or_path", str(model_folder), "--train_data", str(data_file),
        "--val_data", str(data_file), "--output_dir", str(out), "--inner_lr", "0.1",
        "--inner_rank", "4", "--learning_rate", "1e-3", "--num_train_epochs", "1",
        "--gradient_accumulation_steps", "2", "--logging_steps", "1", "--save_steps", "2",
        "--use_cpu", "--report_to", "none", *more,
    ]  # fmt: skip
    return main(arguments)


def test_train_writes_a_vanilla_model_and_results(model_folder, data_file, tmp_path):
    out = tmp_path / "out"
    assert run_train(model_folder, data_file, out) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["data"]["train"]["used"] == 8
    assert results["config"]["inner_lr"] == 0.1
    assert {"eval_loss", "eval_loss_bidirectional"} <= set(results["metrics"])
    _, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    assert not list(out.glob("*.bin"))
    # A second call finds the run finished and only measures it again.
    assert run_train(model_folder, data_file, out) == 0
    assert main(["train", "--config", str(out / "focusft_config.yaml"), "--resume=false"]) == 2


def test_data_commands(model_folder, data_file, tmp_path, capsys):
    assert main(["data", "check", str(data_file), "--model", str(model_folder)]) == 0
    assert "rows used" in capsys.readouterr().out
    svg = tmp_path / "mask.svg"
    show = ["data", "show", str(data_file), "--model", str(model_folder)]
    assert main([*show, "--row", "2", "--mask", "--svg", str(svg)]) == 0
    assert "What is 1 and 1?" in capsys.readouterr().out
    assert svg.read_text().startswith("<svg")
    assert main([*show, "--row", "99"]) == 2
    assert "rows 1 to 8" in capsys.readouterr().err
    made = tmp_path / "made.jsonl"
    make = ["data", "make", "--out", str(made), "--count", "3", "--context_tokens", "400"]
    assert main([*make, "--model", str(model_folder)]) == 0
    assert len(made.read_text().splitlines()) == 3


def test_where_a_picture_goes_is_checked_first(tmp_path, capsys):
    def error(svg):
        # The data would be the next error.
        assert main(["data", "show", "nowhere.jsonl", "--svg", str(svg)]) == 2
        return capsys.readouterr().err

    assert f"--svg: {tmp_path} is a folder; name a file, such as" in error(tmp_path)
    assert f"--svg: the folder {tmp_path / 'no'} does not exist" in error(tmp_path / "no" / "x.svg")


def test_lists_with_spaces(capsys):
    assert main(["eval", "nowhere", "--tasks", "qa1", "qa2", "--out", "y"]) == 2
    assert "unknown: qa2; see" in (error := capsys.readouterr().err)
    assert "lists are written with commas, such as --tasks qa1,qa2" in error


def test_chat(model_folder, monkeypatch, capsys):
    lines = iter(["hello", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main(["chat", str(model_folder), "--max_new_tokens", "3"]) == 0
    assert "empty line" in capsys.readouterr().out


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_chat_reads_bytes_that_are_not_utf_8(model_folder, monkeypatch, capsys, errors):
    typed = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n\n"), encoding="utf-8", errors=errors)
    monkeypatch.setattr("sys.stdin", typed)
    assert main(["chat", str(model_folder), "--max_new_tokens", "1"]) == 0
    assert not capsys.readouterr().err


def test_chat_without_a_template_is_refused(model_folder, capsys):
    (model_folder / "chat_template.jinja").unlink()
    assert main(["chat", str(model_folder)]) == 2
    assert "no chat template" in capsys.readouterr().err


BAD = {
    "no such model": ["chat", "nowhere/at/all"],
    "no room for an answer": ["chat", "MODEL", "--max_new_tokens", "0"],
    "no such data": ["data", "check", "nowhere.jsonl", "--model", "MODEL"],
    "wrong extension": ["data", "check", "MODEL/config.txt", "--model", "MODEL"],
    "task": ["data", "make", "--out", "x.jsonl", "--task", "qa99", "--model", "MODEL"],
    "folder": ["data", "make", "--out", "no/such/folder/x.jsonl", "--model", "MODEL"],
    "folder for a file": ["data", "make", "--out", "MODEL", "--model", "MODEL"],
    "file for a folder": ["eval", "MODEL", "--suite", "ruler", "--out", "MODEL/config.json"],
    "a file of the system": ["plan", "--config", "CONFIG", "--json", "no/such/folder/x.json"],
    "no options": ["train"],
    "unknown option": ["train", "--train_data", "x", "--output_dir", "y", "--inner_speed", "3"],
    "unknown argument": ["eval", "MODEL", "--out", "y", "--speed", "3"],
    "no config": ["train", "--config", "nowhere.yaml"],
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_line_and_exit_code_2(name, model_folder, capsys):
    arguments = [part.replace("MODEL", str(model_folder)) for part in BAD[name]]
    assert main(arguments) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("focusft: error: ")
