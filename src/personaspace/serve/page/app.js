// The page itself: holds the conversation, asks both columns, and keeps figures and status up with what comes.
import { $, label, painted, plain, sideName, signed, throttled } from "./dom.js";
import { getSpace, ready } from "./api.js";
import { SIDES, goOn, isEmpty, newTurn, reset } from "./conversation.js";
import { answer, unlock } from "./asking.js";
import { applySettings, fillControls, fillReady, instructionOf, onlyRole, presetOf, settings } from "./controls.js";
import { copyCurl, exportTalk, importTalk } from "./files.js";
import { standing } from "./along.js";
import { shareTalk } from "./share.js";
import { Columns } from "./replies.js";
import { confirmNew, countdown, say } from "./notice.js";
import { describeChart, drawChart } from "./chart.js";
import { drawMap, moveOnMap, ringRoles } from "./map.js";
import { loadPlotly } from "./plots.js";
import { atEnd, composer, tabs, toEnd } from "./frame.js";
import { hideTip, readTokens, scaleOf } from "./tokens.js";

const talk = { system: "", turns: [] };
let space = null, conversations = [], columns = null, running = null, playing = null, importing = null, figures = false, look = null, seeking = false, replaced = false;

const busy = () => [running, playing, importing].some(Boolean);

// ---- figures

const chart = () => {
  if (!space) return;
  const shown = { turns: talk.turns, space, cap: settings().cap };
  if (figures) drawChart({ ...shown, look, onPick: goTo });
  else describeChart(shown);
};
const chartSoon = throttled(chart, 160);
const map = () => { if (figures) drawMap({ space, turns: talk.turns, onRole: useRole }); };
const mapSoon = throttled(() => { if (figures) moveOnMap(talk.turns, space); }, 300);
const lookSoon = throttled(() => {
  if (!figures) return;
  chart();
  ringRoles(look ? talk.turns[look.at]?.[look.side].nearest.map(([n]) => n) ?? [] : [], space);
}, 60);

function goTo(at, side) {
  const view = columns.view(at, side);
  if (!view) return;
  tabs.show(side);
  view.box.focus();
}

function live() {
  for (const side of SIDES) {
    const last = talk.turns.findLast(t => t[side].projection != null)?.[side];
    const said = !last ? "" : last.drift == null ? plain(last.projection) : `${signed(last.drift)} sd`;
    for (const e of document.querySelectorAll(`[data-live=${side}]`)) e.textContent = said;
    document.querySelector(`.head.${side} span`).textContent = !last ? "" : last.drift == null ? "projection" : "drift";
  }
}

// ---- asking

async function one(at, side, signal) {
  const view = columns.view(at, side);
  let place = null;
  return answer({
    talk, settings: settings(), space, side, at, signal,
    on: {
      piece(content, tokens) {
        const follow = atEnd();
        view.add(content, tokens);
        if (follow) toEnd();
        if (!tokens.length) return;
        chartSoon();
        live();
        if (view.reply.place !== place) { place = view.reply.place; mapSoon(); }
      },
      changed() {
        const follow = atEnd();
        view.update();
        if (follow) toEnd();
        waitingNotice();
        chartSoon();
        mapSoon();
        live();
      },
    },
  });
}

function waitingNotice() {
  const waits = talk.turns.flatMap(t => SIDES.map(side => t[side])).filter(r => r.state === "full").map(r => r.wait);
  if (waits.length) countdown("The server’s queue is full. Asking again in", Math.min(...waits), [["Cancel", stop]]);
  else if (busy()) busyNotice();
}

function busyNotice() {
  if (playing) say("busy", `Playing “${playing.title}”, message ${playing.at + 1} of ${playing.messages.length}`, [["Stop playing", stop]]);
  else say("busy", "Both are answering");
}

/** Asks for the replies of a turn; true where all of them came. */
async function run(at, sides) {
  running = new AbortController();
  const { signal } = running;
  busyChanged();
  busyNotice();
  const errors = (await Promise.all(sides.map(side => one(at, side, signal)))).filter(Boolean);
  running = null;
  chart();
  busyChanged();
  doneNotice(at, errors, signal.aborted);
  return !errors.length && !signal.aborted;
}

function doneNotice(at, errors, stopped) {
  if (errors.length) say("error", errors[0].message);
  if (errors.some(e => e.kind === "offline" || e.kind === "cut")) offline();
  if (errors.length) return;
  if (replaced) return sayReplaced();
  if (stopped) return say("ready", "Stopped");
  const turn = talk.turns[at];
  const drifts = SIDES.filter(side => turn[side].drift != null).map(side => `${sideName(side).toLowerCase()} ${signed(turn[side].drift)}`);
  const alerts = SIDES.flatMap(side => standing(turn[side], space).map(words => `${sideName(side).toLowerCase()}: ${words}`));
  const silent = SIDES.filter(side => turn[side].state === "done" && isEmpty(turn[side])).map(side => sideName(side).toLowerCase());
  if (alerts.length) return say("alert", `Alert. ${alerts.join("; ")}`);
  const parts = [silent.length ? `No reply from ${silent.join(" and ")}` : "", drifts.length ? `Drift: ${drifts.join(", ")} sd` : ""].filter(Boolean);
  say("ready", parts.join(". ") || "Both have answered");
}

async function ask(text, taken = () => {}) {
  if (running || !space || !await settleSystem()) return false;
  taken();
  talk.turns.push(newTurn(text.trim()));
  columns.addTurn(talk.turns.at(-1));
  toEnd();
  return run(talk.turns.length - 1, SIDES);
}

async function again(at, side, text = "") {
  if (busy()) return;
  if (text) goOn(talk.turns[at], side, text);
  else reset(talk.turns[at], side);
  columns.view(at, side).restart();
  columns.view(at, side).box.focus();
  await run(at, [side]);
}

function stop() {
  playing = null;
  running?.abort();
  importing?.abort();
}

async function play() {
  if (busy() || !space) return;
  const chosen = conversations.find(c => c.id === $("ready").value);
  if (!chosen || !await newTalk(talk.system, `“${chosen.title}” starts a new conversation.`)) return;
  const played = playing = { ...chosen, at: 0 };
  for (const message of chosen.messages) {
    if (!await ask(message) || playing !== played) break;
    played.at += 1;
  }
  if (playing === played) playing = null;
  busyChanged();
}

// ---- the conversation as a whole

async function newTalk(system, why) {
  if (talk.turns.length && !await confirmNew(`${why} The one with ${talk.turns.length} ${talk.turns.length === 1 ? "turn" : "turns"} that is here would be gone, unless you export it.`)) return false;
  show({ system, turns: [] });
  return true;
}

function show({ system, turns }) {
  $("system").value = system;
  // As the box has it, with its line ends and none around it: what is asked later is compared with that.
  Object.assign(talk, { system: $("system").value.trim(), turns });
  $("preset").value = presetOf(talk.system);
  look = null;
  hideTip();
  columns.clear();
  for (const turn of turns) columns.addTurn(turn);
  live();
  chart();
  map();
}

/** Takes the system prompt that is in its box; false where the user keeps the conversation instead. */
async function settleSystem() {
  const wanted = $("system").value.trim();
  if (wanted === talk.system) return true;
  if (!await newTalk(wanted, "A new system prompt starts a new conversation.")) {
    $("system").value = talk.system;
    $("preset").value = presetOf(talk.system);
    return false;
  }
  say("ready", wanted ? "A new system prompt for both" : "No system prompt");
  return true;
}

function useRole(name) {
  const instruction = instructionOf(label(name));
  if (!instruction || busy()) return;
  $("system").value = instruction;
  settleSystem();
}

async function takeFile(file) {
  importing = new AbortController();
  busyChanged();
  say("busy", "Reading the file");
  try {
    const imported = await importTalk(file, importing.signal), { model, problem, turns } = imported;
    if (!await newTalk(imported.system, "The file is another conversation.")) return say("ready", "Nothing was imported");
    applySettings(imported.settings);
    show(imported);
    const parts = [`Imported ${turns.length} ${turns.length === 1 ? "turn" : "turns"}`];
    if (model && model !== space.model) parts.push(`It was made with ${model}`);
    if (problem) parts.push(problem[0].toUpperCase() + problem.slice(1));
    say("ready", `${parts.join(". ")}.`);
  } catch (e) {
    if (e.name === "AbortError") say("ready", "Stopped");
    else say("error", `${file.name}: ${e.message}`);
  } finally {
    importing = null;
    busyChanged();
    if (document.activeElement === document.body) $("import").focus();
  }
}

// ---- states of the page

function busyChanged() {
  const moved = document.activeElement === $("stop") || document.activeElement === $("send");
  $("stop").hidden = !busy();
  $("send").hidden = busy();
  $("send").disabled = !space;
  for (const id of ["new", "play", "import", "system", "preset", "clear"]) $(id).disabled = busy();
  for (const e of document.querySelectorAll(".starter, .state button")) e.disabled = busy() || !space;
  if (moved) (busy() ? $("stop") : $("message")).focus();
}

const sleep = seconds => new Promise(resolve => setTimeout(resolve, 1000 * seconds));

/** Where nobody answers: says so, and looks for the server until somebody does. */
async function offline() {
  if (seeking) return;
  seeking = true;
  let lost = false;
  for (; !await ready(); await sleep(3)) {
    lost = true;
    say("offline", "No connection to the server. Looking for it every three seconds");
  }
  seeking = false;
  // Who answers now may be another: its replies would be read as if they were of the space that is drawn here.
  const now = await getSpace().catch(() => null);
  if (now) replaced = stored(now) !== stored(space);
  if (busy()) return;
  if (replaced) sayReplaced();
  else if (lost) say("ready", "Connected again");
}

// What is computed at the start may differ in its last digits between two starts of the same server.
const COMPUTED = ["place", "projection", "above_mean", "mean_role"];
const stored = described => JSON.stringify(described, (name, value) => COMPUTED.includes(name) ? undefined : value);

function sayReplaced() {
  say("alert", "The server has another space or other settings now. Export the conversation, then reload", [["Reload", () => location.reload()]]);
}

async function loadSpace() {
  for (;;) {
    try {
      return await getSpace();
    } catch (e) {
      const problem = e.kind === "key" ? await unlock().then(() => null, refused => refused) : e;
      if (!problem) continue;
      if (problem.kind !== "offline" && problem.kind !== "loading") {
        say("error", problem.message, [[problem.kind === "key" ? "Give the key" : "Try again", start]]);
        return null;
      }
      say(problem.kind, problem.kind === "loading" ? "The model is loading. This page waits for it" : "No connection to the server. Looking for it every two seconds");
      await sleep(2);
    }
  }
}

async function start() {
  say("loading", "Loading the model’s space");
  const fetched = fetch("page/conversations.json").then(r => r.json()).catch(() => []);
  space = await loadSpace();
  if (!space) return;
  conversations = await fetched;
  fillReady(conversations, play);
  const scale = scaleOf(space);
  columns = new Columns({ space, scale, busy, onAgain: (at, side) => again(at, side, talk.turns[at][side].prefix), onGoOn: again, onLook: (at, side) => { look = at === null ? null : { at, side }; lookSoon(); } });
  readTokens($("columns"), () => scale);
  $("scale-low").textContent = `away ${plain(scale.mid - scale.span, 0)}`;
  $("scale-high").textContent = `${plain(scale.mid + scale.span, 0)} Assistant`;
  $("scale-mid").textContent = `middle: ${space.default.mean == null ? "the mean role" : "the default"}, ${plain(scale.mid, 0)}; `;
  fillControls(space, chartSoon);
  busyChanged();
  say("ready", `Ready: ${space.roles.length} roles, read at layer ${space.layer} of ${space.layers}`);
  document.documentElement.dataset.ready = "yes";
  columns.resize();
  chart();
  await drawFigures();
}

/** The figures come after everything else: their library is twenty times what the rest of the page is. */
async function drawFigures() {
  for (const id of ["chart", "map"]) $(id).dataset.waits = "drawing the figure";
  await painted();
  figures = await loadPlotly();
  if (!figures) for (const id of ["chart", "map"]) $(id).textContent = "The figures could not be loaded; the conversation works without them.";
  chart();
  map();
  document.documentElement.dataset.figures = figures ? "yes" : "no";
}

// ---- what the user does

composer({ ask, stop, busy });
tabs.wire();
$("stop").addEventListener("click", stop);
$("play").addEventListener("click", play);
$("new").addEventListener("click", async () => { if (await newTalk(talk.system, "This starts a new conversation.")) { say("ready", "A new conversation"); $("message").focus(); } });
$("export").addEventListener("click", () => exportTalk(talk, settings(), space));
$("share").addEventListener("click", () => shareTalk(talk, settings(), space));
$("curl").addEventListener("click", () => copyCurl(talk, settings(), space));
$("import").addEventListener("change", async e => { const [file] = e.target.files; if (file) await takeFile(file); e.target.value = ""; });
$("system").addEventListener("change", settleSystem);
$("clear").addEventListener("click", () => { $("system").value = ""; settleSystem(); });
$("preset").addEventListener("input", () => { if (onlyRole($("preset").value)) useRole($("preset").value); });
$("preset").addEventListener("change", () => {
  const wanted = $("preset").value.trim();
  if (instructionOf(wanted)) useRole(wanted);
  else if (wanted) say("error", `No role with a system prompt is called ${wanted}`);
});
$("tint").addEventListener("change", e => $("columns").classList.toggle("tinted", e.target.checked));
document.addEventListener("keydown", e => { if (e.key === "Escape" && busy() && !document.querySelector("dialog[open]")) stop(); });
window.addEventListener("offline", () => { if (space && !busy()) offline(); });
for (const query of ["(prefers-color-scheme: dark)", "(max-width: 860px)"]) matchMedia(query).addEventListener("change", () => { chart(); map(); });

busyChanged();
start();
