"""What a caption says of the part's condition: findings that it asserts, denies or hedges; see `load_vocabulary`.

    >>> load_vocabulary().claims("No dents, but a long scratch on the rim.").describe()
    'scratch, no dent'

A caption is cut into marks (`language`), negators and hedges are bound to the findings that they reach, and sizes and
comparisons are read (`measures`). The rules are the same in every language; the words are data. Where it is unclear
what a word reaches, the finding is hedged, and a hedged caption never counts as agreeing.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlmgate.errors import ConfigError
from vlmgate.scores import language as lang
from vlmgate.scores.language import Mark, Scanner, fold, language_of, languages, script_of
from vlmgate.scores.measures import is_measure, measures_of

ANY = "*"  # among what is denied: every defect that the caption does not assert
UNNAMED = "defect"  # asserted: something is wrong, and it is not said what
NO_DEFECT = "no defect"  # what a caption claims that denies defects and asserts none
NONE, NOT, SAID = 0, -1, 1  # hedged, denied, asserted


@dataclass(frozen=True, slots=True)
class Span:
    """A claim and where it stands in the text."""

    claim: str
    sign: int  # 1 asserted, -1 denied, 0 hedged
    start: int  # in the folded text
    end: int


@dataclass(frozen=True, slots=True)
class Claims:
    """What one caption says of the part's condition."""

    asserted: frozenset[str] = frozenset()  # findings, sizes and comparisons
    denied: frozenset[str] = frozenset()  # `ANY` = every defect that it does not assert
    hedged: frozenset[str] = frozenset()  # said to be possible, or not clear
    language: str | None = "en"  # None = no file covers it
    spans: tuple[Span, ...] = ()
    neutral: frozenset[str] = frozenset()  # of the asserted: those that are no defect

    @property
    def certain(self) -> bool:
        """Say whether it claims anything, and hedges nothing."""
        return bool(self.asserted or self.denied) and not self.hedged

    @property
    def defects(self) -> frozenset[str]:
        """Return the defects that it asserts."""
        return self.asserted - self.neutral

    @property
    def verdict(self) -> str | None:
        """Return "defect", "no defect", or None where it says neither for sure."""
        if not self.certain:
            return None
        if self.defects:
            return "defect"
        return NO_DEFECT if any(not is_measure(claim) for claim in self.denied) else None

    def denies(self, claim: str) -> bool:
        """Say whether it denies what another caption asserts; `claim` is no neutral finding."""
        return claim in self.denied or (ANY in self.denied and claim not in self.asserted)

    def describe(self) -> str:
        """Return the claims in a few words: "scratch, no dent"."""
        said = sorted(self.asserted) + [f"perhaps {claim}" for claim in sorted(self.hedged)]
        no = [NO_DEFECT] if ANY in self.denied and not self.defects else []
        denied = [f"no {claim}" for claim in sorted(self.denied - {ANY}) if not is_measure(claim)]
        return ", ".join(said + no + denied) or "nothing"


NOTHING = Claims(language=None)


class Vocabulary:
    """The findings that captions may name, in every language that has a file; `digest` tells two of them apart."""

    def __init__(
        self, terms: Mapping[str, Mapping[str, Sequence[str]]], neutral: frozenset[str], everywhere: Mapping[str, str]
    ) -> None:
        """`terms`: language → finding → synonyms; `neutral`: findings that are no defect; `everywhere`: phrase → id."""
        self.neutral = neutral
        self.findings = frozenset(name for one in terms.values() for name in one) | frozenset(everywhere.values())
        self.scanners: dict[str, Scanner] = {}
        for code, one in languages().items():
            own = {name: [*phrases] for name, phrases in terms.get(code, {}).items()}
            for phrase, name in everywhere.items():
                own.setdefault(name, []).append(phrase)
            self.scanners[code] = Scanner.of_claims(one, own)
        said: Any = [{code: {k: list(v) for k, v in one.items()} for code, one in terms.items()}, sorted(neutral)]
        self.digest = hashlib.sha256(json.dumps([*said, dict(everywhere)], sort_keys=True).encode()).hexdigest()[:16]
        self._claims = lru_cache(maxsize=16384)(self._read)  # captions repeat

    def claims(self, text: str) -> Claims:
        """Return what a caption claims; nothing, with the language None, in a language without a file."""
        return self._claims(text)

    def _read(self, text: str) -> Claims:
        folded = fold(text)
        code = language_of(folded, self.scanners)
        if code is None:
            return NOTHING if script_of(folded) else replace(NOTHING, language="")
        scanner = self.scanners[code]
        marks = scanner.scan(folded)
        items = [item for part in _sentences(marks) for item in bind(part, concord=scanner.language.concord)]
        spans = [Span(item.claim, item.sign, item.start, item.end) for item in items]
        spans += [Span(*one) for one in measures_of(folded, marks, scanner.language)]
        return self._summed(spans, code)

    def _summed(self, spans: Sequence[Span], code: str) -> Claims:
        signs = {sign: {span.claim for span in spans if span.sign == sign} for sign in (NONE, NOT, SAID)}
        asserted, denied, hedged = signs[SAID], signs[NOT], signs[NONE]
        if UNNAMED in denied or lang.INTACT in asserted:
            denied.add(ANY)
        if lang.INTACT in denied:
            asserted.add(UNNAMED)
        hedged |= asserted & denied - {UNNAMED, lang.INTACT}  # said and denied by one caption
        sizes = {claim for claim in asserted if is_measure(claim)}
        named = asserted - {UNNAMED, lang.INTACT} - self.neutral - sizes
        if UNNAMED in asserted and (named or ANY in denied):
            asserted.discard(UNNAMED)  # "a defect: a scratch"; "defects? no defects"
            if not named:
                hedged.add(UNNAMED)
        if UNNAMED in hedged and (named or hedged - {UNNAMED}):
            hedged.discard(UNNAMED)
        denied -= {UNNAMED, lang.INTACT}
        asserted -= {lang.INTACT}
        return Claims(
            asserted=frozenset(asserted - hedged),
            denied=frozenset(denied - hedged),
            hedged=frozenset("defect" if claim == lang.INTACT else claim for claim in hedged),
            language=code,
            spans=tuple(spans),
            neutral=frozenset(asserted & self.neutral | sizes),
        )


def load_vocabulary(terms: Path | None = None, choices: Sequence[str] = ()) -> Vocabulary:
    """Return the vocabulary of a `--terms` file, or the shipped lexicon, and the names of the choices.

    A choice that names a known finding is that finding; any other becomes a finding of its own, in all languages,
    which neither counts as a defect nor as none. Raises `ConfigError` for a file that is none.
    """
    own, neutral = ({}, frozenset()) if terms is None else _read_terms(terms)
    lexicon: Mapping[str, Any] = own
    if terms is None or own.pop("", None) is not None:
        lexicon = {code: {**one.findings, **own.get(code, {})} for code, one in languages().items()}
        for code, findings in own.items():
            for name, phrases in findings.items():
                shipped = languages()[code].findings.get(name, ()) if code in languages() else ()
                lexicon[code][name] = (*shipped, *phrases)
    known = Vocabulary(lexicon, neutral, {})
    strange = {choice: choice for choice in choices if not _names_finding(known, choice)}
    return Vocabulary(lexicon, neutral | frozenset(strange.values()), strange) if strange else known


def _names_finding(vocabulary: Vocabulary, choice: str) -> bool:
    """Say whether a choice names a finding of the vocabulary, or that there is none."""
    folded = fold(choice)
    for scanner in vocabulary.scanners.values():
        if script_of(folded) in scanner.language.scripts and any(
            mark.kind in (lang.FINDING, lang.INTACT, lang.DEFECT) for mark in scanner.scan(folded)
        ):
            return True
    return False


def _read_terms(path: Path) -> tuple[dict[str, dict[str, tuple[str, ...]]], frozenset[str]]:
    """Return language → finding → synonyms of a file, with the key "" where it extends the lexicon; and the good."""
    try:
        data = tomllib.loads(path.read_text("utf-8"))
        found: dict[str, dict[str, tuple[str, ...]]] = {}
        if (extends := data.pop("extends", None)) is not None:
            if extends != "default":
                raise ValueError(f'extends is "{extends}"; only "default" can be extended')
            found[""] = {}
        entries = data.pop("finding", [])
        if data or not entries:
            raise ValueError(f"unknown key '{next(iter(data))}'" if data else "no [[finding]]")
        good: set[str] = set()
        for entry in entries:
            name = entry.pop("id")
            if entry.pop("good", False):
                good.add(name)
            for code, phrases in entry.items():
                if code not in languages():
                    raise ValueError(f"finding '{name}': no language '{code}'; choose of {', '.join(languages())}")
                if isinstance(phrases, str) or not all(isinstance(one, str) and fold(one).strip() for one in phrases):
                    raise ValueError(f"finding '{name}': {code} is no list of words")
                found.setdefault(code, {})[name] = (*found.get(code, {}).get(name, ()), *phrases)
    except KeyError:
        raise ConfigError(f"--terms {path}: a [[finding]] has no id.") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"--terms {path}: {error}; see `vlmgate help findings`.") from None
    return found, frozenset(good)


# --- binding ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Item:
    """A finding in a sentence while it is being bound."""

    claim: str
    sign: int
    start: int
    end: int
    segment: int  # commas before it
    fixed: bool = False  # what an exception names stays as it is
    denial: bool = False  # a word that denies it: "unscratched"
    open: bool = False  # one of two, a question, or a label: asserted only if something later says so


def _sentences(marks: Sequence[Mark]) -> list[list[Mark]]:
    parts: list[list[Mark]] = [[]]
    for mark in marks:
        if mark.kind == lang.STOP:
            parts.append([])
        elif mark.kind != lang.IGNORE:
            parts[-1].append(mark)
    return [part for part in parts if any(mark.kind in _SAYS for mark in part)]


_SAYS = frozenset((lang.FINDING, lang.DENIAL, lang.INTACT, lang.DEFECT))
_NEGATORS = frozenset((lang.BEFORE, lang.AFTER, lang.EITHER))
_CLAUSE = frozenset((lang.COMMA, lang.COLON, lang.BREAK))


def bind(marks: Sequence[Mark], *, concord: bool) -> list[_Item]:
    """Return the findings of one sentence with their signs.

    A negator that stands before reaches forward: to the end of its clause, to a preposition, a verb or the next noun
    phrase; commas end it but in a list. One that stands after reaches back over the noun phrase before it.
    """
    return _Binder(marks, concord).run()


class _Binder:
    def __init__(self, marks: Sequence[Mark], concord: bool) -> None:
        self.marks, self.concord = marks, concord
        self.items: list[_Item] = []
        self.phrase = 0  # the first item that a backward negator would reach
        self.segment = 0
        self.verb_after = False  # a verb came after the items of the phrase
        self._reset()

    def _reset(self) -> None:
        """Forget what reaches forward."""
        self.negating = self.reached = self.doubtful = self.hedging = self.excepting = False

    def run(self) -> list[_Item]:
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
                self._reset()
                self.phrase, self.verb_after, self.segment = len(self.items), False, self.segment + 1
            elif kind == lang.DOUBLE:
                self._reset()
            elif kind == lang.HEDGE:
                self._hedge(i)
            elif kind == lang.EXCEPT:
                self._reset()
                self.excepting = True
            elif kind == lang.EXCEPT_AFTER:
                for item in self._reach():
                    item.sign, item.fixed = SAID, True
            elif kind == lang.OR:
                self._or(i)
            elif kind == lang.AND and self.negating and self.reached:
                self.doubtful = self.doubtful or self._verb_follows(i)
            elif (
                kind == lang.END
                or kind == lang.VERB
                or (kind == lang.ARTICLE and not self._after(i, (lang.OR, *_NEGATORS)))
            ):
                if self.reached:
                    self.negating = self.doubtful = False
                if kind == lang.END and self.items and self.items[-1].segment == self.segment:
                    self.hedging = self.excepting = False
                self.verb_after = self.verb_after or (kind == lang.VERB and len(self.items) > self.phrase)
            elif kind == lang.WORD and mark.name == "0" and self._after(i, (lang.COLON,)):
                self._backward(strong=True)
        return [item for item in map(self._settled, self.items) if item is not None]

    def _settled(self, item: _Item) -> _Item | None:
        if item.open and item.sign == SAID:
            if item.claim == UNNAMED:
                return None  # a label: "Defects: …"
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
        """Say whether a verb follows the next finding: "no dents and rust is visible" may go either way."""
        ahead = self._ahead(i)
        first = next((n for n, kind in enumerate(ahead) if kind in _SAYS), None)
        return first is not None and lang.VERB in ahead[first + 1 :] and lang.OR not in ahead

    def _reach(self) -> list[_Item]:
        """Return the items of the noun phrase before; they may be a list with commas."""
        return [item for item in self.items[self.phrase :] if not item.fixed]

    def _item(self, i: int, mark: Mark) -> None:
        if self.verb_after:
            self.phrase, self.verb_after = len(self.items), False
        sign = SAID
        good = mark.kind in (lang.INTACT, lang.DENIAL)
        if good and self.reached:
            self.negating = False  # "no dents, intact"
        if self.negating:
            sign = NONE if self.doubtful else NOT
            self.reached = True
        if mark.kind == lang.DENIAL:
            sign = -sign  # "not unscratched" is scratched
        if self.hedging:
            sign = NONE
        claim = mark.name if mark.name else UNNAMED if mark.kind == lang.DEFECT else lang.INTACT
        self.items.append(
            _Item(claim, sign, mark.start, mark.end, self.segment, self.excepting, good and mark.name != "")
        )

    def _negator(self, i: int, kind: str) -> None:
        ahead = self._ahead(i)
        if kind == lang.BEFORE and not ahead and self._reach():
            kind = lang.AFTER  # "Scratches: no"
        if kind == lang.EITHER:
            kind = self._side(ahead)
        if kind == lang.AFTER:
            self._backward(strong=True)
        elif kind == "weak":
            self._backward(strong=False)
        else:
            if self.negating and not self.reached and not self.concord:
                self.doubtful = True  # nobody knows what two negators come to
            elif self.reached or not self.negating:
                self.doubtful = False
            self.negating, self.reached, self.excepting = True, False, False

    def _side(self, ahead: Sequence[str]) -> str:
        """Return which way a negator reaches that may stand on either side of what it negates."""
        for kind in ahead:
            if kind in _SAYS:
                return lang.BEFORE
            if kind in (lang.END, lang.EXCEPT, *_NEGATORS):
                break
        rest: list[str] = []
        for kind in ahead:
            if kind in (lang.END, lang.AND, lang.OR):
                break
            rest.append(kind)
        # "scratches are not visible" denies them, "scratches are not deep" does not, "… not made out" is unclear
        return "weak" if lang.WORD in rest and lang.SEEN not in rest else lang.AFTER

    def _backward(self, *, strong: bool) -> None:
        for item in self._reach():
            if not strong:
                item.sign = NONE
            elif item.denial:
                item.sign = -item.sign
            elif item.sign == SAID:
                item.sign, item.open = NOT, False
            elif item.sign == NOT and item.segment == self.segment and not self.concord:
                item.sign = NONE
        self.phrase = len(self.items)

    def _hedge(self, i: int) -> None:
        if any(kind in _SAYS for kind in self._ahead(i)):
            self.hedging = True
            return
        here = [item for item in self.items if item.segment == self.segment]
        if not here and self._kind(i + 1) is None:
            here = self.items[-1:]  # "a scratch, perhaps"
        for item in here:
            item.sign = NONE

    def _or(self, i: int) -> None:
        """Take "a scratch or a crack" for one of two; "no scratch or crack" denies both."""
        last = self.items[-1] if self.items else None
        if last is None or last.segment != self.segment or self.negating:
            return
        between = [mark for mark in self.marks[:i] if mark.start >= last.end]
        if len(between) <= 2 and all(mark.kind in (lang.WORD, lang.SEEN) for mark in between):
            last.open = True
            if last.sign == SAID:
                self.hedging = True

    def _comma(self, i: int) -> None:
        goes_on = self._list_goes_on(i) if self.negating and self.reached else None
        self.segment += 1
        doubtful = self.doubtful
        hedging = self.hedging and self._kind(i + 1) in (lang.OR,)
        self._reset()
        if goes_on is not None:
            self.negating = self.reached = True
            self.doubtful = doubtful or not goes_on
        self.hedging = hedging

    def _list_goes_on(self, i: int) -> bool | None:
        """Say whether a denial goes on after a comma: True in a list, False where that is unclear, None where not."""
        if self.marks[i].name == "、":
            return True if any(kind in _SAYS for kind in self._ahead(i)) else None
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
        rest: list[str] = []
        for mark in self.marks[i + 1 + first + 1 :]:
            if mark.kind in (lang.BREAK, lang.COLON):
                break
            rest.append(mark.kind)
        if lang.OR in before or lang.OR in rest:
            return True
        verb = lang.VERB in ahead[first + 1 :]
        if joined or lang.AND in rest:
            return not verb
        if before.count(lang.WORD) > 2:
            return False
        return all(kind in (lang.SEEN, lang.COMMA, *_SAYS) for kind in ahead[first + 1 :])

    def _colon(self, i: int, mark: Mark) -> None:
        near = self.items[-1] if self.items else None
        if near is not None and near.segment == self.segment and (near.claim == UNNAMED or "?" in mark.name):
            between = [one for one in self.marks[:i] if one.start >= near.end]
            near.open = near.open or "?" in mark.name or len(between) <= 2
        self._reset()
