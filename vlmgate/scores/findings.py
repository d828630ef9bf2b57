"""What a caption says of the part's condition: findings that it asserts, denies or hedges; see `load_vocabulary`.

    >>> load_vocabulary().claims("No dents, but a long scratch on the rim.").describe()
    'scratch, no dent'

A caption is cut into marks (`language`), negators and hedges are bound to what they reach (`binding`), and sizes and
comparisons are read (`measures`). The rules are the same in every language; the words are data. Where it is unclear
what a word reaches, the finding is hedged, and a hedged caption never counts as agreeing.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from types import MappingProxyType

from vlmgate.errors import ConfigError
from vlmgate.scores import language as lang
from vlmgate.scores.binding import bind
from vlmgate.scores.contrasts import contrasts_of
from vlmgate.scores.language import fold, language_of, languages, script_of
from vlmgate.scores.layout import unclear
from vlmgate.scores.measures import is_contrast, is_measure, measures_of
from vlmgate.scores.phrases import Scanner
from vlmgate.scores.sentence import NONE, NOT, SAID, UNNAMED, Item, sentences

ANY = "*"  # among what is denied: every defect that the caption does not assert
# Findings for which people, and models, use one word or the other.
KIN = {"abrasion": "scratch", "gouge": "scratch", "dirt": "stain", "residue": "stain"}
NO_DEFECT = "no defect"  # what a caption claims that denies defects and asserts none


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
    language: str | None = "en"  # None = no file covers it; "" = too short to tell
    spans: tuple[Span, ...] = ()
    neutral: frozenset[str] = frozenset()  # of the asserted: those that are no defect

    @property
    def states(self) -> bool:
        """Say whether it asserts or denies anything."""
        return any(not is_contrast(claim) for claim in (*self.asserted, *self.denied))

    @property
    def certain(self) -> bool:
        """Say whether it asserts or denies anything, and hedges nothing."""
        return self.states and not self.hedged

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
        said = sorted(claim for claim in self.asserted if not is_contrast(claim))
        said += [f"perhaps {claim}" for claim in sorted(self.hedged)]
        no = [NO_DEFECT] if ANY in self.denied and not self.defects else []
        denied = [f"no {claim}" for claim in sorted(self.denied - {ANY}) if not is_measure(claim)]
        return ", ".join(said + no + denied) or "nothing"


_SENTENCE = re.compile(r"[^.!?;,:\n{}|]+")
_WORD = re.compile(r"[^\W\d_]+")
NOTHING = Claims(language=None)
# Choices that name no defect. "No" is none of them: it may answer "is it good?"; nor is "absent", for a part may be.
_NONE = frozenset(
    "none nothing nil keine keiner nichts aucun aucune rien ninguno ninguna nada nessuno nessuna niente nenhum nenhuma "
    "geen niets żaden żadna žádný žádná yok không なし 無し 无 無 没有 沒有 없음".split()
)


class Vocabulary:
    """The findings that captions may name, in every language that has a file."""

    def __init__(
        self,
        terms: Mapping[str, Mapping[str, Sequence[str]]] = MappingProxyType({}),
        neutral: frozenset[str] = frozenset(),
        everywhere: Mapping[str, str] | None = None,
        kin: Mapping[str, str] | None = None,
        *,
        shipped: bool = True,
    ) -> None:
        """`terms`: language → finding → synonyms; `neutral`: findings that are no defect; `everywhere`: phrase → id.

        `kin` are findings that count as another one; with `shipped`, the words of the language files count, too.
        """
        self._shipped = shipped
        self.neutral, self.kin = neutral, KIN if kin is None else kin
        self._terms, self._everywhere = terms, everywhere or {}
        self._scanners: dict[str, Scanner] = {}  # made when a caption in the language comes
        words = {code: {word for several in one.values() for word in several} for code, one in (terms or {}).items()}
        self._own = {code: _words_of([*words.get(code, ()), *self._everywhere]) for code in languages()}
        self._claims = lru_cache(maxsize=16384)(self._read)  # captions repeat

    def scanner(self, code: str) -> Scanner:
        """Return what finds the findings of one language."""
        if code not in self._scanners:
            one = languages()[code]
            lexicon = dict(one.findings) if self._shipped else {}
            for name, phrases in self._terms.get(code, {}).items():
                lexicon[name] = (*lexicon.get(name, ()), *phrases)
            for phrase, name in self._everywhere.items():
                lexicon[name] = (*lexicon.get(name, ()), phrase)
            self._scanners[code] = Scanner.of_claims(one, lexicon)
        return self._scanners[code]

    def claims(self, text: str) -> Claims:
        """Return what a caption claims; nothing, with the language None, in a language without a file."""
        return self._claims(text)

    def claims_of_answer(self, answer: str) -> Claims:
        """Return what a choice claims: as a caption does, but "none" denies every defect."""
        if fold(answer).strip(" .!。") in _NONE:
            return Claims(denied=frozenset({ANY}))
        return self.claims(answer)

    def _read(self, text: str) -> Claims:
        folded = fold(text)
        code = language_of(folded, self._own)
        if code is None:
            short = script_of(folded) == "latin" and len(folded.split()) <= 8
            return replace(NOTHING, language="") if short else NOTHING  # too short to tell
        scanner = self.scanner(code)
        marks = scanner.scan(folded)
        items = [item for part in sentences(marks) for item in bind(part, scanner.language)]
        doubtful = unclear(folded, marks)
        spans = [
            Span(item.claim, NONE if _is_within(item, doubtful) else item.sign, item.start, item.end) for item in items
        ]
        if _doubts_all(marks) or _names_another(spans, folded, scanner.language) or self._in_another(folded, code):
            spans.append(Span(UNNAMED, NONE, 0, 0))
        spans += [Span(*one) for one in measures_of(folded, marks, scanner.language)]
        spans += [Span(*one) for one in contrasts_of(folded, marks, items, scanner.language)]
        faults = any(one.sign == SAID and one.claim != lang.INTACT and not is_measure(one.claim) for one in spans)
        if not faults and any(span.claim in _FINE and span.sign == NOT for span in spans):
            spans.append(Span(UNNAMED, NONE, 0, 0))  # "No scratch. Verdict: bad."
        return self._summed(spans, code)

    def _in_another(self, folded: str, code: str) -> bool:
        """Say whether a sentence in another language of the script names a finding: it has not been read."""
        heads = languages()
        if "latin" not in heads.scripts[code]:
            return False
        common = heads.common[code]
        for sentence in _SENTENCE.findall(folded):
            if not common.isdisjoint(sentence.split()):
                continue  # most sentences
            words = _WORD.findall(sentence)
            if len(words) < 2 or not common.isdisjoint(words):
                continue
            others = {one for word in words for one in heads.of_word.get(word, ()) if one in heads.scripts}
            if any(mark.kind in (lang.FINDING, lang.DEFECT) for one in others for mark in self._marks(one, sentence)):
                return True
        return False

    def _marks(self, code: str, sentence: str) -> list[lang.Mark]:
        return self.scanner(code).scan(sentence) if "latin" in languages().scripts[code] else []

    def _summed(self, spans: Sequence[Span], code: str) -> Claims:
        kin = self.kin
        signs = {
            sign: {kin.get(one.claim, one.claim) for one in spans if one.sign == sign} for sign in (NONE, NOT, SAID)
        }
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


def load_vocabulary(terms: str | None = None, choices: Sequence[str] = ()) -> Vocabulary:
    """Return the vocabulary of the text of a `--terms` file, or the shipped lexicon, and the names of the choices.

    A choice that names a known finding is that finding; any other becomes a finding of its own, in all languages,
    which neither counts as a defect nor as none. Raises `ConfigError` for a file that is none.
    """
    return _vocabulary(terms, tuple(choices))


@lru_cache(maxsize=8)
def _vocabulary(terms: str | None, choices: tuple[str, ...]) -> Vocabulary:
    own: dict[str, dict[str, tuple[str, ...]]]
    own, neutral = ({}, frozenset()) if terms is None else _read_terms(terms)
    shipped = terms is None or own.pop("", None) is not None
    named = frozenset(name for findings in own.values() for name in findings)
    known = Vocabulary(own, neutral, kin={}, shipped=shipped)
    strange = {choice: choice for choice in choices if not _names_finding(known, choice)}
    for choice in choices:
        named |= known.claims(choice).asserted
    kin = {one: other for one, other in KIN.items() if one not in named or other not in named}
    return Vocabulary(own, neutral | frozenset(strange.values()), strange, kin, shipped=shipped)


def _names_finding(vocabulary: Vocabulary, choice: str) -> bool:
    """Say whether a choice names a finding of the vocabulary, or that there is none."""
    folded = fold(choice)
    near = language_of(folded)
    codes = languages().of_script(script_of(folded)) if near is None else [near]
    return any(
        mark.kind in (lang.FINDING, lang.DENIAL, lang.INTACT, lang.DEFECT)
        for code in codes
        for mark in vocabulary.scanner(code).scan(folded)
    )


def _doubts_all(marks: Sequence[lang.Mark]) -> bool:
    """Say whether a sentence is nothing but a hedge: "Scratched (low confidence)."."""
    parts = groupby(marks, key=lambda mark: mark.kind == lang.STOP)
    return any({mark.kind for mark in part} <= _HEDGES for stop, part in parts if not stop)


_FINE = ("~quality:good", "~decision:good")
_HEDGES = frozenset((lang.HEDGE, lang.HEDGE_AFTER))


def _names_another(spans: Sequence[Span], folded: str, language: lang.Language) -> bool:
    """Say whether a caption begins with "no other defects": it names one before, in words that nobody knows."""
    first = min(spans, key=lambda span: span.start, default=None)
    if first is None or first.claim != UNNAMED or first.sign != NOT:
        return False
    before = folded[max(0, first.start - 24) : first.start]
    return _another(language.code).search(before) is not None


@lru_cache(maxsize=32)
def _another(code: str) -> re.Pattern[str]:
    one = languages()[code]
    words = "|".join(re.escape(fold(word).strip()) for word in one.other) or "(?!)"
    return re.compile(rf"(?<![^\W_])(?:{words})(?:\s+\w+)?\s*$" if one.spaced else rf"(?:{words})\w{{0,4}}$")


def _is_within(item: Item, places: Sequence[tuple[int, int]]) -> bool:
    """Say whether a finding that is asserted stands in one of the places; "intact" and "a defect" are none."""
    named = item.sign == SAID and item.claim not in (UNNAMED, lang.INTACT)
    return named and any(start <= item.start < end for start, end in places)


def _words_of(phrases: Sequence[str]) -> frozenset[str]:
    return frozenset(word for phrase in phrases for word in fold(phrase.replace("*", "")).split())


def _read_terms(text: str) -> tuple[dict[str, dict[str, tuple[str, ...]]], frozenset[str]]:
    """Return language → finding → synonyms of a file, with the key "" where it extends the lexicon; and the good."""
    try:
        data = tomllib.loads(text)
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
        raise ConfigError("--terms: a [[finding]] has no id.") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"--terms: {error}; see `vlmgate help findings`.") from None
    return found, frozenset(good)
