"""Words of a caption that exclude those of another: "the cap is open" and "closed", "left" and "right", 3 screws and 4.

They name no finding, and alone they are no reading of a part's condition. They tell captions apart that find the same:
a crack in the left bolt is not a crack in the right one. `contrasts_of` returns them as claims, as `measures` does:
"~opening:open" excludes "~opening:closed", "~number screws:3" is another number than 4, and "~part:cap>body", a caption
that finds a defect of the cap and none of the body, excludes the reverse.

The words are those of `[contrasts]` and `[measures.sides]` in the file of a language.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise, product
from typing import NamedTuple

from vlmgate.scores import language as lang
from vlmgate.scores.language import Language, Mark
from vlmgate.scores.measures import PART, Found
from vlmgate.scores.sentence import NEGATORS, NOT, SAID, SAYS, Item

# Sides count where the caption asserts a finding. Another side is another reading, yet the part has the defect in both:
# no contradiction.
_SIDES = {"left": "side", "right": "side", "top": "height", "bottom": "height", "front": "depth", "rear": "depth"}
_SIDES |= {"inner": "radius", "outer": "radius", "first": "order", "second": "order"}
# Said of anything: it counts in "is bad" and "Verdict: bad", not in "bad light".
_STATED = frozenset(("quality", "level"))
_NUMBER, _AMOUNT, _ARTICLE = "number", "amount", "article"
_MISSING = "missing_part"
_NEAR = 3  # words between a negator and what it negates
_MOST = 12  # of a thing; what is more, nobody counts
_FAR = 4  # words behind a number that may name what it counts
_MOST_CLAUSES = 40  # with a defect, or without, whose parts are told apart
_NAME = 3  # words of a clause that are taken for what it speaks of
_DIVIDES = (lang.COMMA, lang.BREAK, lang.AND)
_DOUBTS = frozenset((lang.HEDGE, lang.HEDGE_AFTER, lang.OR))


class _Hit(NamedTuple):
    phrase: str
    start: int  # in the folded text
    end: int


@dataclass(slots=True)
class _Clause:
    sentence: int
    start: int = 0  # in the folded text
    end: int = 0
    marks: list[Mark] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    hits: list[_Hit] = field(default_factory=list)  # phrases of contrasts, and numbers

    @property
    def asserts(self) -> bool:
        """Say whether it asserts a finding, or that something is wrong."""
        return any(item.sign == SAID and item.claim != lang.INTACT for item in self.items)

    @property
    def clears(self) -> bool:
        """Say whether it says no more than that what it speaks of has no defect, or is there: "Cap: present"."""
        if not self.items:
            kinds = [mark.kind for mark in self.marks if mark.kind != lang.STOP]
            return kinds[-2:] in ([lang.COLON, lang.SEEN], [lang.COLON, lang.YES], [lang.COLON, lang.VERB])
        return all(item.sign == (SAID if item.claim == lang.INTACT else NOT) for item in self.items)


def contrasts_of(folded: str, marks: Sequence[Mark], items: Sequence[Item], language: Language) -> Iterator[Found]:
    """Return the contrasts in a folded text, and what they exclude; `items` are its findings, in order."""
    known = _words(language.code)
    hits = list(_hits(folded, known))
    if not hits and known.counted is None and not _may_tell_parts(marks, items):
        return  # most captions
    clauses = _clauses(marks, items, hits)
    values: dict[str, dict[str, int]] = {}  # kind → value → sign
    places: dict[tuple[str, str], tuple[int, int]] = {}  # kind, value → start and end
    for clause in clauses:
        for kind, value, sign, start, end in (
            *_named(clause, clauses, known),
            *_labels(clause),
            *_numbers(folded, clause, known),
        ):
            signs = values.setdefault(kind, {})
            signs[value] = max(sign, signs.get(value, sign))
            places.setdefault((kind, value), (start, end))
    for kind, signs in values.items():
        given = [value for value, sign in signs.items() if sign == SAID]
        excluded = [value for value, sign in signs.items() if sign == NOT]
        if len(given) == 1 and kind not in _SIDES.values():
            excluded += [one for one in _others(kind, language, known) if one not in signs]
        for value in (*given, *excluded):
            start, end = places.get((kind, value)) or places[kind, given[0]]
            yield f"~{kind}:{value}", SAID if value in given else NOT, start, end
    yield from _parts(clauses)


def _may_tell_parts(marks: Sequence[Mark], items: Sequence[Item]) -> bool:
    """Say whether a text may find a defect of one part and none of another, or a labelled one."""
    asserts = any(item.sign == SAID and item.claim != lang.INTACT for item in items)
    clears = any(item.sign == NOT or item.claim == lang.INTACT for item in items)
    return asserts and (clears or any(mark.kind == lang.COLON for mark in marks))


def _others(kind: str, language: Language, known: _Words) -> Sequence[str]:
    """Return all values of a kind; of how many things there are, only where the thing is a finding."""
    name, _, thing = kind.partition(" ")
    if name in (_NUMBER, _AMOUNT):
        counts = tuple(map(str, range(1, _MOST + 1))) if name == _NUMBER else ("one", "more than one")
        return counts if thing in language.findings else ()
    return known.values.get(name, ())


def _clauses(marks: Sequence[Mark], items: Sequence[Item], hits: Sequence[_Hit]) -> list[_Clause]:
    """Return the clauses of a text; "and" divides where both of its sides say something of the condition."""
    found, sentence, said, phrases = [_Clause(0)], 0, deque(items), deque(hits)
    for i, mark in enumerate(marks):
        if mark.kind == lang.STOP or (mark.kind in _DIVIDES and _divides(marks, i, found[-1])):
            sentence += mark.kind == lang.STOP
            found[-1].end = mark.end
            found.append(_Clause(sentence, mark.start))
        found[-1].marks.append(mark)
        found[-1].end = mark.end
        while said and said[0].start < mark.end:
            found[-1].items.append(said.popleft())
        while phrases and phrases[0].start < mark.end:
            found[-1].hits.append(phrases.popleft())
    return found


def _divides(marks: Sequence[Mark], i: int, clause: _Clause) -> bool:
    if marks[i].kind != lang.AND:
        return True
    rest = next((n for n in range(i + 1, len(marks)) if marks[n].kind in (lang.STOP, *_DIVIDES)), len(marks))
    return bool(clause.items) and any(mark.kind in SAYS for mark in marks[i:rest])


# --- words ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Words:
    """The contrasts of a language."""

    spaced: bool
    negates_after: bool  # "閉じていない"
    values: dict[str, tuple[str, ...]]  # kind → its values
    of_phrase: dict[str, tuple[str, str]]  # phrase → kind, value; of a number the kind is `_NUMBER`
    of_first: dict[str, tuple[str, ...]]  # first word → phrases, the longest first
    pattern: re.Pattern[str]  # the phrases but numbers, where words are not spaced
    counted: re.Pattern[str] | None  # a number and what it counts, where words are not spaced


@lru_cache(maxsize=32)
def _words(code: str) -> _Words:
    one = lang.languages()[code]
    data = {kind: dict(values) for kind, values in one.contrasts.items() if kind not in (_NUMBER, "counters")}
    for side, phrases in one.measures.get("sides", {}).items():
        places = data.setdefault(_SIDES[side], {})
        places[side] = [*places.get(side, ()), *phrases]
    of_phrase = {
        lang.fold(text).strip(): (kind, value)
        for kind, values in data.items()
        for value, phrases in values.items()
        for phrase in phrases
        for text in lang.expanded(phrase)
    }
    if code == "ko":  # "우", right, is within many words
        of_phrase = {phrase: value for phrase, value in of_phrase.items() if len(phrase) > 1}
    longest = sorted(of_phrase, key=lambda phrase: -len(phrase))
    pattern = re.compile("|".join(map(re.escape, longest)) or "(?!)")
    numbers = {lang.fold(word).strip(): n for n, several in one.contrasts.get(_NUMBER, {}).items() for word in several}
    of_phrase |= {word: (_NUMBER, n) for word, n in numbers.items()}
    of_first: dict[str, list[str]] = {}
    for phrase in sorted(of_phrase, key=lambda phrase: -len(phrase)):
        of_first.setdefault(_TOKEN.findall(phrase)[0], []).append(phrase)
    counted = None
    if counters := one.contrasts.get("counters"):
        words = "|".join(map(re.escape, sorted(numbers, key=len, reverse=True)))
        counted = re.compile(rf"(?P<number>\d+|{words})\s*(?:{'|'.join(counters)})(?:的|の)?(?P<thing>[^\W\d_]{{2}})?")
    return _Words(
        spaced=one.spaced and code != "ko",
        negates_after=code in ("ja", "ko"),
        values={kind: tuple(values) for kind, values in data.items()},
        of_phrase=of_phrase,
        of_first={first: tuple(phrases) for first, phrases in of_first.items()},
        pattern=pattern,
        counted=counted,
    )


_Named = tuple[str, str, int, int, int]  # kind, value, sign, start, end


def _named(clause: _Clause, clauses: Sequence[_Clause], known: _Words) -> Iterator[_Named]:
    for phrase, start, end in clause.hits:
        kind, value = known.of_phrase.get(phrase, (_NUMBER, phrase))
        if kind == _NUMBER:
            continue
        before = [mark for mark in clause.marks if mark.end <= start]
        after = [mark for mark in clause.marks if mark.start >= end]
        if _DOUBTS.intersection(mark.kind for mark in clause.marks if mark.end <= start or mark.start >= end):
            continue
        if kind in _SIDES.values():
            if _locates(clause, clauses):
                yield kind, value, SAID, start, end
            continue
        if value == "good" and any(
            mark.kind == lang.DEFECT and mark.start <= start and end <= mark.end for mark in clause.marks
        ):
            continue  # "not acceptable"
        if kind in _STATED and known.spaced and not _stated(before, after):
            continue
        if len(before) > 1 and before[-1].kind == lang.COLON and before[-2].kind == lang.FINDING:
            kind = f"{kind} {before[-2].name}"  # "Crack: low, dent: high"
        colon = bool(after) and after[0].kind == lang.COLON  # "ok: false"
        near = after[:_NEAR] if known.negates_after else [*before[-_NEAR:], *after[: 1 + colon]]
        negated = any(mark.kind in NEGATORS for mark in near) and not any(mark.kind in SAYS for mark in near)
        yield kind, value, NOT if negated else SAID, start, end


def _labels(clause: _Clause) -> Iterator[_Named]:
    """Return the letter or number of what has the finding: "Hole C: chipped"."""
    if not clause.asserts:
        return
    for mark, after in pairwise(clause.marks):
        if after.kind == lang.COLON and mark.kind == lang.WORD and len(mark.name) == 1:
            yield "label", mark.name, SAID, mark.start, mark.end


def _stated(before: Sequence[Mark], after: Sequence[Mark]) -> bool:
    """Say whether a word is what is said ("is bad", "verdict: bad"), or a label with a yes or no ("ok: false")."""
    label = len(after) > 1 and after[0].kind == lang.COLON and after[1].kind in (lang.YES, *NEGATORS)
    return label or (bool(before) and before[-1].kind in (lang.VERB, lang.COLON, *NEGATORS))


def _locates(clause: _Clause, clauses: Sequence[_Clause]) -> bool:
    """Say whether a side in a clause is that of a finding: of its own, or else of another one of the sentence."""
    if clause.items:
        return clause.asserts
    return any(one.asserts for one in clauses if one.sentence == clause.sentence)


def _hits(folded: str, known: _Words) -> Iterator[_Hit]:
    """Return the phrases of contrasts in a text, in order; where words are spaced, the numbers as well."""
    if not known.spaced:
        yield from (_Hit(match[0], *match.span()) for match in known.pattern.finditer(folded))
        return
    for word in _TOKEN.finditer(folded):
        phrases = known.of_first.get(word[0])
        if phrases is None:
            if len(word[0]) < 3 and word[0].isdigit():
                yield _Hit(word[0], *word.span())
            continue
        start = word.start()
        for phrase in phrases:
            end = start + len(phrase)
            if folded.startswith(phrase, start) and not folded[end : end + 1].isalnum():
                yield _Hit(phrase, start, end)
                break


_TOKEN = re.compile(r"[^\W_]+")


def _numbers(folded: str, clause: _Clause, known: _Words) -> Iterator[_Named]:
    """Return how many of a thing there are, by the words that may name the thing: "four black screws"."""
    if lang.HEDGE in (mark.kind for mark in clause.marks):
        return
    missing = any(item.sign == SAID and item.claim == _MISSING for item in clause.items)
    counts = _counts_in_characters(folded, clause, known) if known.counted else _counts_in_words(clause, known)
    for number, things, start, end in counts:
        if number == _ARTICLE:  # "a screw is missing" is one; "a screw" is any
            things = [_MISSING] if missing and things else []
        elif missing:
            things = [*things, _MISSING]
        for thing in dict.fromkeys(things):
            if number.isdigit():
                yield f"{_NUMBER} {thing}", number, SAID, start, end
            yield f"{_AMOUNT} {thing}", "one" if number in ("1", _ARTICLE) else "more than one", SAID, start, end


class _Count(NamedTuple):
    number: str
    things: list[str]  # words that may name what is counted
    start: int
    end: int


def _counts_in_words(clause: _Clause, known: _Words) -> Iterator[_Count]:
    last: _Count | None = None
    for phrase, start, end in clause.hits:
        number = _number(phrase, known)
        if not number:
            continue
        one = _Count(number, _things(clause, start, end, known), start, end)
        if last is not None and start - last.end <= _OF_WORDS:
            one = one._replace(number=last.number, start=last.start)  # "one of the four screws" are one
        elif last is not None:
            yield last
        last = one
    if last is not None:
        yield last


def _things(clause: _Clause, start: int, end: int, known: _Words) -> list[str]:
    """Return the words after a number that may name what it counts, or its label: "missing screws: 2"."""
    before = [mark for mark in clause.marks if mark.end <= start][-2:]
    if [mark.kind for mark in before] == [lang.FINDING, lang.COLON]:
        return [before[0].name]
    found: list[str] = []
    for mark in [mark for mark in clause.marks if mark.end > end][:_FAR]:
        if mark.kind == lang.FINDING:
            return [*found, mark.name]
        if mark.kind == lang.WORD and len(mark.name) > 2 and not _number(mark.name, known):
            found.append(_stem(mark.name))
        elif mark.kind not in (lang.WORD, lang.VERB, lang.ARTICLE):
            break
    return found


def _counts_in_characters(folded: str, clause: _Clause, known: _Words) -> Iterator[_Count]:
    of: list[str] = []
    for match in known.counted.finditer(folded, clause.start, clause.end) if known.counted else ():
        before = _BEFORE.search(folded, max(0, match.start() - 8), match.start())
        things = [thing for thing in (match["thing"], before[0] if before else None) if thing]
        if _OF.match(folded, match.end()):
            of = things  # "四颗螺丝中有一颗缺失" is one
        elif number := _number(match["number"], known):
            yield _Count(number, of or things, *match.span())
            of = []


_OF_WORDS = 12  # characters between the numbers of "one of the four"
_OF = re.compile(r"\w{0,2}(?:中|のうち|중)")
_BEFORE = re.compile(r"[^\W\d_]{2}(?=[がはをも이가은는을를]?\s*\Z)")  # a thing that stands before its number


def _number(word: str, known: _Words) -> str:
    """Return the number that a word stands for; "" where it is none, or more than people count."""
    if word.isdigit():
        return str(int(word)) if len(word) < 3 and 0 < int(word) <= _MOST else ""
    kind, value = known.of_phrase.get(word, ("", ""))
    return value if kind == _NUMBER else ""


def _stem(word: str) -> str:
    """Return what the singular and the plural of a word share, for most words of most languages."""
    return word[: max(4, len(word) - 2)]


def _parts(clauses: Sequence[_Clause]) -> Iterator[Found]:
    """Return which parts have a defect and which have none, by the words that may name them."""
    pairs: dict[tuple[str, str], tuple[int, int]] = {}
    cleared = [clause for clause in clauses if clause.clears][:_MOST_CLAUSES]
    if not cleared:
        return
    for clause in [clause for clause in clauses if clause.asserts][:_MOST_CLAUSES]:
        for other in cleared:
            for pair in product(_name(clause), _name(other)):
                pairs.setdefault(pair, (clause.start, clause.end))
    for (bad, good), place in pairs.items():
        if bad != good and (good, bad) not in pairs:
            yield f"~{PART}:{bad}>{good}", SAID, *place
            yield f"~{PART}:{good}>{bad}", NOT, *place


def _name(clause: _Clause) -> list[str]:
    words = [mark.name for mark in clause.marks if mark.kind == lang.WORD]
    named = [word for word in words if len(word) != 2 or not word.isascii()]  # "hole a", "screw 3"
    return [_PARTICLES.sub("", word) for word in named][:_NAME]


_PARTICLES = re.compile(r"(?<=[^ぁ-ん])[ぁ-ん]+$")  # of a Japanese noun
