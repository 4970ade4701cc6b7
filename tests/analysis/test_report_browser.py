"""The page in a real browser: every chart drawn, no error, nothing cut off, at three widths."""

import time
from pathlib import Path

import pytest

from focusft.analysis.report import write_report
from tests.analysis import report_runs
from tests.analysis.needs_chromium import chromium_or_skip

WIDTHS = (360, 768, 1280)
HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\"><b>bold</b> & {{ 7 * 7 }}"

CHECKS = Path(__file__).with_name("page_checks.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser():
    binary, driver = chromium_or_skip()
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def full_page(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    runs = report_runs.full_comparison(root)
    runs.append(report_runs.demo(root / "demo"))
    runs += report_runs.benchmarks(root / "benchmarks")
    return write_report(runs, root / "report.html")


def show(browser, page, *, width, theme):
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    resize(browser, width)
    browser.get(page.as_uri())
    wait_until(browser, "return document.documentElement.dataset.drawn !== undefined")


def complaints(browser, check):
    return browser.execute_script(f"{CHECKS}\nreturn {check}();")


def resize(browser, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    # Plotly redraws a moment after the window has changed.
    wait_until(
        browser,
        "return [...document.querySelectorAll('.chart')].every((chart) => !chart._fullLayout || "
        "Math.abs(chart._fullLayout.width - chart.clientWidth) < 2)",
    )


def wait_until(browser, script, seconds=30):
    end = time.monotonic() + seconds
    while not browser.execute_script(script):
        assert time.monotonic() < end, f"not within {seconds} s: {script}"
        time.sleep(0.1)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_chart_is_drawn_and_nothing_is_cut_off(browser, full_page, theme):
    show(browser, full_page.path, width=WIDTHS[0], theme=theme)
    assert browser.execute_script("return document.documentElement.dataset.theme") == theme
    assert browser.execute_script("return document.documentElement.dataset.drawn") == str(
        full_page.charts
    )
    assert complaints(browser, "paleTexts") == []
    for width in WIDTHS:
        resize(browser, width)
        assert complaints(browser, "emptyCharts") == []
        assert (width, complaints(browser, "cutOff")) == (width, [])
    assert browser.get_log("browser") == []


def test_the_button_changes_the_theme_of_page_and_charts(browser, full_page):
    show(browser, full_page.path, width=1280, theme="light")
    ink = (
        "return [getComputedStyle(document.body).color, "
        "document.querySelector('.chart')._fullLayout.font.color]"
    )
    before = browser.execute_script(ink)
    browser.execute_script("document.getElementById('theme').click()")
    wait_until(browser, "return document.documentElement.dataset.theme === 'dark'")
    after = browser.execute_script(ink)
    assert all(light != dark for light, dark in zip(before, after, strict=True))


def test_hostile_texts_stay_texts_and_nothing_is_loaded(browser, tmp_path):
    run = report_runs.training(tmp_path / "a<b>&run", model_name_or_path=HOSTILE)
    folder = report_runs.suite(run / "babilong", "babilong", str(run), 0.5, samples=2)
    items = folder / "items.jsonl"
    items.write_text(items.read_text().replace("The answer is the garden.", escaped(HOSTILE)))
    report_runs.probe(run / "probe", str(run), tokens=["start", HOSTILE, "end"])
    page = write_report([run], tmp_path / "report.html")
    show(browser, page.path, width=1280, theme="light")
    assert browser.title.startswith("FocuSFT report")
    assert browser.execute_script("return document.querySelectorAll('img, main b').length") == 0
    text = browser.execute_script("return document.body.innerText")
    assert text.count(HOSTILE) >= 2
    assert "a<b>&run" in text
    legend = browser.execute_script(
        "return [...document.querySelectorAll('.chart text')].map((t) => t.textContent).join(' ')"
    )
    assert "a<b>&run" in legend
    loaded = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    assert browser.execute_script(loaded) == []
    assert browser.get_log("browser") == []


def escaped(text):
    return text.replace("\\", "\\\\").replace('"', '\\"')
