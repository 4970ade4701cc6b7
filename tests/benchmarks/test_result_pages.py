"""The pages of tool-use and attention results say what the results files hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.attention_tables import FIGURES, attention_page
from benchmarks.tool_use_tables import claims, tool_use_page

SOURCE = Path("benchmarks/results/somewhere")


def _estimate(score: float) -> dict[str, float]:
    return {"score": score, "low": score - 0.1, "high": score + 0.1, "n": 50}


def _tool_run(with_tool: float, without: float, questions: str = "same") -> dict[str, Any]:
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
        "questions": {"n": 50, "sha256": questions},
        "modes": modes,
        "tasks": {
            "gas_pressure": {"tools": _estimate(with_tool), "no_tools": _estimate(without)},
            "heat": {"tools": _estimate(0.5), "no_tools": _estimate(0.1)},
        },
        "difference": {"strict": _estimate(with_tool - without)},
    }


def test_tool_use_page() -> None:
    one_mode = _tool_run(0.6, 0.0)
    for figures in (one_mode, one_mode["tasks"]["gas_pressure"], one_mode["tasks"]["heat"]):
        figures.pop("difference", None)
        figures.pop("no_tools", None)
    del one_mode["modes"]["no_tools"]
    runs = {
        "base": _tool_run(0.2, 0.25),
        "sft": _tool_run(0.4, 0.3),
        "sft-1": _tool_run(0.5, 0.3),
        "trained": _tool_run(0.8, 0.3),
        "trained-1": one_mode,
        "trained_briefly": _tool_run(0.8, 0.3, questions="others"),
    }
    page = tool_use_page({"Some kinds": runs})
    scores = "80.0 [70, 90] | 85.0 [75, 95] | 50% | 10% | 20% | 0%"
    assert f"| trained | 0 | with the tool | 50 | 512 | {scores} |" in page
    assert "| base | 0 | without | 50 | 512 | 25.0 [15, 35] |" in page
    assert "trained, seed 0: the tool adds 50.0 [40, 60] points" in page
    (kind,) = (line for line in page.splitlines() if line.startswith("| gas pressure"))
    # Several seeds are one mean.
    assert "| 20.0 [10, 30] | 25.0 [15, 35] | 45.0 | 30.0 | 70.0 | 30.0 [20, 40] |" in kind
    trained, *others = (claim for claim in claims(runs) if claim.arm.startswith("trained"))
    # 70 and 50 of two kinds against 45 and 50.
    assert "+26.3%: +12.5 points (sft 47.5, 2 seeds)" in trained.here
    assert (trained.interval, trained.verdict) == ("+0.0 to +40.0 points", "no difference shown")
    assert not others  # other questions


def test_the_interval_is_over_questions_where_each_has_a_score() -> None:
    sft, trained = _tool_run(0.5, 0.0), _tool_run(0.5, 0.0)
    sft["scores"] = {"tools": {"a": 0.0, "b": 1.0, "c": 0.5}}
    trained["scores"] = {"tools": {"a": 1.0, "b": 1.0, "c": 1.0}}
    (claim,) = claims({"sft": sft, "trained": trained})
    assert claim.here == "+100.0%: +50.0 points (sft 50.0, 1 seed)"
    assert claim.interval == "+0.0 to +100.0 points"


def test_one_difference_in_all_kinds_has_no_interval() -> None:
    (claim,) = claims({"sft": _tool_run(0.5, 0.0), "trained": _tool_run(0.5, 0.0)})
    assert (claim.interval, claim.verdict) == ("", "no interval")


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
