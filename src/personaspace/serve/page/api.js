// Talks to the server: the space, streamed replies, and what can go wrong. It knows nothing of the page.

let key = "";

export const setKey = value => { key = value; };
export const hasKey = () => key !== "";

/** kind: offline, key, full, loading, cut or refused. wait: the seconds after which to ask again. */
export class ServerError extends Error {
  constructor(kind, message, wait = 0) {
    super(message);
    Object.assign(this, { kind, wait });
  }
}

const kinds = { 401: "key", 429: "full", 503: "loading" };

async function request(path, options = {}) {
  const headers = { ...(options.body && { "content-type": "application/json" }), ...(key && { authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (e) {
    if (e.name === "AbortError") throw e;
    throw new ServerError("offline", "The server cannot be reached");
  }
  if (answer.ok) return answer;
  throw new ServerError(kinds[answer.status] || "refused", await reason(answer), seconds(answer.headers.get("retry-after")));
}

async function reason(answer) {
  const body = await answer.json().catch(() => null);
  return body?.error?.message || `The server answered ${answer.status} ${answer.statusText}`.trim();
}

/** Retry-After as seconds: it may also be a date. */
function seconds(value, now = Date.now()) {
  if (!value) return 3;
  const given = Number(value), until = (Date.parse(value) - now) / 1000;
  const wait = Number.isFinite(given) ? given : Number.isFinite(until) ? until : 3;
  return Math.min(600, Math.max(1, Math.ceil(wait)));
}

export const getSpace = async () => (await request("v1/persona/space")).json();

export async function project(messages, signal) {
  return (await request("v1/persona/project", { method: "POST", body: JSON.stringify({ messages }), signal })).json();
}

/** Whether the model is loaded. An answer of another kind (a key is missing, say) means that somebody is there. */
export async function ready() {
  try {
    await request("readyz");
  } catch (e) {
    return e.kind !== "offline" && e.kind !== "loading";
  }
  return true;
}

export const chatUrl = () => new URL("v1/chat/completions", document.baseURI).href;

/** Streams one reply; each chunk goes to `take` as it comes. A stream that stops before its end is an error. */
export async function stream(body, signal, take) {
  const answer = await request("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  let finished = false;
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError("refused", chunk.error.message || "The server stopped with an error");
    if (chunk.choices?.[0]?.finish_reason) finished = true;
    take(chunk);
  }
  if (!finished) throw new ServerError("cut", "The connection broke before the reply ended");
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(e => {
      if (e.name === "AbortError") throw e;
      throw new ServerError("cut", "The connection broke before the reply ended");
    });
    const lines = (rest + (value || "")).split(/\r?\n/);
    rest = done ? "" : lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    if (done) return;
  }
}
