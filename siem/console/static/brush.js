// Mark a range in a histogram with the pointer; the view goes there.
const SVG = "http://www.w3.org/2000/svg";

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function go(since, until) {
  const to = new URL(location.href);
  for (const name of ["offset", "open", "id", "g", "done"]) to.searchParams.delete(name);
  to.searchParams.set("from", new Date(since).toISOString());
  to.searchParams.set("to", new Date(until).toISOString());
  location.assign(to);
}

export function brush() {
  for (const plot of document.querySelectorAll("[data-brush]")) {
    const chart = plot.querySelector("svg:last-of-type");
    const since = Date.parse(plot.dataset.since);
    const until = Date.parse(plot.dataset.until);
    const height = Number(chart.getAttribute("height")) - 18;
    let start = null;
    let marked = null;
    plot.classList.add("live");
    const place = (event) => {
      const box = chart.getBoundingClientRect();
      return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    };
    const clear = () => {
      marked?.remove();
      marked = null;
      start = null;
    };
    plot.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      start = place(event);
      plot.setPointerCapture(event.pointerId);
    });
    plot.addEventListener("pointermove", (event) => {
      if (start === null) return;
      const [left, right] = [start, place(event)].sort((a, b) => a - b);
      marked?.remove();
      marked = shape("g", {});
      marked.append(
        shape("rect", { class: "brush", x: `${100 * left}%`, width: `${100 * (right - left)}%`, y: 4, height }),
        shape("line", { class: "brush-edge", x1: `${100 * left}%`, x2: `${100 * left}%`, y1: 4, y2: height + 4 }),
        shape("line", { class: "brush-edge", x1: `${100 * right}%`, x2: `${100 * right}%`, y1: 4, y2: height + 4 }),
      );
      chart.append(marked);
    });
    plot.addEventListener("pointerup", (event) => {
      if (start === null) return;
      const [left, right] = [start, place(event)].sort((a, b) => a - b);
      clear();
      if (right - left > 0.01) go(since + left * (until - since), since + right * (until - since));
    });
    plot.addEventListener("pointercancel", clear);
    plot.addEventListener("keydown", (event) => event.key === "Escape" && clear());
  }
}
