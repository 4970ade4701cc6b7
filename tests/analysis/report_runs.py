"""Sample runs for the report: folders as focusft train, eval, probe and demo write them."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

BABILONG = ("qa1", "qa2", "qa3", "qa4", "qa5")
RULER = {
    "retrieval": (
        "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2",
        "niah_multikey_3", "niah_multivalue", "niah_multiquery",
    ),
    "tracing": ("vt",),
    "aggregation": ("cwe", "fwe"),
    "question answering": ("qa_1", "qa_2"),
}  # fmt: skip
VERSIONS = {"python": "3.11.7", "machine": "x86_64", "focusft": "0.1.0", "torch": "2.13.0+cpu"}


def write(
    folder: Path,
    results: dict[str, Any],
    items: list[dict[str, Any]] | None = None,
    answers: str = "items.jsonl",
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    if items is not None:
        lines = "".join(json.dumps(item) + "\n" for item in items)
        (folder / answers).write_text(lines, encoding="utf-8")
    return folder


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return content


def training(folder: Path, method: str = "focusft", **config: Any) -> Path:
    is_focusft = method == "focusft"
    log: list[dict[str, Any]] = []
    for step in range(5, 61, 5):
        loss = 3.2 * math.exp(-step / 18) + 0.3
        line: dict[str, Any] = {"step": step, "loss": loss, "tokens_per_second": 84.0 - step % 7}
        if is_focusft:
            line |= {
                "loss": 0.6 * loss,
                "inner_loss_0": 0.97 * loss,
                "inner_loss_1": 0.8 * loss,
                "inner_loss_2": 0.6 * loss,
                "inner_steps_raised": 0.02 if step == 20 else 0.0,
            }
        log.append(line)
        for mask, sink, engagement in (("causal", 0.3, 0.6), ("bidirectional", 0.001, 0.85)):
            line[f"probe/sink_mass_{mask}"] = sink
            line[f"probe/context_engagement_{mask}"] = engagement
        if step % 20 == 0:
            log.append({"step": step, "eval_loss": loss * (1.0 if is_focusft else 1.05)})
    options = {
        "method": method,
        "model_name_or_path": "smollm2",
        "num_inner_steps": 2,
        "inner_lr": 0.03,
        "inner_objective": "response",
        "context_attention": "bidirectional",
        "learning_rate": 2e-4,
        "seed": 1234,
        "output_dir": str(folder),
    }
    results = {
        "metrics": {"eval_loss": log[-1]["eval_loss"]},
        "inner_steps_watched": 120,
        "inner_steps_raised": 1,
        "seconds": 420.0 if is_focusft else 260.0,
        "attention_backend": "segments",
        "resumed_from": None,
        "data": {"train": {"rows": 1000, "used": 990, "truncated": 0, "tokens": 260000}},
        "log": log,
        "config": options | config,
        "versions": VERSIONS,
    }
    return write(folder, results)


def suite(
    folder: Path,
    name: str,
    model: str,
    skill: float,
    *,
    lengths: tuple[int, ...] = (1024, 2048, 4096),
    samples: int = 20,
    seed: int = 0,
) -> Path:
    """An evaluation whose scores fall with length; equal questions for equal seeds."""
    categories = RULER if name == "ruler" else {"all": BABILONG}
    tasks = [task for members in categories.values() for task in members]
    items = []
    for row, task in enumerate(tasks):
        for column, length in enumerate(lengths):
            for sample in range(samples):
                hardness = random.Random(f"{task}/{length}/{sample}/{seed}").random()
                right = hardness < skill - 0.05 * column - 0.04 * (row % 5)
                items.append(
                    {
                        "id": f"{name}/{task}/{length}/{sample:04d}",
                        "suite": name,
                        "task": task,
                        "length": length,
                        "prompt": f"Long text {seed}. Question: where is person {sample}?",
                        "answer_prefix": "",
                        "question": f"Where is person {sample}?",
                        "references": ["kitchen"],
                        "output": "kitchen" if right else "The answer is the garden.",
                        "score": float(right),
                        "score_lenient": float(right),
                        "no_answer": False,
                        "truncated": False,
                        "tokens": length - 40,
                    }
                )  # fmt: skip

    def figures(of: tuple[str, ...], length: int) -> dict[str, Any]:
        scores = [i["score"] for i in items if i["task"] in of and i["length"] == length]
        mean = sum(scores) / len(scores)
        half = 1.96 * math.sqrt(max(mean * (1 - mean), 0.01) / len(scores))
        return {"score": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half),
                "n": len(scores), "truncated": 0.02, "no_answer": 0.01}  # fmt: skip

    results = {
        "suite": name,
        "tasks": {
            t: {str(n): figures((t,), n) | {"stand_in": t == "qa_1"} for n in lengths}
            for t in tasks
        },
        "mean": {str(n): figures(tuple(tasks), n) for n in lengths},
        "config": {"suite": name, "model": model, "samples": samples},
        "generator": {"backend": "local", "model": model, "dtype": "float32"},
        "versions": VERSIONS,
        "seconds": 900.0,
    }
    if name == "ruler":
        results["categories"] = {
            category: {str(n): figures(members, n) for n in lengths}
            for category, members in categories.items()
        }
    return write(folder, results, items)


def agent(folder: Path, model: str, share: float, *, questions: int = 60, samples: int = 4) -> Path:
    episodes = [
        {
            "mode": "tools",
            "question": f"q{number:03d}",
            "sample": sample,
            "right": {
                "strict": (right := random.Random(f"{number}/{sample}").random() < share),
                "lenient": right,
            },
            "messages": [{"role": "user", "content": "a question under a licence"}],
        }
        for number in range(questions)
        for sample in range(samples)
    ]
    mean = sum(episode["right"]["strict"] for episode in episodes) / len(episodes)
    estimate = {"score": mean, "low": mean - 0.08, "high": mean + 0.08, "n": questions}
    rates = {
        "tool_use": 0.8, "tool_error": 0.1, "no_answer_strict": 0.05,
        "no_answer_lenient": 0.02, "truncation": 0.03,
    }  # fmt: skip
    summary = {"strict": {"pass@1": estimate}, "lenient": {"pass@1": estimate}, "rates": rates}
    results = {
        "suite": "agent",
        "tasks": {"all": {"tools": estimate}},
        "mean": {"tools": estimate},
        "modes": {"tools": summary},
        "config": {"model": model, "questions": "questions.jsonl"},
        "questions": {"n": questions, "sha256": "0" * 64},
        "versions": VERSIONS,
    }
    return write(folder, results, episodes, answers="episodes.jsonl")


def probe(folder: Path, model: str, *, layers: int = 30, tokens: list[str] | None = None) -> Path:
    def mask(sink: float, engagement: float) -> dict[str, Any]:
        per_layer = [
            {
                "sink_mass": sink * (0.4 + 1.2 * layer / layers),
                "context_engagement": engagement * (1.1 - 0.2 * layer / layers),
                "needle_mass": None,
            }
            for layer in range(layers)
        ]
        return {"sink_mass": sink, "context_engagement": engagement, "per_layer": per_layer}

    facts = "Mary moved to the kitchen. John went to the garden. It was late. "
    tokens = tokens or ["<|im_start|>", "user\n", *(f"{word} " for word in (facts * 3).split())]
    even = 1 / len(tokens)
    results = {
        "causal": mask(0.31, 0.62),
        "bidirectional": mask(0.0005, 0.88),
        "ratios": {
            "sink_mass": 620.0, "sink_mass_low": 540.0, "sink_mass_high": 700.0,
            "context_engagement": 1.42, "context_engagement_low": 1.4,
            "context_engagement_high": 1.44,
        },
        "examples": [{}] * 100,
        "tokens_of_first_example": {
            "text": tokens,
            "is_needle": ["kitchen" in token for token in tokens],
            "received": {
                "causal": [0.31] + [0.5 * even] * (len(tokens) - 1),
                "bidirectional": [0.0005]
                + [6 * even if "kitchen" in t else 0.7 * even for t in tokens[1:]],
            },
        },
        "config": {"model": model, "samples": 100},
        "versions": VERSIONS,
    }  # fmt: skip
    return write(folder, results)


def demo(folder: Path) -> Path:
    def figures(accuracy: float, answer: str) -> dict[str, Any]:
        return {
            "accuracy": accuracy, "accuracy_low": max(0, accuracy - 0.1),
            "accuracy_high": accuracy + 0.1, "accuracy_lenient": accuracy, "examples": 100,
            "response_loss": 2.0 - accuracy, "sink_mass": 0.32, "context_engagement": 0.6,
            "sink_mass_bidirectional": 0.006, "context_engagement_bidirectional": 0.85,
            "answers": [answer] * 100, "right": [answer == "kitchen"] * 100,
        }  # fmt: skip

    results = {
        "before": figures(0.05, "Mary is a person."),
        "after": figures(0.5, "kitchen"),
        "questions": [{"question": "Where is Mary?", "answer": "kitchen"}] * 100,
        "seconds": {"train": 354.5, "total": 488.8},
        "model": "smollm2",
        "settings": {"num_inner_steps": 2, "inner_lr": 0.03, "learning_rate": 3e-4},
        "data": {"rows": 240, "used": 240},
        "log": read(training(folder / "tmp"))["log"],
        "probes": dict.fromkeys(("before", "after"), read(probe(folder / "tmp", "smollm2"))),
        "versions": VERSIONS,
    }
    (folder / "tmp" / "results.json").unlink()
    return write(folder, results)


def comparison(
    root: Path, *, skills: tuple[float, float] = (0.7, 0.58), samples: int = 40
) -> list[Path]:
    """A FocuSFT and an SFT run, each with BABILong beside it."""
    runs = []
    for method, skill in zip(("focusft", "sft"), skills, strict=True):
        run = training(root / method, method)
        suite(run / "babilong", "babilong", str(run), skill, samples=samples)
        runs.append(run)
    return runs


def full_comparison(root: Path, *, skills: tuple[float, float] = (0.7, 0.58)) -> list[Path]:
    """A FocuSFT and an SFT run with everything that can lie beside them."""
    runs = comparison(root, skills=skills)
    for run, skill in zip(runs, skills, strict=True):
        suite(run / "ruler", "ruler", str(run), skill + 0.15, samples=10)
        agent(run / "agent", str(run), skill - 0.3)
        probe(run / "probe", str(run))
    return runs


def benchmarks(folder: Path) -> list[Path]:
    """The files that the benchmarks write."""
    folder.mkdir(parents=True)
    trainers = ("ours", "published", "sft", "trl_sft")
    settings = {"model": "smollm2", "length": 2048}
    contents = {
        "step": {
            "ratios": {"published_over_ours": 1.8},
            "seconds": dict.fromkeys(trainers, 18.0),
            "peak_gb": dict.fromkeys(trainers, 5.7),
            "rounds": [],
            "settings": settings,
        },
        "throughput": {
            "lengths": [900, 1200],
            "tokens_per_second": dict.fromkeys(trainers, 100.0),
            "peak_gb": dict.fromkeys(trainers, 9.0),
            "settings": settings,
        },
        "length": {
            "steps": {
                "ours": {
                    str(n): {"seconds": n / 100, "above_model_gb": n / 4096}
                    for n in (1024, 4096, 16384)
                },
                "published": {
                    "1024": {"seconds": 12.0, "above_model_gb": 0.5},
                    "4096": {"failed": "out of memory"},
                },
            },
            "settings": {"layers": 4, "limit_gb": 20},
        },
    }
    paths = []
    for name, content in contents.items():
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps(content | {"versions": VERSIONS}))
    return paths
