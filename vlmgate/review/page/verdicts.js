// Verdicts: kept in this browser, or by the server that the page came from; undone; written as CSV.

const given = new Map(); // key → {verdict, reading, note, at}
const history = []; // [{key, before, index}], the latest last
const recent = []; // times of verdicts in milliseconds, ascending, of which the pace follows
const PREFIX = `vlmgate.review.1:${data.id}:`;
const CHANGED = `${PREFIX}changed`; // there if verdicts were given since the last download
const UNTOLD = /[^\n\t -~\u00a0-\u{10ffff}]|[\u202a-\u202e\u2066-\u2069]|\p{Cs}/gu;
// What a spreadsheet runs, first in a cell or after what may end one, maybe after blanks; as the server has it.
const FORMULA = /((?:^|[;\t\n\r])[ \u00a0\u1680\u2000-\u200d\u202f\u205f\u2060\u3000\ufeff]*)(?=[=+\-@＝＋－＠'])/g;

const storage = (() => {
  try { // file: pages, private windows and settings may forbid it
    const probe = `${PREFIX}probe`;
    window.localStorage.setItem(probe, "1");
    window.localStorage.removeItem(probe);
    return window.localStorage;
  } catch {
    return null;
  }
})();
let changed = false;
let storageFull = false;

const Verdicts = {
  /** Read what was kept; returns a promise. */
  async load() {
    if (served) {
      const answer = await fetch("verdicts", { cache: "no-store" });
      if (!answer.ok) throw new Error(await answer.text());
      for (const [key, said] of Object.entries(await answer.json())) if (byKey.has(key)) given.set(key, said);
    } else if (storage) {
      for (let i = 0; i < storage.length; i += 1) {
        const name = storage.key(i);
        if (name.startsWith(`${PREFIX}v:`)) readKept(name.slice(PREFIX.length + 2), storage.getItem(name));
      }
      changed = storage.getItem(CHANGED) !== null;
    }
    for (const said of given.values()) recent.push(Date.parse(said.at));
    recent.sort((a, b) => a - b);
  },

  of(index) {
    return given.get(items[index].key);
  },

  /** Give a verdict on an image, or take it back (null). */
  put(index, said, { undoable = true } = {}) {
    const key = items[index].key;
    const before = given.get(key) || null;
    if (undoable) history.push({ key, before, index });
    if (said === null) given.delete(key);
    else {
      given.set(key, { ...said, reading: clean(said.reading), note: clean(said.note), at: now() });
      if (!before) recent.push(Date.now());
    }
    keep(key);
  },

  /** Take the last verdict back; returns the index of its image, or null. */
  undo() {
    const last = history.pop();
    if (!last) return null;
    if (last.before) given.set(last.key, last.before);
    else {
      given.delete(last.key);
      recent.pop();
    }
    keep(last.key);
    return last.index;
  },

  get done() {
    let n = 0;
    for (const key of given.keys()) n += byKey.get(key).length;
    return n;
  },

  /** Say whether something would be lost if the page were left now. */
  get unsaved() {
    return served ? waiting.length > 0 : changed;
  },

  csv() {
    const lines = [data.columns];
    items.forEach((item, index) => {
      const said = given.get(item.key);
      if (!said) return;
      const texts = [said.verdict, said.reading, said.note, said.at];
      const audit = item.audit ? "true" : "false";
      const name = item.raw === undefined ? item.name : item.raw;
      lines.push([name, String(item.page), item.sha || "", ...texts, audit, data.routes[item.audit ? 1 : 0]].map(safeCell));
    });
    return lines.map((line) => `${line.map(quoted).join(",")}\r\n`).join("");
  },

  download() {
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([Verdicts.csv()], { type: "text/csv;charset=utf-8" }));
    link.download = "verdicts.csv";
    document.body.append(link);
    link.click();
    link.remove();
    window.setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    setChanged(false);
  },

  /** How long what is left will take, in seconds; null while nobody can say. */
  secondsLeft() {
    const times = recent.slice(-31);
    const gaps = times.slice(1).map((t, i) => (t - times[i]) / 1000).filter((s) => s >= 0 && s < 120).sort((a, b) => a - b);
    if (gaps.length < 3) return null;
    const middle = gaps.slice(Math.floor(gaps.length * 0.1), Math.ceil(gaps.length * 0.9)); // without breaks and slips
    return ((items.length - Verdicts.done) * middle.reduce((sum, s) => sum + s, 0)) / middle.length;
  },
};

function now() {
  return `${new Date().toISOString().slice(0, 19)}Z`;
}

/** Text without what could steer a display or break a file; as the server does it. */
function clean(text) {
  return text.replace(UNTOLD, "");
}

function safeCell(text) {
  return text.replace(FORMULA, "$1'").replace(/^(?=[\t\n\r])/, "'");
}

function quoted(text) {
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// --- in this browser

function readKept(key, text) {
  try {
    const [verdict, reading, note, time] = JSON.parse(text);
    if (byKey.has(key) && ["correct", "wrong", "unusable"].includes(verdict)) given.set(key, { verdict, reading: String(reading), note: String(note), at: String(time) });
  } catch {
    // somebody else's entry
  }
}

function setChanged(value) {
  changed = value;
  if (!storage || served) return;
  try {
    if (value) storage.setItem(CHANGED, "1");
    else storage.removeItem(CHANGED);
  } catch {
    storageFull = true;
  }
}

function keep(key) {
  if (served) {
    send(key);
    return;
  }
  setChanged(true);
  if (!storage) return;
  const said = given.get(key);
  try { // an entry of its own for each, so that the ten-thousandth is as quick as the first
    if (said) storage.setItem(`${PREFIX}v:${key}`, JSON.stringify([said.verdict, said.reading, said.note, said.at]));
    else storage.removeItem(`${PREFIX}v:${key}`);
  } catch {
    storageFull = true;
  }
  if (storageFull) warn("This browser's storage is full: verdicts are lost on reload. Download verdicts.csv before you leave.");
}

/** Call back when another tab with this review has changed a verdict. */
function onOtherTab(changedKey) {
  window.addEventListener("storage", (event) => {
    if (served || !event.key || !event.key.startsWith(`${PREFIX}v:`)) return;
    const key = event.key.slice(PREFIX.length + 2);
    given.delete(key);
    if (event.newValue !== null) readKept(key, event.newValue);
    changedKey(key);
  });
}

// --- on the server: one after the other, and again until the disk has it

const waiting = []; // keys whose verdict has not arrived yet
let sending = false;

async function send(key) {
  if (!waiting.includes(key)) waiting.push(key);
  if (sending) return;
  sending = true;
  while (waiting.length) {
    const next = waiting[0];
    const said = given.get(next);
    const { verdict, reading, note } = said || { verdict: "", reading: "", note: "" };
    const problem = await post({ key: next, verdict, reading, note });
    if (problem === null) {
      warn("");
      if (given.get(next) === said) waiting.shift(); // else it was changed meanwhile
    } else {
      warn(`${count(waiting.length, "verdict")} not saved yet: ${problem} Trying again; keep this page open, or download verdicts.csv.`);
      await new Promise((resolve) => { window.setTimeout(resolve, 2000); });
    }
  }
  sending = false;
}

/** Send one verdict; returns why it was not taken, or null. */
async function post(body) {
  try {
    const answer = await fetch("verdicts", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    return answer.ok ? null : (await answer.text()).trim();
  } catch {
    return "the server does not answer; is `vlmgate review --serve` still running?";
  }
}
