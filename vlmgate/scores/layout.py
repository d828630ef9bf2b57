"""Where the layout of a caption leaves unclear whether a finding is there: ticks, tables, headings, values apart.

`unclear` returns the places of a folded text in which what is asserted is hedged: "scratch ✗" may say either, and so
may a column of a table, or a list below "not found:". It is the same in every language.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from vlmgate.scores import language as lang
from vlmgate.scores.language import Mark
from vlmgate.scores.sentence import NEGATORS, SAYS

Place = tuple[int, int]  # start and end in the folded text

# A tick says "passed" or "found", a cross "failed" or "not found"; "[ ]" is a box, "0/8" none of eight.
_TICKS = re.compile(
    "[✓✔☑✅✗✘✕✖❌❎☒☐⬜\U0001f44d\U0001f44e\U0001f7e2\U0001f534]|[○◯〇△×](?=\\s*(?:[\\n|,、;]|$))"
    "|\\[[ x]\\]|\\( ?\\)|\\(x\\)|(?<![\\d.,/])0/\\d"
)
_LINE = re.compile(r"[^\n;]+")
_RULE = re.compile(r"[ \t]*[|:]*[ \t]*-{2,}[-|: \t]*$")  # the line below the titles of a table
_CELL = re.compile(r"[^|:]+")
# "scratch(-)", "scratch: +", "scratch 0", and a probability: "scratch: 0.02"
_VALUE = re.compile(
    r"[\"']?\s*(?:[(\[:=]?\s*[-+−](?=\s*(?:[)\],;\n]|$))|(?:\s\w+|\s?[(,x])?\s?\b0(?![.,]\d)(?=\s*(?:[)\],;.\n]|$))"
    r"|[:=]\s*\d*\.\d+(?=\s*(?:[,;}\])\n]|$)))|\s+x0\b"
)
_NO_TIMES = re.compile(r"(?<!\w)0\s?x\s+$")  # "0x scratch"
# A model that doubts its own finding; these are keys of JSON, so English.
_DOUBTED = re.compile(
    r"(?<![^\W_])(?:confidence|probability|score|certainty|likelihood)\W{0,3}(?:(?:of|is)\s)?"
    r"(?:0?\.[0-4]\d*|0|[0-4]?\d\s?%)(?![\d.])|(?<!\d)[0-4]?\d\s?% confiden"
)
_DIGIT = re.compile(r"\d")
_RESULTS = frozenset(("status", "result", "value", "verdict", "state", "exists", "answer"))  # of one finding
_BOXED = frozenset("[(/")
_LISTED = 8  # marks of a line that may be an entry of a list
_SHORT = frozenset((lang.SEEN, lang.VERB, lang.COLON, lang.COMMA, lang.AND, lang.ARTICLE, lang.PREDICATE, lang.END))


def unclear(folded: str, marks: Sequence[Mark]) -> list[Place]:
    """Return the places in which the findings asserted are hedged."""
    places = [(mark.start, mark.end) for mark in marks if mark.kind == lang.FINDING and _no_value(folded, mark)]
    if not folded.isascii() or _BOXED.intersection(folded):
        places += [line.span() for line in _LINE.finditer(folded) if _TICKS.search(line[0])]
    if "|" in folded or "--" in folded:
        places += _of_tables(folded, marks)
    if _DIGIT.search(folded) and _DOUBTED.search(folded):
        places.append((0, len(folded)))
    if any(mark.kind in NEGATORS or mark.name == "0" for mark in marks):
        places += _of_sentences(marks)
    return places


def _no_value(folded: str, mark: Mark) -> bool:
    """Say whether a value stands next to a finding that may deny it."""
    return bool(_VALUE.match(folded, mark.end) or _NO_TIMES.search(folded, max(0, mark.start - 6), mark.start))


def _of_tables(folded: str, marks: Sequence[Mark]) -> Iterator[Place]:
    """Yield the titles of columns, and lines that name findings in several cells."""
    lines = list(re.finditer(r"[^\n]+", folded))
    for n, line in enumerate(lines):
        title = n + 1 < len(lines) and _RULE.match(lines[n + 1][0]) is not None
        if not title and "|" not in line[0]:
            continue
        cells = [cell.span() for cell in _CELL.finditer(folded, line.start(), line.end())]
        found = [mark.start for mark in marks if mark.kind == lang.FINDING and line.start() <= mark.start < line.end()]
        if found and (title or sum(any(a <= at < b for at in found) for a, b in cells) > 1):
            yield line.span()


def _of_sentences(marks: Sequence[Mark]) -> Iterator[Place]:
    """Yield what a negator in another line or sentence may reach.

    "Not found: scratches", with the list below it; "No" at the end of a line; "scratch. Found: false".
    """
    parts: list[tuple[str, list[Mark]]] = [("", [])]  # what stands before a sentence, and its marks
    for mark in marks:
        if mark.kind == lang.STOP:
            parts.append((mark.name, []))
        elif mark.kind != lang.IGNORE:
            parts[-1][1].append(mark)
    last: Place | None = None  # the last sentence that names a finding
    heading = open_line = False
    for stop, part in parts:
        if not part:
            heading = heading and stop != ""
            continue
        place = part[0].start, part[-1].end
        kinds = [mark.kind for mark in part]
        says = any(kind in SAYS for kind in kinds)
        numbered = len(part) == 1 and part[0].name.isdigit()
        if heading and (stop.strip() or len(part) > _LISTED or lang.COLON in kinds) and not numbered:
            heading = not says and numbered
        if (heading or (open_line and not stop.strip())) and says:  # a line that was wrapped
            yield place
        open_line = False
        if (colon := _heads(part)) is not None:
            yield part[colon].start, part[-1].end
            heading = True
        elif not says and kinds[-1] in NEGATORS and lang.COLON not in kinds:
            open_line = True
        cut = max((n for n, kind in enumerate(kinds) if kind == lang.BREAK), default=-1)  # "… but not seen"
        answer = [
            lang.AFTER if mark.name == "0" and n and part[cut + n].kind == lang.COLON else mark.kind  # "present: 0"
            for n, mark in enumerate(part[cut + 1 :])
            if mark.name not in _RESULTS
        ]
        short = _SHORT.issuperset({*answer} - NEGATORS)
        if not says and answer and answer[-1] in NEGATORS and lang.COLON not in answer:
            short = short or answer.count(lang.WORD) <= 3  # "there were none"
        if short and NEGATORS.intersection(answer):
            if cut >= 0 and says:
                yield place
            elif last is not None:
                yield last
        last = place if says else last


def _heads(part: Sequence[Mark]) -> int | None:
    """Return the place of the last colon of a sentence after which a negator before it may reach; None without one.

    "No", "not found" and "no defects" are such headings; "no luck: a scratch" is none.
    """
    denied, found = False, None
    for i, mark in enumerate(part):
        if mark.kind in SAYS and mark.kind != lang.DEFECT:
            break
        if mark.kind == lang.WORD and denied and part[i - 1].kind == lang.BEFORE:
            denied = False  # it has reached something else
        denied = denied or mark.kind in NEGATORS
        if mark.kind == lang.COLON and ":" in mark.name and denied:
            found = i
    return found if found is not None and any(mark.kind == lang.FINDING for mark in part[found:]) else None
