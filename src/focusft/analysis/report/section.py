"""What a part of the page may hold."""

from __future__ import annotations

from dataclasses import dataclass, field

from focusft.analysis.report.claims import Claim
from focusft.analysis.report.examples import Examples, TokenView
from focusft.analysis.report.figures import Chart
from focusft.analysis.report.settings import Rows


@dataclass(frozen=True)
class Table:
    """A table of texts; the first column names the row."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class RunRow:
    """A run in the legend."""

    label: str
    method: str
    model: str
    details: str
    colour: str
    border: str


@dataclass(frozen=True)
class SettingsBlock:
    """Options or versions: what differs, and what all share behind a click."""

    title: str
    different: Rows
    alike: Rows
    summary: str


@dataclass
class Section:
    """A part of the page."""

    id: str
    title: str
    short: str = ""
    intro: list[str] = field(default_factory=list)
    runs: list[RunRow] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    tokens: list[TokenView] = field(default_factory=list)
    examples: Examples | None = None
    settings: list[SettingsBlock] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
