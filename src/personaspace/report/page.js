"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
// Where the order is not known, roles stand by name: nothing on the page is then first or last.
const ranked = data.orderKnown !== false;
const roles = [...data.roles].sort((a, b) => ranked ? b.projection - a.projection : a.name.localeCompare(b.name));
const byName = new Map([...roles, data.default].map(r => [r.name, r]));
const $ = id => document.getElementById(id);
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const label = name => name.replaceAll("_", " ");
// Plotly takes some markup in texts, and a name is none.
const plotted = text => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
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
  return plotted(text).replace(new RegExp(`(.{1,${width}})(\\s+|$)`, "g"), "$1<br>");
}

function hover(r) {
  const replies = (r.samples || []).slice(0, 2).map(([, a]) => `<i>${wrapped(a.slice(0, 140))}</i>`).join("<br>");
  return `<b>${plotted(label(r.name))}</b><br>${replies}`;
}

function drawMap() {
  const values = roles.map(r => relative(r.projection));
  const most = Math.max(...values.map(Math.abs)) || 1;
  const near = new Set(ranked ? [...roles.slice(0, 5), ...roles.slice(-5)].map(r => r.name) : []);
  const coloured = ranked ? { color: values, colorscale: scale, cmin: -most, cmax: most } : { color: css("--soft") };
  const text = roles.map(r => near.has(r.name) ? plotted(label(r.name)) : "");
  const at = (list, k) => list.map(r => r.place[k]);
  const axis = title => ({ title: { text: title }, showbackground: false, gridcolor: css("--line"), zerolinecolor: css("--line"), showticklabels: false });
  Plotly.newPlot("map", [
    { type: "scatter3d", mode: "markers+text", name: "roles", x: at(roles, 0), y: at(roles, 1), z: at(roles, 2),
      text, textfont: { size: 12, color: css("--ink") }, textposition: "top center",
      marker: { size: 5, ...coloured, opacity: ranked ? 0.95 : 0.7 },
      customdata: roles.map(r => r.name), hovertext: roles.map(hover), hoverinfo: "text" },
    { type: "scatter3d", mode: "markers+text", name: "default", x: at([data.default], 0), y: at([data.default], 1), z: at([data.default], 2),
      text: ["the default Assistant"], textposition: "top center", textfont: { size: 14, color: css("--near") },
      marker: { size: 9, symbol: "diamond", color: css("--near") }, customdata: ["default"], hovertext: [hover(data.default)], hoverinfo: "text" },
  ], layout({ showlegend: false, margin: { l: 0, r: 0, t: 0, b: 0 }, scene: { xaxis: axis("PC1"), yaxis: axis("PC2"), zaxis: axis("PC3"), camera: { eye: { x: 0.35, y: -1.55, z: 0.55 } } } }), config);
  $("map").on("plotly_click", e => show(e.points[0].customdata));
}

function drawEnd(id, list) {
  const names = list.map(r => plotted(label(r.name))).reverse(), xs = list.map(r => relative(r.projection)).reverse();
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

// All roles without a rank: each a dot at its place, spread over rows only so that it can be seen, and one role's interval.
function drawPlaces() {
  const rows = 9;
  const half = roles.map(r => r.interval ? (r.interval[1] - r.interval[0]) / 2 : NaN).filter(x => x === x).sort((a, b) => a - b);
  const line = relative(data.default.projection), interval = half[Math.floor(half.length / 2)];
  const traces = [{ type: "scatter", mode: "markers", x: roles.map(r => relative(r.projection)), y: roles.map((_, i) => 1 + (i * 4) % rows),
    marker: { color: css("--soft"), size: 8, opacity: 0.55 }, customdata: roles.map(r => r.name), text: roles.map(r => plotted(label(r.name))), hovertemplate: "%{text}: %{x:.2f}<extra></extra>" }];
  if (interval) traces.push({ type: "scatter", mode: "markers+text", x: [0], y: [-1.2], text: ["one role’s interval"], textposition: "bottom center", textfont: { color: css("--soft") },
    marker: { color: css("--ink"), size: 8 }, error_x: { type: "data", array: [interval], color: css("--ink"), thickness: 1.5, width: 4 }, hoverinfo: "skip" });
  Plotly.newPlot("places", traces, layout({ showlegend: false, margin: { l: 8, r: 12, t: 30, b: 40 }, xaxis: { title: { text: "projection, less the mean role's" } }, yaxis: { visible: false, range: [-3.4, rows + 1.5] },
    shapes: [{ type: "line", x0: line, x1: line, yref: "paper", y0: 0, y1: 1, line: { color: css("--near"), dash: "dot", width: 1.5 } }],
    annotations: [{ x: line, y: 1, yref: "paper", yanchor: "bottom", text: "the default", showarrow: false, font: { color: css("--near") } }] }), config);
  $("places").on("plotly_click", e => show(e.points[0].customdata));
}

function drawHistogram() {
  const h = data.histogram;
  if (!h) return drop("histogram");
  const mid = h.edges.slice(1).map((e, i) => (e + h.edges[i]) / 2);
  const share = counts => { const n = counts.reduce((a, b) => a + b, 0) || 1; return counts.map(c => c / n); };
  const bars = (name, counts, color) => ({ type: "bar", name, x: mid, y: share(counts), marker: { color, opacity: 0.6 }, hovertemplate: `${name}: %{y:.1%}<extra></extra>` });
  Plotly.newPlot("histogram", [bars("roles", h.roles, css("--far")), bars("default", h.default, css("--near"))],
    layout({ barmode: "overlay", bargap: 0.04, xaxis: { title: { text: `projection of a reply` } }, yaxis: { tickformat: ".0%" } }), config);
}

function drawVariance() {
  const x = data.variance.map((_, i) => i + 1);
  const upTo = shares => { let sum = 0; return shares.map(share => sum += share); };
  const total = upTo(data.variance), corrected = data.spectrum && upTo(data.spectrum);
  Plotly.newPlot("variance", [
    { type: "bar", name: "each, as measured", x, y: data.variance, marker: { color: css("--near") }, hovertemplate: "component %{x}: %{y:.1%}<extra></extra>" },
    { type: "scatter", mode: "lines+markers", name: "all up to it, as measured", x, y: total, line: { color: css("--far") }, hovertemplate: "as measured, up to %{x}: %{y:.1%}<extra></extra>" },
    ...(corrected ? [{ type: "scatter", mode: "lines+markers", name: "noise taken out", x, y: corrected, line: { color: css("--ink") }, marker: { symbol: "diamond" },
      hovertemplate: "noise taken out, up to %{x}: %{y:.1%}<extra></extra>" }] : []),
  ], layout({ yaxis: { tickformat: ".0%", range: [0, 1.02] }, xaxis: { title: { text: "component" } },
    shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 0.7, y1: 0.7, line: { color: css("--soft"), dash: "dot", width: 1 } }] }), config);
}

// A figure that the space holds nothing for is left out.
function drop(id) { if ($(id)) $(id).closest("figure").remove(); }

// The layer that a reading is looked at.
function chosenAt(layer) {
  return { type: "line", x0: layer, x1: layer, yref: "paper", y0: 0, y1: 1, line: { color: css("--soft"), dash: "dot", width: 1.5 } };
}

function layerAxis(n) {
  return { title: { text: "layer" }, tick0: 0, dtick: Math.max(1, Math.ceil(n / 10)) };
}

// Axis, order and map at every layer of one reading; what lies under 0.7 is shaded.
function drawReliability(id, own) {
  const series = ["axis", "order", "map"].filter(name => own[name]);
  if (!series.length) return drop(id);
  const level = y => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, layer: "below", line: { color: css("--soft"), width: 1, dash: y === 0.9 ? "dash" : "solid" } });
  Plotly.newPlot(id, series.map(name => ({ type: "scatter", mode: "lines+markers", name, y: own[name], line: { color: css(`--${name}`), width: 2 }, marker: { size: 5 }, hovertemplate: `layer %{x}: %{y:.3f}<extra>${name}</extra>` })),
    layout({ showlegend: true, xaxis: { ...layerAxis(own[series[0]].length), showgrid: false, zeroline: false }, yaxis: { zeroline: false, range: [0, 1.03], tickvals: [0, 0.35, 0.7, 0.9, 1], ticktext: ["0", "not known", "0.7", "0.9", "1"], showgrid: false },
      shapes: [{ type: "rect", xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0.7, layer: "below", line: { width: 0 }, fillcolor: css("--line"), opacity: 0.35 }, level(0.7), level(0.9), chosenAt(own.chosen)] }), config);
}

// One figure at every layer, a line a reading: the page's own solid, the other dashed.
function drawLayers(id, key, more = []) {
  const all = data.layers.filter(own => own[key]);
  if (!all.length) return drop(id);
  const lines = all.map((own, i) => ({ type: "scatter", mode: "lines+markers", name: all.length > 1 ? `from ${own.reading === "prompt" ? "prompts" : "replies"}` : key, y: own[key], line: { color: css(i ? "--soft" : "--near"), dash: i ? "dash" : "solid" }, marker: { size: i ? 4 : 5 }, hovertemplate: "layer %{x}: %{y:.3f}<extra></extra>" }));
  Plotly.newPlot(id, [...lines, ...more], layout({ showlegend: lines.length > 1, xaxis: layerAxis(all[0][key].length), yaxis: { rangemode: "tozero" }, shapes: [chosenAt(data.layers[0].chosen)] }), config);
}

// At the layer alone: the cosine with the noise taken out, and what shuffled roles give.
function besideCosine() {
  const { corrected, interval, null: shuffled } = data.pc1, x = [data.layers[0].chosen];
  // Named beside the mark, on the side that has room.
  const textposition = x[0] > (data.layers[0].cosine || []).length / 2 ? "middle left" : "middle right";
  const point = (name, y, high, low, color, symbol) => ({ type: "scatter", mode: "markers+text", name, showlegend: false, x, y: [y], text: [textposition.endsWith("left") ? `${name}  ` : `  ${name}`], textposition, textfont: { color }, marker: { color, size: 10, symbol }, error_y: { type: "data", symmetric: false, array: [high - y], arrayminus: [y - low], color, thickness: 1.5, width: 4 }, hovertemplate: `${name}: %{y:.2f}<extra></extra>` });
  return [
    ...(corrected == null ? [] : [point("noise taken out", corrected, ...(interval ? [interval[1], interval[0]] : [corrected, corrected]), css("--ink"), "diamond")]),
    ...(shuffled ? [point("roles shuffled", shuffled.mean, shuffled.p95, shuffled.mean, css("--far"), "x-thin-open")] : []),
  ];
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
  const rank = roles.indexOf(r) + 1, at = relative(r.projection).toFixed(2), noun = data.layers[0].reading === "prompt" ? "prompts" : "replies";
  const range = r.interval ? ` (${relative(r.interval[0]).toFixed(2)} to ${relative(r.interval[1]).toFixed(2)})` : "";
  const place = ranked ? `${rank} of ${roles.length} on the axis, at ${at}${range}` : `At ${at}${range} on the axis, its rank not known`;
  const facts = rank ? `${place}; reliability ${r.reliability == null ? "n/a" : r.reliability.toFixed(2)}${r.n == null ? "" : ` from ${r.n} ${noun}`}` : `the model's own self, at ${at}`;
  element("p", facts, card);
  for (const [q, a] of r.samples || []) {
    const quote = element("blockquote", "", card);
    element("b", q, quote);
    quote.append(a);
  }
  if (!rank) return drawSimilar(r, card, "Nearest roles", ranked && data.neighboursKnown !== false ? "" : "Not known, as the map and its order are not.");
  const nearest = r.similar.length + (r.unclear || 0);
  const rest = r.unclear ? `${r.similar.length ? `${r.unclear} more` : "None"} of the nearest ${nearest} ${r.similar.length && r.unclear > 1 ? "do" : "does"} not stand out from noise.` : "";
  drawSimilar(r, card, "Most similar", r.unclear === null ? data.likeness : rest);
}

function drawSimilar(r, card, title, note) {
  element("h4", title, card);
  const list = element("div", "", card);
  list.className = "similar";
  for (const { name, cosine, interval } of r.similar) button(name, list, `${label(name)} ${cosine.toFixed(2)}${interval ? ` (${interval.map(x => x.toFixed(2)).join(" to ")})` : ""}`);
  if (note) element("p", note, card);
}

function search() {
  const key = text => text.toLowerCase().replaceAll(" ", "_");
  const wanted = key($("search").value.trim());
  const found = wanted ? roles.filter(r => key(r.name).includes(wanted)) : [];
  $("matches").replaceChildren();
  found.slice(0, 12).forEach(r => button(r.name, element("li", "", $("matches"))));
  if (wanted && !found.length) element("li", "no such role", $("matches"));
  const exact = found.find(r => key(r.name) === wanted) || (found.length === 1 && found[0]);
  if (exact) show(exact.name);
}

function fillTable() {
  const body = document.querySelector("#all tbody");
  roles.forEach((r, i) => {
    const row = element("tr", "", body);
    if (ranked) element("td", i + 1, row);
    button(r.name, element("td", "", row));
    element("td", relative(r.projection).toFixed(2), row);
    element("td", r.cosine.toFixed(2), row);
    element("td", r.reliability == null ? "n/a" : r.reliability.toFixed(2), row);
    element("td", r.n ?? "", row);
    const similar = r.similar.slice(0, 4).map(s => label(s.name)).join(", ");
    element("td", similar || (data.neighboursKnown === false ? "not known" : "none stands out from noise"), row);
  });
  for (const r of roles) element("option", "", $("names")).value = label(r.name);
}

// Traits at both ends; a hollow dot is one that can't be told from nothing.
function drawTraits() {
  if (!$("trait-ends")) return;
  const known = data.traits.filter(t => t.cosine !== null), n = phone ? 10 : 20;
  const shown = known.length <= 2 * n ? known : [...known.slice(0, n), ...known.slice(-n)];
  const list = [...shown].reverse(), xs = list.map(t => t.cosine);
  const color = list.map(t => t.cosine > 0 ? css("--near") : css("--far"));
  const ends = list.map(t => t.interval || [t.cosine, t.cosine]);
  $("trait-ends").style.height = `${90 + 21 * list.length}px`;
  Plotly.newPlot("trait-ends", [{
    type: "scatter", mode: "markers", x: xs, y: list.map(t => plotted(label(t.name))),
    marker: { color, size: 9, symbol: list.map(t => t.clear ? "circle" : "circle-open") },
    error_x: { type: "data", symmetric: false, array: ends.map((e, i) => e[1] - xs[i]), arrayminus: ends.map((e, i) => xs[i] - e[0]), color: css("--soft"), thickness: 1.2, width: 0 },
    text: list.map(t => wrapped(t.description || "", 60)), hovertemplate: "<b>%{y}</b>: %{x:.2f}<br>%{text}<extra></extra>",
  }], layout({ xaxis: { title: { text: "cosine with the axis" }, zeroline: true }, yaxis: { dtick: 1, type: "category" } }), config);
}

function draw() {
  drawMap();
  const n = Math.min(phone ? 15 : 20, Math.ceil(roles.length / 2));
  if (ranked) {
    drawEnd("top", roles.slice(0, n));
    drawEnd("bottom", roles.slice(-n));
  } else drawPlaces();
  drawTraits();
  drawHistogram();
  drawVariance();
  data.layers.forEach((own, i) => drawReliability(i ? `layers-${own.reading}` : "layers", own));
  drawLayers("cosine", "cosine", besideCosine());
  drawLayers("separation", "separation");
}

fillTable();
show("default");
draw();
$("search").addEventListener("input", search);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
document.documentElement.dataset.ready = "yes";
