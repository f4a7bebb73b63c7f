// A conversation with two columns as plain data: its turns, what is asked next, its file. It knows nothing of the page.

export const SIDES = ["standard", "capped"];
const FORMAT = "personaspace-conversation-1";

// state: waiting, full (the queue is), streaming, done, stopped or failed.
const newReply = () => ({
  text: "", tokens: [], projection: null, drift: null, nearest: [], place: null, alert: false, cappedTokens: 0,
  thinking: "", along: {}, alerts: {}, acted: "", refusal: "", prefix: "",
  cap: null, steer: [], state: "waiting", finish: "", error: "", wait: 0,
});

/** Whether a reply that ended said nothing, or nothing beyond what it went on from. */
export const isEmpty = reply => reply.text === reply.prefix && !reply.refusal;

export function newTurn(ask) {
  return { ask, standard: newReply(), capped: newReply() };
}

/** Empties a reply that is asked for again. */
export function reset(turn, side) {
  turn[side] = newReply();
}

/** Empties it, but for the text that it is to go on from. */
export function goOn(turn, side, text) {
  turn[side] = { ...newReply(), text, prefix: text };
}

/** A column's messages up to and with the turn numbered `at`; a turn that got no reply is left out of what came before. */
function history(talk, side, at) {
  const messages = talk.system ? [{ role: "system", content: talk.system }] : [];
  for (const turn of talk.turns.slice(0, at)) {
    if (turn[side].text) messages.push({ role: "user", content: turn.ask }, { role: "assistant", content: turn[side].text });
  }
  return talk.turns[at] ? [...messages, { role: "user", content: talk.turns[at].ask }] : messages;
}

function capOf(settings, side) {
  if (side !== "capped" || !settings.cap) return null;
  return settings.waits ? `${settings.cap}+alert` : settings.cap;
}

function steerOf(settings, side) {
  const here = settings.steerOn === "both" || settings.steerOn === side;
  return here && settings.alpha ? [{ direction: settings.direction, alpha: settings.alpha }] : [];
}

/** The request for one column's reply in the turn numbered `at`. */
export function request(talk, settings, space, side, at) {
  // Whole replies alone: one that was stopped, or broke, is a beginning, and beginnings spread further.
  const before = talk.turns.slice(0, at).map(t => t[side]).filter(r => r.state === "done"), { prefix } = talk.turns[at][side];
  const messages = history(talk, side, at);
  return {
    model: space.model, messages: prefix ? [...messages, { role: "assistant", content: prefix }] : messages, ...(prefix && { continue_final_message: true }), temperature: settings.temperature, top_p: 0.9,
    max_tokens: settings.tokens, seed: settings.seed + at, stream: true,
    persona: { cap: capOf(settings, side), steer: steerOf(settings, side), report: "token", ...(settings.read && { read: settings.read }), history: before.map(r => r.drift).filter(Number.isFinite), histories: shiftsOf(before, space), on_alert: "tell" },
  };
}

/** The shifts that the server's alerts look at, by direction: of those earlier replies that were read along it. */
function shiftsOf(replies, space) {
  const names = space.alerts.map(a => a.name).filter(name => name !== "axis");
  return Object.fromEntries(names.map(name => [name, replies.map(r => r.along[name]?.shift).filter(Number.isFinite)]));
}

/** Puts what a chunk brings into a reply. Until the server says the mean, it is taken over the tokens so far. */
export function take(reply, chunk, home) {
  const delta = chunk.choices?.[0]?.delta, content = delta?.content || "";
  reply.thinking += delta?.reasoning_content || "";
  reply.refusal = delta?.refusal || reply.refusal;
  reply.finish = chunk.choices?.[0]?.finish_reason || reply.finish;
  reply.state = "streaming";
  reply.text += content;
  const said = chunk.persona;
  if (!said) return { content, tokens: [] };
  const tokens = said.tokens || [];
  reply.tokens.push(...tokens);
  const known = reply.tokens.filter(t => Number.isFinite(t.projection));
  if (known.length) reply.projection = known.reduce((sum, t) => sum + t.projection, 0) / known.length;
  reply.drift = drift(reply.projection, home);
  reply.cappedTokens = known.filter(t => t.capped).length;
  for (const name of ["projection", "drift", "nearest", "place", "alert", "along", "alerts", "acted"]) if (said[name] != null) reply[name] = said[name];
  if (said.capped_tokens != null) reply.cappedTokens = said.capped_tokens;
  return { content, tokens };
}

function drift(projection, home) {
  return projection == null || !home?.std ? null : (home.mean - projection) / home.std;
}

const KEPT = ["text", "projection", "drift", "nearest", "place", "alert", "cappedTokens", "state", "cap", "steer", "thinking", "along", "alerts", "acted", "refusal", "prefix", "finish"];

function replyToFile(reply) {
  const kept = Object.fromEntries(KEPT.map(name => [name, reply[name]]));
  return { ...kept, tokens: reply.tokens.map(t => [t.text, t.projection, Boolean(t.capped)]) };
}

/** The file of a conversation: each column's messages as OpenAI has them, and every reading. */
export function toFile(talk, settings, space) {
  const messages = side => history(talk, side, talk.turns.length);
  return {
    format: FORMAT, model: space.model, layer: space.layer, saved: new Date().toISOString(), system: talk.system, settings,
    messages: messages("standard"), capped_messages: messages("capped"),
    turns: talk.turns.map(t => ({ ask: t.ask, standard: replyToFile(t.standard), capped: replyToFile(t.capped) })),
  };
}

const text = value => typeof value === "string" ? value : "";
const number = value => Number.isFinite(value) ? value : null;
const pair = value => Array.isArray(value) && value.length >= 2 && value.every(Number.isFinite) ? value : null;

const tokenFromFile = ([said, projection, capped], index) => ({ index, text: said, projection: number(projection), capped: capped === true });

const entries = (value, fits, as = v => v) => Object.fromEntries(Object.entries(value && typeof value === "object" ? value : {}).filter(([, v]) => fits(v)).map(([k, v]) => [k, as(v)]));

function replyFromFile(raw) {
  const list = value => Array.isArray(value) ? value : [];
  const reply = {
    ...newReply(), text: text(raw?.text), projection: number(raw?.projection), drift: number(raw?.drift), place: pair(raw?.place),
    alert: raw?.alert === true, cappedTokens: number(raw?.cappedTokens) || 0, cap: text(raw?.cap) || null,
    nearest: list(raw?.nearest).filter(n => Array.isArray(n) && typeof n[0] === "string" && Number.isFinite(n[1])),
    steer: list(raw?.steer).filter(s => typeof s?.direction === "string" && Number.isFinite(s?.alpha)),
    ...Object.fromEntries(["thinking", "acted", "refusal", "prefix", "finish"].map(name => [name, text(raw?.[name])])),
    along: entries(raw?.along, place => Number.isFinite(place?.projection), place => ({ projection: place.projection, shift: number(place.shift) })),
    alerts: entries(raw?.alerts, stands => typeof stands === "boolean"),
    tokens: list(raw?.tokens).filter(t => Array.isArray(t) && typeof t[0] === "string").map(tokenFromFile),
  };
  return { ...reply, state: raw?.state === "done" && (reply.text || reply.refusal) ? "done" : "stopped" };
}

/** A conversation from a file of this page's, or from anybody's list of messages (`plain`: both columns get its replies). */
export function fromFile(value) {
  if (value?.format === FORMAT && Array.isArray(value.turns)) {
    const turns = value.turns.filter(t => typeof t?.ask === "string").map(t => ({ ask: t.ask, standard: replyFromFile(t.standard), capped: replyFromFile(t.capped) }));
    return { system: text(value.system), turns, settings: value.settings || {}, model: text(value.model), plain: false };
  }
  const messages = Array.isArray(value) ? value : value?.messages;
  if (!Array.isArray(messages) || !messages.length || !messages.every(m => typeof m?.role === "string" && typeof m?.content === "string")) {
    throw new Error("no conversation in it: expected this page’s export, or a list of messages with role and content");
  }
  return { ...fromMessages(messages), settings: {}, model: "", plain: true };
}

function fromMessages(messages) {
  const system = messages.find(m => m.role === "system" || m.role === "developer")?.content || "";
  const turns = [];
  for (const { role, content } of messages) {
    if (role === "user") turns.push(newTurn(content));
    const last = turns.at(-1);
    if (role !== "assistant" || !last) continue;
    for (const side of SIDES) Object.assign(last[side], { text: last[side].text + content, state: "done" });
  }
  for (const side of SIDES) for (const t of turns) if (!t[side].text) t[side].state = "stopped";
  return { system, turns };
}

/** The commands that ask what both columns ask. The key stays out of them. */
export function curl(bodies, url, keyed) {
  const quoted = value => `'${value.replaceAll("'", "'\\''")}'`;
  const key = keyed ? ' \\\n  -H "Authorization: Bearer $PERSONASPACE_KEY"' : "";
  return SIDES.map(side => `# ${side}\ncurl -N ${quoted(url)} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d ${quoted(JSON.stringify(bodies[side]))}\n`).join("\n");
}
