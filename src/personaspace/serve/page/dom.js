// The few helpers that every part of the page uses. All text goes in as text, never as markup.

export const $ = id => document.getElementById(id);

export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

export function button(text, onClick, className = "") {
  const element = make("button", className, text);
  element.type = "button";
  element.addEventListener("click", onClick);
  return element;
}

export const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const label = name => name.replaceAll("_", " ");
export const sideName = side => side === "capped" ? "Capped" : "Standard";
export const plain = (value, digits = 1) => value.toFixed(digits).replace(/^-(?=[0.]*$)/, "").replace("-", "−");
export const signed = (value, digits = 1) => plain(value, digits).replace(/^(?=.*[1-9])(?!−)/, "+");
export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Calls back at most once in `gap` milliseconds, and once more after the last call. */
export function throttled(callback, gap) {
  let timer = 0, last = 0;
  return () => {
    if (timer) return;
    timer = setTimeout(() => { timer = 0; last = performance.now(); callback(); }, Math.max(0, gap - (performance.now() - last)));
  };
}

/** Resolves once the page was drawn as it is now, also in a tab that is not seen. */
export const painted = () => new Promise(resolve => { requestAnimationFrame(() => setTimeout(resolve)); setTimeout(resolve, 200); });
