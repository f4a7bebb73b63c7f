// The page's frame: the message box, the columns as tabs on a phone, and following what is new.
import { $, calm } from "./dom.js";
import { SIDES } from "./conversation.js";

const phone = matchMedia("(max-width: 860px)");

/** ask(text, taken): `taken` is called once the text has become a message. */
export function composer({ ask, stop, busy }) {
  const box = $("message");
  const grow = () => { box.style.height = "auto"; box.style.height = `${Math.min(160, box.scrollHeight + 2)}px`; };
  const send = () => { if (!busy() && box.value.trim()) ask(box.value, () => { box.value = ""; grow(); }); };
  box.addEventListener("input", grow);
  box.addEventListener("keydown", e => {
    if (e.key === "Enter" && !e.shiftKey && !e.isComposing) { e.preventDefault(); send(); }
  });
  $("composer").addEventListener("submit", e => { e.preventDefault(); if (busy()) stop(); else send(); });
}

const tab = side => $(`tab-${side}`);

export const tabs = {
  show(side) {
    for (const s of SIDES) {
      tab(s).setAttribute("aria-selected", String(s === side));
      tab(s).tabIndex = s === side ? 0 : -1;
      $(s).classList.toggle("chosen", s === side);
    }
  },
  wire() {
    for (const side of SIDES) {
      tab(side).addEventListener("click", () => tabs.show(side));
      tab(side).addEventListener("keydown", e => {
        if (e.key !== "ArrowLeft" && e.key !== "ArrowRight") return;
        const other = SIDES.find(s => s !== side);
        tabs.show(other);
        tab(other).focus();
      });
    }
    phone.addEventListener("change", roles);
    roles();
    tabs.show("standard");
    // A wide screen shows the settings at all times, a narrow one where they are asked for.
    const narrow = matchMedia("(max-width: 1179px)");
    const fold = () => { $("settings").open = !narrow.matches; };
    narrow.addEventListener("change", fold);
    fold();
  },
};

function roles() {
  for (const side of SIDES) {
    if (phone.matches) $(side).setAttribute("role", "tabpanel");
    else $(side).removeAttribute("role");
  }
}

const edge = () => phone.matches ? $("composer").getBoundingClientRect().top : $("scroller").getBoundingClientRect().bottom;

/** Whether the reader is at the conversation's end, and wants to be taken along. */
export function atEnd() {
  return $("end").getBoundingClientRect().top < edge() + 90;
}

export function toEnd() {
  const beyond = $("end").getBoundingClientRect().bottom - edge() + 12;
  if (beyond <= 0) return;
  const behavior = calm() ? "instant" : "auto";
  if (phone.matches) window.scrollBy({ top: beyond, behavior });
  else $("scroller").scrollBy({ top: beyond, behavior });
}
