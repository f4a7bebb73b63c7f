// The chart of both trajectories by turn, with the default's band and the cap's line.
import { $, css, plain, sideName, signed } from "./dom.js";
import { SIDES } from "./conversation.js";
import { spread } from "./labels.js";
import { drifts } from "./along.js";
import { colours, config, layout, symbols } from "./plots.js";

/** turns, space, cap: its name or null; look: {at, side} that the reader is looking at, or null. */
export function drawChart({ turns, space, cap, look, onPick }) {
  const floor = space.caps[cap]?.floor ?? null;
  const last = Math.max(6, turns.length) + 0.5, heights = range(turns, space, floor);
  const figure = layout({
    margin: { l: 8, r: 104, t: 6, b: 8 },
    xaxis: { range: [0.5, last], dtick: Math.ceil(turns.length / 12) || 1, title: { text: "turn", standoff: 4, font: { color: css("--soft"), size: 12 } }, showgrid: false },
    yaxis: { range: heights, title: { text: "projection", standoff: 6, font: { color: css("--soft"), size: 12 } } },
    shapes: shapes(space, floor, look), annotations: annotations(space, floor, heights),
  });
  window.Plotly.react("chart", SIDES.map(side => trace(turns, side)), figure, config);
  describeChart({ turns, space, cap });
  if ($("chart").dataset.wired) return;
  $("chart").dataset.wired = "yes";
  $("chart").on("plotly_click", e => onPick(e.points[0].x - 1, SIDES[e.points[0].curveNumber]));
}

function trace(turns, side) {
  const points = turns.map((t, i) => ({ at: i, ...t[side] })).filter(r => r.projection != null);
  const colour = css(colours[side]);
  return {
    type: "scatter", mode: "lines+markers", name: sideName(side), x: points.map(r => r.at + 1), y: points.map(r => r.projection),
    line: { color: colour, width: 2.5 },
    marker: {
      size: 10, color: colour, symbol: points.map(r => symbols[side] + (r.state === "streaming" ? "-open" : "")),
      line: { width: 1.5, color: points.map(r => r.state === "streaming" ? colour : css("--panel")) },
    },
    customdata: points.map(r => r.drift == null ? "" : `, drift ${signed(r.drift)} sd`),
    hovertemplate: `turn %{x}, ${side}: %{y:.1f}%{customdata}<extra></extra>`,
  };
}

function range(turns, space, floor) {
  const { mean, std } = space.default;
  const seen = turns.flatMap(t => SIDES.map(side => t[side].projection)).filter(Number.isFinite);
  const home = mean == null ? space.roles.map(r => space.mean_role + r.above_mean) : [mean - 2.4 * std, mean + 1.6 * std];
  const all = [...seen, ...home, ...(floor == null ? [] : [floor])];
  const low = Math.min(...all), high = Math.max(...all), room = 0.06 * (high - low || 1);
  return [low - room, high + room];
}

function shapes(space, floor, look) {
  const { mean, std } = space.default;
  const across = (y, dash, color, width = 1.5) => ({ type: "line", layer: "below", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color, dash, width } });
  const found = [];
  if (mean != null) {
    found.push({ type: "rect", layer: "below", xref: "paper", x0: 0, x1: 1, y0: mean - std, y1: mean + std, fillcolor: css("--band"), line: { width: 0 } }, across(mean, "solid", css("--near"), 1));
    if (space.alert) found.push(across(mean - space.alert.threshold * std, "dot", css("--far")));
  }
  if (floor != null) found.push(across(floor, "dash", css("--capped")));
  if (look) found.push({ type: "line", layer: "below", x0: look.at + 1, x1: look.at + 1, yref: "paper", y0: 0, y1: 1, line: { color: css("--soft"), width: 1 } });
  return found;
}

/** The lines' names, to the right of them. */
function annotations(space, floor, [low, high]) {
  const { mean, std } = space.default;
  const lines = [];
  if (mean != null) {
    lines.push([mean, "default ± 1 sd", "--near"]);
    if (space.alert) lines.push([mean - space.alert.threshold * std, "alert", "--far"]);
  }
  if (floor != null) lines.push([floor, "the cap’s floor", "--capped"]);
  const pixels = ($("chart").clientHeight - 50) / (high - low);
  const shifts = spread(lines.map(([y]) => y * pixels), 15);
  return lines.map(([y, text, colour], i) => ({
    xref: "paper", x: 1, xanchor: "left", xshift: 5, y, yshift: shifts[i], yanchor: "middle", text, showarrow: false, font: { size: 12, color: css(colour) },
  }));
}

/** What the chart shows in words, also before it is drawn: nothing then moves when it is. */
export function describeChart({ turns, space, cap }) {
  const value = reply => reply.projection == null ? "none yet" : plain(reply.projection);
  const said = turns.map((t, i) => `Turn ${i + 1}: standard ${value(t.standard)}, capped ${value(t.capped)}.`).join(" ");
  const home = space.default.mean == null ? "" : ` The default lies at ${plain(space.default.mean)}.`;
  $("chart").setAttribute("aria-label", `Projection of each reply by turn.${home} ${said || "No turn yet."}`);
  $("chart-note").textContent = [unseenCap(space, cap), ruleInWords(space.alert)].filter(Boolean).join(" ");
}

function unseenCap(space, name) {
  const held = space.caps[name];
  return held && held.floor == null ? `This cap holds layers ${span(held.layers)}, not layer ${space.layer}, which is read here: it has no line.` : "";
}

/** An alert says how often it is wrong, and how much it finds. */
function ruleInWords(rule) {
  if (!rule) return "";
  const percent = value => Number((100 * value).toPrecision(2));
  const within = rule.rate_interval ? ` (${rule.rate_interval.map(percent).join(" to ")}%)` : "";
  const worth = [rule.rate == null ? "" : `${percent(rule.rate)}%${within} of conversations false`, rule.detects == null ? "" : `finds ${percent(rule.detects)}% of role play`].filter(Boolean).join(", ");
  return `Alert: ${drifts(rule)} over ${rule.threshold.toFixed(1)} sd${worth ? `; ${worth}` : ""}.`;
}

export function span(layers) {
  const whole = layers.every((l, i) => !i || l === layers[i - 1] + 1);
  return layers.length < 3 || !whole ? layers.join(", ") : `${layers[0]} to ${layers.at(-1)}`;
}
