"""Which items a benchmark has, for a tokenizer: tasks, lengths and what is read from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from focusft.data.tokenise import tokenizer_fingerprint
from focusft.errors import ConfigError
from focusft.evaluation import babilong, ruler
from focusft.evaluation.haystack import (
    CountTokens,
    Draft,
    Prose,
    built_in_prose,
    read_prose,
    without_answer_words,
)
from focusft.evaluation.items.item import ItemSet, prompt_ids
from focusft.evaluation.items.lengths import length_label
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
# Raise when the same arguments give other items.
_FORMAT = 1


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

    answer = _AnswerTokens(max_new_tokens, thinking_tokens)
    if suite == "ruler":
        plan = _plan_ruler(tasks, seed, samples, answer, count, prose, squad, hotpotqa)
    elif babilong_data is not None:
        plan = _plan_published(tasks, lengths, samples, answer, count, babilong_data)
    else:
        plan = _plan_babilong(tasks, seed, answer, count, prose)
    header = {
        "format": _FORMAT,
        "suite": suite,
        "tasks": list(plan.kept),
        "lengths": list(lengths),
        "samples": samples,
        "seed": seed,
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "chat": chat,
        "template_options": dict(template_options or {}),
        "max_new_tokens": plan.kept,
        "thinking_tokens": thinking_tokens,
        "corpora": plan.corpora,
        "stand_in": any(corpus["stand_in"] for corpus in plan.corpora.values()),
    }
    return ItemSet(
        suite,
        tuple(plan.kept),
        lengths,
        samples,
        header,
        plan.draft,
        plan.kept,
        published=babilong_data is not None,
    )


@dataclass(frozen=True)
class _AnswerTokens:
    """Tokens that were asked for: of the answer, or None, and of the thinking before it."""

    answer: int | None
    thinking: int

    def kept(self, default: int) -> int:
        """Tokens kept for both."""
        return (self.answer or default) + self.thinking


@dataclass(frozen=True)
class _Plan:
    """What a suite makes its items of.

    Attributes:
        kept: Tokens kept for the answer of each task, in the order of the tasks.
        corpora: What is read from outside, for the manifest.
        draft: Makes one item's draft from task, length and index.
    """

    kept: dict[str, int]
    corpora: dict[str, Any]
    draft: Callable[[str, int, int], Draft]


def _plan_babilong(
    tasks: Sequence[str] | None,
    seed: int,
    answer: _AnswerTokens,
    count: CountTokens,
    prose: Sequence[str | Path],
) -> _Plan:
    """Worlds of our own."""
    names = _checked_tasks(tasks, BABI_TASKS)
    kept = dict.fromkeys(names, answer.kept(babilong.MAX_NEW_TOKENS))
    background = without_answer_words(_prose(prose))

    def draft(task: str, length: int, index: int) -> Draft:
        budget = length - kept[task]
        return babilong.draft_item(
            task, index, seed=seed, budget=budget, prose=background, count=count
        )

    return _Plan(kept, {"prose": _prose_entry(background, names)}, draft)


def _plan_published(
    tasks: Sequence[str] | None,
    lengths: Sequence[int],
    samples: int,
    answer: _AnswerTokens,
    count: CountTokens,
    data: str | Path,
) -> _Plan:
    """Published BABILong data, which is read now."""
    names = _checked_tasks(tasks, babilong.DATA_TASKS)
    labels = [length_label(length) for length in lengths]
    for length in lengths:
        if length % 1000 and length % 1024:
            raise ConfigError(
                f"--lengths: {length} tokens have no published data; give whole thousands, as 1k, "
                "2k or 4k, or leave --babilong_data out"
            )
    if len(set(labels)) < len(labels):
        raise ConfigError(f"--lengths: {', '.join(labels)}: some are the same published data")
    drafts: dict[tuple[str, int], Sequence[Draft]] = {}
    corpora = {}
    for name in names:
        for length, label in zip(lengths, labels, strict=True):
            drafts[name, length], rows = babilong.published_drafts(
                data, name, label, samples=samples, count=count
            )
            corpora[f"{name}_{label}"] = {
                "source": rows.source,
                "sha256": rows.sha256,
                "stand_in": False,
                "tasks": [name],
            }

    def draft(task: str, length: int, index: int) -> Draft:
        return drafts[task, length][index]

    return _Plan(dict.fromkeys(names, answer.kept(babilong.MAX_NEW_TOKENS)), corpora, draft)


def _plan_ruler(
    tasks: Sequence[str] | None,
    seed: int,
    samples: int,
    answer: _AnswerTokens,
    count: CountTokens,
    prose: Sequence[str | Path],
    squad: str | Path | None,
    hotpotqa: str | Path | None,
) -> _Plan:
    names = _checked_tasks(tasks, ruler.TASKS)
    kept = {name: answer.kept(ruler.MAX_NEW_TOKENS[name]) for name in names}
    questions: dict[str, QuestionSet] = {}
    if "qa_1" in names:
        questions["qa_1"] = read_squad(squad) if squad else stand_in_questions("qa_1")
    if "qa_2" in names:
        questions["qa_2"] = read_hotpotqa(hotpotqa) if hotpotqa else stand_in_questions("qa_2")
    corpora = ruler.Corpora(essays=_prose(prose), words=load_words(), questions=questions)

    def draft(task: str, length: int, index: int) -> Draft:
        return ruler.draft_item(
            task,
            index,
            seed=seed,
            samples=samples,
            length=length,
            max_new_tokens=kept[task],
            corpora=corpora,
            count=count,
        )

    return _Plan(kept, _ruler_entries(corpora, names), draft)


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
