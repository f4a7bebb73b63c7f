"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const roles = [...data.roles].sort((a, b) => b.projection - a.projection);
const byName = new Map([...roles, data.default].map(r => [r.name, r]));
const $ = id => document.getElementById(id);
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const label = name => name.replaceAll("_", " ");
const relative = x => x - data.meanProjection;
const scale = [[0, "#b3472a"], [0.25, "#d9a27f"], [0.5, "#c9c6bd"], [0.75, "#7fa6cf"], [1, "#1f5fa8"]];
const config = { responsive: true, displaylogo: false, displayModeBar: false };
const phone = matchMedia("(max-width: 860px)").matches;

function layout(extra = {}) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true };
  const { xaxis = {}, yaxis = {}, ...rest } = extra;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 13, color: css("--ink") },
    margin: { l: 8, r: 12, t: 12, b: 40 }, legend: { orientation: "h", x: 0, y: 1.12 },
    hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--line"), font: { color: css("--ink") } },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

function wrapped(text, width = 46) {
  const escaped = text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
  return escaped.replace(new RegExp(`(.{1,${width}})(\\s+|$)`, "g"), "$1<br>");
}

function hover(r) {
  const replies = (r.samples || []).slice(0, 2).map(([, a]) => `<i>${wrapped(a.slice(0, 140))}</i>`).join("<br>");
  return `<b>${label(r.name)}</b><br>${replies}`;
}

function drawMap() {
  const values = roles.map(r => relative(r.projection));
  const most = Math.max(...values.map(Math.abs)) || 1;
  const near = new Set([...roles.slice(0, 5), ...roles.slice(-5)].map(r => r.name));
  const text = roles.map(r => near.has(r.name) ? label(r.name) : "");
  const at = (list, k) => list.map(r => r.place[k]);
  const axis = title => ({ title: { text: title }, showbackground: false, gridcolor: css("--line"), zerolinecolor: css("--line"), showticklabels: false });
  Plotly.newPlot("map", [
    { type: "scatter3d", mode: "markers+text", name: "roles", x: at(roles, 0), y: at(roles, 1), z: at(roles, 2),
      text, textfont: { size: 12, color: css("--ink") }, textposition: "top center",
      marker: { size: 5, color: values, colorscale: scale, cmin: -most, cmax: most, opacity: 0.95 },
      customdata: roles.map(r => r.name), hovertext: roles.map(hover), hoverinfo: "text" },
    { type: "scatter3d", mode: "markers+text", name: "default", x: at([data.default], 0), y: at([data.default], 1), z: at([data.default], 2),
      text: ["the default Assistant"], textposition: "top center", textfont: { size: 14, color: css("--near") },
      marker: { size: 9, symbol: "diamond", color: css("--near") }, customdata: ["default"], hovertext: [hover(data.default)], hoverinfo: "text" },
  ], layout({ showlegend: false, margin: { l: 0, r: 0, t: 0, b: 0 }, scene: { xaxis: axis("PC1"), yaxis: axis("PC2"), zaxis: axis("PC3"), camera: { eye: { x: 0.35, y: -1.55, z: 0.55 } } } }), config);
  $("map").on("plotly_click", e => show(e.points[0].customdata));
}

function drawEnd(id, list) {
  const names = list.map(r => label(r.name)).reverse(), xs = list.map(r => relative(r.projection)).reverse();
  const ends = list.map(r => r.interval || [r.projection, r.projection]).reverse();
  const color = id === "top" ? css("--near") : css("--far");
  const line = relative(data.default.projection);
  Plotly.newPlot(id, [{
    type: "scatter", mode: "markers", x: xs, y: names, marker: { color, size: 9 },
    error_x: { type: "data", symmetric: false, array: ends.map((e, i) => relative(e[1]) - xs[i]), arrayminus: ends.map((e, i) => xs[i] - relative(e[0])), color, thickness: 1.2, width: 0 },
    customdata: list.map(r => r.name).reverse(), hovertemplate: "%{y}: %{x:.2f}<extra></extra>",
  }], layout({ xaxis: { title: { text: "projection, less the mean role's" } }, yaxis: { dtick: 1 },
    shapes: [{ type: "line", x0: line, x1: line, yref: "paper", y0: 0, y1: 1, line: { color: css("--soft"), dash: "dot", width: 1.5 } }] }), config);
  $(id).on("plotly_click", e => show(e.points[0].customdata));
}

function drawHistogram() {
  const h = data.histogram;
  if (!h) return drop("histogram");
  const mid = h.edges.slice(1).map((e, i) => (e + h.edges[i]) / 2);
  const share = counts => { const n = counts.reduce((a, b) => a + b, 0) || 1; return counts.map(c => c / n); };
  const bars = (name, counts, color) => ({ type: "bar", name, x: mid, y: share(counts), marker: { color, opacity: 0.6 }, hovertemplate: `${name}: %{y:.1%}<extra></extra>` });
  Plotly.newPlot("histogram", [bars("roles", h.roles, css("--far")), bars("default", h.default, css("--near"))],
    layout({ barmode: "overlay", bargap: 0.04, xaxis: { title: { text: "projection of a response" } }, yaxis: { tickformat: ".0%" } }), config);
}

function drawVariance() {
  const x = data.variance.map((_, i) => i + 1);
  let sum = 0;
  const total = data.variance.map(v => sum += v);
  Plotly.newPlot("variance", [
    { type: "bar", name: "each", x, y: data.variance, marker: { color: css("--near") }, hovertemplate: "component %{x}: %{y:.1%}<extra></extra>" },
    { type: "scatter", mode: "lines+markers", name: "all up to it", x, y: total, line: { color: css("--far") }, hovertemplate: "up to %{x}: %{y:.1%}<extra></extra>" },
  ], layout({ yaxis: { tickformat: ".0%", range: [0, 1.02] }, xaxis: { title: { text: "component" } },
    shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 0.7, y1: 0.7, line: { color: css("--soft"), dash: "dot", width: 1 } }] }), config);
}

// A figure that the space holds nothing for is left out.
function drop(id) { if ($(id)) $(id).closest("figure").remove(); }

function drawLayers(id, all) {
  const series = all.filter(([, key]) => data.layers[key]);
  if (!series.length) return drop(id);
  const x = data.layers[series[0][1]].map((_, i) => i);
  const colors = [css("--near"), css("--far")];
  Plotly.newPlot(id, series.map(([name, key], i) => ({ type: "scatter", mode: "lines+markers", name, x, y: data.layers[key], line: { color: colors[i] }, marker: { size: 5 }, hovertemplate: `layer %{x}: %{y:.3f}<extra>${name}</extra>` })),
    layout({ showlegend: series.length > 1, xaxis: { title: { text: "layer" } }, yaxis: { rangemode: "tozero" },
      shapes: [{ type: "line", x0: data.layers.chosen, x1: data.layers.chosen, yref: "paper", y0: 0, y1: 1, line: { color: css("--soft"), dash: "dot", width: 1.5 } }] }), config);
}

function element(tag, text, parent) {
  const e = document.createElement(tag);
  e.textContent = text;
  parent.append(e);
  return e;
}

function button(name, parent, text = label(name)) {
  element("button", text, parent).onclick = () => show(name);
}

function show(name) {
  const r = byName.get(name), card = $("card");
  if (!r) return;
  card.replaceChildren();
  element("h3", label(name), card);
  if (r.description) element("p", r.description, card);
  const rank = roles.indexOf(r) + 1;
  const facts = rank ? `${rank} of ${roles.length} on the axis, at ${relative(r.projection).toFixed(2)}; reliability ${r.reliability == null ? "n/a" : r.reliability.toFixed(2)}${r.n == null ? "" : ` from ${r.n} responses`}` : `the model's own self, at ${relative(r.projection).toFixed(2)}`;
  element("p", facts, card);
  for (const [q, a] of r.samples || []) {
    const quote = element("blockquote", "", card);
    element("b", q, quote);
    quote.append(a);
  }
  element("p", "Most similar", card);
  const list = element("div", "", card);
  list.style.cssText = "display:flex;flex-wrap:wrap;gap:6px";
  for (const [other, c] of r.similar) button(other, list, `${label(other)} ${c.toFixed(2)}`);
}

function search() {
  const wanted = $("search").value.trim().toLowerCase().replaceAll(" ", "_");
  const found = wanted ? roles.filter(r => r.name.includes(wanted)) : [];
  $("matches").replaceChildren();
  found.slice(0, 12).forEach(r => button(r.name, element("li", "", $("matches"))));
  if (wanted && !found.length) element("li", "no such role", $("matches"));
  const exact = found.find(r => r.name === wanted) || (found.length === 1 && found[0]);
  if (exact) show(exact.name);
}

function fillTable() {
  const body = document.querySelector("#all tbody");
  roles.forEach((r, i) => {
    const row = element("tr", "", body);
    element("td", i + 1, row);
    button(r.name, element("td", "", row));
    element("td", relative(r.projection).toFixed(2), row);
    element("td", r.cosine.toFixed(2), row);
    element("td", r.reliability == null ? "n/a" : r.reliability.toFixed(2), row);
    element("td", r.n ?? "", row);
    element("td", r.similar.slice(0, 4).map(([n]) => label(n)).join(", "), row);
  });
  for (const r of roles) element("option", "", $("names")).value = label(r.name);
}

function draw() {
  drawMap();
  const n = Math.min(phone ? 15 : 20, Math.ceil(roles.length / 2));
  drawEnd("top", roles.slice(0, n));
  drawEnd("bottom", roles.slice(-n));
  drawHistogram();
  drawVariance();
  drawLayers("layers", [["cosine with PC1", "cosine"], ["reliability", "reliability"]]);
  drawLayers("separation", [["separation", "separation"]]);
}

fillTable();
show("default");
draw();
$("search").addEventListener("input", search);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
document.documentElement.dataset.ready = "yes";
