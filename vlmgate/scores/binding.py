"""Bind negators and hedges to the findings that they reach, in one sentence; `bind` does it, in any language.

What reaches what is said once, here; which words negate, hedge or end a clause is said by the language files. Where it
is unclear what a word reaches, the finding is hedged.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmgate.scores import language as lang
from vlmgate.scores.language import Mark
from vlmgate.scores.sentence import CLAUSE, JOINS, NEGATORS, NONE, NOT, SAID, SAYS, UNNAMED, Item, Sentence


def bind(marks: Sequence[Mark], language: lang.Language) -> list[Item]:
    """Return the findings of one sentence with their signs.

    A negator that stands before reaches forward: to the end of its clause, to a preposition, a verb or the next noun
    phrase; commas end it but in a list. One that stands after reaches back over the noun phrase before it.
    """
    return _Binder(marks, language).run()


_LISTED = SAYS | {lang.AND, lang.OR, lang.WORD}  # what a list of what was looked for is made of
_PREFIXES = frozenset(("un", "non", "so"))  # set off by a hyphen; "so" is of "not-so-intact"


class _Binder(Sentence):
    def __init__(self, marks: Sequence[Mark], language: lang.Language) -> None:
        super().__init__(marks, language)
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
            if kind in SAYS:
                self._item(i, mark)
            elif kind in NEGATORS:
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
                or (kind == lang.ARTICLE and not self._after(i, (lang.OR, *NEGATORS)))
            ):
                if self.reached:
                    self.negating = self.doubtful = False
                if kind == lang.END and self.items and self.items[-1].segment == self.segment:
                    self.hedging = self.excepting = self.choosing = False
                self.verb_after = self.verb_after or (kind == lang.VERB and len(self.items) > self.phrase)
            elif kind == lang.WORD and mark.name == "0":
                if self._after(i, (lang.COLON,)):
                    self._backward(i, strong=True)
                elif self._kind(i + 1) in SAYS:  # "0 defects"
                    self.negating, self.reached = True, False
        settled = [item for item in map(self._settled, self.items) if item is not None]
        return [item for i, item in enumerate(settled) if not self._describes(settled, i)]

    def _joined(self, i: int) -> None:
        """End a denial that has reached nothing before "and": "no holes and is cracked"."""
        ahead = self._ahead(i)
        before = ahead[: next((n for n, kind in enumerate(ahead) if kind in SAYS), 0)]
        if before[:1] == [lang.VERB]:
            self.negating = False
        elif lang.VERB in before or lang.ARTICLE in before:
            self.doubtful = True  # "no nuts and bolts are loose"

    def _item(self, i: int, mark: Mark) -> None:
        if self.verb_after or (self.items and self.items[-1].claim == lang.INTACT):  # "intact, no dents"
            self.phrase, self.verb_after = len(self.items), False
        sign, denies = SAID, mark.kind == lang.DENIAL  # "scratch-free"
        if (mark.kind == lang.INTACT or denies) and self.reached:
            self.negating = False  # "no dents, intact"
        if mark.kind == lang.INTACT and self.items and self.items[-1].sign == SAID and self._labels(i):
            self.items[-1].sign = NONE  # "scratches: ok" may say either
        near = i - self._after(i, tuple(NEGATORS))
        if mark.kind == lang.DEFECT and self._after(near, (lang.COLON,)) and self._labels(near):
            self.items[-1].sign = min(self.items[-1].sign, NONE)  # "cracks: no defect"
        if self.negating:
            sign = NONE if self.doubtful else NOT
            self.reached = True
        if mark.kind == lang.DENIAL:
            sign = -sign  # "not unscratched" is scratched
        if self._kind(i - 1) == lang.WORD and self.marks[i - 1].name in _PREFIXES:
            sign = NONE  # "un-damaged", "non-cracked"
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

    def _negator(self, i: int, kind: str) -> None:
        ahead = self._ahead(i)
        first = next((n for n, one in enumerate(ahead) if one in SAYS), 0)
        if ahead[:1] == [lang.END] and any(one in NEGATORS for one in ahead[:first]):
            return  # "neither on the top nor on the rim are there scratches": the second one denies
        chosen = self._after(i, (lang.OR,)) and not self.negating  # "scratch, dent or none" is a choice
        if not ahead and (chosen or (kind == lang.BEFORE and self._after(i, (lang.AND, lang.OR)))):
            for item in self._reach():  # "a scratch and no" was cut off
                item.sign = NONE
            self.phrase = len(self.items)
            return
        if kind in (lang.BEFORE, lang.NOR) and {lang.SEEN}.issuperset(ahead) and self._reach():
            kind = lang.AFTER  # "Scratches: no"
        if kind == lang.AFTER and not self._reach() and lang.VERB in ahead[:first]:
            kind = lang.BEFORE  # "none is cracked"
        if kind == lang.EITHER:
            kind = self._side(i, ahead)
        if kind in (lang.AFTER, "weak") and self.concord and not self._reach() and SAYS.isdisjoint(ahead):
            kind = lang.BEFORE  # there is nothing that it could deny but what follows
        if kind == lang.NEAR:  # "it is not seen" denies it, "it is not deep" does not
            kind = lang.AFTER if self._after(i, (lang.SEEN, lang.VERB, lang.PREDICATE, *SAYS)) else "weak"
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
        first = next((n for n, kind in enumerate(ahead) if kind in SAYS), 0)
        for n, kind in enumerate(ahead):
            if kind in SAYS:
                return lang.BEFORE
            if kind == lang.AND and not apart:  # "scratches are not visible and a dent …"
                if lang.WORD in ahead[:n]:
                    return "both"  # "the scratch is not deep and a dent …"
                break
            if kind == lang.END and self.concord and not self._reach() and not JOINS.intersection(ahead[n:first]):
                continue  # "non ci sono sulla superficie graffi"
            if kind == lang.VERB and ahead[max(0, n - 1) : n] == [lang.AND]:
                break  # "not smooth and has dents"
            if kind in (lang.END, lang.EXCEPT, *NEGATORS):
                told = lang.WORD not in ahead[:n]  # "not smooth because of dents" denies none
                if last is None and told and kind == lang.END and any(other in SAYS for other in ahead[n:]):
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
        cut = commas[-1] if commas and self.marks[i - 1].kind not in CLAUSE else 0
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

    def _hedge(self, i: int) -> None:
        if any(kind in SAYS for kind in self._ahead(i)):
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

    def _or(self, i: int) -> None:
        """Take "a scratch or a crack" for one of two; "no scratch or crack" denies both."""
        last = self.items[-1] if self.items else None
        if last is None and self._after(i, (lang.COMMA,)):
            self.hedging = True  # one word for "or" and "whether" (pl "czy")
        if last is None or last.segment != self.segment or self.negating:
            return
        between = [mark for mark in self.marks[:i] if mark.start >= last.end]
        if len(between) <= 2 and all(mark.kind in (lang.WORD, lang.SEEN, lang.PREDICATE) for mark in between):
            following = next((mark for mark in self.marks[i + 1 :] if mark.kind in SAYS), None)
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
        asking = self.asking and _LISTED.issuperset(self._ahead(i))  # "inspected for cracks, dents and rust"
        pending = self.concord and self.negating and not self.reached and not self._has_verb(i)
        self._reset()
        if pending:  # "en ninguna zona, desde el borde hasta el centro, se aprecian grietas"
            self.negating = self.doubtful = True
        if goes_on is not None:
            self.negating = self.reached = True
            self.doubtful = doubtful or not goes_on
        self.hedging, self.choosing, self.asking = hedging, choosing, asking

    def _has_verb(self, i: int) -> bool:
        """Say whether a verb stands between a comma and the one before it."""
        before = [n for n in range(i) if self.marks[n].kind == lang.COMMA]
        return any(mark.kind == lang.VERB for mark in self.marks[before[-1] if before else 0 : i])

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

    def _colon(self, i: int, mark: Mark) -> None:
        near = self.items[-1] if self.items else None
        if near is not None and near.segment == self.segment and (near.claim == UNNAMED or "?" in mark.name):
            between = [one for one in self.marks[:i] if one.start >= near.end]
            near.open = near.open or "?" in mark.name or len(between) <= 2
        if self.hedging:  # "possible dents: none" asks, and is answered
            for item in self.items:
                if item.segment == self.segment and item.sign == NONE:
                    item.sign, item.open = SAID, True
        if ":" in mark.name and i == len(self.marks) - 1:  # "Scratches:" has no value
            for item in self.items:
                if item.segment == self.segment and item.sign == SAID:
                    item.sign = NONE
        asking = self.asking
        self._reset()
        self.asking = asking  # "inspected for: cracks"
