// Conversations in and out: JSON files, and the same questions as curl commands.
import { $ } from "./dom.js";
import { chatUrl, hasKey, project } from "./api.js";
import { SIDES, curl, fromFile, newTurn, request, toFile } from "./conversation.js";
import { say, showText } from "./notice.js";

const LARGEST = 20e6;

export function exportTalk(talk, settings, space) {
  if (!talk.turns.length) return say("ready", "There is nothing to export yet");
  download(JSON.stringify(toFile(talk, settings, space), null, 1), "application/json", space.model, "json");
  say("ready", `Exported ${talk.turns.length} ${talk.turns.length === 1 ? "turn" : "turns"}.`);
}

/** Gives a text as a file that is named after the model and the time. */
export function download(text, type, model, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = `personaspace-${model.replace(/[^\w.-]+/g, "-")}-${new Date().toISOString().slice(0, 16).replace(/[:T]/g, "-")}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** The conversation in a file; one without readings gets them from the server, which says as `problem` what it left unread. Raises an error that says what is wrong. */
export async function importTalk(file, signal) {
  if (file.size > LARGEST) throw new Error("the file is larger than 20 MB");
  let value;
  try {
    const text = await file.text();
    // A shared file has the conversation in it; nothing of it is run.
    const shared = /^\s*<!doctype html/i.test(text) && new DOMParser().parseFromString(text, "text/html").getElementById("conversation");
    value = JSON.parse(shared ? shared.textContent : text);
  } catch {
    throw new Error("it is not JSON");
  }
  const talk = fromFile(value);
  return talk.plain ? { ...talk, problem: await readTurns(talk, value, signal) } : talk;
}

async function readTurns(talk, value, signal) {
  const messages = (Array.isArray(value) ? value : value.messages).map(({ role, content }) => ({ role, content }));
  const { turns, problem } = await project(messages, signal);
  for (const read of turns) {
    const turn = talk.turns[messages.slice(0, read.index).filter(m => m.role === "user").length - 1];
    if (!turn) continue;
    for (const side of SIDES) Object.assign(turn[side], { projection: read.projection, drift: read.drift, nearest: read.nearest || [], alert: Boolean(read.alert) });
  }
  return problem;
}

/** Copies the last message's requests, or what is in the box where nothing was asked yet. */
export async function copyCurl(talk, settings, space) {
  const draft = { ...talk, turns: talk.turns.length ? talk.turns : [newTurn($("message").value.trim() || "Who are you?")] };
  const at = draft.turns.length - 1;
  const text = curl(Object.fromEntries(SIDES.map(side => [side, request(draft, settings, space, side, at)])), chatUrl(), hasKey());
  try {
    await navigator.clipboard.writeText(text);
    say("ready", "Copied: one curl command for each column.");
  } catch {
    await showText(text);
  }
}
