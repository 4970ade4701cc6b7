"""The parts of the page, each made only when its data are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from focusft.analysis.report import settings
from focusft.analysis.report.attention_charts import attention_charts
from focusft.analysis.report.benchmark_charts import (
    before_and_after,
    categories,
    suite_charts,
    tool_use,
)
from focusft.analysis.report.claims import check_claims
from focusft.analysis.report.comparison import SuiteComparison
from focusft.analysis.report.examples import (
    demo_examples,
    suite_examples,
    token_views,
)
from focusft.analysis.report.figures import Style
from focusft.analysis.report.missing import missing_section
from focusft.analysis.report.numbers import percent, plain
from focusft.analysis.report.reading import Kind, Result, Runs, model_of
from focusft.analysis.report.section import RunRow, Section, SettingsBlock, Table
from focusft.analysis.report.shifts import attention_shifts
from focusft.analysis.report.speed_charts import speed_charts
from focusft.analysis.report.training_charts import training_charts, watched_charts


def make_sections(
    runs: Runs, comparisons: Sequence[SuiteComparison], style_of: Mapping[str, Style]
) -> list[Section]:
    """Every part that there are data for, in the order of the page."""
    by_suite = {comparison.suite: comparison for comparison in comparisons}
    sections: list[Section | None] = [
        _claims(runs, comparisons),
        _runs(runs, style_of),
        *(_demo(demo) for demo in runs.of("demo")),
        _suite(
            runs,
            "babilong",
            by_suite.get("babilong"),
            "BABILong: facts hidden in long texts",
            "The model gets a long text in which a few facts are hidden, and a question about "
            "them. Rows: kind of question. Columns: length of the text in tokens.",
        ),
        _ruler(runs, by_suite.get("ruler"), style_of),
        _tool_use(runs, style_of),
        _attention(runs, style_of),
        _training(runs, style_of),
        _speed(runs),
        _settings(runs),
        missing_section(runs),
    ]
    return [section for section in sections if section]


def _claims(runs: Runs, comparisons: Sequence[SuiteComparison]) -> Section:
    return Section(
        "claims",
        "The paper's claims, and what was measured here",
        "Claims",
        [
            "The paper trained a model of 7 billion parameters. Arrows go from SFT to FocuSFT; for "
            "attention, from the causal mask to FocuSFT's."
        ],
        claims=check_claims(runs, comparisons),
    )


def _runs(runs: Runs, style_of: Mapping[str, Style]) -> Section | None:
    rows = []
    for label, style in style_of.items():
        training = next((r for r in runs.of("training", "demo") if r.label == label), None)
        about = training or next(r for r in runs.results if r.label == label)
        rows.append(
            RunRow(
                label,
                style.method,
                _model(about),
                _training_details(training) if training else "",
                style.colour,
                {"solid": "solid", "dash": "dashed"}.get(style.dash, "dotted"),
            )
        )
    if not rows:
        return None
    return Section(
        "runs", "Runs", intro=["The colours and lines below are used in every chart."], runs=rows
    )


def _model(result: Result) -> str:
    config = result.content.get("config", {})
    return str(config.get("model_name_or_path") or model_of(result.content) or "not recorded")


def _training_details(training: Result) -> str:
    content = training.content
    data = content["data"].get("train", content["data"])
    options = content.get("config", content.get("settings", {}))
    seconds = content["seconds"]["train"] if training.kind == "demo" else content["seconds"]
    parts = [f"{data['used']:,} conversations"]
    if data["used"] < data["rows"]:
        parts.append(f"{data['rows'] - data['used']:,} more left out")
    if training.method == "FocuSFT":
        parts.append(f"{options['num_inner_steps']} inner steps of {plain(options['inner_lr'])}")
    parts.append(f"learning rate {plain(options['learning_rate'])}")
    return ", ".join([*parts, f"{seconds / 60:.1f} minutes"])


def _demo(demo: Result) -> Section:
    before, after = demo.content["before"], demo.content["after"]

    def row(name: str, key: str, form: str) -> list[str]:
        return [name, format(before[key], form), format(after[key], form)]

    return Section(
        "demo",
        "Before and after the demo",
        "Before and after",
        [
            "Questions about facts hidden in prose that the model did not see in training, "
            "answered with ordinary causal decoding."
        ],
        charts=[before_and_after(demo)],
        tables=[
            Table(
                "In figures",
                ["", "before", "after"],
                [
                    row("right answers, exactly as asked for", "accuracy", ".1%"),
                    row("... or a sentence that names the place", "accuracy_lenient", ".1%"),
                    row("loss of an answer token (lower is better)", "response_loss", ".3f"),
                ],
            )
        ],
        examples=demo_examples(demo),
    )


def _suite(
    runs: Runs, kind: Kind, comparison: SuiteComparison | None, title: str, intro: str
) -> Section | None:
    results = runs.of(kind)
    if not results:
        return None
    return Section(
        kind,
        title,
        title.partition(":")[0],
        [intro, *_stand_ins(results), *_asides(results)],
        charts=suite_charts(results, comparison),
        tables=[_trouble(results)],
        examples=suite_examples(results),
    )


def _ruler(
    runs: Runs, comparison: SuiteComparison | None, style_of: Mapping[str, Style]
) -> Section | None:
    section = _suite(
        runs,
        "ruler",
        comparison,
        "RULER: thirteen tasks on long texts",
        "Finding needles, following variables, counting words, answering questions. Rows: task. "
        "Columns: length in tokens.",
    )
    chart = categories(runs.of("ruler"), style_of)
    if section and chart:
        section.charts.insert(0, chart)
    return section


def _stand_ins(results: Sequence[Result]) -> list[str]:
    """A sentence on the tasks that were run on built-in texts in place of the published ones."""
    tasks = dict.fromkeys(
        task
        for result in results
        for task, cells in result.content["tasks"].items()
        if any(figures.get("stand_in") for figures in cells.values())
    )
    if not tasks:
        return []
    return [
        f"On built-in texts in place of the published ones: {', '.join(tasks)}. These scores "
        "compare between runs, not with published figures."
    ]


def _asides(results: Sequence[Result]) -> list[str]:
    """A sentence on the results that the verdict leaves out."""
    asides = [f"{result.label} ({result.aside})" for result in results if result.aside]
    return [f"Shown, but not in the verdict: {', '.join(asides)}."] if asides else []


def _trouble(results: Sequence[Result]) -> Table:
    """Answers that were cut off or missing, which lower a score without being wrong."""
    rows = []
    for result in results:
        cells = [f for tasks in result.content["tasks"].values() for f in tasks.values()]
        answers = sum(f["n"] for f in cells)

        def share(key: str, cells: list[dict[str, float]] = cells, of: int = answers) -> str:
            return percent(sum(f.get(key, 0) * f["n"] for f in cells) / of)

        rows.append([result.label, f"{answers:,}", share("truncated"), share("no_answer")])
    return Table(
        "Answers that were cut off or missing",
        ["run", "questions", "ran out of tokens", "no answer"],
        rows,
    )


def _tool_use(runs: Runs, style_of: Mapping[str, Style]) -> Section | None:
    results = [result for result in runs.of("agent") if "tools" in result.content["modes"]]
    if not results:
        return None
    names = {
        "tool_use": "answers that used the tool",
        "tool_error": "tool calls that failed",
        "no_answer_strict": "no answer in the form asked for",
        "truncation": "ended by a budget",
    }
    return Section(
        "tools",
        "Tool use",
        intro=[
            "Multiple-choice questions that the model may solve with a Python tool, from "
            + ", ".join(sorted({Path(r.content["config"]["questions"]).name for r in results}))
            + "."
        ],
        charts=[tool_use(results, style_of)],
        tables=[
            Table(
                "On the way",
                ["", *(result.label for result in results)],
                [
                    [title, *(percent(_tools(result)["rates"][name]) for result in results)]
                    for name, title in names.items()
                ],
            )
        ],
    )


def _tools(result: Result) -> dict[str, dict[str, float]]:
    """The summary of the answers that could use the tool."""
    tools: dict[str, dict[str, float]] = result.content["modes"]["tools"]
    return tools


def _attention(runs: Runs, style_of: Mapping[str, Style]) -> Section | None:
    shifts = attention_shifts(runs)
    watched = watched_charts(runs.of("training", "demo"), style_of)
    if not shifts and not watched:
        return None
    rows = [
        [
            f"{model.label}, {mask}",
            percent(vars(model.figures["sink_mass"])[mask], 2),
            percent(vars(model.figures["context_engagement"])[mask], 1),
        ]
        for model in shifts
        for mask in ("causal", "bidirectional")
    ]
    views = token_views(runs)
    intro = [
        "Sink mass is the share of the answers' attention that goes to the very first token, which "
        "says nothing. Context engagement is the share on the content of the context. Both are "
        "means over layers, heads and answer tokens. SFT trains with a causal mask, FocuSFT "
        "with a context whose tokens all see each other."
    ]
    if views:
        intro.append(
            "In the conversation below, the stronger a token's colour, the more attention the "
            "answer pays to it; full colour is 16 times an even share or more. Underlined: the "
            "facts that the question asks for."
        )
    return Section(
        "attention",
        "Attention",
        intro=intro,
        charts=[*attention_charts(runs.of("probe")), *watched],
        tables=[Table("Where the answers look", ["", "sink mass", "context engagement"], rows)]
        if rows
        else [],
        tokens=views,
    )


def _training(runs: Runs, style_of: Mapping[str, Style]) -> Section | None:
    results = runs.of("training", "demo")
    charts = training_charts(results, style_of)
    if not charts:
        return None
    return Section("training", "Training", charts=charts)


def _speed(runs: Runs) -> Section | None:
    rows = []
    for result in runs.of("training", "demo"):
        rates = [
            line["tokens_per_second"]
            for line in result.content["log"]
            if "tokens_per_second" in line
        ]
        seconds = result.content["seconds"]
        seconds = seconds["train"] if result.kind == "demo" else seconds
        rows.append([result.label, f"{seconds:,.0f}", f"{median(rates):,.0f}" if rates else ""])
    charts = speed_charts(runs)
    if not rows and not charts:
        return None
    table = Table("These runs", ["run", "seconds", "tokens per second, median"], rows)
    return Section(
        "speed",
        "Speed and memory",
        "Speed",
        ["Times compare only where runs had the same machine to themselves."],
        charts=charts,
        tables=[table] if rows else [],
    )


def _settings(runs: Runs) -> Section:
    blocks = []
    titles: tuple[tuple[Kind, str], ...] = (
        ("training", "Options of training"),
        ("demo", "Settings of the demo"),
        ("babilong", "Options of BABILong"),
        ("ruler", "Options of RULER"),
        ("agent", "Options of tool use"),
        ("probe", "Options of the probe"),
    )
    for kind, title in titles:
        different, alike = settings.options(runs.of(kind))
        if different or alike:
            shared = "" if len(runs.of(kind)) == 1 else " that all runs share"
            blocks.append(SettingsBlock(title, different, alike, f"{len(alike)} options{shared}"))
    rows = settings.versions(runs.results)
    blocks.append(SettingsBlock("Versions", [], rows, f"{len(rows)} versions"))
    return Section("settings", "Options and versions", "Options", settings=blocks)
