"""One sentence of a caption: its marks, the findings in it, and what stands where. `binding` binds them.

`sentences` cuts marks into sentences; the methods of `Sentence` answer what follows, what stands between, where a list
or a clause ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlmgate.scores import language as lang
from vlmgate.scores.language import Mark

UNNAMED = "defect"  # asserted: something is wrong, and it is not said what
NONE, NOT, SAID = 0, -1, 1  # hedged, denied, asserted


@dataclass(slots=True)
class Item:
    """A finding in a sentence while it is being bound."""

    claim: str
    sign: int
    start: int
    end: int
    segment: int  # commas before it
    fixed: bool = False  # what an exception names stays as it is
    denial: bool = False  # a word that denies it: "unscratched"
    asked: bool = False  # what was looked for, and nobody says yet with what result
    unsure: bool = False  # after a comma, what stands behind denies it only perhaps
    open: bool = False  # one of two, a question, or a label: asserted only if something later says so
    predicate: bool = False  # "rusty, no dents": a negator after a list may not reach it


def sentences(marks: Sequence[Mark]) -> list[list[Mark]]:
    parts: list[list[Mark]] = [[]]
    for mark in marks:
        if mark.kind == lang.STOP:
            parts.append([])
        elif mark.kind != lang.IGNORE:
            parts[-1].append(mark)
    return [part for part in parts if any(mark.kind in SAYS for mark in part)]


SAYS = frozenset((lang.FINDING, lang.DENIAL, lang.INTACT, lang.DEFECT))
NEGATORS = frozenset((lang.BEFORE, lang.AFTER, lang.EITHER, lang.NEAR, lang.NOR))
CLAUSE = frozenset((lang.COMMA, lang.COLON, lang.BREAK))
JOINS = frozenset((lang.AND, lang.OR, lang.VERB))


# Findings that are often no more than an adjective of another one: "flaky rust", "a jagged crack".
_MODIFIERS = frozenset(("haze", "rough", "peeling", "pit", "leak"))


class Sentence:
    """The marks of one sentence, and the findings in it as they are bound."""

    def __init__(self, marks: Sequence[Mark], language: lang.Language) -> None:
        self.marks, self.spaced = marks, language.spaced
        self.concord, self.comma_first = language.concord, language.comma_first
        self.items: list[Item] = []
        self.phrase = 0  # the first item that a backward negator would reach
        self.segment = 0

    def _kind(self, i: int) -> str | None:
        return self.marks[i].kind if 0 <= i < len(self.marks) else None

    def _after(self, i: int, kinds: Sequence[str]) -> bool:
        return self._kind(i - 1) in kinds

    def _ahead(self, i: int) -> list[str]:
        """Return the kinds that follow in the clause, up to a comma, colon or break."""
        found: list[str] = []
        for mark in self.marks[i + 1 :]:
            if mark.kind in CLAUSE:
                break
            found.append(mark.kind)
        return found

    def _verb_follows(self, i: int) -> bool:
        """Say whether a verb, or a thing that has it, follows the next finding: "no dents and rust is visible"."""
        ahead = self._ahead(i)
        first = next((n for n, kind in enumerate(ahead) if kind in SAYS), None)
        if self.concord and first == 0 and ahead[1:2] == [lang.WORD]:
            return True  # "brak rys i zardzewiała powierzchnia"
        return first is not None and lang.VERB in ahead[first + 1 :] and lang.OR not in ahead

    def _counted(self, i: int) -> bool:
        """Say whether a number stands before a finding: "1 scratch, cracks none"."""
        near = [mark.name for mark in self.marks[max(0, i - 2) : i] if mark.kind == lang.WORD]
        return any(name[0].isdigit() and name.strip("0.,") for name in near)

    def _reach(self) -> list[Item]:
        """Return the items of the noun phrase before; they may be a list with commas.

        "Intact" is in no list with defects: "in good condition, scratches none" denies the scratches.
        """
        found: list[Item] = []
        for item in reversed(self.items[self.phrase :]):
            if found and (item.claim == lang.INTACT) != (found[-1].claim == lang.INTACT):
                break
            if not item.fixed:
                found.append(item)
        return found[::-1]

    def _labels(self, i: int) -> bool:
        """Say whether a finding is the label of a mark: "scratches: ok", or "scratches ok" as a clause."""
        if self._after(i, (lang.COLON,)):
            return self._kind(i - 2) == lang.FINDING
        return self._after(i, (lang.FINDING,)) and self._kind(i - 2) in (None, *CLAUSE)

    def _far(self, i: int, reached: Sequence[Item]) -> bool:
        """Say whether a comma cuts a negator off: "there is a scratch on the left, on the right not"."""
        if not reached or reached[-1].segment == self.segment or any(item.asked or item.open for item in reached):
            return False
        comma = max((mark.start for mark in self.marks[:i] if mark.kind == lang.COMMA), default=0)
        return any(mark.kind == lang.VERB and mark.start < comma for mark in self.marks[:i])

    def _clauses(self, i: int, item: Item, last: Item) -> bool:
        """Say whether two items may stand in two clauses: "there is a dent and scratches are not visible"."""
        kinds = [(mark.kind, mark.start) for mark in self.marks[:i]]
        return (
            any(kind == lang.AND and item.end <= start <= last.start for kind, start in kinds)
            and any(kind == lang.VERB and start < item.start for kind, start in kinds)
            and any(kind == lang.VERB and start >= last.end for kind, start in kinds)
        )

    def _led(self, start: int) -> bool:
        """Say whether a verb leads a finding: "there is rust"."""
        led = False
        for mark in self.marks:
            if mark.start >= start:
                return led
            led = (led or mark.kind in (lang.SEEN, lang.VERB)) and mark.kind not in CLAUSE
        return led

    def _is_stated(self, i: int) -> bool:
        """Say whether a clause that a comma ends has a verb before its last finding: "存在划痕，其余未见"."""
        clause: list[str] = []
        for mark in reversed(self.marks[:i]):
            if mark.kind in CLAUSE:
                break
            clause.append(mark.kind)
        last = next((n for n, kind in enumerate(clause) if kind in SAYS), None)
        return last is not None and lang.VERB in clause[last + 1 :]

    def _list_goes_on(self, i: int) -> bool | None:
        """Say whether a denial goes on after a comma: True in a list, False where that is unclear, None where not."""
        if self.marks[i].name == "、":
            ahead = self._ahead(i)
            first = next((n for n, kind in enumerate(ahead) if kind in SAYS), None)
            return None if first is None or {lang.VERB, lang.EXCEPT} & {*ahead[:first]} else True
        ahead = self._ahead(i)
        joined = bool(ahead) and ahead[0] in (lang.OR, lang.AND)
        first = next((n for n, kind in enumerate(ahead) if kind in SAYS), None)
        if first is None:
            return None
        before = ahead[:first]
        if any(kind in (lang.VERB, lang.END, lang.HEDGE, lang.EXCEPT, *NEGATORS) for kind in before):
            return None
        if lang.ARTICLE in before and not (before and before[0] == lang.OR):
            return None
        if self.marks[i + 1 + first].kind in (lang.INTACT, lang.DENIAL):
            return None
        if self.marks[i].name == "，" and lang.WORD in before:
            return False  # without spaces a word may be a whole phrase
        rest: list[str] = []
        for mark in self.marks[i + 1 + first + 1 :]:
            if mark.kind in (lang.BREAK, lang.COLON):
                break
            rest.append(mark.kind)
        if self._ended(i) and not joined:
            return False
        if {lang.OR, lang.NOR}.intersection((*before, *rest)):
            return True
        listed = rest[: rest.index(lang.NOR)] if lang.NOR in rest else [lang.VERB]
        if lang.VERB not in listed and listed[-1:] != [lang.COMMA]:
            return True  # "no dents, cracks nor rust"
        verb = lang.VERB in ahead[first + 1 :]
        if joined or lang.AND in rest:
            return not verb
        if before.count(lang.WORD) > 2:
            return False
        if self.concord and not SAYS.intersection(rest) and sum(item.sign == NOT for item in self.items) < 2:
            return False  # "brak rys, etykieta podarta": two findings without a word between them are no list
        return all(kind in (lang.SEEN, lang.COMMA, *SAYS) for kind in ahead[first + 1 :])

    def _ended(self, i: int) -> bool:
        """Say whether a list of what is denied ended before a mark: "no dents visible, rust present"."""
        return any(mark.kind == lang.SEEN and mark.start >= self.items[-1].end for mark in self.marks[:i])

    def _describes(self, items: Sequence[Item], i: int) -> bool:
        """Say whether an item only describes its neighbour: "a cloudy stain" is a stain."""
        item = items[i]
        if item.claim not in _MODIFIERS or item.sign != SAID:
            return False
        for other in (*items[max(0, i - 1) : i], *items[i + 1 : i + 2]):
            first, last = sorted((item, other), key=lambda one: one.start)
            between = [mark.kind for mark in self.marks if first.end <= mark.start < last.start]
            near = len(between) <= 2 and all(kind in (lang.WORD, lang.SEEN) for kind in between)
            if near and other.sign == SAID and other.claim not in _MODIFIERS and other.segment == item.segment:
                return True
        return False

    def _settled(self, item: Item) -> Item | None:
        if item.sign == SAID and (item.asked or (item.open and item.claim == UNNAMED)):
            return None  # "inspected for cracks"; a label: "Defects: …"
        if item.open and item.sign == SAID:
            item.sign = NONE
        return item
