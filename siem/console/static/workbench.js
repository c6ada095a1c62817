// What a script adds to the rule workbench. The form works whole without it: a script sends it
// sooner, and takes of the answer, which is the same page, the parts that are marked as live.
import { Editor } from "./editor.js";

const PAUSE_MS = 600;
const POLL_MS = 1000;
const TAKES = { try: ["try", "told"], preview: ["preview"], look: ["preview"], cancel: ["preview"], why: ["told"] };

const form = document.querySelector("[data-bench]");
const words = JSON.parse(form.dataset.words);
const editors = [...form.querySelectorAll("[data-editor]")].map((area) => new Editor(area, words));
const rule = document.getElementById("text");
const written = () => editors.map((one) => one.area.value).join("\0");
let kept = written();
let leaves = false;
let turn = 0;
let pause = 0;
let previewed = document.querySelector("#b-preview.stale") ? null : rule.value;

// Sending, and taking parts of the answer.

async function send(act) {
  const mine = ++turn;
  clearTimeout(pause);
  const verb = act.split(" ")[0];
  const body = new URLSearchParams(new FormData(form));
  body.set("act", act);
  const text = rule.value;
  let answer;
  try {
    answer = await fetch(form.action, { method: "POST", body, cache: "no-store" });
  } catch {
    say("The node is away; the text is still here. It is checked again after the next change.");
    return;
  }
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (!page.querySelector("[data-bench]")) {
    say("The session is over: sign in on another page, then check again.");
    return;
  }
  if (verb === "check" && mine !== turn) return;
  if (verb === "preview" && answer.ok) previewed = text;
  take(page, ["check", ...(TAKES[verb] ?? [])]);
  marked();
  stale();
  if (verb === "preview" || verb === "look") poll();
  if (verb === "try" || verb === "why") {
    const told = document.getElementById("b-told");
    document.getElementById("b-bench").classList.toggle("told", told.hasAttribute("data-told"));
    if (matchMedia("(max-width: 640px)").matches) told.scrollIntoView({ block: "nearest" });
  }
}

function take(page, parts) {
  for (const old of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(old.id);
    if (!fresh || !parts.includes(old.dataset.live) || fresh.isEqualNode(old)) continue;
    const had = old.contains(document.activeElement);
    old.replaceWith(document.adoptNode(fresh));
    if (!had) continue;
    if (!fresh.matches("summary, [tabindex]")) fresh.tabIndex = -1;
    fresh.focus();
  }
}

function say(what) {
  const count = document.getElementById("b-count");
  count.textContent = what;
}

async function poll() {
  const running = document.querySelector("[data-job]");
  if (!running) return;
  await new Promise((wake) => setTimeout(wake, POLL_MS));
  const id = running.dataset.job;
  if (document.querySelector("[data-job]")?.dataset.job !== id) return;
  try {
    const answer = await fetch(`${form.action}.json?job=${encodeURIComponent(id)}`, { cache: "no-store" });
    const job = await answer.json();
    if (job.is_over !== false) {
      await send("look");
      return;
    }
    const at = job.progress;
    const number = new Intl.NumberFormat("en");
    const line = document.querySelector("[data-progress]");
    if (at && line) line.textContent = `${number.format(at.files)} of ${number.format(at.files_all)} files, ${number.format(at.events)} events read, ${number.format(at.found)} found so far.`;
  } catch {
    // The node is away; the next round asks again.
  }
  poll();
}

// Marks of the check, in the margin and in the lines.

function marked() {
  const marks = [...document.querySelectorAll("#b-marks [data-severity]")].map((one) => ({
    line: Number(one.dataset.line),
    severity: one.dataset.severity,
    what: one.querySelector("[data-what]").textContent,
  }));
  editors.find((one) => one.area === rule)?.mark(marks);
}

function stale() {
  const preview = document.getElementById("b-preview");
  preview.classList.toggle("stale", Boolean(preview.querySelector(".facts")) && rule.value !== previewed);
}

form.addEventListener("input", (event) => {
  if (!event.target.matches("[data-editor]")) return;
  stale();
  clearTimeout(pause);
  pause = setTimeout(() => send("check"), PAUSE_MS);
});

form.addEventListener("submit", (event) => {
  const act = event.submitter?.name === "act" ? event.submitter.value : "";
  if (act === "check" || act.split(" ")[0] in TAKES) {
    event.preventDefault();
    send(act);
  } else leaves = true;
});

form.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-line]");
  if (!link) return;
  event.preventDefault();
  editors.find((one) => one.area === rule)?.goTo(Number(link.dataset.line));
});

form.addEventListener("keydown", (event) => {
  if (event.key !== "s" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  form.querySelector("[data-save]").click();
});

addEventListener("beforeunload", (event) => {
  if (!leaves && written() !== kept) event.preventDefault();
});

// Tabs are links to parts; which one is shown, the style sheet knows.

function tabs() {
  const links = [...form.querySelectorAll(".under a")];
  const now = links.find((one) => one.hash === location.hash) ?? links[0];
  for (const one of links) one.toggleAttribute("aria-current", false);
  now.setAttribute("aria-current", "true");
}

addEventListener("hashchange", tabs);
tabs();
marked();
poll();
