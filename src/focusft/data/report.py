"""What became of the rows of a data set: counts, lengths, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.table import Table

_DROPPED = {
    "too_long": "longer than max_length",
    "no_room": "no room for the responses in max_length",
    "no_labels": "nothing to train on",
}
_MENDS = {
    "too_long": "raise max_length ({longest} takes every row), or set length_policy to "
    "truncate_context",
    "no_room": "raise max_length ({longest} takes every row)",
    "no_labels": "look at one with 'focusft data show' and mend its messages",
}
_FEW_LABELS = 0.01


@dataclass(frozen=True)
class DataReport:
    """Counts of a tokenised data set; `rows == used + sum(dropped.values())` always holds.

    Attributes:
        rows: Rows read.
        used: Rows in the data set.
        dropped: Rows left out, by reason.
        truncated: Used rows that lost context tokens to `truncate_context`.
        removed_tokens: Context tokens lost in this way.
        rewritten_turns: Assistant messages that the chat template did not show in full, for
            instance the thinking of earlier turns.
        untrained_turns: Response turns of the used rows without labels: those of weight 0, and
            those of a prompt.
        tools_as_text: Used rows whose tools were written into the messages, since the chat
            template knows none.
        tokens: Tokens of the used rows.
        response_tokens: Tokens of the used rows with a label.
        median_tokens: Median length of the used rows.
        p95_tokens: 95th percentile of their length.
        max_tokens: Length of the longest used row.
        longest_read: Length of the longest row before the length policy.
        mean_turns: Mean number of turns of the used rows.
        mean_responses: Mean number of response turns of the used rows.
        cached: The data set came from the cache.
    """

    rows: int
    used: int
    dropped: dict[str, int]
    truncated: int
    removed_tokens: int
    rewritten_turns: int
    untrained_turns: int
    tools_as_text: int
    tokens: int
    response_tokens: int
    median_tokens: int
    p95_tokens: int
    max_tokens: int
    longest_read: int
    mean_turns: float
    mean_responses: float
    cached: bool = field(default=False, compare=False)

    @classmethod
    def from_columns(cls, columns: dict[str, Sequence[Any]]) -> DataReport:
        """Sum up the per-row columns that the tokenisation writes."""
        dropped = np.array([bool(reason) for reason in columns["dropped"]])
        used = ~dropped
        reasons = [reason for reason in columns["dropped"] if reason]
        tokens = np.asarray(columns["tokens"])[used]
        removed = np.asarray(columns["removed"])[used]

        def total(name: str) -> int:
            return int(np.asarray(columns[name])[used].sum())

        def mean(name: str) -> float:
            return total(name) / max(len(tokens), 1)

        return cls(
            rows=len(dropped),
            used=int(used.sum()),
            dropped={reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
            truncated=int((removed > 0).sum()),
            removed_tokens=int(removed.sum()),
            rewritten_turns=total("rewritten"),
            untrained_turns=total("untrained"),
            tools_as_text=total("tools_as_text"),
            tokens=int(tokens.sum()),
            response_tokens=total("response_tokens"),
            median_tokens=int(np.median(tokens)) if len(tokens) else 0,
            p95_tokens=int(np.percentile(tokens, 95)) if len(tokens) else 0,
            max_tokens=int(tokens.max(initial=0)),
            longest_read=max(columns["tokens_read"], default=0),
            mean_turns=mean("turns"),
            mean_responses=mean("responses"),
        )

    def to_dict(self) -> dict[str, Any]:
        """All counts, ready for JSON."""
        return asdict(self)

    def one_line(self) -> str:
        """A line for the log."""
        parts = [f"{self.used} of {self.rows} rows used"]
        parts += [f"{count} dropped ({_DROPPED[why]})" for why, count in self.dropped.items()]
        if self.truncated:
            parts.append(f"{self.truncated} truncated (-{self.removed_tokens:,} context tokens)")
        if self.rewritten_turns:
            parts.append(
                f"{self.rewritten_turns} assistant messages not shown in full by the template"
            )
        if self.untrained_turns:
            parts.append(f"{self.untrained_turns} response turns without labels")
        if self.tools_as_text:
            parts.append(
                f"{self.tools_as_text} with tools as plain text (the chat template knows none)"
            )
        parts.append(f"{self.tokens:,} tokens, {self.response_tokens:,} of them response")
        parts.append(f"longest {self.max_tokens:,}")
        return "; ".join(parts)

    def no_row_left(self) -> str:
        """Why no row is used, how long the longest is, and the mends."""
        why = ", ".join(f"{count} rows: {_DROPPED[why]}" for why, count in self.dropped.items())
        mends = "; ".join(map(self._mend, self.dropped))
        return (
            f"no row is left to train on ({why}; the longest read has {self.longest_read} tokens); "
            f"{mends}"
        )

    def _mend(self, why: str) -> str:
        return _MENDS[why].format(longest=self.longest_read)

    def warnings(self) -> list[str]:
        """What is probably not meant, each with its mend."""
        lines = []
        for why, count in self.dropped.items():
            share = f"{count} of {self.rows} rows are dropped: {_DROPPED[why]}"
            lines.append(f"{share}; {self._mend(why)}")
        if self.rewritten_turns:
            lines.append(
                f"the chat template hides part of {self.rewritten_turns} assistant messages, for "
                "instance their thinking, which is then not trained on; use a template that shows "
                "it, or split the conversations so that each ends with such a message"
            )
        share_of_labels = self.response_tokens / max(self.tokens, 1)
        if share_of_labels < _FEW_LABELS:
            lines.append(
                f"only {share_of_labels:.2%} of the tokens have labels; put several questions "
                "about a text into one conversation, or use longer answers or shorter texts"
            )
        return lines

    def table(self) -> Table:
        """A table for the terminal."""
        table = Table(title="Data", show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        table.add_row("rows read", f"{self.rows:,}")
        table.add_row("rows used", f"{self.used:,}")
        for why, count in self.dropped.items():
            table.add_row(f"dropped: {_DROPPED[why]}", f"{count:,}", style="yellow")
        table.add_row("truncated rows", f"{self.truncated:,}")
        table.add_row("context tokens removed", f"{self.removed_tokens:,}")
        table.add_row(
            "assistant messages not shown in full by the template", f"{self.rewritten_turns:,}"
        )
        table.add_row("response turns without labels", f"{self.untrained_turns:,}")
        table.add_row(
            "rows with tools as plain text (the template knows none)", f"{self.tools_as_text:,}"
        )
        table.add_section()
        table.add_row("tokens", f"{self.tokens:,}")
        table.add_row("response tokens (labels)", f"{self.response_tokens:,}")
        table.add_row("share of labels", f"{self.response_tokens / max(self.tokens, 1):.1%}")
        table.add_section()
        table.add_row("tokens per row: median", f"{self.median_tokens:,}")
        table.add_row("tokens per row: 95%", f"{self.p95_tokens:,}")
        table.add_row("tokens per row: longest", f"{self.max_tokens:,}")
        table.add_row("longest row before the length policy", f"{self.longest_read:,}")
        table.add_row("turns per conversation", f"{self.mean_turns:.1f}")
        table.add_row("response turns per conversation", f"{self.mean_responses:.1f}")
        return table
