"""Check that the items of every task fill their length, never exceed it, and are reproducible.

python -m benchmarks.fill --json benchmarks/results/fill_smollm2.json

Two processes with different hash seeds make the same items; their bytes are compared, and every
prompt is counted again here. CWE is set beside lm-eval's port of it (needs lm-eval and wonderwords;
our items then take their words from wonderwords too). The exit code is 1 if something fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from focusft.evaluation.items import MANIFEST_FILE, PROMPTS_FILE, SUITES, make_items, write_items
from focusft.training.models import load_tokenizer
from focusft.training.provenance import versions, write_json

LEAST_FILL = 0.97
# Below this many tokens some prompts cannot be filled so far.
FILLED_FROM = 1024
CWE_LENGTHS = (4096, 16384)
CWE_ANSWER = 120


def main() -> None:
    """Make, check, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="model whose tokenizer counts")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 4096, 16384])
    parser.add_argument("--samples", type=int, default=5, help="items of a task at a length")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only_write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_write:
        _write(options, options.only_write)
        return

    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary, seed) for seed in ("1", "2")]
        for folder in folders:
            subprocess.run(
                [sys.executable, "-m", "benchmarks.fill", *sys.argv[1:], "--only_write", folder],
                env=os.environ | {"PYTHONHASHSEED": folder.name},
                check=True,
            )
        result: dict[str, Any] = {
            "identical": all(_same(*folders, suite) for suite in SUITES),
            "tasks": _cells(options.model, folders[0]),
            "corpora": {
                suite: json.loads((folders[0] / suite / MANIFEST_FILE).read_text())["corpora"]
                for suite in SUITES
            },
        }
    result["stock_cwe"] = _stock_cwe(options.model)
    result["failures"] = list(_failures(result))
    result["settings"] = {
        "model": options.model,
        "lengths": options.lengths,
        "samples": options.samples,
    }
    result["versions"] = versions() | {
        package: version(package) for package in ("lm-eval", "wonderwords") if result["stock_cwe"]
    }
    _print(result)
    if options.json:
        write_json(options.json, result)
    sys.exit(1 if result["failures"] else 0)


def _write(options: argparse.Namespace, folder: Path) -> None:
    tokenizer = load_tokenizer(options.model)
    for suite in SUITES:
        items = make_items(
            suite, tokenizer=tokenizer, lengths=options.lengths, samples=options.samples
        )
        write_items(items, folder / suite)


def _same(one: Path, other: Path, suite: str) -> bool:
    names = (PROMPTS_FILE, MANIFEST_FILE)
    return all((one / suite / n).read_bytes() == (other / suite / n).read_bytes() for n in names)


def _cells(model: str, folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Tokens of every prompt, counted here and not taken from the items."""
    tokenizer = load_tokenizer(model)
    totals: dict[str, dict[str, list[int]]] = {}
    for suite in SUITES:
        with (folder / suite / PROMPTS_FILE).open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                message = {"role": "user", "content": row["prompt"]}
                text = tokenizer.apply_chat_template(
                    [message], tokenize=False, add_generation_prompt=True
                )
                ids = tokenizer(f"{text}{row['answer_prefix']}", add_special_tokens=False).input_ids
                cell = totals.setdefault(row["task"], {}).setdefault(str(row["length"]), [])
                cell.append(len(ids) + row["max_new_tokens"])
    return {
        task: {length: _cell(int(length), used) for length, used in row.items()}
        for task, row in totals.items()
    }


def _cell(length: int, used: list[int]) -> dict[str, Any]:
    """How much of a length prompts and answers take."""
    return {
        "n": len(used),
        "most_tokens": max(used),
        "least_fill": round(min(used) / length, 4),
        "mean_fill": round(sum(used) / len(used) / length, 4),
    }


def _stock_cwe(model: str) -> dict[str, dict[str, Any]] | None:
    """What lm-eval's own CWE makes of the same lengths: its prompts as its hf backend gets them."""
    if not all(map(importlib.util.find_spec, ("lm_eval", "wonderwords"))):
        return None
    from lm_eval.tasks.ruler.cwe_utils import sys_word_pair_random

    tokenizer = load_tokenizer(model)
    cells = {}
    for length in CWE_LENGTHS:
        random.seed(0)
        used, examples = [], 0
        for row in sys_word_pair_random(
            num_samples=50,
            max_seq_length=length,
            tokenizer=tokenizer,
            tokens_to_generate=CWE_ANSWER,
        ):
            messages = [
                {"role": "user", "content": row["input"]},
                {"role": "assistant", "content": row["gen_prefix"]},
            ]
            text = str(
                tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
            )
            ids = tokenizer(text, add_special_tokens=False).input_ids
            used.append(len(ids) + CWE_ANSWER)
            examples += text.count("Below is a numbered list") - 1
        cells[str(length)] = _cell(length, used) | {"with_example": examples}
    return cells


def _failures(result: dict[str, Any]) -> Iterator[str]:
    if not result["identical"]:
        yield "two processes made different items"
    for task, row in result["tasks"].items():
        for length, cell in row.items():
            if cell["most_tokens"] > int(length):
                yield f"{task} at {length}: {cell['most_tokens']} tokens"
            if int(length) >= FILLED_FROM and cell["least_fill"] < LEAST_FILL:
                yield f"{task} at {length}: only {cell['least_fill']:.1%} filled"


def _print(result: dict[str, Any]) -> None:
    rows = dict(result["tasks"])
    if result["stock_cwe"] is None:
        print("lm-eval's cwe is left out: it needs the packages lm-eval and wonderwords")
    else:
        rows["lm-eval's cwe"] = result["stock_cwe"]
    for task, row in rows.items():
        print(f"{task:18}", *(f"{n}: {c['least_fill']:6.1%}  " for n, c in row.items()))
    print("same bytes in two processes:", result["identical"])
    for failure in result["failures"]:
        print("FAILED:", failure)


if __name__ == "__main__":
    main()
