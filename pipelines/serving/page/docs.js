// The service's own description, operation by operation, each with a form that asks it.

import { byId, element, keyed } from "./common.js";

const LONGEST = 20000;

// A part of the description that is told elsewhere in it.
function resolve(whole, part) {
  let found = part ?? {};
  while (found.$ref) found = found.$ref.slice(2).split("/").reduce((inner, name) => inner[name], whole);
  return found;
}

function typeOf(whole, given) {
  const schema = resolve(whole, given);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.map((choice) => typeOf(whole, choice)).join(" | ");
  if (schema.type === "array") return `[${typeOf(whole, schema.items)}]`;
  return schema.type ?? "any";
}

function limits(schema) {
  const names = { minimum: "from", maximum: "to", minItems: "at least", maxItems: "at most", maxLength: "at most", pattern: "like" };
  const told = Object.keys(names).filter((name) => schema[name] !== undefined).map((name) => `${names[name]} ${schema[name]}`);
  if (schema.default !== undefined) told.push(`default ${JSON.stringify(schema.default)}`);
  return [schema.description, told.join(", ")].filter(Boolean).join(" ");
}

function table(caption, columns, rows) {
  const made = element("table");
  const head = element("tr");
  head.append(...columns.map((name) => element("th", name, { scope: "col" })));
  const body = element("tbody");
  body.append(...rows.map(([name, ...others]) => {
    const row = element("tr");
    row.append(element("th", name, { scope: "row" }), ...others.map((text) => element("td", text)));
    return row;
  }));
  const header = element("thead");
  header.append(head);
  made.append(element("caption", caption), header, body);
  return made;
}

function fields(whole, caption, given) {
  const schema = resolve(whole, given);
  const required = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties ?? {}).map(([name, part]) => [
    required.has(name) ? name : `${name} (optional)`, typeOf(whole, part), limits({ ...resolve(whole, part), ...part }),
  ]);
  return rows.length ? [table(caption, ["Field", "Type", "Meaning"], rows)] : [];
}

function description(whole, operation) {
  const parts = [];
  if (operation.description) parts.push(element("p", operation.description));
  const parameters = (operation.parameters ?? []).map((one) => [
    one.required ? one.name : `${one.name} (optional)`, `${one.in}: ${typeOf(whole, one.schema)}`, limits({ ...one.schema, ...one }),
  ]);
  if (parameters.length) parts.push(table("Parameters", ["Name", "Where", "Meaning"], parameters));
  const body = operation.requestBody?.content?.["application/json"]?.schema;
  if (body) parts.push(...fields(whole, "Body", body));
  const answer = operation.responses?.["200"]?.content?.["application/json"]?.schema;
  if (answer) parts.push(...fields(whole, "Answer", answer));
  const statuses = Object.entries(operation.responses ?? {}).filter(([status]) => status !== "200");
  parts.push(table("Refusals", ["Status", "When"], statuses.map(([status, one]) => [status, one.description ?? ""])));
  return parts;
}

function form(path, method, operation) {
  const made = element("form");
  const inputs = (operation.parameters ?? []).filter((one) => one.in !== "header").map((one) => {
    const label = element("label", `${one.name} `);
    const input = element("input", "", { name: one.name, ...(one.required ? { required: "" } : {}) });
    label.append(input);
    made.append(label, " ");
    return { where: one.in, input };
  });
  const content = operation.requestBody?.content?.["application/json"];
  let text;
  if (content) {
    const examples = Object.entries(content.examples ?? {});
    text = element("textarea", "", { "aria-label": `Body of ${path}`, rows: "5", spellcheck: "false" });
    text.value = JSON.stringify(examples[0]?.[1].value ?? {}, null, 1);
    const row = element("p", "", { class: "row" });
    row.append(...examples.map(([name, example]) => {
      const button = element("button", name, { type: "button", class: "quiet" });
      button.addEventListener("click", () => { text.value = JSON.stringify(example.value, null, 1); });
      return button;
    }));
    made.append(row, text);
  }
  const output = element("pre", "", { tabindex: "0", role: "status", "aria-label": `Answer of ${path}`, hidden: "" });
  made.append(element("button", "Ask"), output);
  made.addEventListener("submit", (event) => {
    event.preventDefault();
    ask(path, method, inputs, text?.value, output);
  });
  return made;
}

async function ask(path, method, inputs, body, output) {
  let address = path;
  const query = new URLSearchParams();
  for (const { where, input } of inputs) {
    if (where === "path") address = address.replace(`{${input.name}}`, encodeURIComponent(input.value));
    else if (input.value) query.set(input.name, input.value);
  }
  const headers = { ...keyed(), ...(body === undefined ? {} : { "Content-Type": "application/json" }) };
  output.hidden = false;
  output.textContent = "…";
  try {
    const start = performance.now();
    const response = await fetch(query.size ? `${address}?${query}` : address, { method, headers, body });
    let told = await response.text();
    const milliseconds = performance.now() - start;
    try { told = JSON.stringify(JSON.parse(told), null, 1); } catch { /* plain text */ }
    const cut = told.length > LONGEST ? `${told.slice(0, LONGEST)}\n… ${told.length - LONGEST} more characters` : told;
    output.textContent = `${response.status} in ${milliseconds.toFixed(1)} ms\n${cut}`;
  } catch (error) {
    output.textContent = `No answer: ${error.message}`;
  }
}

async function start() {
  try {
    const whole = await (await fetch("/openapi.json")).json();
    byId("about").prepend(`${whole.info.title} ${whole.info.version}. ${whole.info.summary ?? ""} `);
    for (const [path, methods] of Object.entries(whole.paths)) {
      for (const [method, operation] of Object.entries(methods)) {
        const details = element("details");
        const summary = element("summary");
        summary.append(element("code", `${method.toUpperCase()} ${path}`), ` ${operation.summary ?? ""}`);
        details.append(summary, ...description(whole, operation), form(path, method.toUpperCase(), operation));
        byId("operations").append(details);
      }
    }
  } catch (error) {
    byId("status").textContent = `The description cannot be read: ${error.message}`;
  }
}

byId("keys").addEventListener("submit", (event) => event.preventDefault());
start();
