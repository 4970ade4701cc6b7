"""`focusft eval --suite agent`: questions solved with a Python tool, and without."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from focusft.cli.sandbox import add_sandbox_options, chosen_sandbox
from focusft.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from focusft.evaluation.generation import Generator

# Options of the other suites or with a meaning of their own for each.
_NOT_OURS = ("run", "command", "out", "compare", "lengths", "chat")
_CORPORA = ("prose", "squad", "hotpotqa", "babilong_data")
# Of `add_agent_options`; not part of the settings of the other suites.
AGENT_OPTIONS = (
    "questions",
    "no_tools",
    "both",
    "turns",
    "max_context",
    "sandbox",
    "code_may_read_and_delete_my_files",
    "output_characters",
)


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
        help="most tokens of a conversation; the model's positions if not given or fewer",
    )
    add_sandbox_options(group)


def run_agent(
    options: argparse.Namespace,
    console: Console,
    tokenizer: Any,
    make_generator: Callable[[], Generator],
) -> None:
    """Run the suite and print its table."""
    from focusft.evaluation.agent import Budget, code_interpreter
    from focusft.evaluation.agent_backend import GeneratorBackend
    from focusft.evaluation.agent_compare import check_agent_baseline
    from focusft.evaluation.agent_run import Mode, results_table, run_agent_suite
    from focusft.evaluation.answers import thinking_room
    from focusft.evaluation.questions import load_questions, select_questions
    from focusft.training.provenance import versions

    if options.questions is None:
        raise ConfigError("--questions: none is given; --suite agent needs a file or hub id")
    if options.chat is False:
        raise ConfigError("--no-chat: the tool loop needs the chat template; leave it out")
    if options.samples < 1:
        raise ConfigError(f"--samples: {options.samples} is less than 1")
    questions = load_questions(options.questions, seed=options.seed)
    if options.tasks:
        questions = select_questions(questions, options.tasks.split(","))
    modes: tuple[Mode, ...] = ("tools", "no_tools") if options.both else ("tools",)
    if options.no_tools:
        modes = ("no_tools",)
    if options.compare is not None:
        check_agent_baseline(options.compare, questions, modes)
    tool = code_interpreter(chosen_sandbox(options), output_characters=options.output_characters)
    if "tools" in modes:
        # A sandbox that does not work ends the run here, before the model is loaded.
        tool.call({"code": "1"})
    budget = Budget(turns=options.turns, tokens=options.max_new_tokens)
    generator = make_generator()
    context_tokens = _context_tokens(options, console)
    if context_tokens is not None:
        context_tokens -= thinking_room(tokenizer, options.thinking_budget)
        if context_tokens < 1:
            raise ConfigError(
                "--max_context: no room is left for a question; raise it, or lower "
                "--thinking_budget, which counts too"
            )
    left_out = {*_NOT_OURS, *_CORPORA}
    results = run_agent_suite(
        questions,
        GeneratorBackend(
            generator,
            tokenizer,
            context_tokens=context_tokens,
            thinking_is_free=options.thinking_budget is not None,
        ),
        tool,
        options.out,
        console,
        modes=modes,
        samples=options.samples,
        budget=budget,
        batch_size=options.batch_size or 32,
        config={name: value for name, value in vars(options).items() if name not in left_out},
        versions=versions(),
    )
    console.print(results_table(results))
    console.print(f"results and transcripts: {options.out}", markup=False, soft_wrap=True)


def _context_tokens(options: argparse.Namespace, console: Console) -> int | None:
    """Most tokens of a conversation, thinking with a budget of its own included."""
    from focusft.evaluation.generation.model_facts import most_positions
    from focusft.training.model_folders import read_config, tokenizer_folder

    given: int | None = options.max_context
    # A server may run the model with more positions than its config says.
    if given is not None and options.server is not None:
        return given
    folder = tokenizer_folder(options.model)
    if not (folder / "config.json").is_file():
        return given
    positions = most_positions(read_config(folder, options.model))
    if given is None or positions is None or given <= positions:
        return positions if given is None else given
    console.print(
        f"--max_context: {given} is more than the model's {positions} positions, which end a "
        "conversation",
        soft_wrap=True,
    )
    return positions
