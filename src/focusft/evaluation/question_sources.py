"""SQuAD and HotpotQA in the shape of their published JSON files: from such a file or the hub.

Hub ids are `rajpurkar/squad_v2` and `hotpotqa/hotpot_qa`, or sets with the same columns; a split
other than `validation` follows after a colon.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets

from focusft.data.hub import is_hub_name, load_hub
from focusft.errors import DataError

Source = str | Path


def squad_json(source: Source) -> Any:
    """SQuAD: `{"data": [{"paragraphs": [{"context", "qas": [..]}]}]}`.

    Raises:
        DataError: The file cannot be read, or the hub does not give the set.
        KeyError: The set has other columns.
    """
    if not is_hub_name(str(source)):
        return _read_json(source)
    articles: dict[str, dict[str, list[Any]]] = {}
    for row in _load(source, None, ("title", "context", "question", "answers")):
        answers = [{"text": text} for text in row["answers"]["text"]]
        asked = articles.setdefault(row["title"], {}).setdefault(row["context"], [])
        asked.append({"question": row["question"], "answers": answers})
    return {
        "data": [
            {"paragraphs": [{"context": text, "qas": asked} for text, asked in article.items()]}
            for article in articles.values()
        ]
    }


def hotpotqa_json(source: Source) -> Any:
    """HotpotQA: `[{"question", "answer", "context": [[title, sentences]], "supporting_facts"}]`.

    Raises:
        DataError: The file cannot be read, or the hub does not give the set.
        KeyError: The set has other columns.
    """
    if not is_hub_name(str(source)):
        return _read_json(source)
    rows = _load(source, "distractor", ("question", "answer", "context", "supporting_facts"))
    return [
        {
            "question": row["question"],
            "answer": row["answer"],
            "context": _pairs(row["context"], "title", "sentences"),
            "supporting_facts": _pairs(row["supporting_facts"], "title", "sent_id"),
        }
        for row in rows
    ]


def _load(source: Source, config: str | None, columns: tuple[str, ...]) -> datasets.Dataset:
    name, _, split = str(source).partition(":")
    rows = load_hub(name, config, split=split or "validation")
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise KeyError(", ".join(missing))
    return rows


def _pairs(columns: dict[str, list[Any]], first: str, second: str) -> list[tuple[Any, Any]]:
    return list(zip(columns[first], columns[second], strict=True))


def _read_json(path: Source) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); give the published file") from error
