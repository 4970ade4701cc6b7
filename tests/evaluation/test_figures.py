"""Pictures and tables say what the results say."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks.evaluation_tables import evaluation_page
from focusft.errors import ConfigError
from focusft.evaluation.figures import category_bars, heat_map, heat_map_svg, write_figures
from focusft.evaluation.items import length_name, parse_length
from focusft.evaluation.tables import results_table
from tests.evaluation.scripted import Scripted, answers_by, make_once, perfect, run, shown

TASKS = {"babilong": ["qa1", "qa4"], "ruler": ["niah_single_2", "vt"]}


@pytest.fixture(scope="module", params=["babilong", "ruler"])
def results(request, smollm2, tmp_path_factory):
    """Two tasks at two lengths; right on the first half of the items at 512."""
    options = {"lengths": [512, 1024], "samples": 4, "tasks": TASKS[request.param]}
    items = make_once(request.param, tokenizer=smollm2, **options)

    def half(item):
        return perfect(item) if item.length == 512 and int(item.id[-1]) < 2 else ""

    config = options | {
        "suite": request.param, "model": "a<b", "chat": True, "prefill": "causal",
        "dtype": "auto", "temperature": 0.0,
    }  # fmt: skip
    script = Scripted(answers_by(list(items), half))
    return run(items, tmp_path_factory.mktemp("run"), script, **config)


def test_heat_map(results):
    (trace,) = heat_map(results).data
    assert list(trace.x) == ["512", "1k"]
    assert list(trace.y) == [*TASKS[results["suite"]], "mean"]
    assert [list(row) for row in trace.z] == [[50, 0]] * 3
    assert "n = 4" in trace.customdata[0][0]
    assert "no answer 50%" in trace.customdata[0][0]


def test_svg(results):
    svg = heat_map_svg(results)
    root = ElementTree.fromstring(svg)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("50.0") == 3
    assert texts.count("0.0") == 3
    assert {"512", "1k", "mean", *TASKS[results["suite"]]} <= set(texts)
    assert len(svg) < 8000


def test_one_page_with_everything(results, tmp_path):
    text = write_figures(results, tmp_path).read_text()
    # The library once, and nothing from elsewhere.
    assert text.count("plotly.js v") == 1
    assert not re.search(r"<(script|link)[^>]*\b(src|href)=", text)
    assert "a&lt;b</title>" in text
    assert text.count("Plotly.newPlot(") == (2 if results["suite"] == "ruler" else 1)


def test_bars(results):
    if results["suite"] != "ruler":
        assert "categories" not in results
        return
    bars = category_bars(results).data
    assert [bar.name for bar in bars] == ["512", "1k"]
    assert list(bars[0].x) == ["retrieval", "tracing"]
    assert list(bars[0].y) == [50, 50]
    cell = results["categories"]["tracing"]["512"]
    assert bars[0].error_y.array[1] == pytest.approx(100 * (cell["high"] - 0.5))
    assert bars[0].error_y.arrayminus[1] == pytest.approx(100 * (0.5 - cell["low"]))


def test_terminal_table(results):
    text = shown(results_table(results))
    task = TASKS[results["suite"]][0]
    lenient = r" \| 50\.0" if results["suite"] == "babilong" else ""
    assert re.search(rf"{task}\*.* 50\.0 \[15, 85\]{lenient} .* 100% .* 100%", text)
    assert "stand-in" in text
    assert "16 prompts had another number of tokens" in text


def test_page_of_results(results, tmp_path):
    local = results | {"generator": {"backend": "transformers", "dtype": "float32"}}
    made = evaluation_page({"one": json.loads(json.dumps(local)), "two": results}, tmp_path)
    assert set(made) == {"results.md", "results_one.svg", "results_two.svg"}
    page = made["results.md"]
    task = TASKS[results["suite"]][0]
    assert f"| {task}\\* | 50.0 [15, 85] | 0.0 [0, 49] |" in page
    assert re.search(rf"\| {task} \| 512 \| 4 \| 50% \| 50% \| \d+ \(\d+ to \d+\) \| ", page)
    assert "](results_one.svg)" in page
    assert "float32, temperature 0" in page
    assert "behind a server, temperature 0" in page
    assert f"--tasks {','.join(TASKS[results['suite']])} --lengths 512,1k --samples 4" in page
    assert ("By the lenient rule" in page) == (results["suite"] == "babilong")


def test_lengths():
    for text, tokens in {"512": 512, "0.5k": 512, "1k": 1024, "1.5K": 1536, "1M": 1 << 20}.items():
        assert parse_length(text) == tokens
        assert parse_length(length_name(tokens)) == tokens
    for tokens in (640, 4000, 4097, 131072):
        assert parse_length(length_name(tokens)) == tokens
    for text in ("", "k", "-1", "4kb", "0.0001k"):
        with pytest.raises(ConfigError, match="--lengths"):
            parse_length(text)
