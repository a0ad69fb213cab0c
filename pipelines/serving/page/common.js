// What all pages share. Everything shown is text, so nothing that is shown can act on a page.

export const byId = (id) => document.getElementById(id);

export function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// The headers that the key of the page's form asks for.
export function keyed() {
  const key = byId("key").value;
  return key ? { Authorization: `Bearer ${key}` } : {};
}

export async function call(path, body) {
  const options = body ? { method: "POST", headers: { ...keyed(), "Content-Type": "application/json" }, body: JSON.stringify(body) } : { headers: keyed() };
  const start = performance.now();
  const response = await fetch(path, options);
  const text = await response.text();
  const milliseconds = performance.now() - start;
  const content = JSON.parse(text);
  if (!response.ok) throw new Error(content.error);
  return { content, milliseconds };
}

export function tell(text, problem = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("problem", problem);
}

export const MESSAGES = [["prototype", "Prototype"], ["basis", "Prototype and coefficients"], ["full", "Whole edit"]];

export function showCosts(edits) {
  byId("costs").hidden = false;
  byId("costs").tBodies[0].replaceChildren(...edits.map(({ content, milliseconds }, index) => {
    const row = element("tr");
    const bytes = content.bytes === 1 ? "1 byte" : `${content.bytes.toLocaleString("en")} bytes`;
    row.append(element("th", MESSAGES[index][1], { scope: "row" }), element("td", bytes, { class: "number" }), element("td", `${milliseconds.toFixed(1)} ms`, { class: "number" }));
    return row;
  }));
}

export function showVersions({ model, bank }) {
  byId("versions").textContent = `Model ${model.name}, version ${model.version}${bank ? `, prototypes ${bank.slice(0, 8)}` : ""}.`;
}
