"""Run a benchmark: items to completions to scores, and on from where it was killed.

`items.jsonl` gets one line for each finished item as the run goes. At the end it is put into the
order of the items and loses its times, so that the same settings give the same bytes, however
often the run was interrupted. For that, what is computed together is settled at the start and
written down: the batch of an answer has an effect on the last digits of its logits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from focusft.evaluation.generation import Completion, Generator, Prompt
from focusft.evaluation.items import MANIFEST_FILE, Item, ItemSet, read_items, write_items
from focusft.evaluation.run_files import (
    RESULTS_FILE,
    finished_lines,
    json_line,
    replace_file,
    write_results,
)
from focusft.evaluation.scoring import Score, score_output
from focusft.evaluation.settings import check_settings, differences, note_settings
from focusft.evaluation.summary import Outcome, summarise

BATCHES_FILE = "batches.json"
ITEMS_FILE = "items.jsonl"


def run_suite(
    items: ItemSet,
    generator: Generator,
    out: Path,
    console: Console,
    *,
    config: Mapping[str, Any],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """Let a model answer items, score the answers, and write everything down.

    Args:
        items: From `make_items`.
        generator: The model.
        out: Folder of the run. If it holds an unfinished run with the same settings, only the
            items without a line in `items.jsonl` are run; if a finished one, nothing is.
        console: Where the progress bars go.
        config: Resolved options, named like those of the command line.
        versions: What the run is made with, for `results.json`.

    Returns:
        What `results.json` holds.

    Raises:
        ConfigError: A length is too short, or the run in `out` was begun with other settings.
        DataError: A file in `out` is damaged.
    """
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        "config": dict(config),
        "generator": generator.describe(),
        "items": items.header,
    }
    check_settings(out, settings)
    results_file = out / RESULTS_FILE
    with _progress(console) as progress:
        chosen, manifest = _items(items, out, progress)
        outcomes = _outcomes(chosen, out / ITEMS_FILE)
        if len(outcomes) < len(chosen):
            results_file.unlink(missing_ok=True)
            prompts = [_prompt(item, items.header["thinking_tokens"]) for item in chosen]
            batches = _batches(prompts, generator, out, settings)
            _generate(chosen, prompts, batches, outcomes, generator, out / ITEMS_FILE, progress)
    pairs = [(item, outcomes[item.id]) for item in chosen]
    if results_file.exists():
        results: dict[str, Any] = json.loads(results_file.read_text(encoding="utf-8"))
    else:
        results = {
            "suite": items.suite,
            **summarise(pairs, manifest),
            **settings,
            "items": manifest,
            "versions": dict(versions),
            "seconds": round(sum(outcome.seconds for _, outcome in pairs), 3),
        }
        # Before the items lose their times.
        write_results(out, results)
    replace_file(out / ITEMS_FILE, (_line(item, outcome) for item, outcome in pairs))
    return results


def _items(items: ItemSet, out: Path, progress: Progress) -> tuple[list[Item], dict[str, Any]]:
    """The items of the run: found complete, or made now."""
    if (out / MANIFEST_FILE).exists():
        found, manifest = read_items(out)
        if not list(differences(items.header, {name: manifest.get(name) for name in items.header})):
            return found, manifest
    bar = progress.add_task("making items", total=len(items), note="")
    write_items(items, out, lambda: progress.advance(bar))
    return read_items(out)


def _outcomes(items: list[Item], file: Path) -> dict[str, Outcome]:
    """The finished items of an earlier start."""
    known = {item.id for item in items}

    def read(row: Any) -> tuple[str, Outcome]:
        if row["id"] not in known:
            raise ValueError(f"no item '{row['id']}' in this run")
        return row["id"], Outcome(
            output=row["output"],
            thinking=row["thinking"],
            score=Score(row["score"], row["score_lenient"], row["no_answer"]),
            prompt_tokens=row["tokens"],
            output_tokens=row["output_tokens"],
            truncated=row["truncated"],
            seconds=row.get("seconds", 0.0),
        )

    return finished_lines(file, read, "item")


def _prompt(item: Item, thinking_tokens: int) -> Prompt:
    answer_tokens = item.max_new_tokens - thinking_tokens
    return Prompt(tuple(item.messages), item.answer_prefix, answer_tokens, sample=0)


def _batches(
    prompts: list[Prompt], generator: Generator, out: Path, settings: dict[str, Any]
) -> list[list[int]]:
    """The batches of the run: as many prompts together as memory allowed when it was begun."""
    file = out / BATCHES_FILE
    if not file.exists():
        batches = generator.batches(prompts)
        # Only now is it known that the model takes these prompts: until then, no setting is fixed.
        note_settings(out, settings)
        replace_file(file, [json.dumps(batches) + "\n"])
    kept: list[list[int]] = json.loads(file.read_text(encoding="utf-8"))
    return kept


def _generate(
    items: list[Item],
    prompts: list[Prompt],
    batches: list[list[int]],
    outcomes: dict[str, Outcome],
    generator: Generator,
    file: Path,
    progress: Progress,
) -> None:
    """Run the items that have no outcome, and write a line for each as it is done."""
    bar = progress.add_task(
        "answering",
        total=sum(item.tokens for item in items),
        # Of an earlier start: it does not count in the estimate of the time.
        completed=sum(item.tokens for item in items if item.id in outcomes),
        note=f"{len(outcomes)}/{len(items)} items",
    )
    unfinished = [batch for batch in batches if any(items[i].id not in outcomes for i in batch)]
    # Unbuffered: each line is written whole by one call.
    with file.open("ab", buffering=0) as lines:
        for index, completion in generator.complete(prompts, unfinished):
            item = items[index]
            # The kill came between the lines of a batch.
            if item.id in outcomes:
                continue
            outcome = _outcome(item, completion)
            outcomes[item.id] = outcome
            lines.write(_line(item, outcome, seconds=outcome.seconds).encode())
            progress.update(
                bar, advance=item.tokens, note=f"{len(outcomes)}/{len(items)} items", refresh=True
            )
    missing = [item.id for item in items if item.id not in outcomes]
    if missing:
        raise AssertionError(f"the generator left out {len(missing)} items, such as {missing[0]}")


def _outcome(item: Item, completion: Completion) -> Outcome:
    return Outcome(
        output=completion.text,
        thinking=completion.thinking,
        score=score_output(item, completion.text),
        prompt_tokens=completion.prompt_tokens,
        output_tokens=completion.tokens,
        truncated=completion.truncated,
        seconds=completion.seconds,
    )


def _line(item: Item, outcome: Outcome, **times: float) -> str:
    row = {
        "id": item.id,
        "suite": item.suite,
        "task": item.task,
        "length": item.length,
        "prompt": item.prompt,
        "answer_prefix": item.answer_prefix,
        "question": item.question,
        "references": item.references,
        "thinking": outcome.thinking,
        "output": outcome.output,
        "score": outcome.score.score,
        "score_lenient": outcome.score.lenient,
        "no_answer": outcome.score.no_answer,
        "truncated": outcome.truncated,
        "tokens": outcome.prompt_tokens,
        "output_tokens": outcome.output_tokens,
        **times,
    }
    return json_line(row)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% {task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        # A batch of long prompts takes minutes.
        speed_estimate_period=1800,
    )
