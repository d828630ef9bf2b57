// The panel beside the picture: why the image is here, what the model said, on what it disagreed with itself.

const FINISH = { length: "cut off", "non-finite": "numbers overflowed" };
const STATES = { correct: "✓ correct", wrong: "✗ wrong", unusable: "⊘ unusable" };

const Reading = {
  show(index, position, shown, take) {
    const item = items[index];
    const said = Verdicts.of(index);
    at("position").textContent = `${number.format(position + 1)} of ${number.format(shown)}`;
    at("reason").textContent = data.reasons[item.reason];
    at("name").textContent = item.name + (item.pages ? ` (page ${item.page} of ${item.pages})` : "");
    const copy = item.copy ? `The same bytes as ${item.copy}, whose verdict it shares. ` : "";
    at("about").textContent = copy + (item.about || "");
    at("why").textContent = item.why;
    at("scale").replaceChildren(...scaleOf(item));
    at("claims").replaceChildren(...claimsOf(item.claims || []));
    show(at("claims"), Boolean(item.claims));
    at("captions").replaceChildren(...(item.captions || []).map((one, i) => captionOf(one, i, item, said, take)));
    show(at("captions-title"), Boolean(item.captions));
    show(at("answers-part"), Boolean(item.answers));
    if (item.answers) {
      at("answers-title").textContent = data.question || "Answers";
      at("answers").replaceChildren(...item.answers.map(answerOf));
      at("answer").textContent = item.answer === undefined ? "They come to no answer." : `They come to: ${item.answer}`;
    }
    const taken = said && item.captions && item.captions.some((one) => one.text.join("") === said.reading);
    show(at("own-part"), Boolean(said && said.reading && !taken));
    at("own").textContent = said ? said.reading : "";
    at("note").value = said ? said.note : notes.get(item.key) || "";
    for (const name of Object.keys(STATES)) at(name).setAttribute("aria-pressed", String(Boolean(said) && said.verdict === name));
    at("correct").disabled = readingOf(item) === null;
    show(at("state"), Boolean(said));
    at("state").textContent = said ? STATES[said.verdict] : "";
    at("state").dataset.verdict = said ? said.verdict : "";
    at("undo").disabled = history.length === 0;
  },
};

const notes = new Map(); // key → a note that waits for its verdict

/** What the captions claim, and how many of them: "6 of 8 scratch". */
function claimsOf(claims) {
  const all = claims.reduce((sum, [, times]) => sum + times, 0);
  return claims.map(([words, times], i) => {
    const row = element("li");
    const claim = element("span", "", words);
    claim.dir = "auto";
    row.append(element("b", "", `${times} of ${all}`), document.createTextNode(" "), claim);
    if (i < claims.length - 1) row.append(element("span", "soft", " · "));
    return row;
  });
}

function captionOf(one, i, item, said, take) {
  const row = element("li");
  const button = element("button", "caption");
  button.type = "button";
  const text = one.text.join("");
  const reading = i === item.typical;
  const taken = Boolean(said) && said.reading === text && text !== "";
  button.setAttribute("aria-pressed", String(taken));
  if (i < 9) button.setAttribute("aria-keyshortcuts", String(i + 1));
  button.append(element("kbd", "", i < 9 ? String(i + 1) : "·"));
  const words = element("span", "words");
  words.dir = "auto";
  one.text.forEach((piece, n) => {
    if (piece) words.append(n % 2 ? element("mark", "", piece) : document.createTextNode(piece));
  });
  if (!text.trim()) words.append(element("i", "soft", "(empty)"));
  button.append(words);
  const end = element("span", "times");
  end.append(element("span", "", `${one.times}×`), element("span", "unseen", one.times === 1 ? " time" : " times"));
  if (reading) end.append(element("span", "tag", "reading"));
  if (one.finish) end.append(element("span", "tag", FINISH[one.finish] || one.finish));
  if (taken) end.append(element("span", "tag", "taken"));
  button.append(end);
  button.onclick = () => take(i);
  button.disabled = text.trim() === "";
  row.append(button);
  return row;
}

function answerOf(one) {
  const row = element("li");
  const words = element("span", "words", one.text.join("") || "(empty)");
  words.dir = "auto";
  const often = one.share === undefined ? `${one.times}×` : `${(100 * one.share).toFixed(1)}%`;
  row.append(words, element("span", "times", often));
  return row;
}

/** A line from the lowest to the highest value, what is accepted, the limit, and where this image lies. */
function scaleOf(item) {
  if (!item.scale) return [];
  const [column, value, limit, side] = item.scale;
  const [low, high] = data.scales[column];
  const place_ = (v) => `${Math.min(100, Math.max(0, (100 * (v - low)) / (high - low || 1)))}%`;
  const upTo = side === "<=";
  const rule = limit === null ? "no limit" : `accepted ${upTo ? "up to" : "from"} ${short(limit)}`;
  const whole = element("div", "scale");
  whole.setAttribute("role", "img");
  whole.setAttribute("aria-label", `${column} ${short(value)} on a scale from ${short(low)} to ${short(high)}; ${rule}`);
  const track = element("div", "track");
  if (limit !== null) {
    const zone = element("div", "zone");
    zone.style.left = upTo ? "0" : place_(limit);
    zone.style.right = upTo ? `calc(100% - ${place_(limit)})` : "0";
    const tick = element("div", "limit");
    tick.style.left = place_(limit);
    track.append(zone, tick);
  }
  const point = element("div", "point");
  point.style.left = place_(value);
  track.append(point);
  const head = element("div", "scale-head");
  head.append(element("span", "column", column), element("b", "", short(value)), element("span", "soft", rule));
  const ends = element("div", "ends soft");
  ends.append(element("span", "", short(low)), element("span", "", worse(column)), element("span", "", short(high)));
  whole.append(head, track, ends);
  return [whole];
}

function short(value) {
  return Number(value.toPrecision(Math.abs(value) >= 100 ? 4 : 3)).toLocaleString("en", { maximumFractionDigits: 6 });
}

function worse(column) {
  const higher = data.worse[column];
  return higher === null ? "both ends are worse" : higher ? "higher is worse →" : "← lower is worse";
}
