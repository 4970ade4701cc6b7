"""Compare two results of one cell, such as the committed one and a rerun from scratch.

python -m benchmarks.study_check benchmarks/results/study/smollm2/sft-0.json rerun/sft-0.json

The exit code is 1 if the items differ or a score does.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Print what differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stored", type=Path)
    parser.add_argument("rerun", type=Path)
    options = parser.parse_args()
    stored, rerun = (json.loads(path.read_text()) for path in (options.stored, options.rerun))
    lines = differing(stored, rerun)
    print("\n".join(lines) if lines else "the same items and the same scores")
    sys.exit(bool(lines))


def differing(stored: dict[str, Any], rerun: dict[str, Any]) -> list[str]:
    """One line for each evaluation, task and length that is not the same, and for the losses."""
    lines = []
    for name, evaluation in stored["evaluations"].items():
        other = rerun["evaluations"].get(name)
        if other is None or other["prompts_sha256"] != evaluation["prompts_sha256"]:
            lines.append(f"{name}: other items, or none")
            continue
        for task, row in evaluation["scores"].items():
            for length, scores in row.items():
                pairs = list(zip(scores, other["scores"][task][length], strict=True))
                changed = sum(one != two for one, two in pairs)
                if changed:
                    means = [sum(column) / len(pairs) for column in zip(*pairs, strict=True)]
                    lines.append(
                        f"{name}, {task}, {length}: {changed} of {len(pairs)} items differ, "
                        f"mean {means[0]:.3f} and {means[1]:.3f}"
                    )
    losses = [
        [line["loss"] for line in cell["train"]["log"] if "loss" in line] if cell["train"] else []
        for cell in (stored, rerun)
    ]
    if losses[0] != losses[1]:
        lines.append(f"training losses differ: {losses[0][-1:]} and {losses[1][-1:]} at the end")
    return lines


if __name__ == "__main__":
    main()
