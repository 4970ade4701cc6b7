"""RULER (Hsieh et al. 2024, arXiv 2404.06654): 13 synthetic tasks at any length.

Parameters, prompts, answer prefixes and scores are those of the published code (NVIDIA/RULER,
`scripts/synthetic.yaml`); below 1024 tokens, where some of them do not fit, they are smaller, and
the item's metadata says so under "reduced".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from focusft.errors import ConfigError
from focusft.evaluation.haystack import CountTokens, Draft, Prose, rng_for
from focusft.evaluation.ruler_needles import NEEDLE_TASKS, draft_chain, draft_needles
from focusft.evaluation.ruler_questions import QuestionSet, draft_question
from focusft.evaluation.ruler_words import draft_common_words, draft_frequent_words
from focusft.evaluation.word_lists import WordList

TASKS = (*NEEDLE_TASKS, "vt", "cwe", "fwe", "qa_1", "qa_2")
ESSAY_TASKS = tuple(name for name, task in NEEDLE_TASKS.items() if task.haystack == "essay")
# Tasks whose keys or lists are English words.
WORD_TASKS = (*(name for name, task in NEEDLE_TASKS.items() if task.keys == "words"), "cwe")
MAX_NEW_TOKENS = {
    **dict.fromkeys(NEEDLE_TASKS, 128),
    "vt": 30,
    "cwe": 120,
    "fwe": 50,
    "qa_1": 32,
    "qa_2": 32,
}
CATEGORIES = {
    "retrieval": tuple(NEEDLE_TASKS),
    "tracing": ("vt",),
    "aggregation": ("cwe", "fwe"),
    "question answering": ("qa_1", "qa_2"),
}


@dataclass(frozen=True)
class Corpora:
    """What the tasks take from outside.

    Attributes:
        essays: The haystack of the essay tasks.
        words: English words.
        questions: Documents with questions, for qa_1 and qa_2.
    """

    essays: Prose
    words: WordList
    questions: dict[str, QuestionSet]


def score(task: str, references: Sequence[str], output: str) -> float:
    """Part of the references that the output holds, in any case, anywhere.

    For qa_1 and qa_2 the references are ways to say one answer: 1 if the output holds one of them.

    Args:
        task: One of TASKS.
        references: The right answers.
        output: What the model wrote.

    Returns:
        From 0 to 1.

    Raises:
        ConfigError: There is no such task, or no reference.
    """
    check_task(task)
    if not references:
        raise ConfigError(f"references: {task} has none to compare with; give at least one")
    said = output.lower()
    found = [reference.lower() in said for reference in references]
    return float(any(found)) if task in ("qa_1", "qa_2") else sum(found) / len(found)


def check_task(task: str) -> None:
    """Check the name of a task.

    Raises:
        ConfigError: There is no such task.
    """
    if task not in TASKS:
        raise ConfigError(f"--tasks: ruler has no '{task}'; use some of {', '.join(TASKS)}")


def draft_item(
    task: str,
    index: int,
    *,
    seed: int,
    samples: int,
    length: int,
    max_new_tokens: int,
    corpora: Corpora,
    count: CountTokens,
) -> Draft:
    """Make one prompt that fills its length.

    Args:
        task: One of TASKS.
        index: Number of the item, below `samples`.
        seed: Seed of the whole set.
        samples: Number of items of the task.
        length: Most tokens of prompt and answer together.
        max_new_tokens: Tokens kept for the answer.
        corpora: Essays, words and questions.
        count: Tokens of a whole prompt.

    Raises:
        ConfigError: There is no such task, or fewer questions than samples.
        DoesNotFitError: The smallest prompt of the task is longer.
    """
    check_task(task)
    key = f"ruler/{task}/{seed}/{index}"
    budget = length - max_new_tokens
    if task in NEEDLE_TASKS:
        spec = NEEDLE_TASKS[task]
        return draft_needles(spec, key, budget, corpora.essays, corpora.words, count)
    if task == "vt":
        return draft_chain(key, length, budget, count)
    if task == "cwe":
        return draft_common_words(key, length, budget, corpora.words, count)
    if task == "fwe":
        return draft_frequent_words(key, budget, count)
    order = rng_for("ruler", task, seed, "order")
    return draft_question(
        corpora.questions[task], key, budget, index=index, samples=samples, order=order, count=count
    )
