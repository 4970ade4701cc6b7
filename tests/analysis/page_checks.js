// Each check returns a list of complaints about the page it runs in.

function excerpt(element) {
  return `${element.tagName} ${element.className}: ${element.textContent.slice(0, 40)}`;
}

function cutOff() {
  const complaints = [];
  const page = document.documentElement;
  if (page.scrollWidth > page.clientWidth) complaints.push(`the page is ${page.scrollWidth} wide`);
  for (const element of document.querySelectorAll("body *:not(script):not(style)")) {
    if (element.closest("svg, details:not([open])")) continue;
    const box = element.getBoundingClientRect();
    if (box.width && (box.right > page.clientWidth + 1 || box.left < -1))
      complaints.push(`leaves the page: ${excerpt(element)}`);
    if (getComputedStyle(element).display !== "inline"
        && element.scrollWidth > element.clientWidth + 1)
      complaints.push(`cut off: ${excerpt(element)}`);
  }
  for (const chart of document.querySelectorAll(".chart")) complaints.push(...cutOffInChart(chart));
  return complaints;
}

function cutOffInChart(chart) {
  const complaints = [];
  const frame = chart.getBoundingClientRect();
  for (const label of chart.querySelectorAll("text")) {
    const box = label.getBoundingClientRect();
    if (box.width && (box.left < frame.left - 1 || box.right > frame.right + 1
        || box.top < frame.top - 1 || box.bottom > frame.bottom + 1))
      complaints.push(`${chart.id}: '${label.textContent}' is cut off`);
  }
  const ticks = [...chart.querySelectorAll(".xtick text")]
    .map((tick) => tick.getBoundingClientRect())
    .filter((box) => box.width)
    .sort((a, b) => a.left - b.left);
  for (let i = 1; i < ticks.length; i++)
    if (ticks[i].left < ticks[i - 1].right) complaints.push(`${chart.id}: x labels overlap`);
  const legend = chart.querySelector(".legend"), plot = chart.querySelector(".plot");
  if (legend && plot && legend.getBoundingClientRect().bottom > plot.getBoundingClientRect().top + 6)
    complaints.push(`${chart.id}: the legend covers the chart`);
  return complaints;
}

function emptyCharts() {
  const marks = ".bars path, .scatterlayer path, .heatmaplayer image, .hm image";
  return [...document.querySelectorAll(".chart")]
    .filter((chart) => !chart.querySelector("svg.main-svg") || !chart.querySelector(marks))
    .map((chart) => chart.id);
}

// Texts of the page with a contrast below 4.5 to what lies behind them (WCAG 2, level AA).
function paleTexts() {
  const parse = (colour) => (colour.match(/[\d.]+/g) || []).map(Number);
  const luminance = (rgb) => rgb.slice(0, 3)
    .map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const background = (element) => {
    const layers = [];
    for (let under = element; under; under = under.parentElement) {
      const [r, g, b, alpha = 1] = parse(getComputedStyle(under).backgroundColor);
      if (alpha > 0) layers.push({ rgb: [r, g, b], alpha });
      if (alpha === 1) break;
    }
    return layers.reverse().reduce(
      (below, { rgb, alpha }) => rgb.map((v, i) => v * alpha + below[i] * (1 - alpha)),
      [255, 255, 255]);
  };
  const pale = [];
  for (const element of document.querySelectorAll("header *, main *, footer *")) {
    const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!hasText || element.closest("svg, script")) continue;
    const [dark, light] = [parse(getComputedStyle(element).color), background(element)]
      .map(luminance).sort((a, b) => a - b);
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < 4.5) pale.push(`${contrast.toFixed(1)}: ${excerpt(element)}`);
  }
  return pale;
}
