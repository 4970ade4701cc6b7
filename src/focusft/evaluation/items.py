"""Benchmark items: made for a tokenizer, written as JSON lines with a manifest, read back.

The same arguments give the same bytes, in every process and for every tokenizer with the same
hash. Every prompt is counted as the model will get it, with its chat template and answer prefix.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from focusft.data.tokenise import tokenizer_fingerprint
from focusft.errors import ConfigError, DataError
from focusft.evaluation import babilong, ruler
from focusft.evaluation.generation import Prompt, encode
from focusft.evaluation.haystack import (
    DoesNotFitError,
    Draft,
    Prose,
    built_in_prose,
    read_prose,
    without_answer_words,
)
from focusft.evaluation.ruler_questions import (
    QuestionSet,
    read_hotpotqa,
    read_squad,
    stand_in_questions,
)
from focusft.evaluation.word_lists import WordList, load_words
from focusft.evaluation.worlds import TASKS as BABI_TASKS

SUITES = ("babilong", "ruler")
SHORTEST = 512
PROMPTS_FILE = "prompts.jsonl"
MANIFEST_FILE = "manifest.json"
# Raise when the same arguments give other items.
_FORMAT = 1


@dataclass(frozen=True)
class Item:
    """One prompt with everything its score needs.

    Attributes:
        id: Unique in the set, such as "ruler/vt/4096/0007".
        suite: babilong or ruler.
        task: Such as qa1 or niah_single_1.
        length: Most tokens of prompt and answer together; for published BABILong data the length
            in its name.
        prompt: The user's turn, before the chat template.
        answer_prefix: Raw text after the chat template that the answer goes on from.
        references: The right answers, as the suite's score takes them.
        max_new_tokens: Tokens kept for the answer, thinking included.
        tokens: Tokens of the whole prompt as `prompt_ids` gives them.
        fill: Part of the length that prompt and answer take.
        question: The question alone, where the suite's score needs it.
        metadata: What else is known of the item.
    """

    id: str
    suite: str
    task: str
    length: int
    prompt: str
    answer_prefix: str
    references: tuple[str, ...]
    max_new_tokens: int
    tokens: int
    fill: float
    question: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The only reference."""
        (target,) = self.references
        return target

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt as a conversation."""
        return [{"role": "user", "content": self.prompt}]


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    answer_prefix: str = "",
    *,
    chat: bool,
    template_options: Mapping[str, Any] | None = None,
) -> list[int]:
    """Tokens of a whole prompt, with one BOS where the model has one.

    Args:
        tokenizer: The model's tokenizer.
        prompt: The user's turn.
        answer_prefix: Raw text after the chat template.
        chat: Whether the chat template wraps the prompt.
        template_options: More arguments of the chat template, such as enable_thinking.
    """
    return encode(
        tokenizer,
        Prompt(({"role": "user", "content": prompt},), answer_prefix),
        chat=chat,
        template_options=template_options,
    )


@dataclass(frozen=True)
class ItemSet:
    """Items that are made while they are iterated over, task after task and length after length.

    Attributes:
        suite: babilong or ruler.
        tasks: Tasks of the suite.
        lengths: Lengths in tokens.
        samples: Items per task and length.
        header: What the manifest says before the items are made.
        draft: Makes one item's draft from task, length and index.
        max_new_tokens: Tokens kept for the answer, thinking included, per task.
        published: Whether the items are published data, which is not fitted to a length.
    """

    suite: str
    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    samples: int
    header: dict[str, Any]
    draft: Callable[[str, int, int], Draft]
    max_new_tokens: dict[str, int]
    published: bool = False

    def __len__(self) -> int:
        return len(self.tasks) * len(self.lengths) * self.samples

    def __iter__(self) -> Iterator[Item]:
        for task in self.tasks:
            for length in self.lengths:
                for index in range(self.samples):
                    yield self._make(task, length, index)

    def _make(self, task: str, length: int, index: int) -> Item:
        kept = self.max_new_tokens[task]
        try:
            draft = self.draft(task, length, index)
        except DoesNotFitError as error:
            raise ConfigError(
                f"--lengths: {length} is too short for {self.suite} {task}, whose smallest prompt "
                f"has {error.tokens} tokens and {kept} more for the answer; "
                "use a greater length, or leave the task out of --tasks"
            ) from error
        if not self.published and draft.tokens + kept > length:
            raise AssertionError(f"{task}: {draft.tokens} + {kept} tokens exceed {length}")
        return Item(
            id=f"{self.suite}/{task}/{length}/{index:04d}",
            suite=self.suite,
            task=task,
            length=length,
            prompt=draft.prompt,
            answer_prefix=draft.answer_prefix,
            references=draft.references,
            max_new_tokens=kept,
            tokens=draft.tokens,
            fill=round((draft.tokens + kept) / length, 4),
            question=draft.question,
            metadata=draft.metadata,
        )


def make_items(
    suite: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    lengths: Sequence[int],
    samples: int,
    seed: int = 42,
    tasks: Sequence[str] | None = None,
    chat: bool | None = None,
    template_options: Mapping[str, Any] | None = None,
    max_new_tokens: int | None = None,
    thinking_tokens: int = 0,
    prose: Sequence[str | Path] = (),
    squad: str | Path | None = None,
    hotpotqa: str | Path | None = None,
    babilong_data: str | Path | None = None,
) -> ItemSet:
    """Plan the items of a benchmark; iterating over the result makes them.

    Args:
        suite: babilong or ruler.
        tokenizer: The model's tokenizer.
        lengths: Most tokens of prompt and answer together, at least 512.
        samples: Items per task and length.
        seed: Seed of the whole set.
        tasks: Tasks of the suite; all of them if None.
        chat: Whether prompts go through the chat template; if None, where there is one.
        template_options: More arguments of the chat template.
        max_new_tokens: Tokens kept for the answer; if None, as the benchmark has it.
        thinking_tokens: Tokens kept for the thinking before the answer, on top of that.
        prose: Files or hub ids with the background of babilong and the essays of ruler; the
            built-in prose, marked as a stand-in, if there are none.
        squad: SQuAD file or hub id for qa_1; made-up questions, marked as a stand-in, if None.
        hotpotqa: HotpotQA file or hub id for qa_2; the same.
        babilong_data: File, folder or hub id of published BABILong data to use instead of our
            worlds.

    Raises:
        ConfigError: An option has no such value. While iterating: a length is too short.
        DataError: A file or set of the hub cannot be used.
    """
    if suite not in SUITES:
        raise ConfigError(f"--suite: '{suite}' is none of {', '.join(SUITES)}")
    lengths = _checked_lengths(lengths, published=babilong_data is not None)
    if samples < 1:
        raise ConfigError(f"--samples: {samples} is less than 1; ask for at least one")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ConfigError(f"--max_new_tokens: {max_new_tokens} is less than 1")
    if chat is None:
        chat = tokenizer.chat_template is not None
    elif chat and tokenizer.chat_template is None:
        raise ConfigError("--chat: the tokenizer has no chat template; leave the option out")
    use_chat = chat

    def count(prompt: str, answer_prefix: str) -> int:
        return len(
            prompt_ids(
                tokenizer, prompt, answer_prefix, chat=use_chat, template_options=template_options
            )
        )

    corpora: dict[str, Any]
    if suite == "babilong":
        names = _checked_tasks(tasks, babilong.DATA_TASKS if babilong_data else BABI_TASKS)
        answer_tokens = max_new_tokens or babilong.MAX_NEW_TOKENS
        kept = dict.fromkeys(names, answer_tokens + thinking_tokens)
        if babilong_data is not None:
            published: dict[tuple[str, int], Sequence[Draft]] = {}
            corpora = {}
            for name in names:
                for length in lengths:
                    label = length_label(length)
                    drafts, rows = babilong.published_drafts(
                        babilong_data, name, label, samples=samples, count=count
                    )
                    published[name, length] = drafts
                    corpora[f"{name}_{label}"] = {
                        "source": rows.source,
                        "sha256": rows.sha256,
                        "stand_in": False,
                        "tasks": [name],
                    }

            def draft(task: str, length: int, index: int) -> Draft:
                return published[task, length][index]

        else:
            background = without_answer_words(_prose(prose))
            corpora = {"prose": _prose_entry(background, names)}

            def draft(task: str, length: int, index: int) -> Draft:
                return babilong.draft_item(
                    task,
                    index,
                    seed=seed,
                    budget=length - kept[task],
                    prose=background,
                    count=count,
                )

    else:
        names = _checked_tasks(tasks, ruler.TASKS)
        kept = {
            name: (max_new_tokens or ruler.MAX_NEW_TOKENS[name]) + thinking_tokens for name in names
        }
        questions: dict[str, QuestionSet] = {}
        if "qa_1" in names:
            questions["qa_1"] = read_squad(squad) if squad else stand_in_questions("qa_1")
        if "qa_2" in names:
            questions["qa_2"] = read_hotpotqa(hotpotqa) if hotpotqa else stand_in_questions("qa_2")
        outside = ruler.Corpora(essays=_prose(prose), words=load_words(), questions=questions)
        corpora = _ruler_entries(outside, names)

        def draft(task: str, length: int, index: int) -> Draft:
            return ruler.draft_item(
                task,
                index,
                seed=seed,
                samples=samples,
                length=length,
                max_new_tokens=kept[task],
                corpora=outside,
                count=count,
            )

    header = {
        "format": _FORMAT,
        "suite": suite,
        "tasks": list(names),
        "lengths": list(lengths),
        "samples": samples,
        "seed": seed,
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "chat": chat,
        "template_options": dict(template_options or {}),
        "max_new_tokens": kept,
        "thinking_tokens": thinking_tokens,
        "corpora": corpora,
        "stand_in": any(corpus["stand_in"] for corpus in corpora.values()),
    }
    return ItemSet(
        suite, names, lengths, samples, header, draft, kept, published=babilong_data is not None
    )


def write_items(
    items: ItemSet, folder: str | Path, advance: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Write the items and then their manifest.

    Args:
        items: From `make_items`.
        folder: Where `prompts.jsonl` and `manifest.json` go; it is made if it is not there.
        advance: Called after each item, for a progress bar.

    Returns:
        The manifest: the header, and under "cells" the true token counts and fill rates of each
        task and length.

    Raises:
        ConfigError: A length is too short.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    digest = hashlib.sha256()
    cells: dict[str, dict[str, _Cell]] = {}
    with (folder / PROMPTS_FILE).open("wb") as file:
        for item in items:
            line = (json.dumps(asdict(item), ensure_ascii=False) + "\n").encode()
            file.write(line)
            digest.update(line)
            cells.setdefault(item.task, {}).setdefault(str(item.length), _Cell()).add(item)
            advance()
    manifest = items.header | {
        "prompts_sha256": digest.hexdigest(),
        "cells": {
            task: {length: cell.to_dict() for length, cell in row.items()}
            for task, row in cells.items()
        },
    }
    # Written last: where there is a manifest, the items are complete.
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8", newline="\n")
    return manifest


def read_items(folder: str | Path) -> tuple[list[Item], dict[str, Any]]:
    """Read what `write_items` wrote.

    Raises:
        DataError: Something is missing, or the items are not those of the manifest.
    """
    folder = Path(folder)
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        content = (folder / PROMPTS_FILE).read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no complete set of items ({error}); make them again") from error
    if hashlib.sha256(content).hexdigest() != manifest.get("prompts_sha256"):
        raise DataError(
            f"{folder / PROMPTS_FILE}: not the items of {MANIFEST_FILE}; make them again"
        )
    items = []
    for line in content.decode().split("\n")[:-1]:
        row = json.loads(line)
        items.append(Item(**row | {"references": tuple(row["references"])}))
    return items, manifest


def length_label(length: int) -> str:
    """A length as the published data names it: 4096 and 4000 are "4k", 1048576 is "1M"."""
    # 128000 is a multiple of both.
    thousands = length // 1000 if length % 1000 == 0 else length // 1024
    if thousands >= 1000:
        return f"{thousands // 1000}M"
    return f"{thousands}k"


def length_name(length: int) -> str:
    """A length for people: "512", "1k", "1.5k", "128k", "1M"."""
    for unit, letter in ((1 << 20, "M"), (1 << 10, "k")):
        if length >= unit and length * 2 % unit == 0:
            return f"{length / unit:g}{letter}"
    return str(length)


def parse_length(text: str) -> int:
    """Tokens from "4096", "4k" (4096), "0.5k" (512) or "1M" (1048576).

    Raises:
        ConfigError: It is no length.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", text.strip())
    if match is None:
        raise ConfigError(f"--lengths: '{text}' is no length; write tokens as 512, 0.5k, 4k or 1M")
    tokens = float(match[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20}[match[2].lower()]
    if not tokens.is_integer():
        raise ConfigError(f"--lengths: '{text}' is no whole number of tokens")
    return int(tokens)


class _Cell:
    """Figures of one task at one length."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.fills: list[float] = []
        self.passed_over = 0
        self.reduced: set[str] = set()
        self.over_length = 0

    def add(self, item: Item) -> None:
        self.tokens.append(item.tokens)
        self.fills.append(item.fill)
        self.passed_over += item.metadata.get("stories_passed_over", 0)
        self.passed_over += item.metadata.get("questions_passed_over", 0)
        self.reduced.update(item.metadata.get("reduced", ()))
        self.over_length += item.tokens + item.max_new_tokens > item.length

    def to_dict(self) -> dict[str, Any]:
        number = len(self.tokens)
        return {
            "items": number,
            "prompt_tokens": {
                "least": min(self.tokens),
                "mean": round(sum(self.tokens) / number, 1),
                "most": max(self.tokens),
            },
            "fill": {"least": min(self.fills), "mean": round(sum(self.fills) / number, 4)},
            "over_length": self.over_length,
            "passed_over": self.passed_over,
            "reduced": sorted(self.reduced),
        }


def _checked_lengths(lengths: Sequence[int], *, published: bool) -> tuple[int, ...]:
    if not lengths:
        raise ConfigError("--lengths: none is given; name at least one")
    shortest = 1 if published else SHORTEST
    for length in lengths:
        if length < shortest:
            raise ConfigError(f"--lengths: {length} is too short; use {shortest} tokens or more")
    return tuple(dict.fromkeys(lengths))


def _checked_tasks(tasks: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    for task in tasks or ():
        if task not in known:
            raise ConfigError(f"--tasks: '{task}' is none of {', '.join(known)}")
    return tuple(dict.fromkeys(tasks or known))


def _prose(paths: Sequence[str | Path]) -> Prose:
    return read_prose(paths) if paths else built_in_prose()


def _prose_entry(prose: Prose, tasks: Sequence[str]) -> dict[str, Any]:
    return {
        "source": prose.source,
        "sha256": prose.digest(),
        "stand_in": prose.stand_in,
        "sentences": len(prose.sentences),
        "dropped_sentences": prose.dropped,
        "tasks": list(tasks),
    }


def _entry(corpus: WordList | QuestionSet, tasks: Sequence[str]) -> dict[str, Any]:
    return {
        "source": corpus.source,
        "sha256": corpus.digest(),
        "stand_in": corpus.stand_in,
        "tasks": list(tasks),
    }


def _ruler_entries(corpora: ruler.Corpora, tasks: Sequence[str]) -> dict[str, Any]:
    """What the tasks take from outside; only what is used."""
    entries: dict[str, Any] = {}
    if essays := [task for task in tasks if task in ruler.ESSAY_TASKS]:
        entries["essays"] = _prose_entry(corpora.essays, essays)
    if words := [task for task in tasks if task in ruler.WORD_TASKS]:
        entries["words"] = _entry(corpora.words, words)
    for task, questions in corpora.questions.items():
        if task in tasks:
            entries[task] = _entry(questions, [task])
    return entries
