// Which directions beside the axis replies are read along, and how what lies there is written.
import { $, button, label, make, plain, signed } from "./dom.js";

const MOST = 8;
let names = [], chosen = [];

/** `role:ghost` as a reader says it; a role's and a trait's names may be the same. */
export const shown = name => {
  const at = name.indexOf(":"), bare = at < 0 ? name : name.slice(at + 1);
  return names.filter(n => n.slice(n.indexOf(":") + 1) === bare).length > 1 ? label(name) : label(bare);
};

export const reading = () => chosen;

/** Fills the field from the space, with the server's own choice. */
export function fillAlong(space) {
  names = space.directions.filter(n => n !== "axis");
  $("directions").replaceChildren(...names.map(n => Object.assign(make("option"), { value: n })));
  read(space.read);
  $("read").addEventListener("input", () => { if (names.includes($("read").value)) add($("read").value); });
  $("read").addEventListener("change", () => { const name = match($("read").value); if (name) add(name); });
}

function match(text) {
  const wanted = text.trim().toLowerCase();
  return names.find(n => n.toLowerCase() === wanted) || names.find(n => n.slice(n.indexOf(":") + 1).toLowerCase() === wanted);
}

function add(name) {
  $("read").value = "";
  read([...chosen, name]);
}

/** Takes these, as far as the space has them. */
export function read(wanted) {
  chosen = [...new Set(wanted)].filter(n => names.includes(n)).slice(0, MOST);
  $("read").disabled = chosen.length === MOST;
  $("chosen").replaceChildren(...chosen.map(name => {
    const remove = button(`${shown(name)} ×`, () => { read(chosen.filter(n => n !== name)); $("read").focus(); }, "chip");
    remove.setAttribute("aria-label", `Stop reading along ${shown(name)}`);
    return remove;
  }));
}

/** A reply's places as [name, text]: in standard deviations above the default's mean where the space knows them. */
export const places = along => Object.entries(along).map(([name, { projection, shift }]) => [shown(name), shift == null ? plain(projection) : `${signed(shift)} sd`]);

export const drifts = rule => rule.turns > 1 ? `mean drift of ${rule.turns} turns` : "drift";

/** An alert's direction and threshold. */
export const bound = ({ name, below, threshold }) => `${shown(name)} ${below ? `under ${signed(-threshold)}` : `over ${signed(threshold)}`} sd`;

/** The alerts that stand after a reply, in words; the axis' among them. */
export function standing(reply, space) {
  const rule = space.alert, stands = [];
  if (reply.alert) stands.push(rule ? `${drifts(rule)} over ${rule.threshold.toFixed(1)} sd` : "has drifted");
  for (const alert of space.alerts) if (alert.name !== "axis" && reply.alerts[alert.name]) stands.push(bound(alert));
  return stands;
}
