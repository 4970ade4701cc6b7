"""`focusft train` and `focusft plan`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from focusft.cli.shared import add_command, make_console


def add_to(commands: Any) -> None:
    """Add the commands."""
    train = add_command(commands, "train", "fine-tune a model on conversations", add_help=False)
    train.add_argument("--config", type=Path, help="YAML file with one option a line")
    train.add_argument("-h", "--help", action="store_true", dest="show_options")
    train.set_defaults(run=_train)

    plan = add_command(
        commands, "plan", "memory, FLOPs and time of a run, before anything is loaded"
    )
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


def _train(options: argparse.Namespace, overrides: list[str]) -> None:
    from focusft.training.config import load_train_config

    if options.show_options:
        _print_train_help()
        return
    from focusft.training.run import train

    train(load_train_config(options.config, overrides), make_console())


def _plan(options: argparse.Namespace, overrides: list[str]) -> None:
    from focusft.training.config import load_train_config
    from focusft.training.plan.report import plan_training, print_plan
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
    print_plan(plan, make_console())
    if options.json:
        write_json(options.json, plan.to_dict())


def _print_train_help() -> None:
    """Every option of FocuSFT with its default; those of transformers by name."""
    from rich.table import Table
    from transformers import TrainingArguments

    from focusft.method.config import FocusConfig
    from focusft.training.config import TrainConfig

    console = make_console()
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
