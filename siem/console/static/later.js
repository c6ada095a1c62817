// What a page says is still being counted is fetched again until it is there, and put in its place.
const PAUSE_MS = 1500;
const PAUSE_MAX_MS = 15000;

async function again(pause) {
  await new Promise((wake) => setTimeout(wake, pause));
  let page = document;
  try {
    const answer = await fetch(location.href, { cache: "no-store" });
    if (answer.ok) page = new DOMParser().parseFromString(await answer.text(), "text/html");
  } catch {
    // The node is away; the next round asks again.
  }
  const rows = rowsOf(page);
  for (const row of document.querySelectorAll("[data-row]")) {
    put(row.querySelector("[data-later]"), rows.get(row.dataset.key)?.querySelector("[data-later]"));
  }
  const status = document.querySelector("[data-counting]");
  put(status, page.getElementById(status.id));
  if (document.querySelector("[data-counting]")) again(Math.min(pause * 1.5, PAUSE_MAX_MS));
}

function rowsOf(page) {
  return new Map([...page.querySelectorAll("[data-row]")].map((row) => [row.dataset.key, row]));
}

function put(old, fresh) {
  if (old && fresh && !fresh.isEqualNode(old)) old.replaceWith(document.adoptNode(fresh));
}

again(PAUSE_MS);
