"""Tables of whole, partial and empty grids, and what the claims conclude."""

import json
import random
import re

import pytest

from benchmarks.readme import README
from benchmarks.study_cells import Cells, read_cells
from benchmarks.study_check import differing
from benchmarks.study_claims import claims, verdict
from benchmarks.study_tables import SOURCE, study_page, with_claims
from benchmarks.tool_use_tables import read_tool_use

LENGTHS = ("512", "1024", "2048")


def cell(arm, seed, share, *, evaluations=("babilong",), prompts="same", sink=0.3):
    """A cell whose items are right with a probability by length, the same luck for every arm."""
    rng = random.Random(seed)
    luck = {
        (task, n, i): rng.random() for task in ("qa1", "cwe") for n in LENGTHS for i in range(60)
    }
    scores = {
        task: {n: [float(luck[task, n, i] < share[n]) for i in range(60)] for n in LENGTHS}
        for task in ("qa1", "cwe")
    }
    trained = arm != "base"
    mask = "causal" if arm in ("sft", "causal_outer") else "bidirectional"
    method = "sft" if arm == "sft" else "focusft"
    figures = {
        "sink_mass": [sink] * 4,
        "context_engagement": [0.5 + 0.1 * (mask != "causal") + 0.01 * i for i in range(4)],
        "needle_mass": [None, 0.1, 0.2, 0.3],
    }
    return {
        "study": "s", "arm": arm, "seed": seed, "tuned": {},
        "settings": {"train": {"resolved": {"method": method, "context_attention": mask}}},
        "train": {
            "seconds": 600.0, "resumed": False, "inner_steps_watched": 10, "inner_steps_raised": 1,
            "log": [{"loss": 2.0}, {"probe/batch_sink_mass": sink * (1 + seed)}, {"loss": 1.0}],
        } if trained else None,
        "evaluations": {
            name: {"prompts_sha256": prompts, "scores": scores} for name in evaluations
        },
        "probe": {"examples": {"causal": figures, "bidirectional": figures}},
    }  # fmt: skip


def write(folder, *cells):
    folder.mkdir(exist_ok=True)
    for one in cells:
        (folder / f"{one['arm']}-{one['seed']}.json").write_text(json.dumps(one))
    return read_cells(folder)


SFT = {"512": 0.99, "1024": 0.6, "2048": 0.1}
NO_TINY = Cells("tiny", {})
BETTER = {"512": 0.99, "1024": 0.8, "2048": 0.12}


def test_an_arm_with_a_causal_mask_makes_no_claim_about_attention(tmp_path):
    cells = write(
        tmp_path / "s",
        *(cell(arm, 0, SFT) for arm in ("sft", "causal_outer", "focusft")),
    )
    papers = {(claim.arm, claim.paper.split()[0]) for claim in claims(cells)}
    assert ("causal_outer", "BABILong:") in papers and ("focusft", "sink") in papers
    assert not papers & {("causal_outer", "sink"), ("causal_outer", "context")}


def test_a_whole_grid(tmp_path):
    cells = write(
        tmp_path / "s",
        cell("base", 0, {n: 0.2 for n in LENGTHS}),
        *(cell("sft", seed, SFT) for seed in range(3)),
        *(cell("focusft", seed, BETTER, sink=0.0003) for seed in range(3)),
    )
    files = study_page([cells], NO_TINY)
    page = files["study_results.md"]
    assert "Finished: base (untrained), sft (3 seeds), focusft (3 seeds)." in page
    # The base comes first, then the baseline.
    assert page.index("| base | babilong | 1 |") < page.index("| sft | babilong | 3 |")
    row = re.search(r"\| focusft \| babilong \| 3 \| (.+) \|", page)[1].split(" | ")
    assert re.fullmatch(r"[789]\d\.\d \[\d+, \d+\]; \*\*\+\d+\.\d \[\+\d+, \+\d+\]\*\*", row[1])
    assert "](study_s.svg)" in page
    assert files["study_s.svg"].count("<circle") == 3
    assert "| focusft | 10.0 | 1.000 | 10% |" in page
    found = {(claim.paper.split(":")[0], claim.arm): claim for claim in claims(cells)}
    # At 2048 the baseline is at chance, at 512 saturated: 1024 is what counts.
    babilong = found["BABILong", "focusft"]
    assert " at 1k (sft " in babilong.here and "3 seeds" in babilong.here
    assert babilong.verdict == "goal reached"
    assert found["RULER CWE", "focusft"].here.split(" at ")[1].startswith("2k")
    sink = found["sink mass in training", "focusft"]
    assert sink.here.startswith("1000.00 times") and sink.verdict == "goal reached"
    engagement = found["context engagement", "focusft"]
    assert engagement.here.startswith("1.19 times (bidirectional over causal)")
    assert engagement.verdict == "a difference, below the goal"


def test_what_the_inner_loop_adds_is_paired_with_the_same_masks(tmp_path):
    cells = write(
        tmp_path / "s",
        cell("sft", 0, SFT),
        cell("bidirectional_sft", 0, SFT),
        cell("focusft", 0, BETTER),
        cell("causal_focusft", 0, SFT, prompts="others"),
    )
    page = study_page([cells], NO_TINY)["study_results.md"]
    section = page.partition("### What the inner loop adds")[2].partition("###")[0]
    lines = [line for line in section.splitlines() if "focusft" in line]
    assert len(lines) == 1
    assert lines[0].startswith("| focusft | bidirectional_sft | babilong | 1 | **+")
    # Neither stands beside the baseline, which has no mask of context.
    alone = study_page(
        [write(tmp_path / "t", cell("sft", 0, SFT), cell("focusft", 0, BETTER))], NO_TINY
    )
    assert "What the inner loop adds" not in alone["study_results.md"]


def test_partial_grids(tmp_path):
    one = write(tmp_path / "one", cell("focusft", 0, BETTER))
    page = study_page([one], NO_TINY)["study_results.md"]
    assert "no baseline" in page and "study_one.svg" not in page
    assert {claim.verdict for claim in claims(one)} == {
        "not measured: no sft on these items yet", "not measured"
    }  # fmt: skip
    # Seeds that only one of the arms has are in its mean, not in the difference.
    two = write(
        tmp_path / "two", cell("sft", 0, SFT), cell("focusft", 0, BETTER), cell("focusft", 1, SFT)
    )
    assert "| focusft | babilong | 2 |" in study_page([two], NO_TINY)["study_results.md"]
    found = {claim.paper.split(":")[0]: claim for claim in claims(two)}
    assert "1 seed)" in found["BABILong"].here
    assert found["sink mass in training"].verdict == "one seed: no interval"
    base = write(tmp_path / "base", cell("base", 0, SFT))
    assert "base (untrained)" in study_page([base], NO_TINY)["study_results.md"]


def test_the_readme_shows_the_committed_cells():
    readme = README.read_text(encoding="utf-8")
    assert "| focusft | BABILong" in readme
    assert "| focusft bidirectional prefill | tool use" in readme
    studies = [read_cells(folder) for folder in sorted(SOURCE.glob("*"))]
    assert readme == with_claims(readme, studies, read_tool_use())


def test_no_grid(tmp_path):
    assert "No cell is finished yet." in study_page([], NO_TINY)["study_results.md"]
    (tmp_path / "empty").mkdir()
    files = study_page([read_cells(tmp_path / "empty")], NO_TINY)
    assert list(files) == ["study_results.md"] and "No cell" in files["study_results.md"]


def test_other_items_are_not_compared(tmp_path):
    cells = write(tmp_path / "s", cell("sft", 0, SFT), cell("focusft", 0, SFT, prompts="other"))
    assert "no baseline" in study_page([cells], NO_TINY)["study_results.md"]


def test_an_evaluation_of_one_arm_is_set_beside_the_baseline_on_the_same_items(tmp_path):
    both = cell("focusft", 0, BETTER, evaluations=("babilong", "babilong_bidirectional"))
    cells = write(tmp_path / "s", cell("sft", 0, SFT), both)
    page = study_page([cells], NO_TINY)["study_results.md"]
    assert re.search(r"\| focusft \| babilong_bidirectional \| 1 \|.*\*\*\+", page)
    assert "focusft, babilong_bidirectional" in {claim.arm for claim in claims(cells)}


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ((15, 5, 25), "goal reached"),
        ((9, 5, 25), "better than SFT, below the goal"),
        ((15, -1, 25), "no difference shown"),
        ((-9, -15, -1), "worse than SFT"),
    ],
)
def test_verdicts(figures, said):
    assert verdict(*figures, goal=14, nothing=0) == said


def test_a_rerun_is_compared_with_the_stored_cell():
    stored = cell("sft", 0, SFT)
    assert differing(stored, cell("sft", 0, SFT)) == []
    assert differing(stored, cell("sft", 0, SFT, prompts="other")) == [
        "babilong: other items, or none"
    ]
    changed = cell("sft", 0, SFT)
    changed["evaluations"]["babilong"]["scores"]["cwe"]["512"][3] = 0.5
    changed["train"]["log"][-1] = {"loss": 1.5}
    found = differing(stored, changed)
    assert found[0].startswith("babilong, cwe, 512: 1 of 60 items differ, mean 0.")
    assert found[1] == "training losses differ: [1.0] and [1.5] at the end"
