// Draws the turns of a conversation into the two columns: what was asked, and each reply with its readings.
import { $, button, label, make, plain, sideName, signed } from "./dom.js";
import { SIDES, isEmpty } from "./conversation.js";
import { places, standing } from "./along.js";
import { Pieces } from "./tokens.js";

const LOW = -2.2, HIGH = 4; // the gauge's ends as drifts: the Assistant's on the right

/** One reply on the page. `about`: {space, scale, busy, onAgain, onGoOn, onLook}. */
class ReplyView {
  constructor(turn, at, side, about) {
    Object.assign(this, { turn, at, side, about });
    this.box = make("article", "reply");
    this.box.tabIndex = 0;
    this.box.setAttribute("aria-describedby", "keys");
    this.thoughts = make("details", "thoughts");
    this.thoughts.append(make("summary", "", "Thoughts"), make("p"));
    this.text = make("p", "said");
    this.note = make("div", "state");
    this.gauge = make("div", "gauge");
    this.gauge.setAttribute("aria-hidden", "true");
    this.readings = make("dl", "readings");
    this.box.append(this.thoughts, this.text, this.note, this.gauge, this.readings);
    for (const name of ["pointerenter", "focus"]) this.box.addEventListener(name, () => about.onLook(at, side));
    for (const name of ["pointerleave", "blur"]) this.box.addEventListener(name, () => about.onLook(null, side));
    this.restart();
  }

  get reply() { return this.turn[this.side]; }

  /** Draws the reply from its beginning: a new one, one that is asked for again, or one from a file. */
  restart() {
    this.pieces = new Pieces(this.text, this.about.scale);
    this.pieces.add(this.reply.prefix);
    this.pieces.pass();
    this.pieces.add(this.reply.text.slice(this.reply.prefix.length), this.reply.tokens);
    this.gauge.replaceChildren();
    this.update();
  }

  add(content, tokens) {
    this.pieces.add(content, tokens);
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => { this.frame = 0; this.update(); });
  }

  update() {
    const { reply, box } = this;
    box.dataset.state = reply.state;
    for (const name of ["projection", "drift"]) {
      if (reply[name] == null) delete box.dataset[name];
      else box.dataset[name] = reply[name].toFixed(3);
    }
    box.setAttribute("aria-busy", String(reply.state === "streaming" || reply.state === "waiting"));
    box.setAttribute("aria-label", `Reply ${this.at + 1}, ${sideName(this.side)}${reply.projection == null ? "" : `, ${inWords(reply)}`}`);
    this.thoughts.hidden = !reply.thinking;
    this.thoughts.lastChild.textContent = reply.thinking;
    this.drawNote();
    this.drawGauge();
    this.drawReadings();
  }

  drawNote() {
    const { reply } = this;
    const again = () => button("Ask again", () => this.about.onAgain(this.at, this.side));
    const said = {
      waiting: [make("span", "dots", reply.text ? "" : "thinking")],
      full: [make("span", "", "waiting for a place in the queue")],
      stopped: [make("span", "", reply.text ? "stopped here" : "no reply"), again()],
      failed: [make("span", "bad", reply.error), again()],
      done: reply.refusal ? [make("span", "bad", reply.refusal)] : [
        ...(isEmpty(reply) || reply.finish === "length" ? [make("span", "", ending(reply))] : []), ...(isEmpty(reply) ? [again()] : []),
        ...(reply.text ? [button("Edit and go on", () => this.edit(), "plain")] : []),
      ],
    }[reply.state] || [];
    const wanted = `${reply.state}${reply.wait}${reply.error}${reply.refusal}${reply.finish}`;
    if (this.drawn === wanted) return;
    this.drawn = wanted;
    this.note.replaceChildren(...said);
    this.note.hidden = !said.length;
  }

  /** The reply's text to be changed, and to be gone on from. */
  edit() {
    const field = make("textarea");
    field.value = this.reply.text;
    field.rows = Math.min(12, 2 + Math.ceil(field.value.length / 60));
    field.setAttribute("aria-label", `Text that reply ${this.at + 1} goes on from`);
    const leave = () => { this.drawn = ""; this.text.hidden = false; this.update(); this.box.focus(); };
    const goOn = () => { if (this.about.busy()) return; const text = field.value.trimEnd(); leave(); if (text) this.about.onGoOn(this.at, this.side, text); };
    field.addEventListener("keydown", e => { if (e.key === "Escape") leave(); e.stopPropagation(); });
    this.text.hidden = true;
    this.note.replaceChildren(field, button("Go on from here", goOn, "main"), button("Leave it", leave));
    field.focus();
  }

  drawGauge() {
    const { mean, std } = this.about.space.default;
    const { reply } = this;
    this.gauge.hidden = reply.projection == null || mean == null || !std;
    if (this.gauge.hidden) return;
    const place = drift => `${Math.max(0, Math.min(100, (HIGH - drift) / (HIGH - LOW) * 100))}%`;
    if (!this.gauge.firstChild) {
      const floor = this.about.space.caps[reply.cap?.replace(/\+alert$/, "")]?.floor;
      this.gauge.append(make("i", "band"), ...(floor == null ? [] : [make("i", "floor")]), make("i", "dot"));
      this.gauge.style.setProperty("--from", place(1));
      this.gauge.style.setProperty("--to", place(-1));
      if (floor != null) this.gauge.style.setProperty("--floor", place((mean - floor) / std));
    }
    this.gauge.style.setProperty("--at", place(reply.drift));
  }

  drawReadings() {
    const { reply } = this;
    this.readings.hidden = reply.projection == null;
    if (this.readings.hidden) return;
    const row = (name, ...parts) => {
      const cell = make("div"), value = make("dd");
      value.append(...parts);
      cell.append(make("dt", "", name), value);
      return cell;
    };
    const rows = [row("projection", plain(reply.projection))];
    if (reply.drift != null) rows.push(row("drift", `${signed(reply.drift)} sd`));
    rows.push(...this.extras().map(([name, value]) => row(name, value)));
    if (reply.nearest.length) {
      const nearest = row("nearest", ...reply.nearest.slice(0, 5).flatMap(([name, cosine]) => nearestRole(name, cosine)));
      nearest.title = this.about.space.nearest;
      rows.push(nearest);
    }
    for (const words of standing(reply, this.about.space)) rows.push(Object.assign(row("alert", words), { className: "alert" }));
    this.readings.replaceChildren(...rows);
  }

  extras() {
    const { reply } = this, said = [];
    const waits = reply.cap?.endsWith("+alert") && !reply.acted;
    if (waits) said.push(["cap", "waits for an alert"]);
    else if (reply.cap && reply.tokens.length) said.push(["held", `${reply.cappedTokens} of ${reply.tokens.length} tokens${reply.acted ? ", since an alert" : ""}`]);
    said.push(...places(reply.along));
    for (const s of reply.steer) said.push(["steered", `${signed(s.alpha, 2)} along ${s.direction === "axis" ? "the axis" : label(s.direction)}`]);
    return said;
  }
}

/** How a reply ended that came to nothing, or was cut by its number of tokens. */
function ending(reply) {
  const cut = reply.finish === "length";
  if (isEmpty(reply)) return cut ? "no reply before its tokens were used up" : "no reply";
  return "cut here: its tokens are used up";
}

function nearestRole(name, cosine) {
  const role = make("span", "role", label(name));
  role.append(make("small", "", cosine.toFixed(2).replace(/^(-?)0\./, "$1.").replace("-", "−")));
  return [role, " "];
}

function inWords(reply) {
  const drift = reply.drift == null ? "" : `, drift ${signed(reply.drift)} standard deviations`;
  const near = reply.nearest.length ? `, nearest ${reply.nearest.slice(0, 3).map(([n]) => label(n)).join(", ")}` : "";
  return `projection ${plain(reply.projection)}${drift}${near}`;
}

/** Both columns. */
export class Columns {
  constructor(about) {
    this.about = about;
    this.views = [];
  }

  clear() {
    this.views = [];
    for (const side of SIDES) $(side).replaceChildren();
    this.resize();
  }

  addTurn(turn) {
    const at = this.views.length, pair = {};
    for (const side of SIDES) {
      const ask = make("div", "ask"), view = new ReplyView(turn, at, side, this.about);
      ask.append(make("span", "n", String(at + 1)), make("p", "", turn.ask));
      ask.style.gridRow = String(2 * at + 1);
      view.box.style.gridRow = String(2 * at + 2);
      $(side).append(ask, view.box);
      pair[side] = view;
    }
    this.views.push(pair);
    this.resize();
  }

  view(at, side) { return this.views[at]?.[side]; }

  resize() {
    $("empty").hidden = this.views.length > 0;
    $("columns").hidden = this.views.length === 0;
    $("columns").style.setProperty("--rows", String(Math.max(1, 2 * this.views.length)));
  }
}
