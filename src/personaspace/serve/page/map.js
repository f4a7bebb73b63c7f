// The map of the roles, with both columns' positions moving on it.
import { $, calm, css, label, sideName, signed } from "./dom.js";
import { SIDES } from "./conversation.js";
import { markBox, placeNames } from "./labels.js";
import { colours, config, escaped, layout, symbols } from "./plots.js";

const STOPS = [0, 0.25, 0.5, 0.75, 1];
const NAMED = 4;
const READ = { prompt: "before the first word", reply: "in replies" };
let names = []; // the boxes of the names that are always there
let reached = []; // places of the conversation's replies: they may lie beyond all roles

/** Draws everything anew: at the start, and where the colours change. */
export function drawMap({ space, turns, onRole }) {
  reached = SIDES.flatMap(side => visited(turns, side)).map(v => v.place);
  const axis = (k, text) => ({ showgrid: false, showticklabels: false, range: bounds(space, k), title: { text, standoff: 4, font: { color: css("--soft"), size: 12 } } });
  window.Plotly.react("map", [roleDots(space), nearestRoles([], space), home(space), ...SIDES.flatMap(side => trail(turns, side))],
    layout({ margin: { l: 8, r: 8, t: 4, b: 4 }, xaxis: axis(0, "component 1"), yaxis: axis(1, "component 2") }), config);
  if ($("map").dataset.wired) return;
  $("map").dataset.wired = "yes";
  $("map").on("plotly_click", e => { if (e.points[0].curveNumber < 2) onRole(e.points[0].customdata); });
}

function bounds(space, k) {
  const all = [...space.roles.map(r => r.place[k]), space.default.place[k], ...reached.map(place => place[k])];
  const low = Math.min(...all), high = Math.max(...all), room = 0.07 * (high - low || 1);
  return [low - room, high + room];
}

function area(space) {
  return { width: $("map").clientWidth - 24, height: $("map").clientHeight - 20, x: bounds(space, 0), y: bounds(space, 1) };
}

const at = (roles, k) => roles.map(r => r.place[k]);

function roleDots(space) {
  const roles = [...space.roles].sort((a, b) => a.above_mean - b.above_mean);
  const most = Math.max(1e-9, ...roles.map(r => Math.abs(r.above_mean)));
  const shown = nameEnds(roles, space);
  return {
    type: "scatter", mode: "markers+text", name: "roles", x: at(roles, 0), y: at(roles, 1), cliponaxis: false,
    text: roles.map(r => shown.get(r)?.text ?? ""), textposition: roles.map(r => shown.get(r)?.position ?? "top center"), textfont: { size: 11, color: css("--soft") },
    marker: { size: 6, color: roles.map(r => r.above_mean), colorscale: STOPS.map((s, i) => [s, css(`--role-${i}`)]), cmin: -most, cmax: most, opacity: 0.8 },
    customdata: roles.map(r => r.name), hoverinfo: "text",
    hovertext: roles.map(r => `<b>${escaped(label(r.name))}</b>, ${signed(r.above_mean)} from the mean role<br>${READ[space.reading]}${r.instruction ? "<br>click: as the system prompt" : ""}`),
  };
}

function nameEnds(roles, space) {
  const ends = Array.from({ length: Math.min(NAMED, roles.length >> 1) }, (_, i) => [roles.at(-1 - i), roles[i]]).flat();
  names = [markBox(...space.default.place, area(space), 14)];
  const placed = placeNames(ends.map(r => ({ x: r.place[0], y: r.place[1], text: escaped(label(r.name)) })), area(space), names);
  return new Map(ends.map((r, i) => [r, placed[i]]));
}

function nearestRoles(wanted, space) {
  const found = wanted.map(name => space.roles.find(r => r.name === name)).filter(Boolean);
  const placed = placeNames(found.map(r => ({ x: r.place[0], y: r.place[1], text: escaped(label(r.name)) })), area(space), [...names], 6.8);
  return {
    type: "scatter", mode: "markers+text", name: "nearest", x: at(found, 0), y: at(found, 1), text: placed.map(n => n.text),
    textposition: placed.map(n => n.position), textfont: { size: 12, color: css("--ink") }, customdata: found.map(r => r.name), hoverinfo: "skip",
    marker: { size: 11, symbol: "circle-open", color: css("--ink"), line: { width: 1.5 } }, cliponaxis: false,
  };
}

function home(space) {
  const [x, y] = space.default.place;
  return {
    type: "scatter", mode: "markers", name: "default", x: [x], y: [y], hovertext: ["the default Assistant"], hoverinfo: "text",
    marker: { size: 22, symbol: "diamond-open", color: css("--near"), line: { width: 3 } }, customdata: ["default"], cliponaxis: false,
  };
}

const visited = (turns, side) => turns.map((t, i) => ({ at: i, place: t[side].place })).filter(v => v.place);

function trail(turns, side) {
  const places = visited(turns, side), now = places.slice(-1);
  const xs = places.map(v => v.place[0]), ys = places.map(v => v.place[1]);
  const colour = css(colours[side]), hover = list => list.map(v => `turn ${v.at + 1}, ${sideName(side).toLowerCase()}`);
  return [
    {
      type: "scatter", mode: "lines+markers", name: `${side} trail`, x: xs, y: ys, hovertext: hover(places), hoverinfo: "text", cliponaxis: false,
      line: { color: colour, width: 1.5, dash: side === "capped" ? "dot" : "solid" }, marker: { size: 5, symbol: symbols[side], color: colour },
    },
    {
      type: "scatter", mode: "markers", name: side, x: xs.slice(-1), y: ys.slice(-1), hovertext: hover(now), hoverinfo: "text", cliponaxis: false,
      marker: { size: 13, symbol: symbols[side], color: colour, line: { width: 2, color: css("--panel") } },
    },
  ];
}

const LIVE = [3, 4, 5, 6], DOTS = [4, 6], MOVE = 420;
let move = 0;

/** Moves both positions to where the last turns are; their trails follow once they have arrived. */
export function moveOnMap(turns, space) {
  cancelAnimationFrame(move);
  const traces = SIDES.flatMap(side => trail(turns, side)), dots = [traces[1], traces[3]];
  const from = DOTS.map(k => $("map").data[k]).map(({ x, y }) => [x[0], y[0]]);
  const moves = dots.some((d, i) => d.x.length && from[i][0] !== undefined && (d.x[0] !== from[i][0] || d.y[0] !== from[i][1]));
  const arrive = () => window.Plotly.restyle("map", fields(traces), LIVE);
  describe(turns, space);
  const before = JSON.stringify([bounds(space, 0), bounds(space, 1)]);
  reached = SIDES.flatMap(side => visited(turns, side)).map(v => v.place);
  const ranges = [bounds(space, 0), bounds(space, 1)];
  if (JSON.stringify(ranges) !== before) window.Plotly.relayout("map", { "xaxis.range": ranges[0], "yaxis.range": ranges[1] });
  if (calm() || !moves) return arrive();
  const began = performance.now();
  const frame = now => {
    const t = Math.min(1, (now - began) / MOVE), eased = t * t * (3 - 2 * t);
    if (t === 1) return arrive();
    const between = (d, i, k) => d.x.length ? [mix(from[i][k] ?? [d.x, d.y][k][0], [d.x, d.y][k][0], eased)] : [];
    window.Plotly.restyle("map", { x: dots.map((d, i) => between(d, i, 0)), y: dots.map((d, i) => between(d, i, 1)) }, DOTS);
    move = requestAnimationFrame(frame);
  };
  move = requestAnimationFrame(frame);
}

const mix = (a, b, t) => a + (b - a) * t;

function fields(traces) {
  return { x: traces.map(t => t.x), y: traces.map(t => t.y), hovertext: traces.map(t => t.hovertext) };
}

/** Rings the roles that a reply is nearest to. */
export function ringRoles(wanted, space) {
  const { x, y, text, textposition, customdata } = nearestRoles(wanted, space);
  window.Plotly.restyle("map", { x: [x], y: [y], text: [text], textposition: [textposition], customdata: [customdata] }, [1]);
}

function describe(turns, space) {
  const said = SIDES.map(side => {
    const last = turns.findLast(t => t[side].nearest.length);
    return last ? `${sideName(side)} is near ${last[side].nearest.slice(0, 3).map(([n]) => label(n)).join(", ")}.` : "";
  }).join(" ");
  $("map").setAttribute("aria-label", `Map of ${space.roles.length} roles by the first two components. ${said}`);
}
