"""`focusft data make`, `check` and `show`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from focusft.cli.sandbox import add_sandbox_options, chosen_sandbox
from focusft.cli.shared import add_command, check_file_to_write, make_console
from focusft.errors import ConfigError


def add_to(commands: Any) -> None:
    """Add the commands."""
    data = commands.add_parser("data", help="generate, check and look at conversations")
    commands = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")

    make = add_command(
        commands, "make", "generate questions about facts hidden in prose, or tool use"
    )
    make.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    make.add_argument(
        "--task", default="qa1", help="qa1, qa2, qa3, cwe, vt, mixed (as many of each), or tools"
    )
    make.add_argument("--split", default="train", help="train or held_out; they share nothing")
    make.add_argument("--count", type=int, default=1000, help="number of conversations")
    make.add_argument("--context_tokens", type=int, default=512, help="length of the text")
    make.add_argument(
        "--min_context_tokens", type=int, help="draw each length between this and context_tokens"
    )
    make.add_argument(
        "--answer_style", default="short", help="short, sentence, reasoning, or mixed"
    )
    make.add_argument("--seed", type=int, default=1234, help="seed of the whole set")
    make.add_argument("--model", default="smollm2", help="model whose tokenizer counts")
    tools = make.add_argument_group("options of --task tools")
    tools.add_argument(
        "--kinds", default="seen", help="seen, held_out, all, or names with commas between them"
    )
    tools.add_argument(
        "--long_output_tokens",
        type=int,
        default=160,
        help="about how long the long tool outputs are, 0 for none; raise --output_characters "
        "with it",
    )
    add_sandbox_options(tools)
    make.set_defaults(run=_data_make)

    check = add_command(commands, "check", "validate data files and count what training would use")
    check.add_argument("paths", nargs="+", help=".parquet, .jsonl, .json or hub ids")
    check.add_argument("--model", default="smollm2", help="model whose tokenizer is used")
    check.add_argument("--max_length", type=int, default=4096, help="longest row in tokens")
    check.add_argument(
        "--length_policy", default="drop", help="longer rows: drop, error, truncate_context"
    )
    check.add_argument("--num_proc", type=int, default=1, help="processes that tokenise")
    check.set_defaults(run=_data_check)

    show = add_command(commands, "show", "show one row, context and response coloured")
    show.add_argument("path", help=".parquet, .jsonl, .json or hub id")
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


def _data_make(options: argparse.Namespace, _: list[str]) -> None:
    from focusft.data.long_context import make_long_context
    from focusft.training.models import load_tokenizer

    check_file_to_write("--out", options.out, "train.jsonl")
    tokenizer = load_tokenizer(options.model)

    def count_tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    if options.task == "tools":
        rows = _tool_conversations(options, count_tokens)
    else:
        rows = make_long_context(
            options.task,
            split=options.split,
            count=options.count,
            context_tokens=options.context_tokens,
            seed=options.seed,
            count_tokens=count_tokens,
            answer_style=options.answer_style,
            min_context_tokens=options.min_context_tokens,
        )
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    options.out.write_text(lines, encoding="utf-8")
    print(f"{len(rows)} conversations: {options.out}")


def _tool_conversations(
    options: argparse.Namespace, count_tokens: Callable[[str], int]
) -> list[dict[str, Any]]:
    from rich.progress import track

    from focusft.data.tool_use import make_tool_conversations, select_kinds
    from focusft.evaluation.agent import code_interpreter

    tool = code_interpreter(chosen_sandbox(options), output_characters=options.output_characters)
    rows = make_tool_conversations(
        kinds=select_kinds(options.kinds),
        split=options.split,
        count=options.count,
        seed=options.seed,
        run_code=lambda code: tool.call({"code": code}).text,
        count_tokens=count_tokens,
        long_output_tokens=options.long_output_tokens,
    )
    console = make_console()
    return list(track(rows, "conversations", total=options.count, console=console))


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
    console = make_console()
    console.print(report.table())
    for warning in report.warnings():
        console.print(f"WARNING: {warning}", soft_wrap=True, markup=False)


def _data_show(options: argparse.Namespace, _: list[str]) -> None:
    import torch

    from focusft.data import load_rows, render_example
    from focusft.data.chat import encode_row
    from focusft.method.masks import draw_mask, mask_svg
    from focusft.method.turns import TurnLayout
    from focusft.training.models import load_tokenizer

    if options.svg is not None:
        check_file_to_write("--svg", options.svg, "mask.svg")
    rows = load_rows(options.path)
    if not 1 <= options.row <= len(rows):
        raise ConfigError(f"--row: {options.path} has rows 1 to {len(rows)}, not {options.row}")
    tokenizer = load_tokenizer(options.model)
    example = encode_row(tokenizer, rows[options.row - 1]).example()
    console = make_console()
    console.print(render_example(tokenizer, example))
    layout = TurnLayout.from_turn_ids(torch.tensor([example["turn_ids"]]))
    if options.mask:
        console.print(draw_mask(layout, options.context_attention), markup=False)
    if options.svg is not None:
        options.svg.write_text(mask_svg(layout, options.context_attention), encoding="utf-8")
        print(f"attention mask: {options.svg}")
