// A reply's tokens as spans that carry their projections, and the small box that says a token's number.
import { $, make, plain, signed } from "./dom.js";

// A character of several tokens, or a space that was taken off, may stand between a token's place and where its text is found.
const SLACK = 12;

/** The diverging scale of projections: `mid` is the default's mean, or else the mean role's, `span` what lies from it to either end. */
export function scaleOf(space) {
  const { mean, std } = space.default;
  if (mean != null && std) return { mid: mean, span: 3 * std, std };
  return { mid: space.mean_role, span: Math.max(1, ...space.roles.map(r => Math.abs(r.above_mean))), std: null };
}

/** Text that grows, and is cut into spans as its tokens become known. */
export class Pieces {
  constructor(box, scale) {
    this.box = box;
    this.scale = scale;
    this.tail = document.createTextNode("");
    this.queue = [];
    box.replaceChildren(this.tail);
  }

  add(content, tokens = []) {
    this.tail.data += content;
    this.queue.push(...tokens);
    while (this.queue.length && this.place(this.queue[0])) this.queue.shift();
  }

  /** Leaves what stands there as it is: tokens are looked for behind it. */
  pass() {
    this.box.insertBefore(document.createTextNode(this.tail.data), this.tail);
    this.tail.data = "";
  }

  /** Whether the token is dealt with: placed, or certain never to be found. */
  place(token) {
    const rest = this.tail.data;
    for (const wanted of [token.text, token.text.trimStart()]) {
      const at = wanted ? rest.slice(0, wanted.length + SLACK).indexOf(wanted) : -1;
      if (at >= 0) {
        this.tail.data = rest.slice(at + wanted.length);
        this.box.insertBefore(this.span(rest.slice(0, at + wanted.length), token), this.tail);
        return true;
      }
    }
    return !token.text || token.text.includes("\uFFFD") || rest.length > token.text.length + SLACK;
  }

  span(text, token) {
    const span = make("span", "t", text);
    if (!Number.isFinite(token.projection)) return span;
    const v = Math.max(-1, Math.min(1, (token.projection - this.scale.mid) / this.scale.span));
    span.classList.add(v < 0 ? "away" : "near");
    span.style.setProperty("--m", `${Math.round(Math.abs(v) * 46)}%`);
    span.dataset.projection = token.projection.toFixed(2);
    if (token.capped) span.classList.add("held");
    return span;
  }
}

function sayToken(span, scale) {
  const p = Number(span.dataset.projection);
  const from = scale.std ? `, drift ${signed((scale.mid - p) / scale.std)} sd` : "";
  return `projection ${plain(p)}${from}${span.classList.contains("held") ? ", held by the cap" : ""}`;
}

function showTip(span, scale) {
  const tip = $("tip");
  tip.replaceChildren(make("q", "", span.textContent.trim() || "space"), ` ${sayToken(span, scale)}`);
  tip.hidden = false;
  const at = span.getClientRects()[0], size = tip.getBoundingClientRect();
  const top = at.top - size.height - 6;
  tip.style.left = `${Math.max(8, Math.min(innerWidth - size.width - 8, at.left + at.width / 2 - size.width / 2))}px`;
  tip.style.top = `${top < 8 ? at.bottom + 6 : top}px`;
}

export function hideTip() {
  $("tip").hidden = true;
  document.querySelector(".t.at")?.classList.remove("at");
}

function step(reply, key, scale) {
  const spans = [...reply.querySelectorAll(".t[data-projection]")];
  if (!spans.length) return false;
  const now = spans.findIndex(s => s.classList.contains("at"));
  const to = { ArrowRight: Math.min(spans.length - 1, now + 1), ArrowLeft: Math.max(0, now - 1), Home: 0, End: spans.length - 1 }[key];
  if (to === undefined) return false;
  hideTip();
  spans[to].classList.add("at");
  spans[to].scrollIntoView({ block: "nearest" });
  showTip(spans[to], scale);
  $("spoken").textContent = `${spans[to].textContent.trim() || "space"}: ${sayToken(spans[to], scale)}`;
  return true;
}

/** Hover, tap or the arrow keys on a focused reply say a token's number. */
export function readTokens(columns, scale) {
  columns.addEventListener("pointerover", e => {
    const span = e.target.closest(".t[data-projection]");
    if (span) { hideTip(); showTip(span, scale()); }
  });
  columns.addEventListener("pointerleave", e => { if (e.pointerType !== "touch") hideTip(); });
  columns.addEventListener("pointermove", e => { if (e.pointerType !== "touch" && !e.target.closest(".t")) hideTip(); });
  columns.addEventListener("focusout", hideTip);
  columns.addEventListener("keydown", e => {
    const plainKey = !e.altKey && !e.ctrlKey && !e.metaKey;
    if (plainKey && e.target.matches(".reply") && step(e.target, e.key, scale())) e.preventDefault();
  });
  // A step may scroll the reply: its box then goes along.
  document.addEventListener("scroll", () => {
    const at = document.querySelector(".t.at");
    if (at) showTip(at, scale());
    else hideTip();
  }, { capture: true, passive: true });
}
