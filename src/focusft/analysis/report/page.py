"""Put the page together: one HTML file that holds all it needs and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from focusft.analysis.report.benchmark_charts import overview
from focusft.analysis.report.comparison import compare_suites
from focusft.analysis.report.examples import SHADES
from focusft.analysis.report.figures import Chart, styles
from focusft.analysis.report.reading import ABOUT_MODELS, read_runs
from focusft.analysis.report.sections import make_sections
from focusft.analysis.report.verdict import Verdict, judge
from focusft.errors import ConfigError


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        path: The HTML file.
        verdict: Its answer.
        charts: How many charts it draws.
        unknown: Results files of a kind that it has no view for.
    """

    path: Path
    verdict: Verdict
    charts: int
    unknown: list[str]


def write_report(paths: Sequence[Path], out: Path) -> Report:
    """Write a report of some runs, side by side.

    Args:
        paths: Folders of `focusft train`, `demo`, `eval` or `probe`, or JSON files of benchmarks.
        out: The HTML file.

    Raises:
        ConfigError: A run is missing or has no results, or `out` cannot be a file.
        DataError: A results file cannot be read.
    """
    if out.is_dir():
        raise ConfigError(f"--out: {out} is a folder; name a file, such as {out / 'report.html'}")
    runs = read_runs(paths)
    comparisons = compare_suites(runs)
    verdict = judge(runs, comparisons)
    # Probes have heat maps of their own and no line in a chart.
    style_of = styles(result for result in runs.of(*ABOUT_MODELS) if result.kind != "probe")
    sections = make_sections(runs, comparisons, style_of)
    environment = Environment(
        loader=PackageLoader("focusft.analysis.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure_json"] = _figure_json
    plotly = get_plotlyjs()
    script = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
    glance = overview(comparisons)
    html = environment.get_template("page.html").render(
        verdict=verdict,
        glance=glance,
        sections=sections,
        css=Markup(environment.get_template("page.css").render(shades=SHADES)),
        plotly=Markup(plotly),
        script=Markup(script),
        policy=_policy(plotly, script),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(out.name + ".unfinished")
    unfinished.write_text(html, encoding="utf-8", newline="\n")
    os.replace(unfinished, out)
    charts = sum(len(section.charts) for section in sections) + (glance is not None)
    return Report(out, verdict, charts, runs.unknown)


def _figure_json(chart: Chart) -> Markup:
    """A figure for a script element: nothing in it can end the element."""
    return Markup(chart.figure.to_json().replace("<", "\\u003c"))


def _policy(*scripts: str) -> str:
    """A content security policy: these scripts run and no other, and nothing is loaded."""
    allowed = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
