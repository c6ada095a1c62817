// How many rows are new: asked every 10 s, answered without a body as long as nothing changed.
export function fresh() {
  const counter = document.querySelector("[data-fresh]");
  if (!counter) return;
  let tag = "";
  setInterval(async () => {
    if (document.hidden) return;
    try {
      const headers = tag ? { "if-none-match": tag } : {};
      const answer = await fetch(counter.dataset.fresh, { headers, cache: "no-store" });
      if (answer.status !== 200) return;
      tag = answer.headers.get("etag") ?? "";
      const more = (await answer.json()).total - Number(counter.dataset.total);
      if (!(more > 0)) return;
      const link = document.createElement("a");
      link.href = location.href;
      link.textContent = "reload";
      counter.replaceChildren(`${more} new since ${counter.dataset.at} – `, link);
      counter.hidden = false;
    } catch {
      // The node is away; the next round asks again.
    }
  }, 10000);
}
