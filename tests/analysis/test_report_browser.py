"""The page in a real browser: every chart drawn, no error, nothing cut off, at three widths."""

import time

import pytest

from focusft.analysis.report import write_report
from tests.analysis import report_runs
from tests.analysis.needs_chromium import chromium_or_skip

WIDTHS = (360, 768, 1280)
HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\"><b>bold</b> & {{ 7 * 7 }}"

# Everything below runs in the page and returns a list of complaints.
CUT_OFF = """
const complaints = [];
const width = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth > width)
  complaints.push(`the page is ${document.documentElement.scrollWidth} wide`);
for (const element of document.querySelectorAll("body *:not(script):not(style)")) {
  if (element.closest("svg") || element.closest("details:not([open])")) continue;
  const box = element.getBoundingClientRect();
  if (box.width && (box.right > width + 1 || box.left < -1))
    complaints.push(`${element.tagName} ${element.className} leaves the page: ${element.textContent.slice(0, 40)}`);
  if (element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).display !== "inline")
    complaints.push(`${element.tagName} ${element.className} is cut off: ${element.textContent.slice(0, 40)}`);
}
for (const chart of document.querySelectorAll(".chart")) {
  const frame = chart.getBoundingClientRect();
  for (const label of chart.querySelectorAll("text")) {
    const box = label.getBoundingClientRect();
    if (box.width && (box.left < frame.left - 1 || box.right > frame.right + 1
        || box.top < frame.top - 1 || box.bottom > frame.bottom + 1))
      complaints.push(`${chart.id}: '${label.textContent}' is cut off`);
  }
  const ticks = [...chart.querySelectorAll(".xtick text")].map((t) => t.getBoundingClientRect())
    .filter((box) => box.width).sort((a, b) => a.left - b.left);
  for (let i = 1; i < ticks.length; i++)
    if (ticks[i].left < ticks[i - 1].right) complaints.push(`${chart.id}: x labels overlap`);
}
return complaints;
"""
DRAWN = """
return [...document.querySelectorAll(".chart")].filter((chart) => {
  const marks = chart.querySelectorAll(".bars path, .scatterlayer path, .heatmaplayer image, .hm image");
  return !chart.querySelector("svg.main-svg") || marks.length === 0;
}).map((chart) => chart.id);
"""
# Contrast of each text with what lies behind it (WCAG 2), for the page's own texts.
PALE = """
const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
function background(element) {
  const layers = [];
  for (let e = element; e; e = e.parentElement) {
    const [r, g, b, a = 1] = parse(getComputedStyle(e).backgroundColor);
    if (a > 0) layers.push([r, g, b, a]);
    if (a === 1) break;
  }
  return layers.reverse().reduce((under, [r, g, b, a]) =>
    [r, g, b].map((v, i) => v * a + under[i] * (1 - a)), [255, 255, 255]);
}
const pale = [];
for (const element of document.querySelectorAll("main *, header *, footer *")) {
  if (element.closest("svg") || ![...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
    continue;
  const [light, dark] = [luminance(parse(getComputedStyle(element).color)), luminance(background(element))]
    .sort((a, b) => b - a);
  const contrast = (light + 0.05) / (dark + 0.05);
  if (contrast < 4.5) pale.push(`${contrast.toFixed(1)}: ${element.textContent.slice(0, 40)}`);
}
return pale;
"""


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
    runs = report_runs.comparison(root)
    runs.append(report_runs.demo(root / "demo"))
    runs += report_runs.benchmarks(root / "benchmarks")
    return write_report(runs, root / "report.html")


def show(browser, page, *, width, theme):
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    resize(browser, width)
    browser.get(page.as_uri())
    wait_until(browser, "return document.documentElement.dataset.drawn !== undefined")


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
    assert browser.execute_script(PALE) == []
    for width in WIDTHS:
        resize(browser, width)
        assert browser.execute_script(DRAWN) == []
        assert (width, browser.execute_script(CUT_OFF)) == (width, [])
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
