"""What the commands share."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusft.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console


def add_command(commands: Any, name: str, description: str, **kwargs: Any) -> Any:
    """Add a command whose --help shows the defaults."""
    return commands.add_parser(
        name,
        help=description,
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        **kwargs,
    )


def check_file_to_write(option: str, path: Path, example: str) -> None:
    """Check, before any work, that a file can be written where an option says.

    Args:
        option: The option, such as --out.
        path: Its value.
        example: A name for the file, for the message about a folder.

    Raises:
        ConfigError: The path is a folder, or lies in none.
    """
    if path.is_dir():
        raise ConfigError(f"{option}: {path} is a folder; name a file, such as {path / example}")
    if not path.parent.is_dir():
        raise ConfigError(f"{option}: the folder {path.parent} does not exist; create it")


def make_console() -> Console:
    """The terminal, or a wide enough file."""
    from rich.console import Console

    # A pipe or file has no width of its own; 80 columns would cut the tables.
    return Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "110")))


def quiet_libraries() -> None:
    """Leave the terminal to our own progress bars."""
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
