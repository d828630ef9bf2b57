"""Find the phrases of a language in a text: `Scanner.scan` cuts a folded text into marks.

A mark is what a piece of the text does: name a finding, negate, hedge, begin a clause; see `language` for the kinds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from vlmgate.scores.language import (
    AFTER,
    AND,
    BEFORE,
    BREAK,
    COLON,
    COMMA,
    DEFECT,
    DENIAL,
    DOUBLE,
    EITHER,
    END,
    ENDS,
    EXCEPT,
    EXCEPT_AFTER,
    FINDING,
    GRAMMAR,
    HEDGE,
    HEDGE_AFTER,
    IGNORE,
    INTACT,
    NEAR,
    NOR,
    OR,
    STOP,
    VERB,
    WITHIN,
    WORD,
    Language,
    Mark,
    expanded,
    fold,
)

# Of equally long phrases the first of these is taken.
_ORDER = (
    *(IGNORE, DOUBLE, HEDGE, HEDGE_AFTER, EXCEPT, EXCEPT_AFTER, BEFORE, AFTER, NEAR, EITHER),
    *(FINDING, DENIAL, INTACT, DEFECT),
)
Phrases = Mapping[str, Mapping[str, Sequence[str]]]  # kind → name → phrases

_TOKEN = re.compile(
    r"""
      \d+(?:[.,]\d+)*            # a number with its decimals is one word
    | [^\W\d_]+(?:'[^\W\d_]+)*   # a word, "isn't" too
    | [.!;…\n]+ | [,、，] | [:：?]+ | \[\s*\] | [|{}()] | \s-+\s | [–—]
    """,
    re.VERBOSE,
)
KEPT = 100_000  # words looked up that are kept for the next time; a night may bring any number
_PUNCTUATION = {**dict.fromkeys(",、，", COMMA), **dict.fromkeys(":：?？–—-", COLON)}
_CUTS = frozenset(".!;…\n{}|()。！；")


class Scanner:
    """Finds phrases in folded texts; `phrases` are given by kind and name, see `Phrases`.

    A phrase is words (or characters, where words are not spaced). In it `*` stands for any part of a word, `{a|b|}` for
    one of these or nothing, `...` for up to three words or eight characters, `^` and `$` for the beginning and the end
    of the text; "i.o", "a, b" and "a: b" need their marks. "weder > noch" is "noch" after a "weder" in its sentence. A
    synonym of a finding that begins with `!` denies it ("!scratch free"). Where words are spaced, a gap never holds
    what says or binds something. The longest phrase wins; of equally long ones that without `*`.
    """

    def __init__(self, language: Language, phrases: Phrases, barred: frozenset[str] = frozenset()) -> None:
        self.language, self._barred = language, barred
        order = [*(kind for kind in _ORDER if kind in phrases), *(kind for kind in phrases if kind not in _ORDER)]
        self._rank = 0
        self._exact: dict[str, list[_Phrase]] = {}  # first word, or first one or two characters → phrases
        self._loose: list[tuple[re.Pattern[str], _Phrase]] = []  # first words with a "*"
        self._bars: dict[str, bool] = {}  # token → no gap may hold it
        self._heads: dict[str, list[_Phrase]] = {}  # token → phrases that may begin with it; filled as tokens come
        self._pairs: dict[tuple[str, str], list[_Phrase]] = {}  # the same for two tokens
        self._verbs = frozenset(language.grammar[VERB])
        self._ends = [(kind, end) for key, kind in ENDS.items() if (end := _ending(language.grammar[key]))]
        for kind in order:
            for name, several in phrases[kind].items():
                for text in several:
                    for one in expanded(text):
                        self._add(kind, name, one)
        for found in self._exact.values():
            found.sort(key=_Phrase.order)
        self._runs = {} if language.spaced else {head: _Runs.of(found) for head, found in self._exact.items()}

    @classmethod
    def of_claims(cls, language: Language, terms: Mapping[str, Sequence[str]]) -> Scanner:
        """Return what finds the words of a language that say something of a part's condition, and those that bind."""
        phrases: dict[str, Mapping[str, Sequence[str]]] = {kind: {"": language.grammar[kind]} for kind in GRAMMAR}
        says = {name: [one for one in several if one[:1] != "!"] for name, several in terms.items()}
        denies = {name: [one[1:] for one in several if one[:1] == "!"] for name, several in terms.items()}
        denies = {name: [*several, *language.denials.get(name, ())] for name, several in denies.items()}
        phrases |= {FINDING: says, DENIAL: denies}
        return cls(language, phrases | {INTACT: {"": language.intact}, DEFECT: {"": language.defect}})

    def _add(self, kind: str, name: str, text: str) -> None:
        needs, _, text = text.rpartition(" > ")
        plain = text if "[" in text else fold(text.replace("*", "\0")).replace("\0", "*").strip()
        plain = plain.replace("'", " ") if self.language.elision else plain
        starts, ends = plain.startswith("^"), plain.endswith("$")
        plain = plain.strip("^$ ")
        if self.language.spaced:
            words = re.findall(r"\.\.\.|\*?\w+(?:['*]\w+)*\*?|\[\]|[.,:]", plain)  # "e.g." has its dots
        else:
            plain = plain.replace(" ", "").translate(self.language.variants)
            words = [piece for piece in re.split(r"(\.\.\.)", plain) if piece]
        if not words:
            return
        self._rank += 1
        phrase = _Phrase(kind, name, tuple(words), len(plain), self._rank, starts, ends, needs)
        if not self.language.spaced:
            self._exact.setdefault(words[0][:2], []).append(phrase)
        elif "*" in words[0]:
            self._loose.append((_pattern(words[0]), phrase))
        else:
            self._exact.setdefault(words[0], []).append(phrase)

    def scan(self, folded: str) -> list[Mark]:
        """Return the marks of a folded text in order; what is no known phrase is `WORD`."""
        if not self.language.spaced:
            return self._scan_characters(folded)
        return self._scan_words(folded.replace("'", " ") if self.language.elision else folded)

    # words between spaces

    def _candidates(self, token: str, following: str) -> list[_Phrase]:
        """Return the phrases that may begin with two tokens, in the order in which they are tried."""
        found = self._pairs.get((token, following))
        if found is None:
            found = [phrase for phrase in self._beginning(token) if phrase.goes_on(following)]
            if len(self._pairs) < KEPT:
                self._pairs[token, following] = found
        return found

    def _beginning(self, token: str) -> list[_Phrase]:
        found = self._heads.get(token)
        if found is None:
            loose = [phrase for pattern, phrase in self._loose if pattern.fullmatch(token)]
            found = sorted([*self._exact.get(token, ()), *loose], key=_Phrase.order)
            if len(self._heads) < KEPT:
                self._heads[token] = found
        return found

    def _bar(self, token: str) -> bool:
        """Say whether no gap of a phrase may hold a token: it cuts, says or binds something."""
        barred = self._bars.get(token)
        if barred is None:
            alone = next((one.kind for one in self._beginning(token) if len(one.words) == 1), WORD)
            barred = _cut(token) is not None or alone in _BARRED
            if len(self._bars) < KEPT:
                self._bars[token] = barred
        return barred

    def _scan_words(self, folded: str) -> list[Mark]:
        tokens = [(m[0], m.start(), m.end()) for m in _TOKEN.finditer(folded)]
        words = [token for token, _, _ in tokens]
        marks: list[Mark] = []
        i, n, first = 0, len(tokens), 0  # the first token of the sentence
        pairs = self._pairs
        words.append("")
        while i < n:
            token, start, end = tokens[i]
            candidates = pairs.get((token, words[i + 1]))
            if candidates is None:
                candidates = self._candidates(token, words[i + 1])
            if not candidates:  # most words are no phrase
                cut = _cut(token)
                if cut is None:
                    marks.append(Mark(WORD, token, start, end))
                    if self._ends:
                        marks += self._ended(WORD, token, tokens[i])
                else:
                    marks.append(Mark(cut, token.strip(), start, end))
                    first = i if cut == STOP else first
                i += 1
                continue
            for phrase in candidates:
                if phrase.needs and phrase.needs not in words[first:i]:
                    continue
                last = i + 1 if len(phrase.words) == 1 else _follow(phrase.words, 1, words, i + 1, self._bar)
                if last > n:
                    continue
                if last and (not phrase.starts or i == 0) and (not phrase.ends or _over(words, last)):
                    verb = phrase.kind == FINDING and not self._verbs.isdisjoint(phrase.words)
                    if verb and not (marks and marks[-1].kind == OR):
                        marks.append(Mark(VERB, "", start, start))  # "label is torn" holds the verb of a clause
                    marks.append(Mark(phrase.kind, phrase.name, start, tokens[last - 1][2]))
                    marks += self._ended(phrase.kind, phrase.words[-1], tokens[last - 1])
                    i = last
                    break
            else:
                marks.append(Mark(_cut(token) or WORD, token.strip(), start, end))
                marks += self._ended(WORD, token, tokens[i]) if _cut(token) is None else []
                first = i if _cut(token) == STOP else first
                i += 1
        return marks

    def _ended(self, kind: str, known: str, token: tuple[str, int, int]) -> list[Mark]:
        """Return what the end of a word says beyond its stem: it denies or hedges it, ends the clause, or is "or"."""
        word, _, at = token
        if not self._ends or kind not in _SAYS_OR_WORD:
            return []
        own = (WITHIN, OR) if known.endswith("*") and kind != INTACT else ()  # where the phrase is a stem
        stem = known.strip("*")
        for end, pattern in self._ends:
            able = end in own and not pattern.fullmatch(stem) if end in (WITHIN, OR) else end == BREAK or kind != WORD
            if able and pattern.fullmatch(word):
                return [Mark(end, "", at, at)]
        return []

    # scripts without spaces

    def _scan_characters(self, folded: str) -> list[Mark]:
        text = folded.translate(self.language.variants) if self.language.variants else folded
        japanese = self.language.code == "ja"
        comma = "、" if japanese else "，"
        marks: list[Mark] = []
        word = -1  # where a run of unknown characters begins; it is one word
        i, n = 0, len(text)
        runs = self._runs
        while i < n:
            character, phrase, last = text[i], None, i + 1
            if (several := runs.get(text[i : i + 2])) is not None:
                phrase, last = several.at(text, i)
            if phrase is None and (several := runs.get(character)) is not None:
                phrase, last = several.at(text, i)
            if phrase is None and character > "\u3040":  # most are letters
                if word < 0:
                    word = i
                i += 1
                continue
            kind = phrase.kind if phrase is not None else WORD
            if kind == EITHER and japanese:  # "錆びていません" denies rust, "進行していません" that it grows
                kind = AFTER if word < 0 else HEDGE_AFTER
            if word >= 0:
                marks.append(Mark(WORD, text[word:i], word, i))
                word = -1
            if phrase is not None:
                marks.append(Mark(kind, phrase.name, i, last))
            elif (found := _ASCII_WORD.match(text, i)) is not None:
                last = found.end()
                marks.append(Mark(WORD, found[0], i, last))
            elif character in "()":
                marks.append(Mark(_BRACKET, character, i, last))
            elif character != "-" or text[i - 1 : i] in ("", " ", "\n"):
                cut = _cut(character) if character != " " else None
                if cut is not None:
                    marks.append(Mark(cut, comma if character == "," else character, i, last))
            i = last
        if word >= 0:
            marks.append(Mark(WORD, text[word:], word, n))
        return _joined(_unbracketed(marks, comma)) if marks else marks


_BRACKET = "bracket"


@dataclass(frozen=True, slots=True)
class _Runs:
    """Phrases of a script without spaces that begin with the same characters."""

    special: tuple[_Phrase, ...]  # with gaps, or at the beginning or end of a text
    plain: dict[str, _Phrase]
    lengths: tuple[int, ...]  # of the plain ones, the longest first

    @classmethod
    def of(cls, phrases: Sequence[_Phrase]) -> _Runs:
        """Return them; of equal phrases the first is kept."""
        special = tuple(one for one in phrases if len(one.words) > 1 or one.starts or one.ends)
        plain: dict[str, _Phrase] = {}
        for one in phrases:
            if len(one.words) == 1 and not one.starts and not one.ends:
                plain.setdefault(one.words[0], one)
        return cls(special, plain, tuple(sorted({len(text) for text in plain}, reverse=True)))

    def at(self, text: str, i: int) -> tuple[_Phrase | None, int]:
        """Return the phrase that stands at a place of a text, and where it ends."""
        for phrase in self.special:
            last = _run(phrase.words, text, i)
            if not last or (phrase.starts and text[:i].strip()):
                continue
            if not phrase.ends or not text[last:].strip(" \n.。!！"):
                return phrase, last
        for length in self.lengths:
            found = self.plain.get(text[i : i + length])
            if found is not None and len(text) >= i + length and not _within_word(text, i + length):
                return found, i + length
        return None, i + 1


def _within_word(text: str, i: int) -> bool:
    """Say whether a place is within a word of ASCII letters: "ng" is no word of "nginx"."""
    around = text[i - 1 : i + 1]
    return len(around) == 2 and around.isascii() and around.isalnum()


def _unbracketed(marks: list[Mark], comma: str) -> list[Mark]:
    """Return marks in which brackets that say something are set off by commas, and others left out.

    "傷(スクラッチ)は見られません" and "未发现缺陷(如划痕)" are one clause; "划痕(无)凹痕(有)" has four.
    """
    if not any(mark.kind == _BRACKET for mark in marks):
        return marks
    found: list[Mark] = []
    opened = -1
    for mark in marks:
        if mark.kind != _BRACKET:
            found.append(mark)
        elif mark.name == "(":
            opened = len(found)
            found.append(mark._replace(kind=COMMA, name=comma))
        elif opened >= 0:
            inside = found[opened + 1 :]
            kinds = {one.kind for one in inside if one.kind != WORD or not one.name.isascii()}
            if kinds & {BEFORE, AFTER, EITHER, VERB, HEDGE, HEDGE_AFTER, EXCEPT, EXCEPT_AFTER}:
                found.append(mark._replace(kind=COMMA, name=comma))
            elif not kinds & {FINDING, INTACT, DEFECT}:
                del found[opened]
            elif kinds <= {FINDING, DEFECT, COMMA, AND, OR, IGNORE}:
                found[opened] = found[opened]._replace(name="、")  # another word for it, or examples
            opened = -1
    return found


def _joined(marks: list[Mark]) -> list[Mark]:
    """Return marks without the comma that follows a topic: "傷は、見られません" is one clause."""
    return [
        mark
        for i, mark in enumerate(marks)
        if mark.kind != COMMA
        or i < 2
        or mark.name != "、"
        or marks[i - 1].kind not in (VERB, END)
        or marks[i - 1].end - marks[i - 1].start > 1
        or marks[i - 2].kind not in (FINDING, INTACT, DEFECT)
    ]


# A gap that held one of these would hide it: "flakes ... off" in "flakes nowhere off".
_BARRED = frozenset(
    (FINDING, DENIAL, INTACT, DEFECT, BEFORE, AFTER, EITHER, NOR, HEDGE, DOUBLE, EXCEPT, EXCEPT_AFTER, OR, AND, BREAK)
)
_SAYS_OR_WORD = frozenset((FINDING, DENIAL, INTACT, DEFECT, WORD))


class _Phrase(NamedTuple):
    kind: str
    name: str
    words: tuple[str, ...]  # "..." = a gap
    length: int  # characters
    rank: int
    starts: bool  # at the beginning of the text only
    ends: bool
    needs: str  # a word that stands before it in the sentence; "" = none

    def goes_on(self, token: str) -> bool:
        """Say whether the word after the first may be this token ("" = the text ends)."""
        second = self.words[1] if len(self.words) > 1 else "..."
        return second in ("...", token) or ("*" in second and _pattern(second).fullmatch(token) is not None)

    def order(self) -> tuple[int, bool, int, int]:
        """Return what comes first: long before short, exact before loose, then the order of kinds."""
        return -len(self.words), "*" in self.words[0], -self.length, self.rank


def _follow(words: Sequence[str], k: int, tokens: Sequence[str], i: int, bar: Callable[[str], bool]) -> int:
    """Return where tokens end that are the words from the k-th; 0 where they are not."""
    while k < len(words):
        if words[k] == "...":
            gaps = (gap for gap in range(4) if not any(map(bar, tokens[i : i + gap])))
            return next((end for gap in gaps if (end := _follow(words, k + 1, tokens, i + gap, bar))), 0)
        if i >= len(tokens) or not (
            _pattern(words[k]).fullmatch(tokens[i]) if "*" in words[k] else words[k] == tokens[i]
        ):
            return 0
        i, k = i + 1, k + 1
    return i


def _run(pieces: Sequence[str], text: str, i: int) -> int:
    """Return where the pieces of a phrase end that begins at i, with gaps of up to eight characters; 0 = nowhere."""
    if not text.startswith(pieces[0], i):
        return 0
    i += len(pieces[0])
    for piece in pieces[1:]:
        if piece == "...":
            continue
        at = text.find(piece, i, i + 8 + len(piece))
        if at < 0 or any(c in _CUTS or c in _PUNCTUATION for c in text[i:at]):
            return 0
        i = at + len(piece)
    return i


def _over(words: Sequence[str], i: int) -> bool:
    return all(_cut(word) is not None for word in words[i:])


_ASCII_WORD = re.compile(r"\d+(?:[.,]\d+)*|[a-z]+")


def _ending(ends: Sequence[str]) -> re.Pattern[str] | None:
    """Return what matches a word with one of these ends."""
    words = {fold(one.replace("*", "\0")).strip().replace("\0", r"\w*") for text in ends for one in expanded(text)}
    return re.compile("|".join(sorted(words))) if words else None


@lru_cache(maxsize=8192)
def _pattern(word: str) -> re.Pattern[str]:
    return re.compile(re.escape(word).replace(r"\*", r"\w*"))


@lru_cache(maxsize=KEPT)
def _cut(token: str) -> str | None:
    """Return what a token cuts; None for words."""
    first = token.strip()[:1]
    if first in _PUNCTUATION:
        return _PUNCTUATION[first]
    return STOP if not first or first in _CUTS else None
