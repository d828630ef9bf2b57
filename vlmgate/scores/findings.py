"""What a caption says of the part's condition: findings that it asserts, denies or hedges; see `load_vocabulary`.

    >>> load_vocabulary().claims("No dents, but a long scratch on the rim.").describe()
    'scratch, no dent'

A caption is cut into marks (`language`), negators and hedges are bound to what they reach (`binding`), and sizes and
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
from typing import Any

from vlmgate.errors import ConfigError
from vlmgate.scores import language as lang
from vlmgate.scores.binding import NONE, NOT, SAID, UNNAMED, bind, sentences
from vlmgate.scores.language import Scanner, fold, language_of, languages, script_of
from vlmgate.scores.measures import is_measure, measures_of

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
        self,
        terms: Mapping[str, Mapping[str, Sequence[str]]],
        neutral: frozenset[str] = frozenset(),
        everywhere: Mapping[str, str] | None = None,
        kin: Mapping[str, str] | None = None,
    ) -> None:
        """`terms`: language → finding → synonyms; `neutral`: findings that are no defect; `everywhere`: phrase → id.

        `kin` are findings that count as another one.
        """
        self.neutral, self.kin, everywhere = neutral, KIN if kin is None else kin, everywhere or {}
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
            short = script_of(folded) == "latin" and len(folded.split()) <= 8
            return replace(NOTHING, language="") if short else NOTHING  # too short to tell
        scanner = self.scanners[code]
        marks = scanner.scan(folded)
        items = [item for part in sentences(marks) for item in bind(part, scanner.language)]
        spans = [Span(item.claim, item.sign, item.start, item.end) for item in items]
        spans += [Span(*one) for one in measures_of(folded, marks, scanner.language)]
        return self._summed(spans, code)

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
    lexicon: Mapping[str, Any] = own
    if terms is None or own.pop("", None) is not None:
        lexicon = {code: {**one.findings, **own.get(code, {})} for code, one in languages().items()}
        for code, findings in own.items():
            for name, phrases in findings.items():
                shipped = languages()[code].findings.get(name, ()) if code in languages() else ()
                lexicon[code][name] = (*shipped, *phrases)
    named = frozenset(name for findings in own.values() for name in findings)
    known = Vocabulary(lexicon, neutral, kin={})
    strange = {choice: choice for choice in choices if not _names_finding(known, choice)}
    for choice in choices:
        named |= known.claims(choice).asserted
    kin = {one: other for one, other in KIN.items() if one not in named or other not in named}
    return Vocabulary(lexicon, neutral | frozenset(strange.values()), strange, kin)


def _names_finding(vocabulary: Vocabulary, choice: str) -> bool:
    """Say whether a choice names a finding of the vocabulary, or that there is none."""
    folded = fold(choice)
    for scanner in vocabulary.scanners.values():
        if script_of(folded) in scanner.language.scripts and any(
            mark.kind in (lang.FINDING, lang.INTACT, lang.DEFECT) for mark in scanner.scan(folded)
        ):
            return True
    return False


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
