// What a script adds to the rule workbench. The form works whole without it: a script sends it
// sooner, and takes of the answer, which is the same page, the parts that are marked as live.
import { Editor, element } from "./editor.js";

const PAUSE_MS = 600;
const POLL_MS = 1000;
const TAKES = { try: ["try", "told"], preview: ["preview"], look: ["preview"], cancel: ["preview"], why: ["told"], save: ["save"], prove: [], note: ["note"] };
const UNDONE = { check: "It is not checked", save: "The draft is not kept", note: "The note is not kept" };
const REFUSED = { 403: "you may not do it any more", 413: "it is longer than the node takes" };

const form = document.querySelector("[data-bench]");
const words = JSON.parse(form.dataset.words);
const editors = [...form.querySelectorAll("[data-editor]")].map((area) => new Editor(area, words));
const rule = document.getElementById("text");
const note = document.getElementById("note");
const written = () => editors.map((one) => one.area.value).join("\0");
let kept = document.querySelector("#b-notes > .bad") ? "" : written();
const unkept = { save: () => written() !== kept, note: () => note.value.trim() !== "" };
const keeping = new Map();
let leaves = false;
let turn = 0;
let pause = 0;
let previewed = document.querySelector("#b-preview.stale") ? null : rule.value;

// Sending, and taking parts of the answer.

async function read(address, sent = {}) {
  try {
    const answer = await fetch(address, { ...sent, cache: "no-store" });
    return { answer, page: new DOMParser().parseFromString(await answer.text(), "text/html") };
  } catch {
    return {}; // The node is away.
  }
}

async function post(act) {
  const body = new URLSearchParams(new FormData(form));
  body.set("act", act);
  if (act !== "note") body.delete("note"); // Somebody may still be writing it.
  const first = await read(form.action, { method: "POST", body });
  if (first.answer?.status !== 403 || isBench(first.page) || !(await renewed(body.get("csrf")))) return first;
  body.set("csrf", form.elements.csrf.value);
  return read(form.action, { method: "POST", body });
}

// Whoever signed in again on another page has another token than this page came with.
async function renewed(old) {
  const { page } = await read(form.action);
  const token = page?.querySelector('[name="csrf"]')?.value ?? "";
  if (!token || token === old) return false;
  for (const one of document.querySelectorAll('[name="csrf"]')) one.value = token;
  return true;
}

function isBench(page) {
  return Boolean(page?.querySelector("[data-bench]"));
}

async function send(act) {
  const mine = ++turn;
  clearTimeout(pause);
  const verb = act.split(" ")[0];
  const text = rule.value;
  const all = written();
  const noted = note.value;
  const { answer, page } = await post(act);
  if (verb === "check" && mine !== turn) return false;
  if (!isBench(page)) {
    failed(verb, answer);
    return false;
  }
  if (verb === "save" && answer.ok) {
    kept = all;
    if (hereafter(answer.url)) return false;
  }
  if (verb === "note" && answer.ok && note.value === noted) note.value = "";
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
  return answer.ok;
}

// A draft or a note is sent once at a time; if it is asked for again meanwhile, what was typed since
// goes after it, unless somebody else was faster.
async function keep(verb) {
  const again = keeping.has(verb);
  keeping.set(verb, again);
  if (again) return;
  const went = await send(verb);
  const more = keeping.get(verb);
  keeping.delete(verb);
  if (went && more && unkept[verb]()) keep(verb);
}

// A draft has an address of its own; the text may name another document than it did.
function hereafter(address) {
  const { pathname } = new URL(address);
  const moves = pathname !== new URL(form.action).pathname;
  if (moves) location.assign(address);
  else history.replaceState(null, "", pathname + location.hash);
  return moves;
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

// What was to be kept and is not is said where it is said that it is kept.
function failed(verb, answer) {
  const what = `${UNDONE[verb] ?? "It is not done"}: ${reason(answer)}. The text is still here.`;
  if (verb in unkept) document.getElementById("b-notes").replaceChildren(element("div", { class: "note bad", role: "alert" }, what));
  else document.getElementById("b-count").textContent = what;
}

function reason(answer) {
  if (!answer) return "the node is away";
  if (answer.ok) return "the session is over, so sign in on another page and do it again";
  if (answer.status >= 500) return "the node failed, and its log says why";
  return REFUSED[answer.status] ?? `the node answers ${answer.status}`;
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
    if (act in unkept) keep(act);
    else send(act);
  } else leaves = true;
});

form.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-line]");
  if (!link) return;
  event.preventDefault();
  editors.find((one) => one.area === rule)?.goTo(Number(link.dataset.line));
});

form.addEventListener("keydown", (event) => {
  if (event.key === "s" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    form.querySelector("[data-save]").click();
  } else if (event.key === "Enter" && event.target.matches("input") && !event.isComposing) {
    // By itself it would press the first button of the form.
    event.preventDefault();
    const act = event.target.dataset.enter;
    if (act) form.requestSubmit(form.querySelector(`button[value="${act}"]`));
  }
});

addEventListener("beforeunload", (event) => {
  if (!leaves && (unkept.note() || unkept.save())) event.preventDefault();
  leaves = false; // Whoever is asked may stay.
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
