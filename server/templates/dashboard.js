// Follows the stream: each message holds the page's sections, and those that changed are put in the place of the old.
"use strict";
const notice = document.getElementById("notice");
let source, lost = null, again;

const clock = (moment) => moment.toISOString().slice(0, 19).replace("T", " ") + " UTC";

function ago(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} d ago`;
}

function tick() {
  const now = Date.now();
  for (const one of document.querySelectorAll("[data-since]")) {
    one.textContent = ago((now - Date.parse(one.dataset.since)) / 1000);
  }
  const { last, patience } = document.getElementById("top").dataset;
  let said = "";
  if (lost) said = `No connection since ${clock(lost)}: the figures are of then. It is tried again.`;
  else if (patience && last && now - Date.parse(last) > 1000 * Number(patience)) {
    said = `Stale since ${clock(new Date(last))}: no step has ended for ${ago((now - Date.parse(last)) / 1000).slice(0, -4)}.`;
  }
  if (notice.textContent !== said) notice.textContent = said;
  notice.hidden = !said;
}

function exchange(sections) {
  for (const [name, body] of Object.entries(sections)) {
    const old = document.getElementById(name);
    if (old.dataset.body === body) continue;
    const template = document.createElement("template");
    template.innerHTML = body;
    const made = template.content.firstElementChild;
    // What its reader opened and scrolled to stays so.
    const kept = (selector, take) => old.querySelectorAll(selector).forEach((one, at) => {
      const other = made.querySelectorAll(selector)[at];
      if (other) take(one, other);
    });
    kept("details", (one, other) => { other.open = one.open; });
    const places = [];
    kept(".scroll", (one, other) => places.push([other, one.scrollLeft]));
    const word = old.querySelector(".verdict")?.textContent;
    old.replaceWith(made);
    made.dataset.body = body;
    for (const [one, left] of places) one.scrollLeft = left;
    if (name === "top") {
      const verdict = made.querySelector(".verdict").textContent;
      if (verdict !== word) document.getElementById("said").textContent = verdict;
    }
  }
}

function follow() {
  source = new EventSource("stream");
  source.addEventListener("open", () => { lost = null; tick(); });
  source.addEventListener("snapshot", (message) => {
    const { title, sections } = JSON.parse(message.data);
    document.title = title;
    exchange(sections);
    tick();
  });
  source.addEventListener("error", () => {
    lost ??= new Date();
    tick();
    // The browser tries again by itself unless it was refused.
    if (source.readyState === EventSource.CLOSED) { clearTimeout(again); again = setTimeout(follow, 2000); }
  });
}

tick();
setInterval(tick, 1000);
// What the stream says first is on the page already: it is painted before.
addEventListener("load", () => setTimeout(follow));
