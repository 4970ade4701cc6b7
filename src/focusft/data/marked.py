"""Examples for the attention probe: tokens with what of them is content and what is a needle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from focusft.data.chat import Encoded, encode_row
from focusft.data.lengths import LengthPolicy, check_length_options, fit_length
from focusft.data.sources import path_list, raise_bad_rows, read_records
from focusft.errors import ConfigError, DataError


@dataclass(frozen=True)
class MarkedExample:
    """One conversation.

    Attributes:
        where: File and line, or hub name and row.
        encoded: Token ids, labels and turns.
        content_mask: 1 on the text of context messages; 0 on template text, special tokens and
            responses.
        needle_mask: 1 on the tokens of marked facts.
    """

    where: str
    encoded: Encoded
    content_mask: list[int]
    needle_mask: list[int]

    def batch(self) -> dict[str, Tensor]:
        """A batch of this example alone, int64 tensors [1, S]."""
        columns = {
            **self.encoded.example(),
            "content_mask": self.content_mask,
            "needle_mask": self.needle_mask,
        }
        return {name: torch.tensor([column]) for name, column in columns.items()}


@dataclass(frozen=True)
class MarkedSet:
    """The first usable examples of some files.

    Attributes:
        examples: In the order of the files.
        read: Rows that were read to find them.
        left_out: How many rows were left out, by the reasons of `fit_length`.
    """

    examples: list[MarkedExample]
    read: int
    left_out: dict[str, int]

    def one_line(self) -> str:
        """Counts for the terminal."""
        reasons = "".join(
            f", {count} left out ({reason.replace('_', ' ')})"
            for reason, count in self.left_out.items()
        )
        return f"{len(self.examples)} examples of {self.read} rows read{reasons}"


def read_marked(
    paths: str | Path | Sequence[str | Path],
    tokenizer: PreTrainedTokenizerBase,
    *,
    samples: int,
    max_length: int | None,
    length_policy: LengthPolicy = "drop",
) -> MarkedSet:
    """Read the first usable rows of data files, with the place of content and marked facts.

    Args:
        paths: As in `focusft.data.sources.read_records`.
        tokenizer: A fast tokenizer; with a chat template unless all rows are plain text.
        samples: How many examples to read at most.
        max_length: Largest number of tokens; None for any.
        length_policy: What to do with longer rows; "drop" leaves them out and counts them.

    Raises:
        DataError: A row that was read is bad, or none of them can be used.
        ConfigError: An option is out of range.
    """
    check_length_options(max_length, length_policy)
    if samples < 1:
        raise ConfigError(f"samples: {samples} must be 1 or more")
    special = _special_ids(tokenizer)
    examples: list[MarkedExample] = []
    left_out: dict[str, int] = {}
    read = 0
    for record in read_records(path_list(paths)):
        read += 1
        raise_bad_rows([(record.where, record.error)] if record.error else [], read)
        assert record.row is not None
        example = _mark(record.where, record.row, tokenizer, special, max_length, length_policy)
        if isinstance(example, MarkedExample):
            examples.append(example)
        else:
            left_out[example] = left_out.get(example, 0) + 1
        if len(examples) == samples:
            break
    found = MarkedSet(examples, read, left_out)
    if not examples:
        raise DataError(
            f"{', '.join(path_list(paths))}: no row can be probed ({found.one_line()}); raise "
            "max_length or name other data"
        )
    return found


def _mark(
    where: str,
    row: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    special: set[int],
    max_length: int | None,
    length_policy: LengthPolicy,
) -> MarkedExample | str:
    """The example, or why it is left out."""
    try:
        encoded = encode_row(tokenizer, row)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    fitted = fit_length(encoded, max_length, length_policy)
    if fitted.encoded is None:
        if length_policy == "error" and fitted.dropped == "too_long":
            raise DataError(
                f"{where}: {len(encoded.input_ids)} tokens exceed max_length {max_length}; raise "
                "it, or set length_policy to drop or truncate_context"
            )
        return str(fitted.dropped)
    encoded = fitted.encoded
    content = _inside([(span.start, span.stop) for span in encoded.context], encoded)
    return MarkedExample(
        where,
        encoded,
        [
            inside * (token not in special)
            for inside, token in zip(content, encoded.input_ids, strict=True)
        ],
        _inside(encoded.needles, encoded),
    )


def _inside(spans: Sequence[tuple[int, int]], encoded: Encoded) -> list[int]:
    marks = [0] * len(encoded.input_ids)
    for start, stop in spans:
        marks[start:stop] = [1] * (stop - start)
    return marks


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of bos, eos and their like, and of the tokens that the template writes."""
    added = tokenizer.added_tokens_decoder
    return {*tokenizer.all_special_ids, *(id for id, token in added.items() if token.special)}
