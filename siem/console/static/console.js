// What a script adds: everything here has a link or a button that does the same.
import { brush } from "./brush.js";
import { fresh } from "./fresh.js";
import { keys } from "./keys.js";
import { lists } from "./lists.js";

for (const part of document.querySelectorAll("[data-copy], [data-copy-link], [data-all], [data-print]")) {
  part.hidden = false;
}

// One menu at a time; a click beside it or Esc closes it.
document.addEventListener("click", (event) => {
  for (const open of document.querySelectorAll("details.vm[open], details.drop[open]")) {
    if (!open.contains(event.target)) open.open = false;
  }
  if (event.target.closest("[data-print]")) window.print();
  const copy = event.target.closest("[data-copy], [data-copy-link]");
  if (copy) {
    const text = copy.hasAttribute("data-copy") ? copy.dataset.copy : location.href;
    navigator.clipboard?.writeText(text).catch(() => {});
    copy.closest("details")?.removeAttribute("open");
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const open = document.querySelector("details.vm[open], details.drop[open]");
  if (open) {
    open.open = false;
    open.querySelector("summary").focus();
    event.stopImmediatePropagation();
  }
});

// On a phone a row opens its own page.
const panel = document.querySelector(".panel[data-page]");
if (panel && matchMedia("(max-width: 640px)").matches) location.replace(panel.dataset.page);

// A fault of the query: the cursor stands where it is.
const wrong = document.querySelector("#query[data-at]");
if (wrong) {
  wrong.focus();
  const at = Number(wrong.dataset.at) - 1;
  wrong.setSelectionRange(at, at + 1);
}

document.querySelector("tr#e")?.scrollIntoView({ block: "center" });
// On a phone the parts are a row that is wider than the window.
document.querySelector(".nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

lists();
fresh();
brush();
keys();
