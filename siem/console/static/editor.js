// A text field for YAML: line numbers, colours, marks at lines, and words on Ctrl+Space.
// The field stays what it is – a text area under a layer that is only seen.

const LONGEST = 200000;
const SHOWN = 40;
const TAIL = /[\w.@%-]*$/;
const KINDS = ["must match", "near miss", "ordinary"];
const CASE = ["name", "kind", "events", "collector", "records", "frames", "expect", "logsource", "until"];

export function element(name, attributes = {}, text = "") {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function colours(line) {
  const comment = line.match(/(?:^|\s)#.*$/);
  const code = comment ? line.slice(0, comment.index) : line;
  const key = code.match(/^(\s*(?:- )?)([\w.|%@-]+:)(\s.*)?$/);
  const made = [];
  if (key) {
    const value = (key[3] ?? "").trim();
    const kind = /^-?\d+(\.\d+)?$/.test(value) ? "y-n" : /^['"]/.test(value) ? "y-s" : "";
    made.push(["", key[1]], ["y-k", key[2]], [kind, key[3] ?? ""]);
  } else made.push(["", code]);
  if (comment) made.push(["y-c", line.slice(comment.index)]);
  return made.filter(([, text]) => text);
}

export class Editor {
  constructor(area, words) {
    this.area = area;
    this.words = words;
    this.marks = new Map();
    this.box = area.parentElement;
    this.layer = element("div", { class: "layer", "aria-hidden": "true" });
    this.list = element("ol");
    this.layer.append(this.list);
    this.said = element("span", { class: "sr", role: "status" });
    this.options = element("ul", { class: "words", role: "listbox", id: `words-${area.id}`, "aria-label": "Words that fit here" });
    this.options.hidden = true;
    this.box.append(this.layer, this.said, this.options);
    this.place = area.closest("section")?.querySelector("[data-place]");
    const hint = area.closest("section")?.querySelector("[data-keys]");
    if (hint) hint.hidden = false;
    area.setAttribute("aria-autocomplete", "list");
    area.setAttribute("aria-haspopup", "listbox");
    area.addEventListener("input", () => this.typed());
    area.addEventListener("scroll", () => this.scrolled());
    area.addEventListener("keydown", (event) => this.key(event));
    area.addEventListener("blur", () => this.close());
    document.addEventListener("selectionchange", () => this.moved());
    this.options.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      const at = [...this.options.children].indexOf(event.target.closest("li"));
      if (at >= 0) this.accept(at);
    });
    new ResizeObserver(() => this.scrolled()).observe(area);
    this.draw();
  }

  // Lines

  draw() {
    const text = this.area.value;
    const small = text.length <= LONGEST;
    this.box.classList.toggle("live", small);
    if (!small) {
      this.list.replaceChildren();
      return;
    }
    const lines = text.split("\n");
    while (this.list.children.length > lines.length) this.list.lastChild.remove();
    lines.forEach((line, number) => {
      const item = this.list.children[number] ?? this.list.appendChild(element("li"));
      const mark = this.marks.get(number + 1);
      const state = `${mark?.severity ?? ""}\0${mark?.what ?? ""}\0${line}`;
      if (item.state === state) return;
      item.state = state;
      item.classList.toggle("err", mark?.severity === "error");
      item.classList.toggle("hint", Boolean(mark) && mark.severity !== "error");
      const shown = element("span");
      for (const [kind, part] of colours(line)) shown.append(kind ? element("span", { class: kind }, part) : part);
      item.replaceChildren(shown, ...(mark ? [element("span", { class: "msg" }, mark.what)] : []));
    });
    this.scrolled();
  }

  mark(marks) {
    this.marks = new Map();
    for (const line of new Set(marks.map((one) => one.line))) {
      const here = marks.filter((one) => one.line === line);
      const worst = here.find((one) => one.severity === "error") ?? here[0];
      const more = here.length > 1 ? `; ${here.length - 1} more` : "";
      this.marks.set(line, { severity: worst.severity, what: worst.what + more });
    }
    this.draw();
  }

  goTo(number) {
    const before = this.area.value.split("\n").slice(0, number - 1).join("\n");
    const at = number > 1 ? before.length + 1 : 0;
    this.area.focus();
    this.area.setSelectionRange(at, at);
    this.area.scrollTop = Math.max(0, (number - 4) * this.height());
  }

  height() {
    return parseFloat(getComputedStyle(this.area).lineHeight);
  }

  scrolled() {
    this.layer.scrollTop = this.area.scrollTop;
    this.layer.scrollLeft = this.area.scrollLeft;
  }

  caret() {
    const before = this.area.value.slice(0, this.area.selectionEnd).split("\n");
    return { line: before.length, column: before.at(-1).length + 1 };
  }

  moved() {
    if (document.activeElement !== this.area) return;
    const { line, column } = this.caret();
    if (this.place) this.place.textContent = `Line ${line}, column ${column}`;
    this.list.querySelector(".cur")?.classList.remove("cur");
    this.list.children[line - 1]?.classList.add("cur");
  }

  typed() {
    this.draw();
    this.moved();
    if (!this.options.hidden) this.offer();
  }

  put(start, end, text) {
    this.area.setSelectionRange(start, end);
    // Keeps the history of the field, so that Ctrl+Z works.
    if (!document.execCommand("insertText", false, text)) {
      this.area.setRangeText(text, start, end, "end");
      this.area.dispatchEvent(new Event("input", { bubbles: true }));
    }
  }

  // Keys

  key(event) {
    if (event.ctrlKey && event.key === " ") {
      event.preventDefault();
      this.offer();
      return;
    }
    if (!this.options.hidden) {
      const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 7, PageUp: -7 }[event.key];
      if (step) this.select(this.at + step);
      else if (event.key === "Enter" || event.key === "Tab") this.accept(this.at);
      else if (event.key === "Escape") this.close();
      else {
        if (event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End") this.close();
        return;
      }
      event.preventDefault();
      return;
    }
    if (event.key === "Enter" && !event.ctrlKey && !event.metaKey && !event.altKey) {
      const { selectionStart: start, selectionEnd: end, value } = this.area;
      const line = value.slice(value.lastIndexOf("\n", start - 1) + 1, start);
      event.preventDefault();
      this.put(start, end, `\n${line.match(/^\s*/)[0]}${/:\s*$/.test(line) ? "  " : ""}`);
    }
  }

  // Words

  offer() {
    const at = this.area.selectionEnd;
    const before = this.area.value.slice(0, at);
    const typed = before.match(TAIL)[0];
    const low = typed.toLowerCase();
    const all = this.fitting(before.slice(0, at - typed.length));
    const found = all.filter((one) => one.toLowerCase().startsWith(low));
    found.push(...all.filter((one) => !found.includes(one) && one.toLowerCase().includes(low)));
    this.found = found.slice(0, SHOWN);
    if (!this.found.length) {
      this.close();
      this.said.textContent = "No word fits here";
      return;
    }
    this.from = at - typed.length;
    this.options.replaceChildren(
      ...this.found.map((one, number) => element("li", { role: "option", id: `${this.options.id}-${number}`, "aria-selected": "false" }, one)),
    );
    this.options.hidden = false;
    this.area.setAttribute("aria-controls", this.options.id);
    this.said.textContent = this.found.length === 1 ? "1 word" : `${this.found.length} words`;
    this.beside();
    this.select(0);
  }

  beside() {
    const style = getComputedStyle(this.area);
    const pen = document.createElement("canvas").getContext("2d");
    pen.font = style.font;
    const { line, column } = this.caret();
    const left = parseFloat(style.paddingLeft) + (column - 1) * pen.measureText("0").width - this.area.scrollLeft;
    const top = parseFloat(style.paddingTop) + line * this.height() - this.area.scrollTop;
    const { offsetWidth: width, offsetHeight: height } = this.options;
    const above = top + height > this.box.clientHeight && top - height > this.height();
    this.options.style.left = `${Math.max(0, Math.min(left, this.box.clientWidth - width - 4))}px`;
    this.options.style.top = `${above ? top - height - this.height() : top}px`;
  }

  select(at) {
    this.at = Math.max(0, Math.min(this.found.length - 1, at));
    [...this.options.children].forEach((one, number) => one.setAttribute("aria-selected", String(number === this.at)));
    const chosen = this.options.children[this.at];
    chosen.scrollIntoView({ block: "nearest" });
    this.area.setAttribute("aria-activedescendant", chosen.id);
  }

  accept(at) {
    const word = this.found[at];
    const from = this.from;
    const isKey = this.isKey && !this.area.value.slice(this.area.selectionEnd).startsWith(":");
    this.close();
    this.put(from, this.area.selectionEnd, word + (isKey ? ": " : ""));
    this.area.focus();
  }

  close() {
    if (this.options.hidden) return;
    this.options.hidden = true;
    this.area.removeAttribute("aria-activedescendant");
    this.area.removeAttribute("aria-controls");
    this.said.textContent = "";
  }

  // What fits behind a text: by the key it stands behind, or the keys it stands in.
  fitting(before) {
    const lines = before.split("\n");
    const line = lines.pop();
    const parents = inside(lines, line);
    this.isKey = false;
    const said = line.split(/[{,]/).pop();
    const isFlow = said.length < line.length;
    const behind = said.match(/^\s*(?:- )?["']?([\w.-]+)["']?:\s/);
    const owner = isFlow ? line.match(/([\w.-]+):\s*\{[^}]*$/)?.[1] : parents.at(-1);
    if (said.endsWith("|")) return this.words.modifiers;
    if (behind?.[1] === "condition" || (!behind && parents.includes("condition"))) {
      return [...this.words.condition, ...this.selections()];
    }
    if (this.area.dataset.editor === "samples") {
      if (behind) return behind[1] === "kind" ? KINDS : [];
      this.isKey = true;
      return isFlow || parents.includes("events") || parents.includes("fields") ? this.words.fields : CASE;
    }
    if (behind) return this.words.values[behind[1]] ?? [];
    const inner = this.words.inside[owner];
    const isIn = ["detection", "filter"].includes(parents[0]);
    if (inner && (parents.length === 1 || owner !== "detection")) {
      this.isKey = true;
      return inner;
    }
    if (isIn || isFlow) return this.words.fields;
    this.isKey = !parents.length;
    return parents.length ? [] : this.words.keys;
  }

  selections() {
    const found = [];
    let isIn = false;
    for (const line of this.area.value.split("\n")) {
      if (/^\S/.test(line)) isIn = /^(detection|filter):/.test(line);
      const name = isIn && line.match(/^ {1,4}([\w-]+):/)?.[1];
      if (name && !["condition", "timeframe", "rules"].includes(name)) found.push(name);
    }
    return found;
  }
}

// Keys in which a line stands, outermost first.
function inside(lines, line) {
  let indent = line.match(/^\s*/)[0].length;
  const found = [];
  for (let number = lines.length - 1; number >= 0 && indent > 0; number--) {
    const key = lines[number].match(/^(\s*(?:- )?)([\w.|%@-]+):/);
    if (!key || key[1].length >= indent) continue;
    indent = key[1].length;
    found.unshift(key[2]);
  }
  return found;
}
