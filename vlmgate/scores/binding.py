"""Bind negators and hedges to the findings that they reach, in one sentence; `bind` does it, in any language.

What reaches what is said once, here; which words negate, hedge or end a clause is said by the language files. Where it
is unclear what a word reaches, the finding is hedged.
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
    return [part for part in parts if any(mark.kind in _SAYS for mark in part)]


_SAYS = frozenset((lang.FINDING, lang.DENIAL, lang.INTACT, lang.DEFECT))
_NEGATORS = frozenset((lang.BEFORE, lang.AFTER, lang.EITHER, lang.NEAR, lang.NOR))
_CLAUSE = frozenset((lang.COMMA, lang.COLON, lang.BREAK))
_JOINS = frozenset((lang.AND, lang.OR, lang.VERB))


# Findings that are often no more than an adjective of another one: "flaky rust", "a jagged crack".
_MODIFIERS = frozenset(("haze", "rough", "peeling", "pit", "leak"))


def bind(marks: Sequence[Mark], language: lang.Language) -> list[Item]:
    """Return the findings of one sentence with their signs.

    A negator that stands before reaches forward: to the end of its clause, to a preposition, a verb or the next noun
    phrase; commas end it but in a list. One that stands after reaches back over the noun phrase before it.
    """
    return _Binder(marks, language).run()


class _Binder:
    def __init__(self, marks: Sequence[Mark], language: lang.Language) -> None:
        self.marks, self.spaced = marks, language.spaced
        self.concord, self.comma_first = language.concord, language.comma_first
        self.items: list[Item] = []
        self.phrase = 0  # the first item that a backward negator would reach
        self.segment = 0
        self.verb_after = False  # a verb came after the items of the phrase
        self._reset()

    def _reset(self) -> None:
        """Forget what reaches forward."""
        self.negating = self.reached = self.doubtful = self.hedging = self.excepting = self.choosing = self.asking = (
            False
        )

    def run(self) -> list[Item]:
        for i, mark in enumerate(self.marks):
            kind = mark.kind
            if kind in _SAYS:
                self._item(i, mark)
            elif kind in _NEGATORS:
                self._negator(i, kind)
            elif kind == lang.COMMA:
                self._comma(i)
            elif kind == lang.COLON:
                self._colon(i, mark)
            elif kind == lang.BREAK:
                if self.comma_first and not self.negating and not self._after(i, (lang.COMMA,)):
                    continue  # an adverb: "Kratzer sind jedoch nicht zu sehen"
                if (
                    self._kind(i - 1) == self._kind(i + 1) == lang.COMMA
                    and self._reach()
                    and not any(m.kind == lang.VERB for m in self.marks[:i])
                ):
                    continue  # "scratches, however, are not visible"
                self._reset()
                self.phrase, self.verb_after, self.segment = len(self.items), False, self.segment + 1
            elif kind == lang.DOUBLE:
                self._reset()
            elif kind == lang.HEDGE:
                self._hedge(i)
            elif kind == lang.HEDGE_AFTER:  # "a scratch it may be": what stands before it, denied or not
                here = [item for item in self.items if item.segment == self.segment and not self.spaced]
                for item in here or self._reach() or self.items[-1:]:
                    item.sign = NONE
                self.phrase = len(self.items) if self.spaced else self.phrase
            elif kind == lang.PREDICATE:
                self.items[-1].predicate = True
            elif kind == lang.WITHIN:
                self.items[-1].sign = NONE if self.items[-1].sign != SAID else NOT
                self.phrase = len(self.items)
            elif kind == lang.EXCEPT:
                self._reset()
                self.excepting = True
            elif kind == lang.EXCEPT_AFTER:
                for item in self._reach():
                    if item.segment == self.segment or self.marks[i - 1].kind == lang.COMMA:
                        item.sign, item.fixed = SAID, True
            elif kind == lang.YES and self._after(i, (lang.COLON,)):
                for item in self._reach():
                    item.open = False  # "defects: yes"
            elif kind == lang.ASK:
                self.asking = True
            elif kind == lang.OR:
                self._or(i)
            elif kind == lang.AND:
                self._close(i)
                if self.negating and self.reached:
                    # "no dents visible and rust on the rim": the denial may have ended
                    self.doubtful = self.doubtful or self._verb_follows(i) or self._after(i, (lang.SEEN,))
                elif self.negating:
                    self._joined(i)
            elif (
                kind == lang.END
                or kind == lang.VERB
                or (kind == lang.ARTICLE and not self._after(i, (lang.OR, *_NEGATORS)))
            ):
                if self.reached:
                    self.negating = self.doubtful = False
                if kind == lang.END and self.items and self.items[-1].segment == self.segment:
                    self.hedging = self.excepting = self.choosing = False
                self.verb_after = self.verb_after or (kind == lang.VERB and len(self.items) > self.phrase)
            elif kind == lang.WORD and mark.name == "0":
                if self._after(i, (lang.COLON,)):
                    self._backward(i, strong=True)
                elif self._kind(i + 1) in _SAYS:  # "0 defects"
                    self.negating, self.reached = True, False
        settled = [item for item in map(self._settled, self.items) if item is not None]
        return [item for i, item in enumerate(settled) if not self._describes(settled, i)]

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

    def _kind(self, i: int) -> str | None:
        return self.marks[i].kind if 0 <= i < len(self.marks) else None

    def _after(self, i: int, kinds: Sequence[str]) -> bool:
        return self._kind(i - 1) in kinds

    def _ahead(self, i: int) -> list[str]:
        """Return the kinds that follow in the clause, up to a comma, colon or break."""
        found: list[str] = []
        for mark in self.marks[i + 1 :]:
            if mark.kind in _CLAUSE:
                break
            found.append(mark.kind)
        return found

    def _verb_follows(self, i: int) -> bool:
        """Say whether a verb, or a thing that has it, follows the next finding: "no dents and rust is visible"."""
        ahead = self._ahead(i)
        first = next((n for n, kind in enumerate(ahead) if kind in _SAYS), None)
        if self.concord and first == 0 and ahead[1:2] == [lang.WORD]:
            return True  # "brak rys i zardzewiała powierzchnia"
        return first is not None and lang.VERB in ahead[first + 1 :] and lang.OR not in ahead

    def _joined(self, i: int) -> None:
        """End a denial that has reached nothing before "and": "no holes and is cracked"."""
        ahead = self._ahead(i)
        before = ahead[: next((n for n, kind in enumerate(ahead) if kind in _SAYS), 0)]
        if before[:1] == [lang.VERB]:
            self.negating = False
        elif lang.VERB in before or lang.ARTICLE in before:
            self.doubtful = True  # "no nuts and bolts are loose"

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

    def _item(self, i: int, mark: Mark) -> None:
        if self.verb_after or (self.items and self.items[-1].claim == lang.INTACT):  # "intact, no dents"
            self.phrase, self.verb_after = len(self.items), False
        sign, denies = SAID, mark.kind == lang.DENIAL  # "scratch-free"
        if (mark.kind == lang.INTACT or denies) and self.reached:
            self.negating = False  # "no dents, intact"
        if mark.kind == lang.INTACT and self.items and self.items[-1].sign == SAID and self._labels(i):
            self.items[-1].sign = NONE  # "scratches: ok" may say either
        if self.negating:
            sign = NONE if self.doubtful else NOT
            self.reached = True
        if mark.kind == lang.DENIAL:
            sign = -sign  # "not unscratched" is scratched
        if denies and self.excepting:
            sign = NONE  # "only three of four are in place"
        if self.hedging or (self.choosing and sign == NOT):
            sign = NONE
        claim = mark.name if mark.name else UNNAMED if mark.kind == lang.DEFECT else lang.INTACT
        if denies and self._after(i, (lang.AND, lang.OR)) and self._kind(i - 2) in (lang.FINDING, lang.DEFECT):
            self.items[-1].sign = min(self.items[-1].sign, NONE)  # "scratch- and dent-free"
        item = Item(claim, sign, mark.start, mark.end, self.segment, self.excepting, denies, self.asking)
        item.open, item.predicate = self.choosing and claim != UNNAMED, self._counted(i)
        self.items.append(item)
        self.choosing = self.choosing and not self.spaced

    def _labels(self, i: int) -> bool:
        """Say whether a finding is the label of a mark: "scratches: ok", or "scratches ok" as a clause."""
        if self._after(i, (lang.COLON,)):
            return self._kind(i - 2) == lang.FINDING
        return self._after(i, (lang.FINDING,)) and self._kind(i - 2) in (None, *_CLAUSE)

    def _negator(self, i: int, kind: str) -> None:
        ahead = self._ahead(i)
        first = next((n for n, one in enumerate(ahead) if one in _SAYS), 0)
        if ahead[:1] == [lang.END] and any(one in _NEGATORS for one in ahead[:first]):
            return  # "neither on the top nor on the rim are there scratches": the second one denies
        if kind in (lang.BEFORE, lang.NOR) and not ahead and self._reach():
            kind = lang.AFTER  # "Scratches: no"
        if kind == lang.EITHER:
            kind = self._side(i, ahead)
        if kind == lang.NEAR:  # "it is not seen" denies it, "it is not deep" does not
            kind = lang.AFTER if self._after(i, (lang.SEEN, lang.VERB, lang.PREDICATE, *_SAYS)) else "weak"
        if kind == lang.AFTER:
            self._backward(i, strong=True)
        elif kind in ("weak", "both"):
            self._backward(i, strong=False)
            if kind == "both":
                self.negating, self.doubtful = True, True
        else:
            if self.negating and not self.reached and not self.concord:
                self.doubtful = True  # nobody knows what two negators come to
            elif self.reached or not self.negating:
                self.doubtful = False
            self.negating, self.reached, self.excepting = True, False, False

    def _side(self, i: int, ahead: Sequence[str]) -> str:
        """Return which way a negator reaches that may stand on either side of what it negates."""
        last = self._reach()[-1].end if self._reach() else None
        apart = last is None or any(mark.kind == lang.AND and last <= mark.start for mark in self.marks[:i])
        first = next((n for n, kind in enumerate(ahead) if kind in _SAYS), 0)
        for n, kind in enumerate(ahead):
            if kind in _SAYS:
                return lang.BEFORE
            if kind == lang.AND and not apart:  # "scratches are not visible and a dent …"
                if lang.WORD in ahead[:n]:
                    return "both"  # "the scratch is not deep and a dent …"
                break
            if kind == lang.END and self.concord and not self._reach() and not _JOINS.intersection(ahead[n:first]):
                continue  # "non ci sono sulla superficie graffi"
            if kind == lang.VERB and ahead[max(0, n - 1) : n] == [lang.AND]:
                break  # "not smooth and has dents"
            if kind in (lang.END, lang.EXCEPT, *_NEGATORS):
                told = lang.WORD not in ahead[:n]  # "not smooth because of dents" denies none
                if last is None and told and kind == lang.END and any(other in _SAYS for other in ahead[n:]):
                    return "both" if lang.AND in ahead[n:] else lang.BEFORE  # "nowhere on the part is a scratch"
                if n == 0 and kind == lang.END and any(mark.kind == lang.BREAK for mark in self.marks[i:]):
                    return "weak"  # "the scratch is not inside the bore but on the rim"
                break
            if kind in (lang.AND, lang.OR) and self._reach() and {lang.SEEN, lang.WORD}.intersection(ahead[:n]):
                break  # "scratches are not visible and rust is"
        rest: list[str] = []
        for kind in ahead:
            if kind in (lang.END, lang.AND, lang.OR):
                break
            rest.append(kind)
        # "scratches are not visible" denies them, "scratches are not deep" does not, "… not made out" is unclear
        # and "a crack that does not extend to the rim" neither
        far = lang.VERB in rest and len(ahead) > len(rest)
        return "weak" if (lang.WORD in rest or far) and lang.SEEN not in rest else lang.AFTER

    def _backward(self, i: int, *, strong: bool) -> None:
        reached = self._reach()
        again = self._after(i, (lang.AND,))  # "no scratches on the top and none on the rim"
        far = self._far(i, reached)
        joined = any(item.open for item in reached)  # "rusty, dented or cracked"
        # "划痕，无" denies; what "划痕，其余无" denies is unclear
        commas = [mark.start for mark in self.marks[:i] if mark.kind == lang.COMMA and mark.name == "，"]
        cut = commas[-1] if commas and self.marks[i - 1].kind not in _CLAUSE else 0
        for item in reached:
            if not strong and self.concord and item.sign == NOT and item.segment == self.segment:
                continue  # "no falta ninguna pieza" stays denied
            before = item is not reached[-1]
            apart = before and (self._clauses(i, item, reached[-1]) or (item.predicate and not joined))
            if not strong or far or apart or item.unsure or item.end <= cut:
                item.sign = NONE
            elif item.denial:
                item.sign = -item.sign
            elif item.sign == SAID:
                item.sign, item.open = NOT, False
            elif item.sign == NOT and item.segment == self.segment and not self.concord and not again:
                item.sign = NONE
        self.phrase, self.choosing = len(self.items), False

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

    def _hedge(self, i: int) -> None:
        if any(kind in _SAYS for kind in self._ahead(i)):
            self.hedging = True
            return
        here = [item for item in self.items if item.segment == self.segment]
        if not here and self._kind(i + 1) is None:
            here = self.items[-1:]  # "a scratch, perhaps"
        for item in here:
            item.sign = NONE

    def _close(self, i: int) -> None:
        """Begin a new phrase after "rust visible, …", "rust at the rim, …" and "we see rust, …" without an "and".

        A negator after the next finding ("… cracks absent") is not for this one.
        """
        here = [item for item in self.items if item.segment == self.segment]
        if not here or self.marks[i].name == "、":
            return
        since = [mark.kind for mark in self.marks[:i] if mark.start >= here[-1].end]
        joined = self.marks[i].kind == lang.AND or {lang.AND, lang.OR}.intersection(m.kind for m in self.marks[i:])
        said = not joined and self._led(here[0].start)
        if since[:1] == [lang.SEEN] or (self.marks[i].kind == lang.COMMA and lang.END in since) or said:
            self.verb_after = True

    def _led(self, start: int) -> bool:
        """Say whether a verb leads a finding: "there is rust"."""
        led = False
        for mark in self.marks:
            if mark.start >= start:
                return led
            led = (led or mark.kind in (lang.SEEN, lang.VERB)) and mark.kind not in _CLAUSE
        return led

    def _or(self, i: int) -> None:
        """Take "a scratch or a crack" for one of two; "no scratch or crack" denies both."""
        last = self.items[-1] if self.items else None
        if last is None and self._after(i, (lang.COMMA,)):
            self.hedging = True  # one word for "or" and "whether" (pl "czy")
        if last is None or last.segment != self.segment or self.negating:
            return
        between = [mark for mark in self.marks[:i] if mark.start >= last.end]
        if len(between) <= 2 and all(mark.kind in (lang.WORD, lang.SEEN, lang.PREDICATE) for mark in between):
            following = next((mark for mark in self.marks[i + 1 :] if mark.kind in _SAYS), None)
            if last.claim == UNNAMED and following is not None and following.kind == lang.DEFECT:
                return  # "a defect or damage"
            last.open = last.claim != UNNAMED  # "a crack or another defect": something is wrong
            self.choosing = self.choosing or last.sign == SAID

    def _comma(self, i: int) -> None:
        self._close(i)
        goes_on = self._list_goes_on(i) if self.negating and self.reached else None
        if self.marks[i].name == "，" and self._is_stated(i):
            self.phrase = len(self.items)
        if self.marks[i].name == "、":
            self._end_of_clause(i)
        self.segment += 1
        doubtful = self.doubtful
        hedging = self.hedging and self._kind(i + 1) in (lang.OR,)
        if self._after(i, (lang.HEDGE,)) and not any(item.segment == self.segment - 1 for item in self.items):
            hedging = True  # "it is possible, that …"
        choosing = self.choosing and self._kind(i + 1) == lang.OR
        self._reset()
        if goes_on is not None:
            self.negating = self.reached = True
            self.doubtful = doubtful or not goes_on
        self.hedging, self.choosing = hedging, choosing

    def _end_of_clause(self, i: int) -> None:
        """Settle what a verb has stated before a Japanese comma: "傷があり、影響はありません" denies no scratch."""
        here = [item for item in self.items[self.phrase :] if item.segment == self.segment]
        if not here:
            return
        after = {mark.kind for mark in self.marks[:i] if mark.start >= here[-1].end}
        if lang.VERB in after:
            self.phrase, self.verb_after = len(self.items), False
        elif after & {lang.END, lang.WORD}:
            for item in here:
                item.unsure = True

    def _is_stated(self, i: int) -> bool:
        """Say whether a clause that a comma ends has a verb before its last finding: "存在划痕，其余未见"."""
        clause: list[str] = []
        for mark in reversed(self.marks[:i]):
            if mark.kind in _CLAUSE:
                break
            clause.append(mark.kind)
        last = next((n for n, kind in enumerate(clause) if kind in _SAYS), None)
        return last is not None and lang.VERB in clause[last + 1 :]

    def _list_goes_on(self, i: int) -> bool | None:
        """Say whether a denial goes on after a comma: True in a list, False where that is unclear, None where not."""
        if self.marks[i].name == "、":
            ahead = self._ahead(i)
            first = next((n for n, kind in enumerate(ahead) if kind in _SAYS), None)
            return None if first is None or {lang.VERB, lang.EXCEPT} & {*ahead[:first]} else True
        ahead = self._ahead(i)
        joined = bool(ahead) and ahead[0] in (lang.OR, lang.AND)
        first = next((n for n, kind in enumerate(ahead) if kind in _SAYS), None)
        if first is None:
            return None
        before = ahead[:first]
        if any(kind in (lang.VERB, lang.END, lang.HEDGE, lang.EXCEPT, *_NEGATORS) for kind in before):
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
        if self.concord and not _SAYS.intersection(rest) and sum(item.sign == NOT for item in self.items) < 2:
            return False  # "brak rys, etykieta podarta": two findings without a word between them are no list
        return all(kind in (lang.SEEN, lang.COMMA, *_SAYS) for kind in ahead[first + 1 :])

    def _ended(self, i: int) -> bool:
        """Say whether a list of what is denied ended before a mark: "no dents visible, rust present"."""
        return any(mark.kind == lang.SEEN and mark.start >= self.items[-1].end for mark in self.marks[:i])

    def _colon(self, i: int, mark: Mark) -> None:
        near = self.items[-1] if self.items else None
        if near is not None and near.segment == self.segment and (near.claim == UNNAMED or "?" in mark.name):
            between = [one for one in self.marks[:i] if one.start >= near.end]
            near.open = near.open or "?" in mark.name or len(between) <= 2
        if self.hedging:  # "possible dents: none" asks, and is answered
            for item in self.items:
                if item.segment == self.segment and item.sign == NONE:
                    item.sign, item.open = SAID, True
        self._reset()
