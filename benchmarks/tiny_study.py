"""Many seeds on a small model: which inner objective, step rule, order, K and share of layers.

python -m benchmarks.tiny_study runs/tiny

Start: the folder of `python -m benchmarks.tiny_pretrain`. Every arm is fine-tuned on longer
contexts than those of the pretraining, and answers held-out conversations of the trained length
and of half as much again. The score of an item is the share of the tokens of what was asked for
(the place, the variables, the words) that are the most likely ones, given those before. The
learning rates of the first arms are searched, on other items and with another seed; the arms below
take that of `focusft`. A cell is written when it is done and not run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from focusft.data import prepare_dataset
from focusft.data.chat import IGNORED
from focusft.data.long_context import make_long_context
from focusft.data.split import Split
from focusft.evaluation.generation.model_facts import weights_fingerprint
from focusft.method.attention import install_backend, turn_attention
from focusft.method.config import ContextAttention
from focusft.method.turns import TurnLayout
from focusft.training.config import FocuSFTConfig
from focusft.training.models import load_model, load_tokenizer
from focusft.training.provenance import versions, write_json
from focusft.training.trainer import FocuSFTTrainer

# The pretraining ends at 160.
TRAINED_TOKENS = 400
LENGTHS = (TRAINED_TOKENS, TRAINED_TOKENS * 3 // 2)
CONVERSATIONS = 240
BATCH = 8
RATES = (1e-4, 3e-4, 1e-3)
SEARCHED: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft"},
    "bidirectional_sft": {"num_inner_steps": 0},
    "focusft": {},
    "inner_bidirectional": {
        "context_attention": "causal",
        "inner_context_attention": "bidirectional",
    },
}
# Each differs from focusft in one thing, but for the last.
VARIANTS: dict[str, dict[str, Any]] = {
    "context_objective": {"inner_objective": "context", "inner_context_attention": "causal"},
    "backtracking": {"inner_step": "backtracking"},
    "second_order": {"inner_order": 2},
    "one_step": {"num_inner_steps": 1},
    "four_steps": {"num_inner_steps": 4},
    "all_layers": {"inner_layer_fraction": 1.0},
    "causal_half": {"causal_share": 0.5},
    # Plain SFT at the rate of the others, which its own search found as good as the lower one.
    "sft_same_rate": {"method": "sft"},
}
ARMS = {**SEARCHED, **VARIANTS}


def main(arguments: list[str] | None = None) -> None:
    """Search the learning rates, then run seed after seed, every arm of a seed first."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--items", type=int, default=150, help="held-out items of a length")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny_study"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/tiny_study"))
    options = parser.parse_args(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    options.results.mkdir(parents=True, exist_ok=True)
    study = TinyStudy(options.model, options.out, options.items)
    for path in options.results.glob("*-*.json"):
        if json.loads(path.read_text())["model"] != study.fingerprint:
            parser.error(f"{path} is of another model; name another folder with --results")
    tuning_file = options.results / "tuning.json"
    if not tuning_file.is_file():
        write_json(tuning_file, study.search())
    tuning = json.loads(tuning_file.read_text())
    if not (options.results / "base-0.json").is_file():
        write_cell(options.results, study.cell("base", None, 0))
    for seed in range(options.seeds):
        for arm in ARMS:
            if not (options.results / f"{arm}-{seed}.json").is_file():
                searched = tuning[arm if arm in SEARCHED else "focusft"]
                rate = searched["learning_rate"]["chosen"]
                write_cell(options.results, study.cell(arm, rate, seed))


def write_cell(folder: Path, cell: dict[str, Any]) -> None:
    """Write a cell and say how it did."""
    write_json(folder / f"{cell['arm']}-{cell['seed']}.json", cell)
    means = {name: _mean(found["scores"]) for name, found in cell["evaluations"].items()}
    print(f"{cell['arm']}-{cell['seed']}:", means, flush=True)


class TinyStudy:
    """The data of the study, and its cells."""

    def __init__(self, model: Path, folder: Path, items: int) -> None:
        self._model, self._folder = model, folder
        self._tokenizer = load_tokenizer(model)
        data = self._write("train", CONVERSATIONS, TRAINED_TOKENS, 21, "train", "mixed")
        self._train, _ = prepare_dataset([str(data)], self._tokenizer, max_length=1024)
        self._items = {
            length: self._prepared(f"held_out_{length}", items, length, 22) for length in LENGTHS
        }
        self._prompts = hashlib.sha256(json.dumps(list(self._items.values())).encode()).hexdigest()
        self.fingerprint = weights_fingerprint(load_model(model))
        self.validation = {TRAINED_TOKENS: self._prepared("validation", items, TRAINED_TOKENS, 23)}

    def search(self) -> dict[str, Any]:
        """Train each searched arm with each learning rate; the best on validation items wins."""
        found: dict[str, Any] = {}
        for arm in SEARCHED:
            scores = {}
            for rate in RATES:
                model, _ = self._trained(self._args(arm, rate, seed=100))
                scores[rate] = _mean(score(model, self.validation, "causal"))
                print(f"search {arm} {rate}: {scores[rate]:.3f}", flush=True)
            chosen = max(scores, key=lambda rate: scores[rate])
            found[arm] = {"learning_rate": {"chosen": chosen, "scores": scores}}
        return found

    def cell(self, arm: str, rate: float | None, seed: int) -> dict[str, Any]:
        """Train an arm, unless `rate` is None, and evaluate it, as `focusft study` writes it."""
        masks: dict[str, ContextAttention] = {"held_out": "causal"}
        train, settings = None, {}
        if rate is None:
            model = load_model(self._model)
            install_backend(model, "segments")
        else:
            args = self._args(arm, rate, seed)
            model, train = self._trained(args)
            settings = args.resolved()
            if args.focus_config().context_attention == "bidirectional":
                masks["held_out_bidirectional"] = "bidirectional"
        return {
            "study": "tiny",
            "arm": arm,
            "seed": seed,
            "settings": {"train": {"resolved": settings}},
            "train": train,
            "evaluations": {
                name: {
                    "suite": "held_out",
                    "prompts_sha256": self._prompts,
                    "scores": score(model, self._items, mask),
                }
                for name, mask in masks.items()
            },
            "probe": None,
            "model": self.fingerprint,
            "versions": versions(),
        }

    def _args(self, arm: str, rate: float, seed: int) -> FocuSFTConfig:
        return FocuSFTConfig(
            output_dir=str(self._folder / "train"),
            learning_rate=rate,
            seed=seed,
            data_seed=seed,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=1,
            num_train_epochs=1,
            inner_lr=0.1,
            probe_steps=0,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **ARMS[arm],
        )

    def _trained(self, args: FocuSFTConfig) -> tuple[PreTrainedModel, dict[str, Any]]:
        torch.manual_seed(args.seed)
        started = time.perf_counter()
        model = load_model(self._model)
        trainer = FocuSFTTrainer(
            model=model, args=args, train_dataset=self._train, processing_class=self._tokenizer
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.engine.detach()
        install_backend(model, "segments")
        return model.eval(), {
            "seconds": round(time.perf_counter() - started, 1),
            "resumed": False,
            "inner_steps_watched": trainer.inner_steps_watched,
            "inner_steps_raised": trainer.inner_steps_raised,
            "log": trainer.state.log_history,
        }

    def _write(
        self, name: str, count: int, tokens: int, seed: int, split: Split, style: Any
    ) -> Path:
        rows = make_long_context(
            "mixed",
            split=split,
            count=count,
            context_tokens=tokens,
            min_context_tokens=tokens * 3 // 5,
            seed=seed,
            count_tokens=lambda text: len(self._tokenizer(text)["input_ids"]),
            answer_style=style,
        )
        path = self._folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def _prepared(self, name: str, count: int, tokens: int, seed: int) -> list[dict[str, Any]]:
        path = self._write(name, count, tokens, seed, "held_out", "sentence")
        dataset, _ = prepare_dataset([str(path)], self._tokenizer, max_length=4096)
        made = [json.loads(line) for line in path.read_text().splitlines()]
        return [
            {
                "task": example["meta"]["task"],
                "answer": answer_span(self._tokenizer, example, row["labels"]),
                **{name: row[name] for name in ("input_ids", "labels", "turn_ids")},
            }
            for example, row in zip(made, dataset, strict=True)
        ]


def answer_span(
    tokenizer: PreTrainedTokenizerBase, example: dict[str, Any], labels: list[int]
) -> tuple[int, int]:
    """Where the tokens of `meta.answer` start and stop in a row with one response."""
    response, answer = example["messages"][-1]["content"], example["meta"]["answer"]
    before, _, _ = response.rpartition(answer)
    first = next(index for index, label in enumerate(labels) if label != IGNORED)
    # A word's token starts with the space before it.
    start, stop = (
        first + len(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in (before.rstrip(), before + answer)
    )
    return start, stop


@torch.no_grad()
def score(
    model: PreTrainedModel, items: dict[int, list[dict[str, Any]]], mask: ContextAttention
) -> dict[str, dict[str, list[float]]]:
    """The share of what was asked for that is right, of each item, by task and length."""
    scores: dict[str, dict[str, list[float]]] = {}
    for length, rows in items.items():
        for row in rows:
            batch = {
                name: torch.tensor([row[name]]) for name in ("input_ids", "labels", "turn_ids")
            }
            positions = torch.arange(len(row["input_ids"]))[None]
            layout = TurnLayout.from_batch({**batch, "position_ids": positions}, "merged")
            attention = turn_attention(model, layout, mask).model_kwargs
            logits = model(batch["input_ids"], position_ids=positions, **attention).logits
            start, stop = row["answer"]
            is_right = (
                logits[0, start - 1 : stop - 1].argmax(-1) == batch["input_ids"][0, start:stop]
            )
            found = scores.setdefault(row["task"], {}).setdefault(str(length), [])
            found.append(round(is_right.float().mean().item(), 4))
    return scores


def _mean(scores: dict[str, dict[str, list[float]]]) -> float:
    cells = [found for lengths in scores.values() for found in lengths.values()]
    return round(sum(map(sum, cells)) / sum(map(len, cells)), 4)


if __name__ == "__main__":
    main()
