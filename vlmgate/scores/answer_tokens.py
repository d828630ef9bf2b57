"""Cut a text into the phrases of one language, the choices and the marks between them; start with `tokens_of`.

Nothing is passed over: a word or mark that the data file does not list raises `UnclearError`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from vlmgate.scores.answer_forms import ANSWER
from vlmgate.scores.answer_words import (
    ATOM,
    Language,
    Phrase,
    atoms,
    is_listed,
    is_one_of,
    kind_of,
    languages,
    longest_of,
)
from vlmgate.scores.words import fold

OBJECTS = ("choice", "findings", "generic", "signs")
STOPS = frozenset(".!;\n。")


class UnclearError(Exception):
    """The text is no answer that can be relied on."""


class Token(NamedTuple):
    """A phrase of a known class, a choice, or a mark."""

    kind: str  # a class of `answer_words`, "choice", "mark", "label", "list", "copula"
    text: str  # of a choice the choice itself


_DROPPED = frozenset("*_`#•·▪●◦✓✔✅☑👍🆗\ufe0f")
_MARKS = STOPS | frozenset(",:()[]")
_SIGNS = {"/": "or", "|": "or", "&": "and", "+": "and", "、": "list"}
_SPLIT = re.compile(rf"{ATOM.pattern}|\s[-–—]+\s|[–—]|\s*\n\s*|\S")
_UNITS = frozenset({"mm", "cm", "µm", "μm", "inch", "inches"})
_LENGTH = re.compile(r"(?!0+(?:[.,]0+)?$)\d+(?:[.,]\d+)?")  # more than none
_QUOTES = frozenset("\"“”„«»「」『』'")


@dataclass(frozen=True, slots=True)
class Choices:
    """The choices of one question, and what each may look like in one language."""

    names: tuple[str, ...]
    forms: dict[Phrase, str]  # to the choice
    language: Language
    longest: Mapping[str, int]  # atoms of the longest form that an atom begins


@lru_cache(maxsize=256)
def _choices_in(names: tuple[str, ...], name: str) -> Choices:
    language = next(one for one in languages() if one.name == name)
    own = {name: _without(atoms(name), language.articles) for name in names}
    forms: dict[Phrase, str] = {phrase: choice for choice, phrase in own.items()}
    taken: set[Phrase] = set()
    for choice, phrase in own.items():
        for form in _forms(phrase, language, kind_of(choice, names)):
            if forms.get(form, choice) != choice:
                taken.add(form)
            elif form not in language.phrases or is_listed(form, (*OBJECTS, "good")):
                forms[form] = choice
    for form in taken - set(own.values()):
        forms.pop(form, None)
    return Choices(names, forms, language, longest_of(forms))


def choices_in(names: tuple[str, ...], language: Language) -> Choices:
    """Return the choices with the forms that they take in a language."""
    return _choices_in(names, language.name)


def _forms(phrase: Phrase, language: Language, kind: str) -> set[Phrase]:
    """Return the plurals of a choice, and of a defect the adjectives and longer names: "scratched", "scratch mark"."""
    if phrase in (("ok",), ("okay",)):
        return {("ok",), ("okay",)}
    if not phrase or len(phrase[-1]) < 3 or kind == "polar":
        return set()
    last, found = phrase[-1], set()
    for ending, instead in language.endings:
        for old, new in ((ending, instead), (instead, ending)):
            if not last.endswith(old):
                continue
            form = (*phrase[:-1], *atoms(last[: len(last) - len(old)] + new))
            name = " ".join(form)
            plural = new.endswith("s") and " " not in new
            # Of an adjective the noun only where it is a defect: "scratched" is a scratch, "rounded" no round.
            listed = language.phrases.get(form) == "findings" if old == instead else kind == "bad"
            alike = kind == "fine" and (is_one_of(name, "fine") or language.name != "en")
            if len(form[-1]) > 2 and ((plural and old == ending) or listed or alike):
                found.add(form)
    return found


def _without(phrase: Phrase, articles: frozenset[str]) -> Phrase:
    return tuple(atom for atom in phrase if atom not in articles) or phrase


@lru_cache(maxsize=64)  # read under one language after the other
def _pieces(said: str) -> tuple[tuple[str, bool], ...]:
    """Return the atoms and marks of a text, and which is an atom."""
    return tuple((piece, ATOM.fullmatch(piece) is not None) for piece in _SPLIT.findall(fold(said)))


def tokens_of(said: str, known: Choices) -> list[Token]:
    """Cut a text into known phrases and marks; raises where it holds anything else."""
    found: list[Token] = []
    run: list[str] = []
    for piece, is_atom in _pieces(said):
        if is_atom:
            run.append(piece)
            continue
        if piece == "-" or piece in _DROPPED:  # inside of a word; markup
            continue
        found += _phrases(run, known)
        run = []
        found.append(_mark(piece))
    return _with_negations(found + _phrases(run, known))


def _with_negations(tokens: list[Token]) -> list[Token]:
    """Return tokens in which a choice such as "no" that does not end its clause is a negation: "no crack"."""
    found = list(tokens)
    for i, (token, after) in enumerate(pairwise(tokens)):
        if token.kind == "choice" and after.kind != "mark" and is_listed(atoms(token.text), ("negators",)):
            found[i] = Token("negators", " ".join(atoms(token.text)))
    return found


def _mark(piece: str) -> Token:
    mark = piece.strip(" \t")
    if "\n" in mark:
        return Token("mark", "\n")
    if mark == ANSWER:
        return Token("label", ANSWER)
    if mark in ("=", "="):
        return Token("mark", ":")
    if mark and not mark.strip("-–—"):
        return Token("mark", "-")
    if mark in _SIGNS:
        return Token(_SIGNS[mark], mark)
    if mark in _MARKS:
        return Token("mark", mark)
    if mark in _QUOTES:
        return Token("quote", mark)
    raise UnclearError


def _phrases(run: Sequence[str], known: Choices) -> list[Token]:
    found: list[Token] = []
    i, n, language = 0, len(run), known.language
    while i < n:
        first = run[i]
        names_label = language.longest_label.get(first, 0) if first not in language.articles else 0
        most = max(known.longest.get(first, 0), language.longest.get(first, 0), names_label)
        for size in range(min(most, n - i), 0, -1):
            phrase = tuple(run[i : i + size])
            if phrase in known.forms:
                found.append(Token("choice", known.forms[phrase]))
            elif (kind := language.phrases.get(phrase)) is not None:
                found.append(Token(kind, " ".join(phrase)))
            elif phrase in language.yes or phrase in language.copulas:
                found.append(Token("yes" if phrase in language.yes else "words", " ".join(phrase)))
            elif phrase in language.reasoning or phrase in language.concludes:
                found.append(Token("reasoning", " ".join(phrase)))
            elif size <= names_label and _without(phrase, language.articles) in language.labels:
                found.append(Token("label", " ".join(phrase)))
            else:
                continue
            i += size
            break
        else:
            if i + 1 < n and run[i + 1] in _UNITS and _LENGTH.fullmatch(run[i]):
                i += 1
            elif len(run[i]) == 1 and run[i].isascii():
                found.append(Token("letter", run[i]))
                i += 1
            else:
                raise UnclearError
    return found
