"""The pages of tool-use and attention results say what the results files hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.attention_tables import FIGURES, attention_page
from benchmarks.tool_use_tables import tool_use_page

SOURCE = Path("benchmarks/results/somewhere")


def _estimate(score: float) -> dict[str, float]:
    return {"score": score, "low": score - 0.1, "high": score + 0.1, "n": 50}


def _tool_run(with_tool: float, without: float) -> dict[str, Any]:
    rates = {"tool_use": 0.5, "tool_error": 0.1, "no_answer_strict": 0.2, "truncation": 0.0}
    modes = {
        mode: {
            "strict": {"pass@1": _estimate(score)},
            "lenient": {"pass@1": _estimate(score + 0.05)},
            "rates": rates,
            "mean_tokens": 120.4,
        }
        for mode, score in (("tools", with_tool), ("no_tools", without))
    }
    return {
        "config": {"max_new_tokens": 512},
        "modes": modes,
        "tasks": {
            "gas_pressure": {m: _estimate(modes[m]["strict"]["pass@1"]["score"]) for m in modes}
        },
        "difference": {"strict": _estimate(with_tool - without)},
    }


def test_tool_use_page() -> None:
    page = tool_use_page({"base": _tool_run(0.2, 0.25), "trained": _tool_run(0.8, 0.3)}, SOURCE)
    scores = "80.0 [70, 90] | 85.0 [75, 95] | 50% | 10% | 20% | 0%"
    assert f"| trained | with the tool | 50 | 512 | {scores} |" in page
    assert "| base | without | 50 | 512 | 25.0 [15, 35] |" in page
    assert "trained: the tool adds 50.0 [40, 60] points" in page
    assert (
        "| gas pressure | 20.0 [10, 30] | 25.0 [15, 35] | 80.0 [70, 90] | 30.0 [20, 40] |" in page
    )


def test_attention_page() -> None:
    def mask(value: float) -> dict[str, Any]:
        return {
            **dict.fromkeys(FIGURES, value),
            "intervals": {figure: [value / 2, value * 2] for figure in FIGURES},
        }

    names = ("sink_mass", "sink_mass_median", "context_engagement", "context_engagement_median")
    ratios = {f"{name}{end}": 7.0 for name in names for end in ("", "_low", "_high")}
    model = {
        "causal": mask(0.5),
        "bidirectional": mask(0.001),
        "ratios": ratios | {"sink_mass": 612.3},
        "examples": [
            {
                "tokens": tokens,
                "causal": {"sink_mass": 0.4},
                "bidirectional": {"sink_mass": 0.4 / ratio},
            }
            for tokens, ratio in ((1800, 900.0), (510, 50.0))
        ],
    }
    page = attention_page({"base": model}, SOURCE)
    assert "2 held-out conversations of 510 to 1800 tokens" in page
    assert "| base | bidirectional | 0.001 [0.0005, 0.002] |" in page
    assert "| base | 510 to 510 | 1 | 50 [50, 50] |" in page
    assert "| base | 1800 to 1800 | 1 | 900 [900, 900] |" in page
    assert "| base | sink mass, causal over bidirectional | 612 [7, 7] | 7 [7, 7] |" in page
