// The page as a whole: which images are shown, where one is, and what keys and buttons do.

let order = items.map((_, index) => index); // indices that are shown
let position = 0; // in the order
let singleKeys = true;
const KEYS_OFF = "vlmgate.review.1:keys-off";

const current = () => order[position];
let gridWanted = false;
const gridOpen = () => gridWanted && order.length > 0;

function go(to, announce = true) {
  if (!order.length) return;
  position = Math.min(order.length - 1, Math.max(0, to));
  const index = current();
  Picture.show(index, order.slice(position + 1, position + 3));
  draw();
  at("panel-scroll").scrollTop = 0;
  if (announce) tell(`${position + 1} of ${order.length}: ${items[index].name}. ${data.reasons[items[index].reason]}.`, { seen: false });
}

/** Show the state of the current image and the progress, without another picture. */
function draw() {
  const done = Verdicts.done;
  const left = Verdicts.secondsLeft();
  at("progress").value = done;
  at("progress-text").textContent = `${number.format(done)} of ${number.format(items.length)}${left === null || done === items.length ? "" : ` · about ${inWords(left)} left`}`;
  if (order.length) Reading.show(current(), position, order.length, take);
  at("back").disabled = position === 0;
  at("next").disabled = position >= order.length - 1;
  if (gridOpen()) Grid.draw();
}

function inWords(seconds) {
  if (seconds < 60) return "a minute";
  const minutes = Math.round(seconds / 60);
  return minutes < 100 ? `${minutes} min` : `${(minutes / 60).toFixed(1)} h`;
}

// --- verdicts

function give(verdict, reading) {
  const index = current();
  const item = items[index];
  if (index === undefined || (verdict === "correct" && readingOf(item) === null)) return;
  Verdicts.put(index, { verdict, reading, note: at("note").value });
  notes.delete(item.key);
  const next = nextToDo();
  if (next === null) {
    draw();
    tell(Verdicts.done === items.length ? `All ${count(items.length, "image")} have a verdict.${served ? "" : " Download verdicts.csv."}` : `${item.name}: ${verdict}. Nothing is left to do here.`);
  } else {
    go(next, false);
    tell(`${item.name}: ${verdict}. Now ${items[current()].name}.`);
  }
}

/** Return the position of the next image without a verdict, from here on, then from the start; null where none is. */
function nextToDo() {
  for (let step = 1; step < order.length; step += 1) {
    const to = (position + step) % order.length;
    if (!Verdicts.of(order[to])) return to;
  }
  return null;
}

/** Take a caption for what the picture shows. */
function take(i) {
  const item = items[current()];
  const one = item && item.captions && item.captions[i];
  const text = one ? one.text.join("") : "";
  if (text.trim()) give(i === item.typical || one.same ? "correct" : "wrong", text);
}

function undo() {
  const index = Verdicts.undo();
  if (index === null) {
    tell("Nothing to undo.");
    return;
  }
  const to = order.indexOf(index);
  if (to >= 0 && to !== position) go(to, false);
  else draw();
  tell(`Undone: ${items[index].name}.`);
}

function judge(verdict) {
  const item = items[current()];
  if (item) give(verdict, verdict === "correct" ? readingOf(item) || "" : "");
}

function edit() {
  const item = items[current()];
  if (!item) return;
  const said = Verdicts.of(current());
  at("edit-text").value = (said && said.reading) || readingOf(item) || "";
  at("edit-dialog").showModal();
  at("edit-text").focus();
  at("edit-text").select();
}

function saveEdit() {
  if (!at("edit-dialog").open) return; // a key that is held down saves once, not on the next image too
  const text = at("edit-text").value.trim();
  at("edit-dialog").close();
  if (!text) return;
  const said = Verdicts.of(current());
  const same = text === (readingOf(items[current()]) || "").trim();
  give(same ? "correct" : said ? said.verdict : "wrong", text);
}

function saveNote() {
  const index = current();
  const said = Verdicts.of(index);
  const note = at("note").value;
  if (said) {
    if (said.note === clean(note)) return;
    Verdicts.put(index, { ...said, note });
    draw();
    tell("Note saved.");
  } else if (note) {
    notes.set(items[index].key, note);
    tell("The note is saved with the verdict.");
  } else notes.delete(items[index].key);
}

// --- which images

function filter() {
  const reason = at("filter-reason").value;
  const state = at("filter-state").value;
  const words = at("search").value.trim().toLowerCase();
  const here = current();
  order = [];
  items.forEach((item, index) => {
    const said = Verdicts.of(index);
    const fits = state === "all" || (state === "todo" ? !said : state === "note" ? Boolean(said && said.note) : Boolean(said) && said.verdict === state);
    if (fits && (!reason || item.reason === reason) && (!words || item.name.toLowerCase().includes(words))) order.push(index);
  });
  position = Math.max(0, order.indexOf(here));
  show(at("nothing"), order.length === 0);
  showView(gridWanted);
  tell(order.length ? `${count(order.length, "image")} shown.` : "No image matches.");
}

function showAll() {
  at("filter-reason").value = "";
  at("filter-state").value = "all";
  at("search").value = "";
  filter();
}

function showView(grid) {
  gridWanted = grid;
  show(at("grid"), grid && order.length > 0);
  show(at("look"), !grid && order.length > 0);
  at("grid-button").setAttribute("aria-pressed", String(grid));
  if (!order.length) {
    draw();
    return;
  }
  if (grid) {
    Grid.open(order, position);
    draw();
  } else go(position);
}

function openFromGrid(to) {
  position = to;
  showView(false);
  at("stage").focus();
}

function toggleGrid() {
  if (gridOpen()) openFromGrid(Grid.current);
  else {
    showView(true);
    at("grid-list").focus({ preventScroll: true });
  }
}

// --- keys

const ACTIONS = {
  c: () => judge("correct"), w: () => judge("wrong"), u: () => judge("unusable"), e: edit,
  n: () => at("note").focus(), z: undo, Backspace: undo, d: download,
  j: () => go(position + 1), k: () => go(position - 1),
  ArrowRight: () => go(position + 1), ArrowDown: () => go(position + 1),
  ArrowLeft: () => go(position - 1), ArrowUp: () => go(position - 1),
  g: toggleGrid, "/": () => { at("search").focus(); at("search").select(); }, "?": help,
  "+": () => Picture.zoom(1.5), "=": () => Picture.zoom(1.5), "-": () => Picture.zoom(1 / 1.5), 0: () => Picture.fit(),
};
const ONLY_LOOKING = new Set(["c", "w", "u", "e", "n", "+", "=", "-", "0"]); // what makes no sense over the grid
const MOVES = { ArrowLeft: [80, 0], ArrowRight: [-80, 0], ArrowUp: [0, 80], ArrowDown: [0, -80] };

let opener = ""; // the key that led into a field; while it is held, its repeats are not typed there

function onKey(event) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.repeat && key === opener) {
    event.preventDefault();
    return;
  }
  opener = "";
  if (event.isComposing || document.querySelector("dialog[open]")) return;
  // A dialog that has just closed keeps the focus until the browser draws again: what is typed then is for the page.
  const typing = !event.target.closest("dialog") && event.target.closest("input, textarea, select");
  if (typing) {
    if (event.key === "Escape" || (event.key === "Enter" && typing.tagName === "INPUT")) leaveField(typing);
    return;
  }
  if ((event.ctrlKey || event.metaKey) && key === "z" && !event.shiftKey) {
    event.preventDefault();
    undo();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (gridOpen()) {
    if (["Enter", "Escape"].includes(key) && !event.target.closest("button")) {
      event.preventDefault();
      openFromGrid(Grid.current);
      return;
    }
    if ((singleKeys || key.length > 1) && Grid.key(key)) {
      event.preventDefault();
      return;
    }
  } else if (event.shiftKey && MOVES[key]) {
    event.preventDefault();
    Picture.move(...MOVES[key]);
    return;
  }
  const scrolling = event.target.closest("#panel-scroll") && ["ArrowUp", "ArrowDown"].includes(key);
  if (scrolling || (!singleKeys && (key.length === 1 || key === "Backspace") && key !== "?")) return;
  if (gridOpen() && (ONLY_LOOKING.has(key) || /^[1-9]$/.test(key))) return;
  if (/^[1-9]$/.test(key)) take(Number(key) - 1);
  else if (ACTIONS[key]) ACTIONS[key]();
  else return;
  event.preventDefault();
  if (document.activeElement.closest("input, textarea")) opener = key;
}

function leaveField(field) {
  field.blur();
  focusPage();
}

/** Put the focus on the pictures, where it would otherwise be nowhere. */
function focusPage() {
  if (gridOpen()) at("grid-list").focus({ preventScroll: true });
  else at("stage").focus();
}

function help() {
  at("help-dialog").showModal();
}

function download() {
  if (!given.size) {
    tell("There is no verdict to download yet.");
    return;
  }
  Verdicts.download();
  tell(`${count(Verdicts.done, "verdict")} downloaded as verdicts.csv.`);
}

// --- the start

function setUp() {
  at("result-name").textContent = data.result;
  const counts = new Map();
  for (const item of items) counts.set(item.reason, (counts.get(item.reason) || 0) + 1);
  at("filter-reason").append(new Option(`all reasons (${number.format(items.length)})`, ""));
  for (const [reason, n] of counts) at("filter-reason").append(new Option(`${data.reasons[reason]} (${number.format(n)})`, reason));
  for (const [name, text] of data.about) at("about-run").append(element("dt", "", name), element("dd", "", text));
  for (const name of ["correct", "wrong", "unusable"]) at(name).onclick = () => judge(name);
  const buttons = { back: () => go(position - 1), next: () => go(position + 1), undo, edit, download };
  for (const [name, act] of Object.entries(buttons)) at(name).onclick = act;
  at("grid-button").onclick = toggleGrid;
  at("help-button").onclick = help;
  at("show-all").onclick = showAll;
  at("help-close").onclick = () => at("help-dialog").close();
  at("edit-cancel").onclick = () => at("edit-dialog").close();
  at("edit-save").onclick = saveEdit;
  for (const id of ["edit-dialog", "help-dialog"]) {
    at(id).addEventListener("close", () => {
      if (document.activeElement === document.body || at(id).contains(document.activeElement)) focusPage();
    });
  }
  at("edit-text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      saveEdit();
    }
  });
  at("note").addEventListener("change", saveNote);
  for (const id of ["filter-reason", "filter-state"]) at(id).addEventListener("change", filter);
  at("search").addEventListener("input", filter);
  at("keys-on").addEventListener("change", (event) => {
    singleKeys = event.target.checked;
    if (storage) storage.setItem(KEYS_OFF, singleKeys ? "" : "1");
  });
  singleKeys = !(storage && storage.getItem(KEYS_OFF));
  at("keys-on").checked = singleKeys;
  document.addEventListener("keydown", onKey);
  window.addEventListener("beforeunload", (event) => {
    if (Verdicts.unsaved || notes.size) event.preventDefault();
  });
  onOtherTab(draw);
  setUpPicture();
  setUpGrid(openFromGrid);
}

async function begin() {
  setUp();
  try {
    await Verdicts.load();
  } catch (error) {
    warn(`The verdicts that were given before cannot be read: ${error.message} Reload this page.`);
    return;
  }
  if (!storage && !served) warn("This browser keeps nothing for this page: verdicts are lost on reload. Download verdicts.csv before you leave.");
  const first = items.findIndex((_, index) => !Verdicts.of(index));
  go(first < 0 ? 0 : first, false);
  document.documentElement.dataset.ready = "yes";
}

begin();
