// One history, asked at three levels.

import { MESSAGES, byId, call, element, showCosts, showVersions, tell } from "./common.js";

const LEVELS = [
  ["host", "Host", "the same model for everybody"],
  ["prototype", "Prototype", "the nearest of a few ready-made edits"],
  ["edit", "Personalised", "this history's own edit"],
];

let history = [];
let known = new Map();
let asked = 0;

function showHistory(focus) {
  const list = byId("history");
  list.replaceChildren(...history.map((item, index) => {
    const entry = element("li");
    const button = element("button", item.title ?? item.id, { type: "button", "aria-label": `${item.title ?? item.id}, remove` });
    const remove = () => { history.splice(index, 1); showHistory(index); ask(); };
    button.addEventListener("click", remove);
    button.addEventListener("keydown", (event) => { if (event.key === "Delete" || event.key === "Backspace") remove(); });
    entry.append(button);
    return entry;
  }));
  if (focus !== undefined) (list.querySelectorAll("button")[Math.min(focus, history.length - 1)] ?? byId("item")).focus();
}

function showAnswers(answers) {
  const places = new Map(answers[0].content.items.map((item, place) => [item.id, place]));
  byId("answers").replaceChildren(...answers.map(({ content, milliseconds }, column) => {
    const [, name, meaning] = LEVELS[column];
    const article = element("article", "", { "data-level": LEVELS[column][0] });
    article.append(element("h3", name), element("p", meaning, { class: "facts" }));
    const list = element("ol");
    content.items.forEach((item, place) => {
      const line = element("li", item.title ?? item.id);
      const before = places.get(item.id);
      const move = column === 0 || before === place ? "" : before === undefined ? "new" : before > place ? `up ${before - place}` : `down ${place - before}`;
      if (move) line.append(" ", element("span", move, { class: "moved" }));
      list.append(line);
    });
    const bytes = new TextEncoder().encode(JSON.stringify(content)).length;
    const facts = [`${milliseconds.toFixed(1)} ms`, `${bytes} bytes`];
    if (content.fallback) facts.push(`answered by the ${content.level}: ${content.fallback}`);
    article.append(list, element("p", facts.join(" · "), { class: "facts" }));
    return article;
  }));
}

function showWhy(edit) {
  const { prototype, distances } = edit;
  byId("distances").hidden = distances.length === 0;
  if (prototype === null || distances.length === 0) {
    byId("why").textContent = edit.fallback ? `No prototype: ${edit.fallback}.` : "There is no prototype.";
    return;
  }
  const order = distances.map((distance, index) => ({ distance, index })).sort((a, b) => a.distance - b.distance || a.index - b.index);
  const margin = order.length > 1 ? `, ${(order[1].distance - order[0].distance).toFixed(3)} closer than prototype ${order[1].index}` : "";
  byId("why").textContent = `Prototype ${prototype}: its remaining edit is the smallest, ${distances[prototype].toFixed(3)}${margin}.`;
  const largest = Math.max(...distances);
  byId("distances").tBodies[0].replaceChildren(...order.map(({ distance, index }) => {
    const row = element("tr", "", index === prototype ? { "aria-current": "true" } : {});
    const bar = element("td");
    const width = largest > 0 ? (8 * distance) / largest : 0;
    bar.append(element("span", "", { class: "bar", style: `width:${width.toFixed(2)}rem`, role: "presentation" }));
    row.append(element("th", index === prototype ? `${index} (chosen)` : `${index}`, { scope: "row" }), element("td", distance.toFixed(3), { class: "number" }), bar);
    return row;
  }));
}

async function ask() {
  const turn = ++asked;
  const ids = history.map((item) => item.id);
  try {
    const answers = [];
    for (const [level] of LEVELS) answers.push(await call("/v1/recommendations", { history: ids, level, k: 10 }));
    const edits = [];
    for (const [level] of MESSAGES) edits.push(await call("/v1/edits", { history: ids, level }));
    if (turn !== asked) return;  // the history has changed meanwhile
    showAnswers(answers);
    showWhy(edits[1].content);
    showCosts(edits);
    showVersions(answers[0].content);
    const changed = answers[2].content.items.filter((item) => !answers[0].content.items.some((other) => other.id === item.id)).length;
    tell(`${history.length} in the history. The edit brings ${changed} of ${answers[2].content.items.length} that the host does not have.`);
  } catch (error) {
    if (turn === asked) tell(`No answer: ${error.message}`, true);
  }
}

async function search() {
  try {
    const { content } = await call(`/v1/items?query=${encodeURIComponent(byId("item").value)}`);
    known = new Map(content.items.flatMap((item) => [[item.title ?? item.id, item], [item.id, item]]));
    byId("found").replaceChildren(...content.items.map((item) => element("option", "", { value: item.title ?? item.id })));
  } catch (error) {
    tell(`The catalogue cannot be searched: ${error.message}`, true);
  }
}

async function start() {
  byId("item").addEventListener("input", search);
  byId("add").addEventListener("submit", async (event) => {
    event.preventDefault();
    const typed = byId("item").value.trim();
    if (!known.has(typed)) await search();
    const item = known.get(typed) ?? known.values().next().value ?? { id: typed, title: null };
    history.push(item);
    byId("item").value = "";
    showHistory();
    ask();
  });
  byId("clear").addEventListener("click", () => { history = []; showHistory(); ask(); byId("item").focus(); });
  byId("keys").addEventListener("submit", (event) => { event.preventDefault(); examples(); ask(); });
  await examples();
}

async function examples() {
  try {
    const { content } = await call("/v1/examples");
    byId("examples").replaceChildren(...content.histories.map((items, index) => {
      const button = element("button", `Example ${index + 1}`, { type: "button", title: items.map((item) => item.title ?? item.id).join(", ") });
      button.addEventListener("click", () => { history = [...items]; showHistory(); ask(); });
      return button;
    }));
  } catch (error) {
    tell(`No examples: ${error.message}`, true);
  }
}

start();
