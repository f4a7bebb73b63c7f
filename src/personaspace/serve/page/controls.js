// The panel of settings: fills it from the space, reads it, and says what each setting means.
import { $, label, make, plain, signed } from "./dom.js";
import { span } from "./chart.js";
import { bound, fillAlong, read, reading } from "./along.js";

let space = null;

const option = (value, text) => Object.assign(make("option", "", text), { value });

export function fillControls(of, onChange) {
  space = of;
  $("model").textContent = space.model;
  document.title = `${space.model}: standard and capped`;
  fillCaps();
  fillAlong(space);
  $("read-note").textContent = space.alerts.length ? `The server alerts on ${space.alerts.map(bound).join(", ")}.` : "This server has no alerts: a calibrated space has one, --alert adds others.";
  $("read-note").title = space.alerts.map(a => a.is).join("\n");
  $("waits-label").hidden = !space.alerts.length || !Object.keys(space.caps).length;
  const names = space.roles.map(r => r.name).sort();
  $("roles").replaceChildren(...names.map(n => option(label(n), "")));
  $("direction").replaceChildren(option("axis", "the axis"), ...names.map(n => option(n, label(n))));
  $("tokens").max = String(space.limits?.max_tokens ?? 512);
  if (Number($("tokens").value) > Number($("tokens").max)) $("tokens").value = $("tokens").max;
  for (const id of ["steer", "direction", "steer-on"]) $(id).disabled = !space.steer;
  for (const id of ["cap", "steer", "direction", "steer-on", "waits"]) $(id).addEventListener("input", () => { describeControls(); onChange(); });
  $("controls").disabled = false;
  describeControls();
}

function fillCaps() {
  const names = Object.keys(space.caps);
  const named = n => space.caps[n].is && space.caps[n].is !== n ? `${n} (${space.caps[n].is})` : n;
  $("cap").replaceChildren(...names.map(n => option(n, named(n))), option("", "no cap"));
  $("cap").value = names.includes("capped") ? "capped" : names[0] ?? "";
}

function number(id) {
  const input = $(id), value = input.valueAsNumber;
  const safe = Number.isFinite(value) ? Math.min(Number(input.max), Math.max(Number(input.min), value)) : Number(input.defaultValue);
  return input.step === "1" ? Math.round(safe) : safe;
}

export function settings() {
  return {
    cap: $("cap").value || null, waits: $("waits").checked, read: reading(), alpha: space.steer ? Number($("steer").value) : 0, direction: $("direction").value, steerOn: $("steer-on").value,
    temperature: number("temperature"), tokens: number("tokens"), seed: number("seed"),
  };
}

/** Puts a file's settings in, as far as this space has them. */
export function applySettings(given) {
  const choose = (id, value) => { if ([...$(id).options].some(o => o.value === value)) $(id).value = value; };
  if (given.cap !== undefined) choose("cap", given.cap ?? "");
  if (!$("waits-label").hidden) $("waits").checked = given.waits === true;
  if (Array.isArray(given.read)) read(given.read);
  choose("direction", given.direction);
  choose("steer-on", given.steerOn);
  for (const [id, value] of [["steer", given.alpha], ["temperature", given.temperature], ["tokens", given.tokens], ["seed", given.seed]]) {
    if (Number.isFinite(value)) $(id).value = String(value);
  }
  describeControls();
}

function describeControls() {
  const now = settings(), held = space.caps[now.cap];
  $("cap-note").textContent = capNote(held);
  const head = held ? `${now.cap}${now.waits ? " from an alert on" : ""}, layers ${span(held.layers)}` : "no cap chosen";
  for (const e of document.querySelectorAll("[data-held=capped]")) e.textContent = head;
  const role = now.direction === "axis" ? null : label(now.direction);
  $("steer-less").textContent = role ? `from ${role}` : "away";
  $("steer-more").textContent = role ? `to ${role}` : "Assistant";
  $("steer-value").textContent = now.alpha ? signed(now.alpha, 2) : "off";
  $("steer").setAttribute("aria-valuetext", now.alpha ? `${signed(now.alpha, 2)} ${now.alpha < 0 ? $("steer-less").textContent : `towards ${role || "the Assistant"}`}` : "off");
  $("steer-note").textContent = steerNote(now);
}

function capNote(held) {
  if (held) {
    const floor = held.floor == null ? `layer ${space.layer}, which is read here, is not among them` : `floor ${plain(held.floor)} at layer ${space.layer}`;
    return `Holds layers ${span(held.layers)} of ${space.layers}; ${floor}.`;
  }
  if (Object.keys(space.caps).length) return "Without one, both columns are the same model.";
  return "This space has none: personaspace calibrate makes them.";
}

function steerNote(now) {
  if (!space.steer) return "This space does not know the residual norm that steering needs.";
  const who = { both: "both columns", standard: "the standard column only", capped: "the capped column only" }[now.steerOn];
  return `Applies to ${who}, from the next message on${now.steerOn === "standard" ? "" : "; the cap holds after it"}.`;
}

/** A role's instruction by the name that is shown, or null. */
export function instructionOf(shown) {
  const wanted = shown.trim().toLowerCase();
  return space.roles.find(r => label(r.name).toLowerCase() === wanted || r.name === wanted)?.instruction || null;
}

/** Whether a text is a role's name and the beginning of no other's, so that nobody is cut off while typing. */
export function onlyRole(shown) {
  const wanted = shown.trim().toLowerCase();
  return instructionOf(wanted) !== null && space.roles.filter(r => label(r.name).toLowerCase().startsWith(wanted)).length === 1;
}

export function presetOf(system) {
  const role = system && space.roles.find(r => r.instruction === system);
  return role ? label(role.name) : "";
}

/** The ready conversations, in their list and as starters of an empty page. */
export function fillReady(ready, play) {
  $("ready").replaceChildren(...ready.map(c => option(c.id, c.kind[0].toUpperCase() + c.kind.slice(1))));
  const note = () => {
    const chosen = ready.find(c => c.id === $("ready").value);
    $("ready-note").textContent = chosen ? `${chosen.title}, ${chosen.messages.length} messages. ${chosen.note}` : "";
  };
  $("ready").addEventListener("input", note);
  note();
  $("starters").replaceChildren(...ready.map(c => starter(c, () => { $("ready").value = c.id; note(); play(); })));
}

function starter(conversation, onClick) {
  const card = make("button", "starter");
  card.type = "button";
  card.append(make("small", "", conversation.kind), make("b", "", conversation.title), make("span", "", conversation.messages[0]));
  card.addEventListener("click", onClick);
  return card;
}
