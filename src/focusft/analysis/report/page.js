"use strict";
const root = document.documentElement;
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const button = document.getElementById("theme");
let chosen = null;

function style(name) {
  return getComputedStyle(root).getPropertyValue(name).trim();
}

// Only what depends on the theme; everything else is in the chart's own JSON.
function themed(figure) {
  const ink = style("--ink"), line = style("--line"), card = style("--card");
  const layout = {
    ...figure.layout,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, size: 12, family: getComputedStyle(document.body).fontFamily },
    hoverlabel: {
      ...figure.layout.hoverlabel, bgcolor: card, bordercolor: line, font: { color: ink },
    },
  };
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
    layout[name] = {
      ...layout[name], gridcolor: line, linecolor: line, zerolinecolor: line, fixedrange: true,
    };
  }
  const data = figure.data.map((trace) =>
    trace.error_x ? { ...trace, error_x: { ...trace.error_x, color: ink } } : trace);
  return { data, layout };
}

const charts = [...document.querySelectorAll(".chart")].map((place) => ({
  place, figure: JSON.parse(document.getElementById(place.id + "-data").textContent),
}));

function draw() {
  const isDark = chosen === null ? dark.matches : chosen;
  root.dataset.theme = isDark ? "dark" : "light";
  button.textContent = isDark ? "Light theme" : "Dark theme";
  return Promise.all(charts.map(({ place, figure }) => {
    const { data, layout } = themed(figure);
    return Plotly.react(place, data, layout, { responsive: true, displayModeBar: false });
  })).then(() => { root.dataset.drawn = String(charts.length); });
}

button.addEventListener("click", () => { chosen = root.dataset.theme !== "dark"; draw(); });
dark.addEventListener("change", draw);
draw();
