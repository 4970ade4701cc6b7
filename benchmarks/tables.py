"""Make the pictures and tables of the documentation from committed results.

python -m benchmarks.tables
"""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from focusft.demo import print_summary

RESULTS = Path("benchmarks/results")
DOCS = Path("docs")


def main() -> None:
    """Write docs/demo.svg and docs/performance.md."""
    demo = json.loads((RESULTS / "demo_smollm2.json").read_text())
    console = Console(record=True, width=90)
    print_summary(demo, console)
    (DOCS / "demo.svg").write_text(
        console.export_svg(title="focusft demo", unique_id="demo"), encoding="utf-8"
    )
    step = json.loads((RESULTS / "step_smollm2_1024.json").read_text())
    settings, seconds, ratios = step["settings"], step["seconds"], step["ratios"]
    ours = f"k{settings['num_inner_steps']}"
    lines = [
        "# Cost of a step",
        "",
        f"{settings['model']}, {settings['length']} tokens, {settings['response']} of them "
        f"response, fp32, two CPU cores, medians of {settings['rounds']} alternating rounds in one "
        "process. Ratios are medians of paired ratios; single rounds vary a lot on this machine, "
        "see the JSON.",
        "",
        "| step | seconds | FocuSFT costs |",
        "| --- | --- | --- |",
        f"| plain SFT, causal | {seconds['sft']:.1f} | {ratios['ours_over_sft']:.2f} times |",
        f"| K = 0, bidirectional context | {seconds['k0']:.1f} | "
        f"{ratios['ours_over_k0']:.2f} times |",
        f"| FocuSFT, K = {settings['num_inner_steps']} | {seconds[ours]:.1f} | |",
        "",
        f"Reproduce: `python -m benchmarks.step --length {settings['length']} --rounds "
        f"{settings['rounds']} --json {RESULTS / 'step_smollm2_1024.json'}`, then "
        "`python -m benchmarks.tables`.",
        "",
    ]
    (DOCS / "performance.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
