// What everything else is made of: the data, elements by name, text that is only ever text.

const data = JSON.parse(document.getElementById("data").textContent);
document.getElementById("data").remove(); // it would be held in memory twice
const items = data.items;
const byKey = new Map(); // key of a verdict → indices of the images it is on; copies share it
items.forEach((item, index) => {
  const same = byKey.get(item.key);
  if (same) same.push(index);
  else byKey.set(item.key, [index]);
});
const served = document.querySelector('meta[name="vlmgate-mode"]').content === "served";

const at = (id) => document.getElementById(id);

/** Return a new element; `text` is put into it as text. */
function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function show(node, visible) {
  node.hidden = !visible;
}

const number = new Intl.NumberFormat("en");
const count = (n, noun) => `${number.format(n)} ${noun}${n === 1 ? "" : "s"}`;

let clearStatus = 0;
/** Tell what was done, to eyes and to screen readers; what eyes see anyway, to the latter alone. */
function tell(text, { seen = true } = {}) {
  at("status").classList.toggle("unseen", !seen);
  at("status").textContent = text;
  window.clearTimeout(clearStatus);
  clearStatus = window.setTimeout(() => { at("status").textContent = ""; }, 6000);
}

function warn(text) {
  at("warning").textContent = text;
  show(at("warning"), text !== "");
}

/** Where the preview or the thumbnail of an image lies; null where there is none. */
function sourceOf(index, folder) {
  const item = items[index];
  if (item.src) return item.src;
  return item.size ? `${folder}/${String(index + 1).padStart(6, "0")}.jpg` : null;
}

/** The caption that stands for what the machine read, or null. */
function readingOf(item) {
  return item.typical === undefined ? null : item.captions[item.typical].text.join("");
}
