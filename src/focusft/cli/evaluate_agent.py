"""`focusft eval --suite agent`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from focusft.cli.sandbox import add_sandbox_options, chosen_sandbox
from focusft.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from focusft.evaluation.generation import Generator

# Those of the published evaluation.
TEMPERATURE, TOP_P, MAX_NEW_TOKENS = 1.0, 0.6, 20_480


def add_agent_options(group: Any) -> None:
    """Add the options that only --suite agent has."""
    group.add_argument(
        "--questions",
        help=".jsonl of 'focusft data make --task tools', .csv or .parquet in GPQA's form, or a "
        "hub id such as Idavidrein/gpqa:gpqa_diamond",
    )
    modes = group.add_mutually_exclusive_group()
    modes.add_argument("--no_tools", action="store_true", help="answer without the tool")
    modes.add_argument("--both", action="store_true", help="once with and once without the tool")
    group.add_argument("--turns", type=int, default=16, help="most assistant messages of an answer")
    group.add_argument(
        "--max_context",
        type=int,
        help="most tokens of a conversation; the model's positions if not given",
    )
    add_sandbox_options(group)


def run_agent(
    options: argparse.Namespace,
    console: Console,
    tokenizer: Any,
    make_generator: Callable[[], Generator],
    context_tokens: Callable[[Generator], int | None],
) -> None:
    """Run the suite."""
    from focusft.evaluation.agent import code_interpreter
    from focusft.evaluation.questions import load_questions, select_questions

    if options.questions is None:
        raise ConfigError("--questions: none is given; --suite agent needs a file or hub id")
    if options.samples < 1:
        raise ConfigError(f"--samples: {options.samples} is less than 1")
    questions = load_questions(options.questions, seed=options.seed)
    if options.tasks:
        questions = select_questions(questions, options.tasks.split(","))
    tool = code_interpreter(chosen_sandbox(options), output_characters=options.output_characters)
    # Before the model is loaded: a sandbox that does not work ends the run here.
    tool.call({"code": "1"})
