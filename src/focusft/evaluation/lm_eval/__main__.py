"""Write the task files for lm-eval and print their folder, for its option --include_path."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from focusft.errors import UserError
from focusft.evaluation.items import parse_length
from focusft.evaluation.lm_eval.files import LENGTHS, write_task_files


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files; 0 if that went well, 2 after a user's mistake.

    Args:
        arguments: The command line; that of the process if None.
    """
    cache = Path(os.environ.get("FOCUSFT_CACHE") or Path.home() / ".cache" / "focusft")
    parser = argparse.ArgumentParser(
        prog="python -m focusft.evaluation.lm_eval",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, default=cache / "lm_eval", help="folder of the task files"
    )
    parser.add_argument(
        "--lengths",
        default=",".join(map(str, LENGTHS)),
        help="most tokens of prompt and answer together, such as 4096,16k",
    )
    options = parser.parse_args(arguments)
    try:
        lengths = [parse_length(text) for text in options.lengths.split(",")]
        write_task_files(options.out, lengths)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
