"""The `focusft` command: wiring only."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from focusft.cli import chat, data, demo, evaluate, probe, report, study, train
from focusft.errors import RunInterrupted, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 on success, 2 for an error that the user can mend, 3 for a training whose loss is not
        finite, 130 when interrupted, 143 when terminated.
    """
    options, rest = make_parser().parse_known_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        if rest and options.command not in ("train", "plan"):
            raise UserError(_unknown(options.command, rest))
        options.run(options, rest)
    except UserError as error:
        print(f"focusft: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.filename is None:
            raise
        print(f"focusft: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return UserError.exit_code
    except RunInterrupted as interruption:
        print(f"focusft: {interruption}", file=sys.stderr)
        return interruption.exit_code
    except KeyboardInterrupt:
        print("focusft: interrupted", file=sys.stderr)
        return 130
    return 0


def _unknown(command: str, rest: list[str]) -> str:
    text = f"command line: unknown: {' '.join(rest)}; see 'focusft {command} --help'"
    if command == "eval" and not any(word.startswith("-") for word in rest):
        return f"{text}; lists are written with commas, such as --tasks qa1,qa2"
    return text


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="focusft", description="Fine-tune language models against attention dilution."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # Each module imports what its command needs when it runs, so that --help answers at once.
    for module in (demo, train, evaluate, probe, report, study, chat, data):
        module.add_to(commands)
    return parser
