// The images of one device, classified at three levels.

import { MESSAGES, byId, call, element, showCosts, showVersions, tell } from "./common.js";

const LEVELS = [["host", "Host"], ["prototype", "Prototype"], ["edit", "Personalised"]];
const MOST = 64;

let images = [];  // { data: base64, url, name }
let asked = 0;

function picture(image, alternative) {
  return element("img", "", { src: image.url, alt: alternative, width: "48", height: "48" });
}

function showImages(focus) {
  const list = byId("images");
  list.replaceChildren(...images.map((image, index) => {
    const entry = element("li");
    const button = element("button", "", { type: "button", "aria-label": `${image.name}, remove` });
    const remove = () => { images.splice(index, 1); showImages(index); ask(); };
    button.append(picture(image, ""));
    button.addEventListener("click", remove);
    button.addEventListener("keydown", (event) => { if (event.key === "Delete" || event.key === "Backspace") remove(); });
    entry.append(button);
    return entry;
  }));
  if (focus !== undefined) (list.querySelectorAll("button")[Math.min(focus, images.length - 1)] ?? byId("files")).focus();
}

function showAnswers(answers) {
  const host = answers[0].content;
  byId("answers").hidden = false;
  byId("answers").tBodies[0].replaceChildren(...images.map((image, index) => {
    const row = element("tr");
    const head = element("th", "", { scope: "row" });
    head.append(picture(image, image.name));
    row.append(head, ...answers.map(({ content }, column) => {
      const likely = Math.max(...content.probabilities[index]);
      const cell = element("td", `${content.classes[index]} `, { "data-level": LEVELS[column][0] });
      cell.append(element("span", `${(100 * likely).toFixed(0)} %`, { class: "facts" }));
      if (content.classes[index] !== host.classes[index]) cell.append(" ", element("span", "changed", { class: "moved" }));
      return cell;
    }));
    return row;
  }));
  byId("facts").textContent = answers.map(({ content, milliseconds }, column) => {
    const reason = content.fallback ? ` (answered by the ${content.level}: ${content.fallback})` : "";
    return `${LEVELS[column][1]} ${milliseconds.toFixed(1)} ms${reason}`;
  }).join(" · ");
}

function showWhy(answers, edit) {
  const { prototype, fallback } = edit;
  byId("why").textContent = prototype === null
    ? `No prototype: ${fallback || "there is none"}.`
    : `Prototype ${prototype}: of all, it is the nearest to the edit of these images. Norms of what was applied: `
      + `${answers[1].content.edit_norm.toFixed(3)} as the prototype, ${answers[2].content.edit_norm.toFixed(3)} as their own edit.`;
}

async function ask() {
  const turn = ++asked;
  if (images.length === 0) {
    byId("answers").hidden = byId("costs").hidden = true;
    byId("facts").textContent = "";
    tell("Choose an example, or images of your own.");
    return;
  }
  const shown = { images: images.map((image) => image.data) };
  try {
    const answers = [];
    for (const [level] of LEVELS) answers.push(await call("/v1/classifications", { ...shown, level }));
    const edits = [];
    for (const [level] of MESSAGES) edits.push(await call("/v1/edits", { ...shown, level }));
    if (turn !== asked) return;  // the images have changed meanwhile
    showAnswers(answers);
    showWhy(answers, edits[1].content);
    showCosts(edits);
    showVersions(answers[0].content);
    const changed = answers[2].content.classes.filter((name, index) => name !== answers[0].content.classes[index]).length;
    tell(`${images.length} ${images.length === 1 ? "image" : "images"}. The edit changes the class of ${changed}.`);
  } catch (error) {
    if (turn === asked) tell(`No answer: ${error.message}`, true);
  }
}

function take(found) {
  images = found.slice(-MOST);
  showImages();
  ask();
}

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve({ data: reader.result.split(",", 2)[1] ?? "", url: reader.result, name: file.name }));
    reader.addEventListener("error", () => reject(new Error(`${file.name} cannot be read`)));
    reader.readAsDataURL(file);
  });
}

async function examples() {
  try {
    const { content } = await call("/v1/examples");
    byId("examples").replaceChildren(...content.streams.map((stream) => {
      const button = element("button", stream.name, { type: "button" });
      button.addEventListener("click", () => {
        take(stream.images.map((data, index) => ({ data, url: `data:image/png;base64,${data}`, name: `image ${index + 1}` })));
      });
      return button;
    }));
  } catch (error) {
    tell(`No examples: ${error.message}`, true);
  }
}

byId("files").addEventListener("change", async () => {
  try {
    take([...images, ...await Promise.all([...byId("files").files].map(read))]);
    byId("files").value = "";
  } catch (error) {
    tell(`No answer: ${error.message}`, true);
  }
});
byId("clear").addEventListener("click", () => { take([]); byId("files").focus(); });
byId("keys").addEventListener("submit", (event) => { event.preventDefault(); examples(); ask(); });
examples();
