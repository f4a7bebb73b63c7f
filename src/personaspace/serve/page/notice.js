// Says how things stand, in the line over the message box and in small dialogs.
import { $, button } from "./dom.js";

let clock = 0;

/** kind: loading, ready, busy, full, error or offline. acts: [[text, what to do], …]. */
export function say(kind, text, acts = []) {
  clearInterval(clock);
  const status = $("status");
  status.dataset.kind = kind;
  const line = status.querySelector(".say");
  if (line.textContent !== text) line.textContent = text;
  status.querySelector(".count").textContent = "";
  status.querySelector(".acts").replaceChildren(...acts.map(([name, act]) => button(name, act)));
}

/** A state that ends by itself: the seconds are counted down beside it, and not read out each time. */
export function countdown(text, seconds, acts) {
  say("full", text, acts);
  const until = Date.now() + 1000 * seconds, count = $("status").querySelector(".count");
  const tick = () => { count.textContent = `${Math.max(0, Math.ceil((until - Date.now()) / 1000))} s`; };
  tick();
  clock = setInterval(tick, 250);
}

function opened(dialog) {
  return new Promise(resolve => {
    dialog.returnValue = "";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    dialog.showModal();
  });
}

export function confirmNew(why) {
  $("confirm-text").textContent = why;
  return opened($("confirm"));
}

let asking = null;

/** The key that the user gives, or null; both columns wait for the same answer. */
export function askKey(why) {
  asking ||= (async () => {
    $("key-text").textContent = why;
    $("key-value").value = "";
    const given = await opened($("key"));
    const value = $("key-value").value.trim();
    $("key-value").value = "";
    asking = null;
    return given && value ? value : null;
  })();
  return asking;
}

export function showText(text) {
  $("text-value").value = text;
  const closed = opened($("text"));
  $("text-value").select();
  $("text-value").scrollTop = 0;
  return closed;
}

// Enter in the field means the second button; a dialog's form would take its first.
$("key-value").addEventListener("keydown", e => {
  if (e.key !== "Enter") return;
  e.preventDefault();
  $("key-use").click();
});
