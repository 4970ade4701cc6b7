"""Many seeds on a small model: which inner objective, step rule, order, K and share of layers.

python -m benchmarks.tiny_study runs/tiny

Start: the folder of `python -m benchmarks.tiny_pretrain`. Every arm is fine-tuned on longer
contexts than those of the pretraining and answers held-out conversations of the trained length and
of twice that. An answer counts if greedy decoding would give it to the letter, which one forward
tells. The learning rates of the first arms are searched, on other items and with another seed; the
arms below take that of `focusft`. A cell is written when it is done and not run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from focusft.data import prepare_dataset
from focusft.data.long_context import make_long_context
from focusft.data.split import Split
from focusft.method.attention import install_backend, turn_attention
from focusft.method.config import ContextAttention
from focusft.method.turns import TurnLayout
from focusft.training.config import FocuSFTConfig
from focusft.training.models import load_model, load_tokenizer, weights_fingerprint
from focusft.training.provenance import versions, write_json
from focusft.training.trainer import FocuSFTTrainer

TRAINED_TOKENS = 200
LENGTHS = (TRAINED_TOKENS, 2 * TRAINED_TOKENS)
CONVERSATIONS = 640
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
# Each differs from focusft in one thing.
VARIANTS: dict[str, dict[str, Any]] = {
    "context_objective": {"inner_objective": "context", "inner_context_attention": "causal"},
    "backtracking": {"inner_step": "backtracking"},
    "second_order": {"inner_order": 2},
    "one_step": {"num_inner_steps": 1},
    "four_steps": {"num_inner_steps": 4},
    "all_layers": {"inner_layer_fraction": 1.0},
    "causal_half": {"causal_share": 0.5},
}
ARMS = {**SEARCHED, **VARIANTS}


def main() -> None:
    """Search the learning rates, then run seed after seed, every arm of a seed first."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--items", type=int, default=300, help="held-out items of a length")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny_study"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/study/tiny"))
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    study = TinyStudy(options.model, options.out, options.items)
    tuning_file = options.results / "tuning.json"
    if not tuning_file.is_file():
        write_json(tuning_file, study.search())
    tuning = json.loads(tuning_file.read_text())
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
        self._validation = {TRAINED_TOKENS: self._prepared("validation", items, TRAINED_TOKENS, 23)}

    def search(self) -> dict[str, Any]:
        """Train each searched arm with each learning rate; the best on validation items wins."""
        found: dict[str, Any] = {}
        for arm in SEARCHED:
            scores = {}
            for rate in RATES:
                model, _ = self._trained(arm, rate, seed=100)
                scores[rate] = _mean(exact(model, self._validation, "causal"))
                print(f"search {arm} {rate}: {scores[rate]:.3f}", flush=True)
            chosen = max(scores, key=lambda rate: scores[rate])
            found[arm] = {"learning_rate": {"chosen": chosen, "scores": scores}}
        return found

    def cell(self, arm: str, rate: float | None, seed: int) -> dict[str, Any]:
        """Train an arm, unless `rate` is None, and evaluate it, as `focusft study` writes it."""
        train = None
        if rate is None:
            model = load_model(self._model)
        else:
            model, train = self._trained(arm, rate, seed)
        masks: dict[str, ContextAttention] = {"held_out": "causal"}
        if train is not None and train["settings"]["context_attention"] == "bidirectional":
            masks["held_out_bidirectional"] = "bidirectional"
        return {
            "study": "tiny",
            "arm": arm,
            "seed": seed,
            "train": train,
            "evaluations": {
                name: {
                    "suite": "held_out",
                    "prompts_sha256": self._fingerprint(),
                    "scores": exact(model, self._items, mask),
                }
                for name, mask in masks.items()
            },
            "probe": None,
            "model": weights_fingerprint(load_model(self._model)),
            "versions": versions(),
        }

    def _trained(self, arm: str, rate: float, seed: int) -> tuple[PreTrainedModel, dict[str, Any]]:
        args = FocuSFTConfig(
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
        torch.manual_seed(seed)
        started = time.perf_counter()
        model = load_model(self._model)
        trainer = FocuSFTTrainer(
            model=model, args=args, train_dataset=self._train, processing_class=self._tokenizer
        )
        trainer.train()
        trainer.engine.detach()
        return model.eval(), {
            "seconds": round(time.perf_counter() - started, 1),
            "resumed": False,
            "inner_steps_watched": trainer.inner_steps_watched,
            "inner_steps_raised": trainer.inner_steps_raised,
            "log": trainer.state.log_history,
            "settings": args.resolved(),
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
        tasks = [json.loads(line)["meta"]["task"] for line in path.read_text().splitlines()]
        return [
            {"task": task, **{name: row[name] for name in ("input_ids", "labels", "turn_ids")}}
            for task, row in zip(tasks, dataset, strict=True)
        ]

    def _fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(list(self._items.values())).encode()).hexdigest()


@torch.no_grad()
def exact(
    model: PreTrainedModel, items: dict[int, list[dict[str, Any]]], mask: ContextAttention
) -> dict[str, dict[str, list[float]]]:
    """1 for each item whose answer greedy decoding gives to the letter, by task and length."""
    install_backend(model, "segments")
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
            labels = batch["labels"][0, 1:]
            is_right = logits[0, :-1].argmax(-1) == labels
            score = float(is_right[labels != -100].all())
            scores.setdefault(row["task"], {}).setdefault(str(length), []).append(score)
    return scores


def _mean(scores: dict[str, dict[str, list[float]]]) -> float:
    cells = [found for lengths in scores.values() for found in lengths.values()]
    return round(sum(map(sum, cells)) / sum(map(len, cells)), 4)


if __name__ == "__main__":
    main()
