"""Time a training step: FocuSFT beside the published procedure, K = 0, plain SFT and TRL.

python -m benchmarks.step --model smollm2 --length 2048 --json out.json

Every trainer has a process of its own. They step in turn, optimizer included, on the same example
with the same settings; ratios are medians over the rounds. The peak memory is that of the process.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.efficiency import efficiency
from benchmarks.workers import Worker, alternate, median_ratio, medians
from focusft.training.models import meta_model
from focusft.training.provenance import versions, write_json

# Name of a trainer -> options of benchmarks.worker.
TRAINERS = {
    "sft": ["--variant=sft", "--checkpointing=selective"],
    "k0": ["--variant=k0", "--checkpointing=selective"],
    "ours": ["--variant=ours", "--checkpointing=selective"],
    "ours_kept": ["--variant=ours", "--checkpointing=none"],
    "ours_checkpointed": ["--variant=ours", "--checkpointing=all_but_attention"],
    "published": ["--variant=published", "--checkpointing=none"],
    "published_checkpointed": ["--variant=published", "--checkpointing=full"],
    "trl_sft": ["--variant=trl_sft", "--checkpointing=none"],
    "trl_sft_checkpointed": ["--variant=trl_sft", "--checkpointing=full"],
}
# Trainers that step in turn; each group fits into 23 GB at 2,048 tokens.
GROUPS = (
    ("ours", "k0", "sft"),
    ("ours", "ours_kept", "sft", "trl_sft"),
    ("ours", "ours_kept", "published"),
    ("ours", "ours_checkpointed", "published_checkpointed", "trl_sft_checkpointed"),
)
RATIOS = {
    "published_over_ours": ("published", "ours_kept"),
    "published_over_ours_checkpointed": ("published_checkpointed", "ours_checkpointed"),
    "published_over_ours_default": ("published_checkpointed", "ours"),
    "ours_over_k0": ("ours", "k0"),
    "ours_over_kept": ("ours", "ours_kept"),
    "ours_over_sft": ("ours", "sft"),
    "ours_over_trl_sft": ("ours_kept", "trl_sft"),
    "ours_over_trl_sft_default": ("ours", "trl_sft_checkpointed"),
    "ours_default_over_trl_sft": ("ours", "trl_sft"),
    "sft_over_trl_sft": ("sft", "trl_sft"),
}


def main() -> None:
    """Measure, print and write."""
    parser = step_parser(__doc__)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--autocast", action="store_true", help="bf16 autocast, for all")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds after one warm-up")
    parser.add_argument(
        "--checkout", type=Path, help="time this checkout of the authors' code as 'published'"
    )
    options = parser.parse_args()

    seconds: dict[str, float] = {}
    peaks: dict[str, float] = {}
    rounds, ratios = [], {}
    for group in GROUPS:
        measured = _measure(group, options)
        seconds = medians(measured) | seconds
        peaks = {name: max(s["peak_gb"] for s in steps) for name, steps in measured.items()} | peaks
        rounds.append({name: [s["seconds"] for s in steps] for name, steps in measured.items()})
        for ratio, pair in RATIOS.items():
            if set(pair) <= set(group):
                ratios[ratio] = median_ratio(measured, *pair)
    result = {
        "ratios": ratios,
        "seconds": seconds,
        "peak_gb": peaks,
        "rounds": rounds,
        "efficiency": efficiency(options.model, options.length, options.response),
        "settings": settings(options),
        "versions": versions(),
        "cpu": _cpu(),
    }
    for name in TRAINERS:
        print(f"{name}: {seconds[name]:.2f} s, peak {peaks[name]:.2f} GB")
    for name, value in ratios.items():
        print(f"{name}: {value:.2f}")
    if options.json:
        write_json(options.json, result)


def step_parser(description: str) -> argparse.ArgumentParser:
    """The options that say which step is looked at, and where the JSON goes."""
    parser = argparse.ArgumentParser(
        description=description.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--length", type=int, default=1024, help="tokens of the example")
    parser.add_argument("--response", type=int, default=64, help="labelled tokens at its end")
    parser.add_argument("--num_inner_steps", type=int, default=2)
    parser.add_argument("--json", type=Path)
    return parser


def _measure(
    group: tuple[str, ...], options: argparse.Namespace
) -> dict[str, list[dict[str, float]]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shared = [*shared_arguments(options, folder), f"--dtype={options.dtype}"]
        shared += ["--autocast"] if options.autocast else []
        workers = {}
        for name in group:
            own = list(TRAINERS[name])
            if options.checkout and "--variant=published" in own:
                own[own.index("--variant=published")] = "--variant=authors"
                own.append(f"--checkout={options.checkout}")
            workers[name] = stack.enter_context(Worker([*own, *shared], folder / f"{name}.log"))
        return alternate(workers, options.rounds)


def shared_arguments(options: argparse.Namespace, folder: Path) -> list[str]:
    """What every trainer is started with; their example is written to the folder."""
    rows = folder / "rows.json"
    rows.write_text(json.dumps([example(options.model, options.length, options.response)]))
    return [
        f"--model={options.model}",
        f"--rows={rows}",
        f"--out={folder / 'out'}",
        f"--num_inner_steps={options.num_inner_steps}",
    ]


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """The options, for the JSON."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
        if name != "json"
    }


def _cpu() -> str:
    """Its name: what is fast on one is not always on another."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def example(model: str, length: int, response: int) -> dict[str, list[int]]:
    """Random tokens, the last of them labelled."""
    vocabulary = meta_model(model).config.vocab_size
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(vocabulary, (length,), generator=generator).tolist()
    context = length - response
    return {
        "input_ids": input_ids,
        "labels": [-100] * context + input_ids[context:],
        "turn_ids": [1] * context + [-2] * response,
    }


if __name__ == "__main__":
    main()
