"""The `focusft` command: wiring only."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusft.errors import ConfigError, UserError

if TYPE_CHECKING:
    from rich.console import Console


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 on success, 2 for an error that the user can mend, 130 when interrupted.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in ("train", "plan"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        options.run(options, rest)
    except UserError as error:
        print(f"focusft: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("focusft: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="focusft", description="Fine-tune language models against attention dilution."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = _command(commands, "demo", "train SmolLM2-135M on generated data, before and after")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the results")
    demo.add_argument("--model", default="smollm2", help="hub id, folder, GGUF file or smollm2")
    demo.set_defaults(run=_demo)

    train = _command(commands, "train", "fine-tune a model on conversations", add_help=False)
    train.add_argument("--config", type=Path, help="YAML file with one option a line")
    train.add_argument("-h", "--help", action="store_true", dest="show_options")
    train.set_defaults(run=_train)

    plan = _command(commands, "plan", "memory, FLOPs and time of a run, before anything is loaded")
    plan.add_argument("--config", type=Path, help="YAML file of 'focusft train'")
    plan.add_argument("--response", type=int, default=64, help="response tokens of a conversation")
    plan.add_argument("--turns", type=int, default=1, help="pairs of context and response in it")
    plan.add_argument("--data_parallel", type=int, default=1, help="number of devices")
    plan.add_argument("--shards", type=int, default=1, help="devices that FSDP2 shards over")
    plan.add_argument("--device", default="cpu", help="cpu or cuda")
    plan.add_argument(
        "--tflops", type=float, help="matmul rate of a device; measured here for a CPU"
    )
    plan.add_argument("--utilisation", type=float, default=0.5, help="fraction of it in a step")
    plan.add_argument("--json", type=Path, help="write the plan to this file")
    plan.set_defaults(run=_plan)

    chat = _command(commands, "chat", "talk to a model in the terminal")
    chat.add_argument("model", help="hub id, folder, GGUF file or smollm2")
    chat.add_argument("--max_new_tokens", type=int, default=256, help="longest answer in tokens")
    chat.set_defaults(run=_chat)

    data = commands.add_parser("data", help="generate, check and look at conversations")
    _add_data_commands(data.add_subparsers(dest="data_command", required=True, metavar="COMMAND"))
    return parser


def _add_data_commands(commands: Any) -> None:
    make = _command(commands, "make", "generate questions about facts hidden in prose")
    make.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    make.add_argument("--task", default="qa1", help="qa1, qa2 or qa3")
    make.add_argument("--split", default="train", help="train or held_out; they share nothing")
    make.add_argument("--count", type=int, default=1000, help="number of conversations")
    make.add_argument("--context_tokens", type=int, default=512, help="length of the text")
    make.add_argument("--answer_style", default="short", help="short or sentence")
    make.add_argument("--seed", type=int, default=1234, help="seed of the whole set")
    make.add_argument("--model", default="smollm2", help="model whose tokenizer counts")
    make.set_defaults(run=_data_make)

    check = _command(commands, "check", "validate data files and count what training would use")
    check.add_argument("paths", nargs="+", help=".parquet, .jsonl or hub ids")
    check.add_argument("--model", default="smollm2", help="model whose tokenizer is used")
    check.add_argument("--max_length", type=int, default=4096, help="longest row in tokens")
    check.add_argument(
        "--length_policy", default="drop", help="longer rows: drop, error, truncate_context"
    )
    check.add_argument("--num_proc", type=int, default=1, help="processes that tokenise")
    check.set_defaults(run=_data_check)

    show = _command(commands, "show", "show one row, context and response coloured")
    show.add_argument("path", help=".parquet, .jsonl or hub id")
    show.add_argument("--row", type=int, default=1, help="number of the row, from 1")
    show.add_argument("--model", default="smollm2", help="model whose tokenizer is used")
    show.add_argument("--mask", action="store_true", help="draw the attention mask as well")
    show.add_argument("--svg", type=Path, help="write the attention mask as a picture")
    show.add_argument(
        "--context_attention",
        default="bidirectional",
        choices=["bidirectional", "causal"],
        help="attention among context tokens, for the mask",
    )
    show.set_defaults(run=_data_show)


def _command(commands: Any, name: str, description: str, **kwargs: Any) -> Any:
    return commands.add_parser(
        name,
        help=description,
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        **kwargs,
    )


# The commands import what they need themselves, so that --help answers at once.


def _demo(options: argparse.Namespace, _: list[str]) -> None:
    from focusft.demo import DemoSettings, run_demo

    _quiet_libraries()
    run_demo(options.out, options.model, DemoSettings(), _console())


def _train(options: argparse.Namespace, overrides: list[str]) -> None:
    from focusft.training.config import load_train_config

    if options.show_options:
        _print_train_help()
        return
    from focusft.training.run import train

    train(load_train_config(options.config, overrides), _console())


def _plan(options: argparse.Namespace, overrides: list[str]) -> None:
    from focusft.training.config import load_train_config
    from focusft.training.plan_report import plan_training, print_plan
    from focusft.training.provenance import write_json

    plan = plan_training(
        load_train_config(options.config, overrides),
        response_tokens=options.response,
        turns=options.turns,
        data_parallel=options.data_parallel,
        shards=options.shards,
        device=options.device,
        tflops=options.tflops,
        utilisation=options.utilisation,
    )
    print_plan(plan, _console())
    if options.json:
        write_json(options.json, plan.to_dict())


def _chat(options: argparse.Namespace, _: list[str]) -> None:
    from transformers import TextStreamer

    from focusft.training.models import load_model, load_tokenizer

    _quiet_libraries()
    tokenizer: Any = load_tokenizer(options.model)
    model: Any = load_model(options.model)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    messages: list[dict[str, str]] = []
    print("Write a message; an empty line ends the chat.")
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            return
        if not text:
            return
        messages.append({"role": "user", "content": text})
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        output = model.generate(
            **prompt,
            max_new_tokens=options.max_new_tokens,
            do_sample=False,
            streamer=streamer,
            pad_token_id=tokenizer.pad_token_id,
        )
        answer = output[0, prompt["input_ids"].shape[1] :]
        messages.append(
            {"role": "assistant", "content": tokenizer.decode(answer, skip_special_tokens=True)}
        )


def _data_make(options: argparse.Namespace, _: list[str]) -> None:
    from focusft.data.synthetic import make_conversations
    from focusft.training.models import load_tokenizer

    if not options.out.parent.is_dir():
        raise ConfigError(f"--out: the folder {options.out.parent} does not exist; create it")
    tokenizer = load_tokenizer(options.model)
    rows = make_conversations(
        options.task,
        split=options.split,
        count=options.count,
        context_tokens=options.context_tokens,
        seed=options.seed,
        count_tokens=lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
        answer_style=options.answer_style,
    )
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    options.out.write_text(lines, encoding="utf-8")
    print(f"{len(rows)} conversations: {options.out}")


def _data_check(options: argparse.Namespace, _: list[str]) -> None:
    from focusft.data import prepare_dataset
    from focusft.training.models import load_tokenizer

    _, report = prepare_dataset(
        options.paths,
        load_tokenizer(options.model),
        max_length=options.max_length,
        length_policy=options.length_policy,
        num_proc=options.num_proc,
    )
    _console().print(report.table())


def _data_show(options: argparse.Namespace, _: list[str]) -> None:
    import torch

    from focusft.data import load_rows, render_example
    from focusft.data.chat import encode_row
    from focusft.method.masks import draw_mask, mask_svg
    from focusft.method.turns import TurnLayout
    from focusft.training.models import load_tokenizer

    rows = load_rows(options.path)
    if not 1 <= options.row <= len(rows):
        raise ConfigError(f"--row: {options.path} has rows 1 to {len(rows)}, not {options.row}")
    tokenizer = load_tokenizer(options.model)
    example = encode_row(tokenizer, rows[options.row - 1]).example()
    console = _console()
    console.print(render_example(tokenizer, example))
    layout = TurnLayout.from_turn_ids(torch.tensor([example["turn_ids"]]))
    if options.mask:
        console.print(draw_mask(layout, options.context_attention), markup=False)
    if options.svg:
        options.svg.write_text(mask_svg(layout, options.context_attention), encoding="utf-8")
        print(f"attention mask: {options.svg}")


def _print_train_help() -> None:
    """Every option of FocuSFT with its default; those of transformers by name."""
    from rich.table import Table
    from transformers import TrainingArguments

    from focusft.method.config import FocusConfig
    from focusft.training.config import TrainConfig

    console = _console()
    console.print("usage: focusft train [--config C.yaml] --option value ...\n", markup=False)
    stock = {option.name for option in dataclasses.fields(TrainingArguments)}
    described = _attribute_docs(FocusConfig.__doc__ or "")
    table = Table("option", "default", "meaning", title="Options of FocuSFT")
    overridden = Table("option", "default", title="Options of transformers with other defaults")
    stock_defaults = {o.name: o.default for o in dataclasses.fields(TrainingArguments)}
    for option in dataclasses.fields(TrainConfig):
        if option.name not in stock or option.name == "seed":
            meaning = option.metadata.get("help") or described.get(option.name, "")
            table.add_row(option.name, str(option.default), meaning)
        elif option.default != stock_defaults[option.name]:
            overridden.add_row(option.name, str(option.default))
    console.print(table)
    console.print(overridden)
    console.print(
        "All other options of transformers.TrainingArguments work too: "
        "https://huggingface.co/docs/transformers/main_classes/trainer"
    )


def _attribute_docs(docstring: str) -> dict[str, str]:
    """The `Attributes:` section of a Google-style docstring, by name."""
    docs: dict[str, str] = {}
    name = ""
    for line in docstring.partition("Attributes:")[2].splitlines():
        indent = len(line) - len(line.lstrip())
        if indent == 8 and ":" in line:
            name, _, text = line.strip().partition(": ")
            docs[name] = text
        elif indent > 8:
            docs[name] += " " + line.strip()
    return docs


def _console() -> Console:
    from rich.console import Console

    # A pipe or file has no width of its own; 80 columns would cut the tables.
    return Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "110")))


def _quiet_libraries() -> None:
    """Leave the terminal to our own progress bars."""
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
