"""RULER's questions about documents (`qa_1` SQuAD, `qa_2` HotpotQA) among other documents."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from focusft.data.hub import source_name
from focusft.errors import ConfigError, DataError
from focusft.evaluation.haystack import (
    CountTokens,
    DoesNotFitError,
    Draft,
    built_in_prose,
    fit,
    rng_for,
)
from focusft.evaluation.question_sources import hotpotqa_json, squad_json

_QA = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words.\n\nThe following are given documents.\n\n{context}\n\nAnswer the question "
    "based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "Question: {question}"
)
_QA_PREFIX = " Answer:"
# When whole documents leave more than this part empty, a cut one is added.
_MOST_EMPTY = 0.02
_LEAST_CUT_WORDS = 5

_STAND_IN_DOCUMENTS = 1000
_SENTENCES_PER_DOCUMENT = 4
_SYLLABLES = ("bel", "cor", "dan", "fer", "gal", "hol", "kas", "lim", "mor", "nar", "pel", "rov")
_ENDINGS = ("a", "en", "is", "o", "um", "yn")


@dataclass(frozen=True)
class Question:
    """A question with its documents, as indices into the set's documents.

    Attributes:
        text: The question.
        answers: Ways to say the answer.
        gold: Documents that the answer follows from.
        near: Documents that come with the question, and are added before any others.
    """

    text: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    near: tuple[int, ...]


@dataclass(frozen=True)
class QuestionSet:
    """Documents and questions about them.

    Attributes:
        documents: All documents.
        questions: All questions that can be answered.
        source: Where they come from.
        stand_in: Whether they stand in for the corpus that the benchmark names.
    """

    documents: tuple[str, ...]
    questions: tuple[Question, ...]
    source: str
    stand_in: bool = False

    def digest(self) -> str:
        """Hash of documents and questions."""
        asked = [[question.text, question.answers] for question in self.questions]
        return hashlib.sha256(json.dumps([self.documents, asked]).encode()).hexdigest()


def draft_question(
    corpus: QuestionSet,
    key: str,
    budget: int,
    *,
    index: int,
    samples: int,
    order: random.Random,
    count: CountTokens,
) -> Draft:
    """Ask a question about one document, or several, among many.

    A question whose own documents are too long gives way to another one that no other item asks;
    `metadata` says how many were passed over.

    Args:
        corpus: Documents and questions.
        key: Seed of this item.
        budget: Most tokens of the whole prompt.
        index: Number of the item.
        samples: Number of items; item i may ask the questions i, i + samples, ..
        order: Shuffles the questions, alike for every item.
        count: Tokens of a whole prompt.

    Raises:
        ConfigError: There are fewer questions than samples.
        DoesNotFitError: None of the questions fits.
    """
    questions = corpus.questions
    if len(questions) < samples:
        raise ConfigError(
            f"--samples: {samples} are more than the {len(questions)} questions of "
            f"{corpus.source}; ask for fewer"
        )
    shuffled = order.sample(questions, len(questions))
    shortest: DoesNotFitError | None = None
    for passed_over, question in enumerate(shuffled[index::samples]):
        try:
            return _draft(corpus, question, key, budget, count, passed_over)
        except DoesNotFitError as error:
            if shortest is None or error.tokens < shortest.tokens:
                shortest = error
    assert shortest is not None
    raise shortest


def _draft(
    corpus: QuestionSet,
    question: Question,
    key: str,
    budget: int,
    count: CountTokens,
    passed_over: int,
) -> Draft:
    rng = rng_for(key, "documents")
    near = rng.sample(question.near, len(question.near))
    own = {*question.gold, *near}
    far = [index for index in range(len(corpus.documents)) if index not in own]
    rng.shuffle(far)
    others = [corpus.documents[index] for index in (*near, *far)]
    gold = [corpus.documents[index] for index in question.gold]

    def build(units: int, cut: int = 0) -> Draft:
        # Once every document is there they come again, as in the published code.
        documents = gold + [others[index % len(others)] for index in range(units)]
        if cut:
            words = others[units % len(others)].split()
            documents.append(" ".join(words[: cut + _LEAST_CUT_WORDS - 1]))
        rng_for(key, "order", units).shuffle(documents)
        context = "\n\n".join(
            f"Document {number}:\n{document}" for number, document in enumerate(documents, 1)
        )
        return Draft(
            prompt=_QA.format(context=context, question=question.text),
            references=question.answers,
            answer_prefix=_QA_PREFIX,
            question=question.text,
            metadata={
                "documents": len(documents),
                "whole_other_documents": units,
                "cut_document": bool(cut),
                "questions_passed_over": passed_over,
                "own_documents_left_out": max(0, len(near) - units),
            },
        )

    if not others:
        return fit(build, count, budget, most=0)
    draft = fit(build, count, budget)
    if budget - draft.tokens <= _MOST_EMPTY * budget:
        return draft
    units = draft.metadata["whole_other_documents"]
    words = len(others[units % len(others)].split())
    most = max(0, words - _LEAST_CUT_WORDS)
    return fit(lambda cut: build(units, cut), count, budget, most=most)


def read_squad(path: str | Path) -> QuestionSet:
    """Read SQuAD (1.1 or 2.0); questions without an answer are left out.

    Args:
        path: The published JSON file, or a hub id such as rajpurkar/squad_v2.

    Raises:
        DataError: The file or set cannot be read or has another schema.
    """
    try:
        data = squad_json(path)
        texts = sorted({p["context"] for article in data["data"] for p in article["paragraphs"]})
        number = {text: index for index, text in enumerate(texts)}
        questions = []
        for article in data["data"]:
            own = list(dict.fromkeys(number[p["context"]] for p in article["paragraphs"]))
            for paragraph in article["paragraphs"]:
                gold = number[paragraph["context"]]
                near = tuple(index for index in own if index != gold)
                for qa in paragraph["qas"]:
                    answers = tuple(dict.fromkeys(answer["text"] for answer in qa["answers"]))
                    if answers and not qa.get("is_impossible", False):
                        questions.append(Question(qa["question"], answers, (gold,), near))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not in SQuAD's schema (data, paragraphs, context, qas): {error!r}; "
            "give the published JSON file or hub id"
        ) from error
    return _question_set(texts, questions, path)


def read_hotpotqa(path: str | Path) -> QuestionSet:
    """Read HotpotQA's distractor set.

    Args:
        path: The published JSON file, or a hub id such as hotpotqa/hotpot_qa.

    Raises:
        DataError: The file or set cannot be read or has another schema.
    """
    try:
        data = hotpotqa_json(path)
        paragraphs = [
            {title: f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]}
            for row in data
        ]
        texts = sorted({text for named in paragraphs for text in named.values()})
        number = {text: index for index, text in enumerate(texts)}
        questions = []
        for row, named in zip(data, paragraphs, strict=True):
            # All paragraphs where none is marked.
            titles = {title for title, _ in row["supporting_facts"]} & set(named) or set(named)
            gold = tuple(number[text] for title, text in named.items() if title in titles)
            near = tuple(number[text] for title, text in named.items() if title not in titles)
            questions.append(Question(row["question"], (row["answer"],), gold, near))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: not in HotpotQA's schema (question, answer, context, supporting_facts): "
            f"{error!r}; give the published JSON file or hub id"
        ) from error
    return _question_set(texts, questions, path)


@lru_cache(maxsize=2)
def stand_in_questions(task: str) -> QuestionSet:
    """Built-in prose cut into documents with a made-up fact each, for when no corpus is given.

    Args:
        task: qa_1 asks about one fact; qa_2 about two facts in two documents.
    """
    rng = rng_for("stand-in questions", task)
    sentences = built_in_prose().sentences
    people = _names(rng, _STAND_IN_DOCUMENTS)
    towns = _names(rng, _STAND_IN_DOCUMENTS)
    archives = _names(rng, _STAND_IN_DOCUMENTS)
    documents = []
    for index in range(_STAND_IN_DOCUMENTS):
        start = rng.randrange(len(sentences) - _SENTENCES_PER_DOCUMENT)
        text = list(sentences[start : start + _SENTENCES_PER_DOCUMENT])
        if task == "qa_1":
            fact = f"The archive of {archives[index]} is kept in the town of {towns[index]}."
        elif index % 2 == 0:
            fact = f"The archive of {archives[index]} is kept by {people[index]}."
        else:
            fact = f"The home of {people[index - 1]} is in the town of {towns[index]}."
        text.insert(rng.randint(0, len(text)), fact)
        documents.append(" ".join(text))
    if task == "qa_1":
        questions = [
            Question(
                f"In which town is the archive of {archive} kept?", (towns[index],), (index,), ()
            )
            for index, archive in enumerate(archives)
        ]
    else:
        questions = [
            Question(
                f"In which town does the keeper of the archive of {archives[index]} live?",
                (towns[index + 1],),
                (index, index + 1),
                (),
            )
            for index in range(0, _STAND_IN_DOCUMENTS, 2)
        ]
    return QuestionSet(tuple(documents), tuple(questions), "pydoc_data.topics", stand_in=True)


def _names(rng: random.Random, number: int) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < number:
        syllables = rng.choices(_SYLLABLES, k=3)
        names["".join((*syllables, rng.choice(_ENDINGS))).capitalize()] = None
    return list(names)


def _question_set(
    texts: Sequence[str], questions: Sequence[Question], path: str | Path
) -> QuestionSet:
    if not questions:
        raise DataError(f"{path}: no question with an answer in it; give another file")
    return QuestionSet(tuple(texts), tuple(questions), source_name(path))
