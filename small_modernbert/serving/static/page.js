"use strict";
const form = document.getElementById("form");
const field = document.getElementById("question");
const status = document.getElementById("status");
const ways = document.getElementById("ways");
const SHOWN = 600; // characters of a passage
let newest = 0;

// Passages are somebody's text: they are set as text, never as markup.
function element(name, text, className) {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function show(answer) {
  const names = Object.keys(answer.ways);
  const finders = new Map();
  for (const name of names) {
    for (const hit of answer.ways[name]) finders.set(hit.row, (finders.get(hit.row) || 0) + 1);
  }
  ways.replaceChildren(...names.map((name) => {
    const section = document.createElement("section");
    const list = document.createElement("ol");
    for (const hit of answer.ways[name]) {
      const item = document.createElement("li");
      item.append(element("span", hit.score.toFixed(3) + "  ", "score"));
      item.append(hit.text.length > SHOWN ? hit.text.slice(0, SHOWN) + " …" : hit.text);
      if (finders.get(hit.row) === 1 && names.length > 1) {
        item.append(element("div", "found in this way alone", "also"));
      }
      list.append(item);
    }
    section.append(element("h2", name), list);
    return section;
  }));
}

async function ask(question) {
  const turn = ++newest;
  status.textContent = "searching …";
  const begun = performance.now();
  try {
    const response = await fetch("/api/search?" + new URLSearchParams({ q: question }));
    const answer = await response.json();
    if (turn !== newest) return;
    if (!response.ok) throw new Error(answer.error);
    show(answer);
    status.textContent = `${Math.round(performance.now() - begun)} ms`;
    document.title = `${question} · search`;
  } catch (error) {
    if (turn !== newest) return;
    ways.replaceChildren();
    status.textContent = error.message;
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  history.replaceState(null, "", "/?" + new URLSearchParams({ q: field.value }));
  ask(field.value);
});

fetch("/api/about").then((response) => response.json()).then((about) => {
  if (newest === 0) {
    status.textContent = `${about.passages.toLocaleString("en")} passages` +
      (about.no_bm25 ? `; without BM25: ${about.no_bm25}` : "");
  }
});
const given = new URLSearchParams(location.search).get("q");
if (given) {
  field.value = given;
  ask(given);
}
