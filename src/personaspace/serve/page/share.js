// A conversation as one file that opens without a server: its columns as they stand, the chart, and what import takes. No script runs in it.
import { $, css, make } from "./dom.js";
import { download } from "./files.js";
import { toFile } from "./conversation.js";
import { say } from "./notice.js";

const STYLE = `body { max-width: 1180px; margin: 0 auto; padding: 20px; }
.column { display: grid !important; } .scroller, .talk { overflow: visible; max-height: none; } .reply { cursor: auto; }
figure { margin: 18px 0; overflow-x: auto; } figure img { width: 100%; min-width: 560px; }
@media (max-width: 860px) { .columns, .column { display: block !important; } .column::before { content: attr(data-name); display: block; margin-top: 18px; font-weight: 600; } }`;
const POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/** A text as it may stand in a script's element. */
const inScript = value => JSON.stringify(value).replace(/</g, "\\u003c");

export async function shareTalk(talk, settings, space) {
  if (!talk.turns.length) return say("ready", "There is nothing to share yet");
  const page = document.implementation.createHTMLDocument(`${space.model}: standard and capped`);
  const styles = await Promise.all(["style", "talk"].map(async name => (await fetch(`page/${name}.css`)).text()));
  const meta = fields => Object.assign(page.head.appendChild(page.createElement("meta")), fields);
  page.documentElement.lang = "en";
  page.head.prepend(Object.assign(page.createElement("meta"), { httpEquiv: "Content-Security-Policy", content: POLICY }));
  // First of all, since a file comes without a header that would say it.
  page.head.prepend(page.createElement("meta"));
  page.head.firstChild.setAttribute("charset", "utf-8");
  meta({ name: "viewport", content: "width=device-width, initial-scale=1" });
  meta({ name: "color-scheme", content: "light dark" });
  page.head.append(Object.assign(page.createElement("style"), { textContent: [...styles, STYLE].join("\n") }));
  page.body.append(head(talk, space), columns(), ...await chart());
  const kept = page.createElement("script");
  Object.assign(kept, { type: "application/json", id: "conversation", textContent: inScript(toFile(talk, settings, space)) });
  page.body.append(kept);
  download(`<!doctype html>\n${page.documentElement.outerHTML}`, "text/html", space.model, "html");
  say("ready", "Saved as one file: it opens in a browser without this server, and Import takes it");
}

function head(talk, space) {
  const top = make("header", "top");
  top.append(make("p", "kicker", "personaspace"), make("h1", "", `${space.model}, as it is and held`));
  if (talk.system) top.append(make("p", "lead", `System prompt: ${talk.system}`));
  top.append(make("p", "note", `Read at layer ${space.layer} of ${space.layers}; saved ${new Date().toISOString().slice(0, 10)}. Tokens are coloured by where they lie while a reply is pointed at.`));
  return top;
}

function columns() {
  const box = make("section", "talk"), scroller = make("div", "scroller");
  scroller.append($("columns").cloneNode(true));
  for (const e of scroller.querySelectorAll("button, textarea")) e.remove();
  for (const column of scroller.querySelectorAll(".column")) column.dataset.name = column.classList.contains("capped") ? "Capped" : "Standard";
  box.append(document.querySelector(".heads").cloneNode(true), scroller);
  return box;
}

async function chart() {
  if (!window.Plotly || !$("chart").data) return [];
  const figure = make("figure", "panel"), { data, layout } = $("chart");
  // On a ground of its own: whoever opens the file may have the other theme, in which its colours would be lost.
  const src = await window.Plotly.toImage({ data, layout: { ...layout, paper_bgcolor: css("--panel") } }, { format: "svg", width: 900, height: 320 });
  const image = Object.assign(make("img"), { alt: $("chart").getAttribute("aria-label") || "", src });
  figure.append(image, make("p", "note", $("chart-note").textContent));
  return [figure];
}
