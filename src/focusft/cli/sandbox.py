"""The options that choose where a model's code runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from focusft.errors import ConfigError

if TYPE_CHECKING:
    from focusft.evaluation.sandbox import Sandbox


def add_sandbox_options(parser: Any) -> None:
    """Add --sandbox, --output_characters and the flag that --sandbox unprotected needs."""
    parser.add_argument(
        "--sandbox",
        default="bubblewrap",
        help="bubblewrap, docker, unprotected, or the URL of a SandboxFusion server",
    )
    parser.add_argument(
        "--code_may_read_and_delete_my_files",
        action="store_true",
        help="consent for --sandbox unprotected: the code runs as you, with your files, network "
        "and credentials",
    )
    parser.add_argument(
        "--output_characters",
        type=int,
        default=256,
        help="longest tool output; longer ones are cut in the middle",
    )


def chosen_sandbox(options: argparse.Namespace) -> Sandbox:
    """The sandbox that the options name.

    Raises:
        ConfigError: There is no such sandbox.
        SandboxError: --sandbox unprotected lacks the consent.
    """
    from focusft.evaluation.sandbox import Bubblewrap, Docker, SandboxFusion, Unprotected

    if options.output_characters < 1:
        raise ConfigError(f"--output_characters: {options.output_characters} is less than 1")
    if options.sandbox == "bubblewrap":
        return Bubblewrap()
    if options.sandbox == "docker":
        return Docker()
    if options.sandbox == "unprotected":
        return Unprotected(options.code_may_read_and_delete_my_files)
    if options.sandbox.startswith(("http://", "https://")):
        return SandboxFusion(options.sandbox)
    raise ConfigError(
        f"--sandbox: {options.sandbox!r} is none of bubblewrap, docker, unprotected, or a URL"
    )
