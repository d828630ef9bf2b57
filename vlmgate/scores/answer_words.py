"""The words of answers, by language, from `answer_words.toml`; start with `languages`.

Text is cut into atoms: a word where words are set apart by spaces, else one character. A phrase is a tuple of atoms.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from vlmgate.scores.words import fold

Phrase = tuple[str, ...]

# Scripts of which one character is an atom: kana, Chinese characters, Hangul.
_SPACELESS = "\u3005\u3040-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_ELIDED = r"(?:l|d|c|n|s|j|m|t|qu|un|dell|nell|sull|all|dall|quest)'"
_LETTER = rf"[^\W\d_{_SPACELESS}]"
ATOM = re.compile(
    rf"[{_SPACELESS}]|{_ELIDED}|{_LETTER}+(?:'{_LETTER}+)*"
    r"|\d+(?:[.,]\d+)*"
)
# The classes of words, the most careful one first: a word that is in two belongs to the earlier.
CLASSES = (
    *(
        "nor",
        "without",
        "negators",
        "or",
        "findings",
        "generic",
        "signs",
        "good",
        "degrees",
        "places",
        "seers",
        "others",
    ),
    *("tails", "and", "words", "articles"),
)
_ARTICLES_IN_A_LABEL = 2  # at most


@dataclass(frozen=True, slots=True, eq=False)
class Language:
    """The words of one language."""

    name: str
    phrases: Mapping[Phrase, str]  # to the class of each
    reasoning: frozenset[Phrase]
    labels: frozenset[Phrase]  # without articles
    copulas: frozenset[Phrase]
    colon: frozenset[Phrase]
    articles: frozenset[str]
    yes: frozenset[Phrase]
    asks: frozenset[str]
    over_and: frozenset[Phrase]
    exists: frozenset[Phrase]
    concludes: frozenset[Phrase]
    behind: bool  # negations stand behind what they deny
    turns: tuple[str, ...]  # without spaces
    known: tuple[str, ...]  # every phrase that is no turn, without spaces
    longest: Mapping[str, int]  # atoms of the longest phrase that an atom begins
    longest_label: Mapping[str, int]  # the same of labels, with articles inside
    endings: tuple[tuple[str, str], ...]


@cache
def languages() -> tuple[Language, ...]:
    """Return all languages; an answer is read under each by itself."""
    return tuple(_language(name, table) for name, table in _tables().items())


def atoms(text: str) -> Phrase:
    """Return the atoms of a text, folded; marks are left out.

    >>> atoms("A deep scratch, 傷")
    ('a', 'deep', 'scratch', '傷')
    """
    return tuple(ATOM.findall(fold(text)))


def is_one_of(choice: str, kind: str) -> bool:
    """Say whether a choice is listed under a key of the data ("fine", "polar", "nok") in any language."""
    return atoms(choice) in _listed(kind)


def is_or(text: str) -> bool:
    """Say whether a phrase, its atoms set apart by spaces, joins alternatives in any language."""
    return tuple(text.split()) in _listed("or")


def is_listed(phrase: Phrase, kinds: Sequence[str]) -> bool:
    """Say whether a phrase belongs to one of some classes in any language."""
    return any(language.phrases.get(phrase) in kinds for language in languages())


def is_label(text: str) -> bool:
    """Say whether a text is what stands before a choice in some language, such as "final answer"."""
    words = atoms(text.replace("_", " "))
    return any(tuple(w for w in words if w not in one.articles) in one.labels for one in languages())


def kind_of(choice: str, names: Sequence[str]) -> str:
    """Return what a choice calls a part: "fine", "bad", "polar" where it depends on the question, or "" for unknown."""
    if is_one_of(choice, "polar"):
        return "polar"
    if is_one_of(choice, "fine"):
        return "fine"
    if is_one_of(choice, "nok") or any(is_one_of(name, "fine") or is_one_of(name, "polar") for name in names):
        return "bad"
    words = atoms(choice)
    named = any(is_listed(phrase, ("findings", "generic")) for phrase in (words, words[-1:], words[:1]) if phrase)
    return "bad" if named else ""


def all_polar(names: Sequence[str]) -> bool:
    """Say whether what every choice means depends on the question."""
    return all(is_one_of(name, "polar") or is_one_of(name, "states") for name in names)


def hedges(folded: str) -> bool:
    """Say whether a folded text says in any language that its writer is not sure."""
    return _search("hedges").search(folded) is not None


def abstains(folded: str) -> bool:
    """Say whether a folded text declines to answer in any language."""
    return _search("abstains").search(folded) is not None


def is_spaceless(character: str) -> bool:
    """Say whether a character is an atom by itself."""
    return re.match(f"[{_SPACELESS}]", character) is not None


def may_begin_harmless(fragment: str, names: Collection[str], *, opens: bool) -> bool:
    """Say whether an unfinished word begins a harmless one, and none that takes an answer back, in some languages.

    One that opens a sentence may begin a hedge, or another answer, as well.
    """
    known = [language for language in languages() if language.name in names]
    turns = [turn for language in known for turn in language.turns]
    if opens:
        turns += [entry for name in names for entry in _entries(_tables()[name], "hedges")]
        turns += ["".join(label) for language in known for label in language.labels]
    if any(turn.startswith(fragment) for turn in turns):
        return False
    return any(word.startswith(fragment) for language in known for word in language.known)


def may_begin(fragment: str, kinds: Collection[str], names: Collection[str]) -> bool:
    """Say whether an unfinished word begins a phrase of some classes in some languages."""
    return any(
        kind in kinds and "".join(phrase).startswith(fragment)
        for language in languages()
        if language.name in names
        for phrase, kind in language.phrases.items()
    )


@cache
def _tables() -> dict[str, dict[str, Any]]:
    return tomllib.loads(files("vlmgate.scores").joinpath("answer_words.toml").read_text(encoding="utf-8"))


def _entries(table: Mapping[str, Any], key: str) -> Iterator[str]:
    for entry in str(table.get(key, "")).split(","):
        if folded := " ".join(fold(entry).split()):
            yield folded


def _phrases(table: Mapping[str, Any], key: str, without: frozenset[str] = frozenset()) -> frozenset[Phrase]:
    found = (tuple(atom for atom in atoms(entry) if atom not in without) for entry in _entries(table, key))
    return frozenset(phrase for phrase in found if phrase)


@cache
def _listed(kind: str) -> frozenset[Phrase]:
    return frozenset().union(*(_phrases(table, kind) for table in _tables().values()))


@cache
def _search(kind: str) -> re.Pattern[str]:
    """Return the pattern of all phrases of all languages: as words where words are set apart, else anywhere."""
    found = sorted({entry for table in _tables().values() for entry in _entries(table, kind)}, key=lambda e: -len(e))
    anywhere = [entry for entry in found if re.search(f"[{_SPACELESS}]", entry)]
    words = [entry for entry in found if entry not in anywhere]
    return re.compile(r"\b(?:" + "|".join(map(re.escape, words)) + r")(?!\w)|" + "|".join(map(re.escape, anywhere)))


def longest_of(phrases: Collection[Phrase], more: int = 0) -> dict[str, int]:
    """Return, by the first atom of phrases, how many atoms the longest has, and some more."""
    found: dict[str, int] = {}
    for phrase in phrases:
        found[phrase[0]] = max(found.get(phrase[0], 0), len(phrase) + more)
    return found


def _language(name: str, table: Mapping[str, Any]) -> Language:
    # A character may be a part of any word: the Korean article 그 stands in 찌그러짐, a dent.
    articles = frozenset(word for word, *more in _phrases(table, "articles") if not more and not is_spaceless(word))
    phrases: dict[Phrase, str] = {}
    for kind in reversed(CLASSES):
        phrases |= dict.fromkeys(_phrases(table, kind), kind)
    turns = {
        "".join(phrase) for key in ("turns", "negators", "without", "nor", "or") for phrase in _phrases(table, key)
    }
    labels = _phrases(table, "labels", articles) | _phrases(table, "colon")
    known = {"".join(phrase) for phrase in phrases} | {"".join(phrase) for phrase in labels}
    others = [_phrases(table, key) for key in ("reasoning", "concludes", "copulas", "yes")]
    return Language(
        name=name,
        longest=longest_of(frozenset(phrases).union(*others)),
        longest_label=longest_of(labels, _ARTICLES_IN_A_LABEL),
        phrases=phrases,
        reasoning=_phrases(table, "reasoning"),
        labels=labels,
        copulas=_phrases(table, "copulas"),
        colon=_phrases(table, "colon"),
        articles=articles,
        yes=_phrases(table, "yes"),
        asks=frozenset(atom for entry in _entries(table, "asks") for atom in atoms(entry)),
        over_and=_phrases(table, "over_and"),
        exists=_phrases(table, "exists"),
        concludes=_phrases(table, "concludes"),
        behind=bool(table.get("behind", False)),
        turns=tuple(sorted(turns)),
        known=tuple(sorted(known - turns)),
        endings=tuple((str(old), str(new)) for old, new in table.get("endings", ())),
    )
