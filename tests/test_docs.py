"""Every Python snippet of the documentation runs, and every command line in it parses."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from focusft.cli import make_parser
from focusft.data import load_rows
from focusft.training.config import TrainConfig, load_train_config
from tests.tiny_models import tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(focusft [^`]+)`")
COMMANDS = ("train", "plan")


def blocks(page, *languages):
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for language, text in found if language in languages]


def command_lines(page):
    """Lines of shell blocks that call focusft."""
    lines = []
    for block in blocks(page, "", "console", "bash", "sh", "shell"):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if line.startswith("focusft "):
                lines.append(line)
    return lines


def mentions(page):
    """Commands in running text; they may leave out what does not matter there."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(line.split()) for line in _INLINE.findall(text)]


def every(find, *languages):
    return [
        pytest.param(page, found, id=f"{page.name}-{number}")
        for page in PAGES
        for number, found in enumerate(find(page, *languages), 1)
    ]


TRAINING_OPTIONS = {option.name for option in dataclasses.fields(TrainConfig)}


@pytest.mark.parametrize(("page", "line"), every(command_lines))
def test_command_lines_parse(page, line):
    # [--optional] parts of a usage line may be left out; variables of the shell hold numbers.
    line = re.sub(r"\$\w+", "1", re.sub(r"\[[^\]]*\]", "", line))
    words = shlex.split(line, comments=True)[1:]
    try:
        options, rest = make_parser().parse_known_args(words)
    except SystemExit:
        pytest.fail(f"{page.name}: {line}")
    assert not rest or options.command in COMMANDS, f"{page.name}: unknown {rest}"
    for word in rest:
        if word.startswith("--"):
            assert word[2:].partition("=")[0] in TRAINING_OPTIONS, f"{page.name}: {word}"


@pytest.mark.parametrize(("page", "line"), every(mentions))
def test_mentioned_commands_and_options_exist(page, line):
    words = line.split()[1:]
    parser, is_training = make_parser(), words[0] in COMMANDS
    while parser._subparsers is not None and words:
        subcommands = parser._subparsers._group_actions[0].choices
        assert words[0] in subcommands, f"{page.name}: {line}"
        parser = subcommands[words.pop(0)]
    for option in re.findall(r"--(\w+)", " ".join(words)):
        is_known = f"--{option}" in parser._option_string_actions
        # `[--option value]` stands for any of them.
        is_known |= is_training and option in TRAINING_OPTIONS | {"option"}
        assert is_known, f"{page.name}: {line}: --{option}"


@pytest.mark.parametrize(("page", "text"), every(blocks, "yaml"))
def test_options_in_yaml_exist(page, text, tmp_path):
    base = {"train_data": "a.jsonl", "output_dir": str(tmp_path), "use_cpu": True}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(base | yaml.safe_load(text)))
    load_train_config(path)


OTHER_FORMS = {
    "sharegpt.jsonl": {
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    },
    "alpaca.jsonl": {"instruction": "Add.", "input": "2 and 2", "output": "4"},
}


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the pages take as given: a model, its tokenizer, a batch, and a data file."""
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer)).train()
    row = {
        "messages": [
            {"role": "user", "content": "Two and two?"},
            {"role": "assistant", "content": "Four."},
        ]
    }
    Path("train.jsonl").write_text(4 * (json.dumps(row) + "\n"))
    for name, other in OTHER_FORMS.items():
        Path(name).write_text(json.dumps(other) + "\n")
    ids = tokenizer.apply_chat_template(row["messages"], return_tensors="pt", return_dict=True)
    labels = ids["input_ids"].clone()
    labels[:, : labels.shape[1] // 2] = -100
    batch = {**ids, "labels": labels}
    return {"model": model, "tokenizer": tokenizer, "batch": batch, "__name__": "docs"}


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name
)
def test_python_snippets_run(page, names, monkeypatch):
    from focusft.data import tokenise

    monkeypatch.setattr(tokenise.datasets.config, "HF_DATASETS_CACHE", "cache")
    for number, snippet in enumerate(blocks(page, "python"), 1):
        # One process tokenises as well as eight, and TRL's defaults are for GPUs.
        snippet = snippet.replace("num_proc=8", "num_proc=1")
        snippet = snippet.replace("SFTConfig(", "SFTConfig(use_cpu=True, bf16=False, ")
        exec(compile(snippet, f"{page.name} snippet {number}", "exec"), names)


def test_rows_of_other_forms_are_converted(names):
    snippet, *_ = blocks(ROOT / "docs" / "data_format.md", "python")
    exec(snippet, names)
    (conversation,) = load_rows("from_sharegpt.jsonl")
    assert [m["content"] for m in conversation["messages"]] == ["Hi", "Hello."]
    (pair,) = load_rows("from_alpaca.jsonl")
    assert [m["content"] for m in pair["prompt"] + pair["completion"]] == ["Add.\n\n2 and 2", "4"]


def test_the_pages_link_to_what_is_there():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
