"""Tokens per second on conversations of realistic lengths, beside the published procedure.

python -m benchmarks.throughput --json out.json

Agentic multi-turn conversations, log-normal in length with a median of 900 tokens, capped at
4096. The published procedure pads each to 4096 tokens; ours packs. Tokens of padding do not count.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.workers import Worker
from focusft.training.models import load_model
from focusft.training.provenance import versions, write_json

# Name of a trainer -> options of benchmarks.worker, examples of a step.
TRAINERS: dict[str, tuple[list[str], int]] = {
    "sft": (["--variant=sft", "--checkpointing=selective"], 1),
    "ours": (["--variant=ours", "--checkpointing=selective"], 1),
    "ours_packed": (["--variant=ours", "--checkpointing=selective"], 4),
    "published": (["--variant=published", "--checkpointing=full"], 1),
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--examples", type=int, default=12, help="a multiple of 4")
    parser.add_argument("--median", type=int, default=900, help="tokens")
    parser.add_argument("--cap", type=int, default=4096, help="tokens")
    parser.add_argument("--published_steps", type=int, default=2, help="timed, after a warm-up")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    vocabulary = load_model(options.model).config.vocab_size
    generator = random.Random(0)
    examples = [
        conversation(generator, vocabulary, options.median, options.cap)
        for _ in range(options.examples)
    ]
    lengths = [len(example["input_ids"]) for example in examples]
    print(f"tokens of the examples: {lengths}")
    result: dict[str, Any] = {"lengths": lengths, "seconds": {}, "peak_gb": {}}
    throughput = {}
    for name, (own, batch_size) in TRAINERS.items():
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            rows = folder / "rows.json"
            # The first examples come twice: once to warm up.
            rows.write_text(json.dumps(examples[:batch_size] + examples))
            shared = [f"--model={options.model}", f"--rows={rows}", f"--out={folder / 'out'}"]
            shared += [f"--batch_size={batch_size}"]
            if name == "published":
                shared.append(f"--pad_to={options.cap}")
            worker = stack.enter_context(Worker([*own, *shared], folder / "log"))
            worker.step()
            count = options.published_steps if name == "published" else len(examples) // batch_size
            steps = [worker.step() for _ in range(count)]
        seconds = [step["seconds"] for step in steps]
        if name == "published":
            # Its steps cost the same whatever they hold: all are padded to the cap.
            throughput[name] = statistics.mean(lengths) / statistics.median(seconds)
        else:
            throughput[name] = sum(lengths) / sum(seconds)
        result["seconds"][name] = seconds
        result["peak_gb"][name] = max(step["peak_gb"] for step in steps)
        print(
            f"{name}: {throughput[name]:.1f} tokens/s, {result['peak_gb'][name]:.2f} GB", flush=True
        )
    result |= {
        "tokens_per_second": throughput,
        "ratios": {
            "ours_over_published": throughput["ours"] / throughput["published"],
            "ours_packed_over_published": throughput["ours_packed"] / throughput["published"],
            "ours_over_sft": throughput["ours"] / throughput["sft"],
        },
        "settings": {name: value for name, value in vars(options).items() if name != "json"},
        "versions": versions(),
    }
    for name, value in result["ratios"].items():
        print(f"{name}: {value:.2f}")
    if options.json:
        write_json(options.json, result)


def conversation(
    generator: random.Random, vocabulary: int, median: int, cap: int
) -> dict[str, list[int]]:
    """Random tokens in 2 to 5 pairs of a context turn and a shorter response turn."""
    length = min(cap, max(64, round(generator.lognormvariate(math.log(median), 0.7))))
    pairs = generator.randint(2, 5)
    cuts = sorted(generator.sample(range(8, length - 8), pairs - 1))
    input_ids = [generator.randrange(vocabulary) for _ in range(length)]
    labels, turn_ids = [-100] * length, [0] * length
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, length], strict=True)):
        answer = stop - max(1, (stop - start) // 4)
        labels[answer:stop] = input_ids[answer:stop]
        turn_ids[start:answer] = [2 * number + 1] * (answer - start)
        turn_ids[answer:stop] = [-2 * number - 2] * (stop - answer)
    return {"input_ids": input_ids, "labels": labels, "turn_ids": turn_ids}


if __name__ == "__main__":
    main()
