// Gets one reply, however long the queue: streams it, waits where the server is full, asks for a key where it wants one.
import { ServerError, hasKey, setKey, stream } from "./api.js";
import { request, take } from "./conversation.js";
import { askKey } from "./notice.js";

const TRIES = 12;

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stopped = () => { clearTimeout(timer); reject(new DOMException("stopped", "AbortError")); };
    const timer = setTimeout(() => { signal.removeEventListener("abort", stopped); resolve(); }, 1000 * seconds);
    if (signal.aborted) stopped();
    signal.addEventListener("abort", stopped, { once: true });
  });
}

/** Asks for a key and keeps it; raises where none is given. */
export async function unlock() {
  const key = await askKey(hasKey() ? "The key that was given is refused. Is it complete?" : "Give the key that the server was started with.");
  if (!key) throw new ServerError("key", "The server wants an API key");
  // A header takes Latin-1 alone: with anything else a request fails as if nobody answered.
  const odd = key.match(/[^\x20-\xff]/u);
  if (odd) throw new ServerError("key", `No key has “${odd[0]}” in it. Was it copied whole?`);
  setKey(key);
}

/**
 * Streams the reply of one column to the turn numbered `at` into it. on: {piece(content, tokens), changed()}.
 * The reply ends as done, stopped or failed; what is returned is the error, or null.
 */
export async function answer({ talk, settings, space, side, at, signal, on }) {
  const reply = talk.turns[at][side];
  const body = request(talk, settings, space, side, at);
  Object.assign(reply, { cap: body.persona.cap, steer: body.persona.steer });
  try {
    for (let tries = 1; ; tries++) {
      try {
        await stream(body, signal, chunk => { const { content, tokens } = take(reply, chunk, space.default); on.piece(content, tokens); });
        break;
      } catch (e) {
        if (e.kind === "key") await unlock();
        else if (e.kind === "full" && tries < TRIES) await wait(reply, e.wait, signal, on);
        else throw e;
      }
    }
    reply.state = "done";
    return null;
  } catch (e) {
    return ended(reply, e, signal);
  } finally {
    on.changed();
  }
}

async function wait(reply, seconds, signal, on) {
  Object.assign(reply, { state: "full", wait: seconds });
  on.changed();
  await pause(seconds, signal);
  Object.assign(reply, { state: "waiting", wait: 0 });
  on.changed();
}

function ended(reply, e, signal) {
  if (signal.aborted || e.name === "AbortError") {
    Object.assign(reply, { state: "stopped", wait: 0 });
    return null;
  }
  const known = e instanceof ServerError;
  Object.assign(reply, { state: "failed", wait: 0, error: known ? e.message : "The server sent something that this page cannot read" });
  if (!known) console.warn(e);
  return known ? e : new ServerError("refused", reply.error);
}
