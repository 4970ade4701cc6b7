"""Time our generation beside lm-eval's hf backend: the same model, prompts and answer lengths.

python -m benchmarks.generation --json benchmarks/results/generation_smollm2.json

Two comparisons, on prompts of mixed lengths: both with the same batch size ("same"), and each as it
runs by default ("default": ours as memory allows, lm-eval's 1). The four run in turn, the order
turned round in every other round; ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.workers import median_ratio, medians
from focusft.evaluation.generation import LocalGenerator, Prompt, encode, render
from focusft.evaluation.items import make_items
from focusft.training.models import load_model, load_tokenizer
from focusft.training.provenance import versions, write_json

# Ratio -> the runs above and below.
RATIOS = {
    "lm_eval_over_ours_same_batch": ("lm_eval_same", "ours_same"),
    "lm_eval_over_ours_default": ("lm_eval_default", "ours_default"),
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--babilong", nargs="*", default=["qa1"], help="tasks of babilong")
    parser.add_argument(
        "--ruler", nargs="*", default=["vt", "cwe", "fwe", "niah_single_1"], help="of ruler"
    )
    parser.add_argument("--samples", type=int, default=4, help="prompts of a task at a length")
    parser.add_argument(
        "--batch_size", type=int, default=4, help="of both, in the first comparison"
    )
    parser.add_argument(
        "--lm_eval_batch_size", default="1", help="lm-eval's in the second; it also knows auto"
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds after one warm-up")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)

    tokenizer = load_tokenizer(options.model)
    # One each: ours may set another attention.
    model, other = (load_model(options.model, dtype=options.dtype) for _ in range(2))
    for loaded in (model, other):
        cast(Any, loaded).to(options.device)
    prompts = _prompts(options, tokenizer)
    runs = {
        "ours_same": _ours(model, tokenizer, prompts, options.batch_size),
        "lm_eval_same": _lm_eval(other, tokenizer, prompts, options.batch_size),
        "ours_default": _ours(model, tokenizer, prompts, None),
        "lm_eval_default": _lm_eval(other, tokenizer, prompts, options.lm_eval_batch_size),
    }
    measured, texts = _measure(runs, options.rounds)
    result = {
        "ratios": {name: median_ratio(measured, *pair) for name, pair in RATIOS.items()},
        "seconds": medians(measured),
        "rounds": {name: [step["seconds"] for step in steps] for name, steps in measured.items()},
        # Rounding differs with the batch, and a greedy answer may part ways where logits are close.
        "same_answers": {
            name: statistics.mean(a == b for a, b in zip(texts[one], texts[two], strict=True))
            for name, (one, two) in RATIOS.items()
        },
        "prompt_tokens": [len(encode(tokenizer, p, chat=_chat(tokenizer))) for p in prompts],
        "answer_tokens": [
            len(tokenizer(text, add_special_tokens=False)["input_ids"])
            for text in texts["ours_same"]
        ],
        "threads": torch.get_num_threads(),
        "settings": {name: v for name, v in vars(options).items() if name != "json"},
        "versions": versions() | {"lm-eval": version("lm-eval")},
    }
    for name, seconds in result["seconds"].items():
        print(f"{name}: {seconds:.2f} s")
    for name, ratio in result["ratios"].items():
        print(f"{name}: {ratio:.2f}, same answers: {result['same_answers'][name]:.0%}")
    if options.json:
        write_json(options.json, result)


def _prompts(options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    return [
        Prompt(tuple(item.messages), item.answer_prefix, item.max_new_tokens)
        for suite in ("babilong", "ruler")
        if getattr(options, suite)
        for item in make_items(
            suite,
            tokenizer=tokenizer,
            lengths=options.lengths,
            samples=options.samples,
            tasks=getattr(options, suite),
        )
    ]


def _ours(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    batch_size: int | None,
) -> Callable[[], list[str]]:
    generator = LocalGenerator(model, tokenizer, batch_size=batch_size)

    def run() -> list[str]:
        answers = dict(generator.complete(prompts))
        return [answers[index].text for index in range(len(prompts))]

    return run


def _lm_eval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    batch_size: int | str,
) -> Callable[[], list[str]]:
    backend = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    chat = _chat(tokenizer)
    texts = [render(tokenizer, prompt, chat=chat) for prompt in prompts]
    for text, prompt in zip(texts, prompts, strict=True):
        if backend.tok_encode(text) != encode(tokenizer, prompt, chat=chat):
            raise RuntimeError("lm-eval reads a prompt as other tokens; nothing can be compared")
    requests = [
        Instance(
            request_type="generate_until",
            doc={},
            arguments=(
                text,
                {"do_sample": False, "until": [], "max_gen_toks": prompt.max_new_tokens},
            ),
            idx=0,
        )
        for text, prompt in zip(texts, prompts, strict=True)
    ]
    return lambda: backend.generate_until(requests, disable_tqdm=True)


def _chat(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.chat_template is not None


def _measure(
    runs: dict[str, Callable[[], list[str]]], rounds: int
) -> tuple[dict[str, list[dict[str, float]]], dict[str, list[str]]]:
    """Seconds of each run in each round but the first, and the answers of the last round."""
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    texts = {}
    for number in range(rounds + 1):
        for name in sorted(runs, reverse=number % 2 == 1):
            started = time.perf_counter()
            texts[name] = runs[name]()
            measured[name].append({"seconds": time.perf_counter() - started})
        line = ", ".join(f"{name} {steps[-1]['seconds']:.2f} s" for name, steps in measured.items())
        print(f"round {number}: {line}", flush=True)
    return {name: steps[1:] for name, steps in measured.items()}, texts


if __name__ == "__main__":
    main()
