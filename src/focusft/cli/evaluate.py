"""`focusft eval`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusft.cli.evaluate_agent import AGENT_OPTIONS, add_agent_options, run_agent
from focusft.cli.shared import add_command, make_console, quiet_libraries
from focusft.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from focusft.evaluation.generation import Generator

# What the published evaluations use.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "agent": {"samples": 1, "temperature": 1.0, "top_p": 0.6, "max_new_tokens": 20_480}
}
_OTHER_DEFAULTS = {"samples": 100, "temperature": 0.0, "top_p": 1.0}


def add_to(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, "eval", "score a model on BABILong, RULER or tool use")
    command.add_argument(
        "model", nargs="?", help="hub id, folder, GGUF file or smollm2; not needed to compare"
    )
    command.add_argument("--suite", help="babilong, ruler or agent")
    command.add_argument(
        "--tasks",
        help="such as qa1,qa2 or vt,cwe, for agent kinds of questions; all if not given",
    )
    command.add_argument("--lengths", default="1k,2k,4k", help="tokens: 512, 0.5k, 1k (1024), 1M")
    command.add_argument(
        "--samples",
        type=int,
        help="items per task and length, 100 if not given; for agent answers per question, 1",
    )
    command.add_argument("--seed", type=int, default=42, help="seed of items and sampling")
    command.add_argument("--out", type=Path, required=True, help="folder of the run; goes on there")
    command.add_argument("--compare", type=Path, help="folder of a finished run to subtract")
    _add_generation(command.add_argument_group("generation"))
    _add_server(command.add_argument_group("server"))
    _add_corpora(command.add_argument_group("corpora, instead of built-in stand-ins"))
    add_agent_options(command.add_argument_group("agent"))
    command.set_defaults(run=_eval)


def _add_generation(group: Any) -> None:
    group.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")
    group.add_argument("--batch_size", type=int, help="prompts at once; by memory if not given")
    group.add_argument(
        "--prefill",
        default="causal",
        choices=["causal", "bidirectional"],
        help="attention among context tokens; bidirectional as in training",
    )
    group.add_argument(
        "--chat",
        action=argparse.BooleanOptionalAction,
        help="use the chat template; where there is one if not given",
    )
    group.add_argument("--temperature", type=float, help="0, greedy, if not given; for agent 1")
    group.add_argument("--top_p", type=float, help="nucleus; 1 if not given, for agent 0.6")
    group.add_argument(
        "--max_new_tokens", type=int, help="longest answer; as the benchmark has it if not given"
    )
    group.add_argument(
        "--thinking_budget", type=int, help="most tokens of thinking, on top of that"
    )


def _add_server(group: Any) -> None:
    group.add_argument("--server", help="URL of an OpenAI-compatible server, such as vLLM")
    group.add_argument("--server_model", help="the model's name there; MODEL's tokenizer counts")
    group.add_argument("--concurrency", type=int, default=16, help="requests at one time")
    group.add_argument("--api", help="completions or chat; what the server has if not given")
    group.add_argument(
        "--server_timeout", type=int, default=600, help="most seconds to wait for an answer"
    )


def _add_corpora(group: Any) -> None:
    group.add_argument(
        "--prose", nargs="+", default=[], help="books or essays: .txt, .json or hub ids"
    )
    group.add_argument("--squad", help="SQuAD v2 dev file or hub id for ruler's qa_1")
    group.add_argument("--hotpotqa", help="HotpotQA distractor file or hub id for ruler's qa_2")
    group.add_argument("--babilong_data", help="published BABILong data: file, folder or hub id")


def _eval(options: argparse.Namespace, _: list[str]) -> None:
    console = make_console()
    if options.model is not None:
        _run(options, console)
    elif options.compare is None:
        raise ConfigError("MODEL: none is given; name one, or compare two finished runs")
    if options.compare is not None:
        _compare(options, console)


def _run(options: argparse.Namespace, console: Console) -> None:
    from focusft.evaluation.answers import thinking_room
    from focusft.evaluation.compare import check_baseline
    from focusft.evaluation.figures import write_figures
    from focusft.evaluation.items import make_items, parse_length
    from focusft.evaluation.run import run_suite
    from focusft.evaluation.tables import results_table
    from focusft.training.models import load_tokenizer
    from focusft.training.provenance import versions

    if options.suite is None:
        raise ConfigError("--suite: none is given; use babilong, ruler or agent")
    if options.out.is_file():
        raise ConfigError(f"--out: {options.out} is a file; name a folder")
    for name, default in _DEFAULTS.get(options.suite, _OTHER_DEFAULTS).items():
        if vars(options)[name] is None:
            setattr(options, name, default)
    _check_server(options)
    quiet_libraries()
    tokenizer = load_tokenizer(options.model)
    if options.suite == "agent":
        run_agent(options, console, tokenizer, lambda: _generator(options, tokenizer, chat=True))
        return
    items = make_items(
        options.suite,
        tokenizer=tokenizer,
        lengths=[parse_length(text) for text in options.lengths.split(",")],
        samples=options.samples,
        seed=options.seed,
        tasks=options.tasks.split(",") if options.tasks else None,
        chat=options.chat,
        max_new_tokens=options.max_new_tokens,
        thinking_tokens=thinking_room(tokenizer, options.thinking_budget),
        prose=options.prose,
        squad=options.squad,
        hotpotqa=options.hotpotqa,
        babilong_data=options.babilong_data,
    )
    if options.compare is not None:
        check_baseline(options.compare, items)
    left_out = ("run", "command", "out", "compare", *AGENT_OPTIONS)
    config = {name: value for name, value in vars(options).items() if name not in left_out}
    config |= {"tasks": items.tasks, "lengths": items.lengths, "chat": items.header["chat"]}
    results = run_suite(
        items,
        _generator(options, tokenizer, chat=config["chat"]),
        options.out,
        console,
        config=config,
        versions=versions(),
    )
    write_figures(results, options.out)
    console.print(results_table(results))
    console.print(f"results, outputs and figures: {options.out}", markup=False, soft_wrap=True)


def _check_server(options: argparse.Namespace) -> None:
    if (options.server is None) != (options.server_model is None):
        raise ConfigError("--server and --server_model belong together; give both or neither")
    of_this_machine = {
        "dtype": options.dtype != "auto",
        "batch_size": options.batch_size is not None,
        "prefill": options.prefill != "causal",
        "thinking_budget": options.thinking_budget is not None,
    }
    for name, is_given in of_this_machine.items():
        if options.server is not None and is_given:
            raise ConfigError(f"--{name}: a server decides that itself; leave the option out")


def _generator(options: argparse.Namespace, tokenizer: Any, *, chat: bool) -> Generator:
    import torch

    from focusft.evaluation.generation import LocalGenerator
    from focusft.evaluation.sampling import Sampling
    from focusft.training.models import load_model
    from focusft.training.resolved_config import trained_context_blocks

    sampling = Sampling(options.temperature, options.top_p, options.seed)
    if options.server is not None:
        from focusft.evaluation.server import ServerGenerator

        return ServerGenerator(
            options.server,
            options.server_model,
            tokenizer,
            chat=chat,
            sampling=sampling,
            concurrency=options.concurrency,
            timeout_s=options.server_timeout,
            api=options.api,
        )
    model: Any = load_model(options.model, dtype=options.dtype)
    return LocalGenerator(
        model.to("cuda" if torch.cuda.is_available() else "cpu"),
        tokenizer,
        chat=chat,
        prefill=options.prefill,
        context_blocks=trained_context_blocks(options.model),
        sampling=sampling,
        batch_size=options.batch_size,
        thinking_budget=options.thinking_budget,
    )


def _compare(options: argparse.Namespace, console: Console) -> None:
    from focusft.evaluation import agent_compare, compare
    from focusft.evaluation.items import SUITES
    from focusft.training.provenance import write_json

    there = compare.read_baseline(options.compare, (*SUITES, "agent"))["suite"]
    here = compare.read_results(options.out).get("suite")
    if here != there:
        raise ConfigError(
            f"--compare: {options.compare} is of --suite {there} and {options.out} of {here}; "
            "compare runs of one suite"
        )
    if here == "agent":
        comparison = agent_compare.compare_agent_runs(options.out, options.compare)
        table = agent_compare.comparison_table(comparison)
    else:
        comparison = compare.compare_runs(options.out, options.compare)
        table = compare.comparison_table(comparison)
    file = options.out / "comparison.json"
    write_json(file, comparison)
    console.print(table)
    console.print(f"differences: {file}", markup=False, soft_wrap=True)
