"""Languages as data: read `languages/*.toml`, tell the language of a text, and cut it into marks.

`languages()` returns all of them, `language_of` the one that a text is written in, `Scanner.scan` the marks of a text:
what it says (a finding, "intact", "defect") and the words that bind it (negators, hedges, "except", commas).
Adding a language is adding a file; `vlmgate help languages` says what stands in it.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import product
from typing import Any, NamedTuple

LONGEST = 10_000  # characters of a caption that are looked at

# What a mark is. The first group says something, the second binds it, the third cuts.
FINDING, DENIAL, INTACT, DEFECT = "finding", "denial", "intact", "defect"
BEFORE, AFTER, EITHER = "negators_before", "negators_after", "negators"
HEDGE, DOUBLE, EXCEPT, EXCEPT_AFTER = "hedges", "double", "exceptions", "exceptions_after"
OR, NOR, AND = "or", "nor", "and"
VERB, SEEN, END, ARTICLE, IGNORE, WORD = "verbs", "seen", "ends", "articles", "ignore", "word"
ASK, YES = "asks", "yes"
BREAK, STOP, COMMA, COLON = "breaks", "stop", "comma", "colon"
GRAMMAR = (
    *(BEFORE, AFTER, EITHER, HEDGE, DOUBLE, EXCEPT, EXCEPT_AFTER, OR, NOR, AND),
    *(VERB, SEEN, END, ARTICLE, IGNORE, ASK, YES, BREAK),
)
# In every language: what JSON and tables say of nothing, and of something.
_EVERYWHERE = {AFTER: ("[]", "false", "null"), YES: ("true",)}
# Of equally long phrases the first of these is taken.
_ORDER = (IGNORE, DOUBLE, HEDGE, EXCEPT, EXCEPT_AFTER, BEFORE, AFTER, EITHER, FINDING, DENIAL, INTACT, DEFECT)


class Mark(NamedTuple):
    """A piece of a text: `kind` is one of the constants above, `name` the finding, `start` and `end` its place."""

    kind: str
    name: str
    start: int  # in the folded text
    end: int


Phrases = Mapping[str, Mapping[str, Sequence[str]]]  # kind → name → phrases


@dataclass(frozen=True, slots=True)
class Language:
    """One file of `languages/`."""

    code: str  # ISO 639-1
    name: str
    scripts: tuple[str, ...]  # Unicode scripts that only its group of languages uses: "latin", "han", "kana", "hangul"
    spaced: bool  # words stand between spaces
    common: frozenset[str]  # frequent words, which tell languages of one script apart
    concord: bool  # two negators in one clause are one negation ("no … ninguno")
    comma_first: bool  # a comma stands before "but"; without one it is an adverb
    elision: bool  # an apostrophe parts words ("d'une")
    grammar: Mapping[str, tuple[str, ...]]  # kind → phrases
    intact: tuple[str, ...]
    defect: tuple[str, ...]
    findings: Mapping[str, tuple[str, ...]]  # finding → synonyms
    denials: Mapping[str, tuple[str, ...]]  # finding → what says that it is not there ("unscratched", "complete")
    refusals: tuple[str, ...]  # no reading, whatever else is said
    unclear: tuple[str, ...]  # no reading where nothing is said of the part's condition
    measures: Mapping[str, Any]  # comparators, comparatives and sides; see `measures`
    examples: Mapping[str, Any]


@lru_cache(maxsize=1)
def languages() -> dict[str, Language]:
    """Return every language by its code; raises `ValueError` for a file that is none."""
    folder = files("vlmgate.scores").joinpath("languages")
    found = sorted((one for one in folder.iterdir() if one.name.endswith(".toml")), key=lambda one: one.name)
    known = {one.name.removesuffix(".toml"): tomllib.loads(one.read_text("utf-8")) for one in found}
    return {code: read_language(code, data) for code, data in known.items() if code != "others"}


@lru_cache(maxsize=1)
def _others() -> dict[str, frozenset[str]]:
    """Return frequent words of languages without a file, so that none of them is taken for one with a file."""
    text = files("vlmgate.scores").joinpath("languages", "others.toml").read_text("utf-8")
    return {code: frozenset(words.split()) for code, words in tomllib.loads(text).items()}


def read_language(code: str, data: Mapping[str, Any]) -> Language:
    """Return a language of the content of its file; raises `ValueError` for a key that is unknown."""
    known = {"name", "scripts", "spaced", "common", "concord", "comma_first", "elision", "grammar", "condition"}
    known |= {"findings", "denials", "refusals", "unclear", "measures", "examples"}
    unknown = [*(data.keys() - known), *(data["grammar"].keys() - {*GRAMMAR})]
    if unknown:
        raise ValueError(f"languages/{code}.toml: unknown key '{unknown[0]}'")
    return Language(
        code=code,
        name=data["name"],
        scripts=tuple(data["scripts"]),
        spaced=data.get("spaced", True),
        common=frozenset(data.get("common", "").split()),
        concord=data.get("concord", False),
        comma_first=data.get("comma_first", False),
        elision=data.get("elision", False),
        grammar={kind: (*data["grammar"].get(kind, ()), *_EVERYWHERE.get(kind, ())) for kind in GRAMMAR},
        intact=tuple(data["condition"]["intact"]),
        defect=tuple(data["condition"]["defect"]),
        findings={name: tuple(phrases) for name, phrases in data["findings"].items()},
        denials={name: tuple(phrases) for name, phrases in data.get("denials", {}).items()},
        refusals=tuple(data.get("refusals", ())),
        unclear=tuple(data.get("unclear", ())),
        measures=data.get("measures", {}),
        examples=data.get("examples", {}),
    )


# --- which language ---------------------------------------------------------------------------------------------------

_SCRIPTS = {
    "latin": "A-Za-zÀ-ɏḀ-ỿ",
    "kana": "\u3040-\u30ff\u31f0-\u31ff",
    "han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff",
    "hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
}
_LETTERS = {name: re.compile(f"[{letters}]") for name, letters in _SCRIPTS.items()}
_LATIN_WORD = re.compile(f"[{_SCRIPTS['latin']}]+")
_INITIAL = re.compile(r"\b[^\W\d_]\.")  # "i." of "i.e." is no word
LEAST_COMMON = 0.12  # share of words that are frequent ones, from which a longer text is of a language
_SHORT = 8  # words; a shorter text is judged by the terms that it holds, too


def script_of(text: str) -> str | None:
    """Return the script that tells the languages of a text: kana before han, or None where it is another script."""
    if text.isascii():
        return "latin" if _LETTERS["latin"].search(text) else None
    counts = {name: len(letters.findall(text)) for name, letters in _LETTERS.items()}
    letters = sum(c.isalpha() for c in text)
    if not letters or sum(counts.values()) < 0.7 * letters:
        return None
    if counts["kana"] and counts["kana"] + counts["han"] >= 0.2 * letters:
        return "kana"
    if counts["hangul"] >= 0.2 * letters:
        return "hangul"
    # a Chinese report may quote an English label, and an English one a Chinese label
    return "han" if counts["han"] >= 0.2 * letters else "latin"


def language_of(text: str, scanners: Mapping[str, Scanner]) -> str | None:
    """Return the code of the language that a folded text is written in; None where no file covers it.

    Scripts decide where they can. Languages of one script are told apart by their frequent words; a text of up to eight
    words by the terms that it holds, too. Frequent words of languages without a file count against all.
    """
    script = script_of(text)
    if script is None:
        return None
    able = [code for code, one in scanners.items() if script in one.language.scripts]
    if len(able) < 2 and script != "latin":
        return able[0] if able else None
    words = _LATIN_WORD.findall(_INITIAL.sub(" ", text))[:200]
    shares = {code: sum(map(scanners[code].language.common.__contains__, words)) / len(words) for code in able}
    best = max(shares.values())
    short = len(words) <= _SHORT
    near = max(0.03, 1.5 / len(words))  # in a sentence, a frequent word more or less decides nothing
    rivals = [code for code in able if short or shares[code] >= best - near]
    if short or len(rivals) > 1:  # the language whose words explain most of the text
        shares |= {code: shares[code] + scanners[code].explained(text) / len(words) for code in rivals}
    first = max(rivals, key=lambda code: shares[code])
    strange = max((sum(map(common.__contains__, words)) / len(words) for common in _others().values()), default=0.0)
    return first if shares[first] >= LEAST_COMMON and shares[first] >= strange else None


# --- marks ------------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""
      \d+(?:[.,]\d+)*            # a number with its decimals is one word
    | [^\W\d_]+(?:'[^\W\d_]+)*   # a word, "isn't" too
    | [.!;…\n]+ | [,、，] | [:：?]+ | \[\s*\] | [|{}()] | \s-+\s | [–—]
    """,
    re.VERBOSE,
)
_PUNCTUATION = {**dict.fromkeys(",、，", COMMA), **dict.fromkeys(":：?？–—-", COLON)}
_CUTS = frozenset(".!;…\n{}|()。！；")
_APOSTROPHES = str.maketrans("’‘ʼ´`＇", "''''''")
# Marks of Markdown and JSON are no words. A line of a table or list is a sentence; "a: 1, b: 2" is two.
_MARKUP = re.compile(r"[*_#`~\"“”„«»「」『』]")
_PAIRS = re.compile(r",(?=\s*\"?[^\W\d][^,:\n]{0,40}\"?\s*:)")
_ASIDE = re.compile(r"\(([^\W\d_]+)\)")  # "dents (none), rust (yes)"
_ROW = re.compile(r"(?m)^\s*\|(.*)\|\s*$")
_HEADING = re.compile(r"(?m)^[ \t]*(?:#+[ \t]*(\S[^\n]*?)|\*\*([^*\n]+)\*\*)[ \t]*:?[ \t]*\n+")
_LABEL = re.compile(r":[ \t*_]*\n[ \t\n]*(?:[-*•+][ \t]+|\d+[.)][ \t]+)?")  # its value stands on the next line


def fold(text: str) -> str:
    """Return text without differences of case, width, apostrophe and markup; most texts keep their length."""
    text = text[:LONGEST]
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES))
        text = "".join(c for c in text if unicodedata.category(c) != "Cf") if not text.isprintable() else text
    else:
        text = text.replace("`", "'") if "`" in text and "```" not in text else text
    text = text.lower().replace("\\n", "\n ")
    if "\n" in text:
        text = _HEADING.sub(lambda line: f"{line[1] or line[2]}: ", text)
        text = _LABEL.sub(": ", text)
    text = _ROW.sub(lambda row: " " + row[1].replace("|", ":", 1) + " ", text) if "|" in text else text
    text = _PAIRS.sub(lambda comma: _pair(text, comma.start()), text) if ":" in text else text
    text = _ASIDE.sub(r":\1;", text) if "(" in text else text
    return _MARKUP.sub(" ", text)


def _pair(text: str, comma: int) -> str:
    """Return what a comma before "b:" is: "a: 1, b: 2" is two sentences, "a, b: none" is one."""
    start = max(text.rfind(mark, 0, comma) for mark in (". ", ";", "\n", "{"))
    return ";" if text.find(":", start + 1, comma) >= 0 else ","


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
        self._exact: dict[str, list[_Phrase]] = {}  # first word or character → phrases
        self._loose: list[tuple[re.Pattern[str], _Phrase]] = []  # first words with a "*"
        self._bars: dict[str, bool] = {}  # token → no gap may hold it
        self._heads: dict[str, list[_Phrase]] = {}  # token → phrases that may begin with it; filled as tokens come
        self._pairs: dict[tuple[str, str], list[_Phrase]] = {}  # the same for two tokens
        for kind in order:
            for name, several in phrases[kind].items():
                for text in several:
                    for one in _expanded(text):
                        self._add(kind, name, one)
        for found in self._exact.values():
            found.sort(key=_Phrase.order)

    @classmethod
    def of_claims(cls, language: Language, terms: Mapping[str, Sequence[str]]) -> Scanner:
        """Return what finds the words of a language that say something of a part's condition, and those that bind."""
        phrases: dict[str, Mapping[str, Sequence[str]]] = {kind: {"": language.grammar[kind]} for kind in GRAMMAR}
        says = {name: [one for one in several if one[:1] != "!"] for name, several in terms.items()}
        denies = {name: [one[1:] for one in several if one[:1] == "!"] for name, several in terms.items()}
        denies = {name: [*several, *language.denials.get(name, ())] for name, several in denies.items()}
        phrases |= {FINDING: says, DENIAL: denies}
        return cls(language, phrases | {INTACT: {"": language.intact}, DEFECT: {"": language.defect}})

    @classmethod
    def of_refusals(cls, language: Language) -> Scanner:
        """Return what finds refusals, of the kinds "refusals" and "unclear"."""
        return cls(language, {"refusals": {"": language.refusals}, "unclear": {"": language.unclear}})

    def _add(self, kind: str, name: str, text: str) -> None:
        needs, _, text = text.rpartition(" > ")
        plain = text if "[" in text else fold(text.replace("*", "\0")).replace("\0", "*").strip()
        plain = plain.replace("'", " ") if self.language.elision else plain
        starts, ends = plain.startswith("^"), plain.endswith("$")
        plain = plain.strip("^$ ")
        if self.language.spaced:
            words = re.findall(r"\.\.\.|\*?\w+(?:['*]\w+)*\*?|\[\]|[.,:]", plain)  # "e.g." has its dots
        else:
            words = [part for piece in re.split(r"(\.\.\.)", plain.replace(" ", "")) if (part := piece)]
        if not words:
            return
        self._rank += 1
        phrase = _Phrase(kind, name, tuple(words), len(plain), self._rank, starts, ends, needs)
        if not self.language.spaced:
            self._exact.setdefault(words[0][0], []).append(phrase)
        elif "*" in words[0]:
            self._loose.append((_pattern(words[0]), phrase))
        else:
            self._exact.setdefault(words[0], []).append(phrase)

    def scan(self, folded: str) -> list[Mark]:
        """Return the marks of a folded text in order; what is no known phrase is `WORD`."""
        if not self.language.spaced:
            return self._scan_characters(folded)
        return self._scan_words(folded.replace("'", " ") if self.language.elision else folded)

    def explained(self, folded: str) -> float:
        """Return how many words of a text its phrases cover, less the frequent ones."""
        known = [folded[mark.start : mark.end].split() for mark in self.scan(folded) if mark.kind not in _CUT_KINDS]
        return float(sum(word not in self.language.common for words in known for word in words))

    # words between spaces

    def _candidates(self, token: str, following: str) -> list[_Phrase]:
        """Return the phrases that may begin with two tokens, in the order in which they are tried."""
        found = self._pairs.get((token, following))
        if found is None:
            found = [phrase for phrase in self._beginning(token) if phrase.goes_on(following)]
            if len(self._pairs) < 100_000:  # a bound for a hostile night
                self._pairs[token, following] = found
        return found

    def _beginning(self, token: str) -> list[_Phrase]:
        found = self._heads.get(token)
        if found is None:
            loose = [phrase for pattern, phrase in self._loose if pattern.fullmatch(token)]
            found = sorted([*self._exact.get(token, ()), *loose], key=_Phrase.order)
            if len(self._heads) < 100_000:
                self._heads[token] = found
        return found

    def _bar(self, token: str) -> bool:
        """Say whether no gap of a phrase may hold a token: it cuts, says or binds something."""
        barred = self._bars.get(token)
        if barred is None:
            alone = next((one.kind for one in self._beginning(token) if len(one.words) == 1), WORD)
            barred = _cut(token) is not None or alone in _BARRED
            if len(self._bars) < 100_000:
                self._bars[token] = barred
        return barred

    def _scan_words(self, folded: str) -> list[Mark]:
        tokens = [(m[0], m.start(), m.end()) for m in _TOKEN.finditer(folded)]
        words = [token for token, _, _ in tokens]
        marks: list[Mark] = []
        i, n, first = 0, len(tokens), 0  # the first token of the sentence
        while i < n:
            token, start, end = tokens[i]
            first = i if _cut(token) == STOP else first
            for phrase in self._candidates(token, words[i + 1] if i + 1 < n else ""):
                if phrase.needs and phrase.needs not in words[first:i]:
                    continue
                last = i + 1 if len(phrase.words) == 1 else _follow(phrase.words, 1, words, i + 1, self._bar)
                if last and (not phrase.starts or i == 0) and (not phrase.ends or _over(words, last)):
                    marks.append(Mark(phrase.kind, phrase.name, start, tokens[last - 1][2]))
                    i = last
                    break
            else:
                marks.append(Mark(_cut(token) or WORD, token.strip(), start, end))
                i += 1
        return marks

    # scripts without spaces

    def _scan_characters(self, folded: str) -> list[Mark]:
        marks: list[Mark] = []
        i, n = 0, len(folded)
        while i < n:
            character = folded[i]
            if character == " ":
                i += 1
                continue
            for phrase in self._exact.get(character, ()):
                last = _run(phrase.words, folded, i)
                if last and (not phrase.starts or i == 0) and (not phrase.ends or not folded[last:].strip(" .。!！")):
                    marks.append(Mark(phrase.kind, phrase.name, i, last))
                    i = last
                    break
            else:
                if character.isascii() and (word := _ASCII_WORD.match(folded, i)):
                    marks.append(Mark(WORD, word[0], i, word.end()))
                    i = word.end()
                    continue
                cut = _cut(character)
                if cut is not None:
                    marks.append(Mark(cut, character, i, i + 1))
                elif marks and marks[-1].kind == WORD and marks[-1].end == i:  # a run of characters is one word
                    marks[-1] = Mark(WORD, marks[-1].name + character, marks[-1].start, i + 1)
                else:
                    marks.append(Mark(WORD, character, i, i + 1))
                i += 1
        return marks


_CUT_KINDS = frozenset((STOP, COMMA, COLON, WORD))
# A gap that held one of these would hide it: "flakes ... off" in "flakes nowhere off".
_BARRED = frozenset(
    (FINDING, DENIAL, INTACT, DEFECT, BEFORE, AFTER, EITHER, NOR, HEDGE, DOUBLE, EXCEPT, EXCEPT_AFTER, OR, AND, BREAK)
)


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


def _expanded(text: str) -> list[str]:
    """Return the phrases that "{a|b} c" stands for."""
    parts = [part.split("|") if i % 2 else [part] for i, part in enumerate(re.split(r"\{([^{}]*)\}", text))]
    return ["".join(one) for one in product(*parts)]


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
        if at < 0 or any(c in _CUTS for c in text[i:at]):
            return 0
        i = at + len(piece)
    return i


def _over(words: Sequence[str], i: int) -> bool:
    return all(_cut(word) is not None for word in words[i:])


_ASCII_WORD = re.compile(r"\d+(?:[.,]\d+)*|[a-z]+")


@lru_cache(maxsize=8192)
def _pattern(word: str) -> re.Pattern[str]:
    return re.compile(re.escape(word).replace(r"\*", r"\w*"))


def _cut(token: str) -> str | None:
    """Return what a token cuts; None for words."""
    first = token.strip()[:1]
    if first in _PUNCTUATION:
        return _PUNCTUATION[first]
    return STOP if not first or first in _CUTS else None
