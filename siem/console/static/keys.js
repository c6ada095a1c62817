// Single keys, as the page /keys lists them; one setting turns them off (WCAG 2.1.4).
import { act } from "./lists.js";

const ACTS = { a: "take", w: "progress", r: "resolve", s: "suppress", c: "comment", i: "incident" };
const FILTER = "#filter";
const rows = () => [...document.querySelectorAll("[data-row]")];
let current = -1;
let going = false;

function move(step) {
  const list = rows();
  if (!list.length) return;
  if (current < 0) current = list.findIndex((row) => row.classList.contains("on"));
  current = Math.min(list.length - 1, Math.max(0, current + step));
  const link = list[current].querySelector("[data-open]");
  link.focus();
  list[current].scrollIntoView({ block: "nearest" });
}

function here() {
  return document.activeElement?.closest?.("[data-row]") ?? rows()[current];
}

function select() {
  const box = here()?.querySelector("input[type=checkbox]");
  if (box) box.click();
}

function shift(part) {
  const plot = document.querySelector("[data-brush]");
  if (!plot) return;
  const [since, until] = [Date.parse(plot.dataset.since), Date.parse(plot.dataset.until)];
  const by = (part * (until - since)) / 2;
  const to = new URL(location.href);
  to.searchParams.set("from", new Date(since + by).toISOString());
  to.searchParams.set("to", new Date(until + by).toISOString());
  location.assign(to);
}

function close() {
  document.querySelector("[data-close-panel]")?.click();
}

function open(selector) {
  const part = document.querySelector(selector);
  if (part instanceof HTMLDetailsElement) {
    part.open = true;
    part.querySelector("a, input")?.focus();
  } else part?.click();
}

// A filter from the finding of the row, which the panel has to show first.
function filter() {
  const row = here();
  const link = row?.querySelector("[data-open]");
  if (!link || row.classList.contains("on")) open("[data-filter]");
  else location.assign(`${link.href}${FILTER}`);
}

function goOn() {
  if (location.hash !== FILTER) return;
  history.replaceState(null, "", location.pathname + location.search);
  open("[data-filter]");
}

const SINGLE = {
  "/": () => document.getElementById("query")?.select(),
  "?": () => location.assign("/keys"),
  j: () => move(1),
  k: () => move(-1),
  x: select,
  t: () => open("#time"),
  "[": () => shift(-1),
  "]": () => shift(1),
  "-": () => open("[data-zoom-out]"),
  y: () => open("[data-copy-link]"),
  f: filter,
  Escape: close,
  Enter: () => here()?.querySelector("[data-open]")?.click(),
};

function typing(target) {
  return target.closest?.("input:not([type=checkbox], [type=radio]), textarea, select, [contenteditable]");
}

export function keys() {
  if (document.documentElement.dataset.keys === "off") return;
  goOn();
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (document.querySelector("dialog[open]")) return;
    if (typing(event.target)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === "Enter" && event.target.closest("a, button, summary, input")) return;
    if (going) {
      going = false;
      const link = document.querySelector(`[data-go="${CSS.escape(event.key)}"]`);
      if (link) {
        event.preventDefault();
        link.click();
      }
      return;
    }
    if (event.key === "g") {
      going = true;
      setTimeout(() => (going = false), 1500);
      return;
    }
    const name = ACTS[event.key];
    if (name && (document.getElementById("bulk") || document.getElementById("single"))) {
      event.preventDefault();
      act(name);
      return;
    }
    const run = SINGLE[event.key];
    if (run) {
      event.preventDefault();
      run();
    }
  });
}
