// Selection, and dialogs instead of pages.
const form = document.getElementById("bulk");
const single = document.getElementById("single");
const boxes = () => [...(form?.querySelectorAll("[data-row] input[type=checkbox]") ?? [])];

export const chosen = () => boxes().filter((box) => box.checked).length;

function said(count) {
  return count === 1 ? "1 selected" : `${count} selected`;
}

function count() {
  const label = document.querySelector("[data-selected]");
  if (label) label.textContent = said(chosen());
  for (const box of boxes()) {
    const row = box.closest("tr");
    row.classList.toggle("picked", box.checked);
    if (!row.classList.contains("on")) row.toggleAttribute("aria-selected", false);
    if (box.checked) row.setAttribute("aria-selected", "true");
  }
}

// Which form an act is for: the selection, or else the finding that is open.
export function target() {
  const whole = form?.querySelector("[name=whole]")?.checked;
  if (form && (chosen() || whole)) return form;
  return single ?? form;
}

export function act(name, of = target()) {
  if (!of) return;
  const dialog = document.getElementById(`ask-${name}`);
  if (dialog) {
    for (const field of dialog.querySelectorAll("[name]")) {
      field.setAttribute("form", of.getAttribute("id")); // of.id would be the input of that name
      field.disabled = false;
    }
    const title = dialog.querySelector("[data-title]");
    const number = of === form ? chosen() : 1;
    const whole = of === form && form.querySelector("[name=whole]")?.checked;
    const what = whole ? "the whole query" : number === 1 ? "1 selected" : `${number} selected`;
    title.textContent = `${title.dataset.title}: ${what}`;
    dialog.showModal();
    dialog.querySelector("input:not([type=hidden])").focus();
    return;
  }
  of.requestSubmit(of.querySelector(`button[name=act][value=${name}]`));
}

function dialogs() {
  for (const dialog of document.querySelectorAll("dialog.dialog")) {
    dialog.addEventListener("click", (event) => {
      if (event.target.closest("[data-close]")) dialog.close();
    });
    dialog.addEventListener("close", () => {
      for (const field of dialog.querySelectorAll("[name=comment]")) field.disabled = true;
    });
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[name=act]");
    if (!button || button.hasAttribute("data-plain") || button.closest("dialog") || !document.getElementById(`ask-${button.value}`)) return;
    event.preventDefault();
    act(button.value, button.form);
  });
}

export function lists() {
  const all = document.querySelector("[data-all]");
  all?.addEventListener("change", () => {
    for (const box of boxes()) box.checked = all.checked;
    count();
  });
  form?.addEventListener("change", count);
  if (form) count();
  dialogs();
}
