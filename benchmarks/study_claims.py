"""The claims of the paper beside what a study found."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.study_cells import BASELINE, Cells, Row, baseline_of, compare
from focusft.data.worlds import LOCATIONS
from focusft.evaluation.items import length_name
from focusft.statistics.columns import Estimate, bootstrap, ratio_of_means

# Guessing one of the places that a question may be about.
BABILONG_CHANCE = 1 / len(LOCATIONS)
SATURATED = 0.95
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Claim:
    """One line of the table.

    Attributes:
        paper: What the paper reports.
        arm: The arm that is compared with the baseline.
        here: The figure found, in words; empty without one.
        interval: Its 95% interval, in words; empty without one.
        verdict: What follows.
    """

    paper: str
    arm: str
    here: str
    interval: str
    verdict: str


def claims(cells: Cells) -> list[Claim]:
    """Every claim for every trained arm."""
    rows = cells.rows()
    found = []
    for arm in cells.trained():
        own = [row for row in rows if row.arm == arm]
        for row in own:
            tasks = {question.task for scores in row.runs.values() for question in scores}
            if any(task.startswith("qa") for task in tasks):
                found.append(_points("BABILong: up to +14 points over SFT", row, rows, 14, "qa"))
            if "cwe" in tasks:
                found.append(_points("RULER CWE: +8.2 points over SFT", row, rows, 8, "cwe"))
        # These are claims about the mask: an arm whose outer loop is causal has nothing to show.
        if _mask_of_training(cells, arm) == "bidirectional":
            found.append(_sink(cells, arm))
            found.append(_engagement(cells, arm))
    return found


def claims_table(found: list[Claim]) -> list[str]:
    """The lines of the table."""
    return [
        "| arm | paper | here | 95% interval | verdict |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {claim.arm} | {claim.paper} | {claim.here or '-'} | {claim.interval or '-'} | "
            f"{claim.verdict} |"
            for claim in found
        ),
    ]


def seed_count(seeds: int) -> str:
    """A number of training seeds, in words."""
    return f"{seeds} seed{'' if seeds == 1 else 's'}"


def _points(paper: str, row: Row, rows: list[Row], goal: float, prefix: str) -> Claim:
    """Difference at the longest length where the baseline is neither at chance nor saturated."""
    name = row.arm if row.evaluation in ("babilong", "ruler") else f"{row.arm}, {row.evaluation}"
    baseline = baseline_of(row, rows)
    if baseline is None:
        return Claim(paper, name, "", "", f"{NOT_MEASURED}: no {BASELINE} on these items yet")
    chance = BABILONG_CHANCE if prefix == "qa" else 0.0
    scores = next(iter(row.runs.values()))
    for length in sorted({q.length for q in scores if q.task.startswith(prefix)}, key=int)[::-1]:

        def keep(question: Any, length: str = length) -> bool:
            return bool(question.task.startswith(prefix) and question.length == length)

        of_baseline = baseline.average(keep)
        if of_baseline is None or of_baseline.low is None or of_baseline.high is None:
            continue
        if of_baseline.low <= chance or of_baseline.high >= SATURATED:
            continue
        found = compare(row, baseline, keep)
        if found is None or found.low is None or found.high is None:
            continue
        return Claim(
            paper,
            name,
            f"{100 * found.mean:+.1f} at {length_name(int(length))} ({BASELINE} "
            f"{100 * found.second:.1f}, {seed_count(min(found.runs))})",
            f"{100 * found.low:+.1f} to {100 * found.high:+.1f}",
            verdict(100 * found.mean, 100 * found.low, 100 * found.high, goal, nothing=0),
        )
    return Claim(
        paper, name, "", "", f"no length where {BASELINE} is neither at chance nor saturated"
    )


def verdict(
    value: float,
    low: float,
    high: float,
    goal: float,
    *,
    nothing: float,
    better: str = "better than SFT",
) -> str:
    """What an interval says of a goal; `nothing` is the value of no difference."""
    if high < nothing:
        return "worse than SFT"
    if low <= nothing:
        return "no difference shown"
    return "goal reached" if value >= goal else f"{better}, below the goal"


def _sink(cells: Cells, arm: str) -> Claim:
    """Sink mass of the training batches, as the trainer logged it."""
    paper = "sink mass in training: 529 times lower"
    ours, theirs = _batch_sink(cells, arm), _batch_sink(cells, BASELINE)
    shared = sorted(set(ours) & set(theirs))
    if not shared:
        return Claim(paper, arm, "", "", NOT_MEASURED)
    columns = [theirs[seed] for seed in shared], [ours[seed] for seed in shared]
    note = f"{BASELINE}'s, causal, over the arm's, {seed_count(len(shared))}"
    return _ratio(paper, arm, bootstrap(ratio_of_means, *columns), 529, note)


def _batch_sink(cells: Cells, arm: str) -> dict[int, float]:
    """Mean over the run, by seed."""
    found = {}
    for seed, cell in cells.by_arm.get(arm, {}).items():
        log = cell["train"]["log"] if cell["train"] else []
        values = [line["probe/batch_sink_mass"] for line in log if "probe/batch_sink_mass" in line]
        if values:
            found[seed] = fmean(values)
    return found


def _engagement(cells: Cells, arm: str) -> Claim:
    """Context engagement of the arm under its mask of training, over SFT's under the causal one."""
    paper = "context engagement: 3 times higher (our goal 1.3)"
    ours, theirs = cells.probed(arm), cells.probed(BASELINE)
    shared = sorted(set(ours) & set(theirs))
    if not shared:
        return Claim(paper, arm, "", "", NOT_MEASURED)
    mask = _mask_of_training(cells, arm)
    columns = [
        _by_example([probes[seed]["examples"][which]["context_engagement"] for seed in shared])
        for probes, which in ((ours, mask), (theirs, "causal"))
    ]
    return _ratio(paper, arm, bootstrap(ratio_of_means, *columns), 1.3, f"{mask} over causal")


def _mask_of_training(cells: Cells, arm: str) -> str:
    """How the arm's outer loop attends the context; plain SFT attends causally."""
    settings = next(iter(cells.by_arm[arm].values()))["settings"]["train"]["resolved"]
    return "causal" if settings["method"] == "sft" else str(settings["context_attention"])


def _by_example(values: list[list[float]]) -> list[float]:
    return [fmean(seeds) for seeds in zip(*values, strict=True)]


def _ratio(paper: str, arm: str, found: Estimate, goal: float, note: str) -> Claim:
    if found.low == found.high:
        interval, said = "", "one seed: no interval"
    else:
        interval = f"{found.low:.2f} to {found.high:.2f}"
        # The masks differ, and that alone moves attention: it makes no model the better one.
        said = verdict(found.value, found.low, found.high, goal, nothing=1, better="a difference")
    return Claim(paper, arm, f"{found.value:.2f} times ({note})", interval, said)
