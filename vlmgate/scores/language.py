"""Languages as data: read `languages/*.toml`, tell the language of a text, and cut it into marks.

`languages()` returns all of them, `language_of` the one that a text is written in, `Scanner.scan` the marks of a text:
what it says (a finding, "intact", "defect") and the words that bind it (negators, hedges, "except", commas).
Adding a language is adding a file; `vlmgate help languages` says what stands in it.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import product
from types import MappingProxyType
from typing import Any, NamedTuple

LONGEST = 10_000  # characters of a caption that are looked at

# What a mark is. The first group says something, the second binds it, the third cuts.
FINDING, DENIAL, INTACT, DEFECT = "finding", "denial", "intact", "defect"
BEFORE, AFTER, EITHER = "negators_before", "negators_after", "negators"
NEAR, HEDGE_AFTER = "negators_near", "hedges_after"
HEDGE, DOUBLE, EXCEPT, EXCEPT_AFTER = "hedges", "double", "exceptions", "exceptions_after"
OR, NOR, AND = "or", "nor", "and"
VERB, SEEN, END, ARTICLE, IGNORE, WORD = "verbs", "seen", "ends", "articles", "ignore", "word"
ASK, YES = "asks", "yes"
BREAK, STOP, COMMA, COLON = "breaks", "stop", "comma", "colon"
GRAMMAR = (
    *(BEFORE, AFTER, EITHER, HEDGE, DOUBLE, EXCEPT, EXCEPT_AFTER, OR, NOR, AND),
    *(VERB, SEEN, END, ARTICLE, IGNORE, ASK, YES, BREAK, NEAR, HEDGE_AFTER),
)
# Ends of a word: "-siz" denies what the word itself names, a verb that is one with it ends the clause, "-나" is "or".
WITHIN, PREDICATE = "within", "predicate"
ENDS = {"negating_ends": WITHIN, "hedging_ends": HEDGE_AFTER, "closing_ends": BREAK, "or_ends": OR}
ENDS |= {"predicate_ends": PREDICATE}  # "rusty" may be what is said of the part, or of what is denied
_KEYS = (*GRAMMAR, *ENDS)
# In every language: what JSON and tables say of nothing, and of something; keys may be of another language.
_EVERYWHERE = {AFTER: ("[]", "false", "null", "无", "無", "没有", "沒有", "なし", "없음"), YES: ("true",)}


class Mark(NamedTuple):
    """A piece of a text: `kind` is one of the constants above, `name` the finding, `start` and `end` its place."""

    kind: str
    name: str
    start: int  # in the folded text
    end: int


@dataclass(frozen=True, slots=True)
class Language:
    """One file of `languages/`."""

    code: str  # ISO 639-1
    name: str
    spaced: bool  # words stand between spaces
    concord: bool  # two negators in one clause are one negation ("no … ninguno")
    comma_first: bool  # a comma stands before "but"; without one it is an adverb
    elision: bool  # an apostrophe parts words ("d'une")
    variants: Mapping[int, int]  # characters that are read as another ("發" as "发")
    grammar: Mapping[str, tuple[str, ...]]  # kind → phrases
    intact: tuple[str, ...]
    defect: tuple[str, ...]
    findings: Mapping[str, tuple[str, ...]]  # finding → synonyms
    denials: Mapping[str, tuple[str, ...]]  # finding → what says that it is not there ("unscratched", "complete")
    refusals: tuple[str, ...]  # no reading, whatever else is said
    unclear: tuple[str, ...]  # no reading where nothing is said of the part's condition
    other: tuple[str, ...]  # words for "other": "no other defects" is said after one
    measures: Mapping[str, Any]  # comparators, comparatives and sides; see `measures`
    contrasts: Mapping[str, Any]  # words that exclude each other; see `contrasts`
    examples: Mapping[str, Any]


class Languages(Mapping[str, Language]):
    """Every language by its code. A file is read when its language is asked for; `heads` are known before."""

    def __init__(self) -> None:
        folder = files("vlmgate.scores").joinpath("languages")
        found = {one.name.removesuffix(".toml"): one for one in folder.iterdir() if one.name.endswith(".toml")}
        self._texts = {code: found[code].read_text("utf-8") for code in sorted(found)}
        self.others = {
            code: frozenset(words.split()) for code, words in tomllib.loads(self._texts.pop("others")).items()
        }
        heads = {code: tomllib.loads(_HEAD.split(text, maxsplit=1)[0]) for code, text in self._texts.items()}
        self.scripts = {code: tuple(head["scripts"]) for code, head in heads.items()}
        self.common = {code: frozenset(fold(head.get("common", "")).split()) for code, head in heads.items()}
        # a frequent word → the languages that it is frequent in, without a file too
        self.of_word: dict[str, list[str]] = {}
        for code, words in (*self.common.items(), *((f"?{code}", words) for code, words in self.others.items())):
            for word in words:
                self.of_word.setdefault(word, []).append(code)
        self._read: dict[str, Language] = {}

    def __getitem__(self, code: str) -> Language:
        if code not in self._read:
            self._read[code] = read_language(code, tomllib.loads(self._texts[code]))
        return self._read[code]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def of_script(self, script: str | None) -> list[str]:
        """Return the codes of the languages that use a script."""
        return [code for code, scripts in self.scripts.items() if script in scripts]


_HEAD = re.compile(r"(?m)^(?:refusals|unclear)\b|^\[")  # what stands before tells a language


@lru_cache(maxsize=1)
def languages() -> Languages:
    """Return every language by its code; asking for one raises `ValueError` where its file is none."""
    return Languages()


def read_language(code: str, data: Mapping[str, Any]) -> Language:
    """Return a language of the content of its file; raises `ValueError` for a key that is unknown."""
    known = {"name", "scripts", "spaced", "common", "concord", "comma_first", "elision", "grammar", "condition"}
    known |= {"findings", "denials", "refusals", "unclear", "measures", "contrasts", "examples", "variants"}
    known |= {"other"}
    unknown = [*(data.keys() - known), *(data["grammar"].keys() - {*_KEYS})]
    if unknown:
        raise ValueError(f"languages/{code}.toml: unknown key '{unknown[0]}'")
    return Language(
        code=code,
        name=data["name"],
        spaced=data.get("spaced", True),
        concord=data.get("concord", False),
        comma_first=data.get("comma_first", False),
        elision=data.get("elision", False),
        variants={ord(pair[0]): ord(pair[1]) for pair in data.get("variants", "").split()},
        grammar={kind: (*data["grammar"].get(kind, ()), *_EVERYWHERE.get(kind, ())) for kind in _KEYS},
        intact=tuple(data["condition"]["intact"]),
        defect=tuple(data["condition"]["defect"]),
        findings={name: tuple(phrases) for name, phrases in data["findings"].items()},
        denials={name: tuple(phrases) for name, phrases in data.get("denials", {}).items()},
        refusals=tuple(data.get("refusals", ())),
        unclear=tuple(data.get("unclear", ())),
        other=tuple(data.get("other", ())),
        measures=data.get("measures", {}),
        contrasts=data.get("contrasts", {}),
        examples=data.get("examples", {}),
    )


def expanded(text: str) -> list[str]:
    """Return the phrases that "{a|b} c" stands for."""
    parts = [part.split("|") if i % 2 else [part] for i, part in enumerate(re.split(r"\{([^{}]*)\}", text))]
    return ["".join(one) for one in product(*parts)]


# --- which language ---------------------------------------------------------------------------------------------------

_SCRIPTS = {
    "latin": "A-Za-zÀ-ɏḀ-ỿ",
    "kana": "\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff",  # not the middle dot, which Chinese has too
    "han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff",
    "hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
}
_LETTERS = {name: re.compile(f"[{letters}]") for name, letters in _SCRIPTS.items()}
_LETTER = re.compile(r"[^\W\d_]")
_LATIN_WORD = re.compile(f"[{_SCRIPTS['latin']}]+")
_INITIAL = re.compile(r"\b[^\W\d_]\.")  # "i." of "i.e." is no word
LEAST_COMMON = 0.12  # share of words that are frequent ones, from which a longer text is of a language
_OF_JSON = frozenset(("true", "false", "null"))  # which no language has to itself
_ENOUGH = 400  # characters of a text that tell its language
_SHORT_HAN = 30  # characters
_SHORT = 8  # words; a shorter text is judged by the terms that it holds, too


def script_of(text: str) -> str | None:
    """Return the script that tells the languages of a text: kana before han, or None where it is another script."""
    if text.isascii():
        return "latin" if _LETTERS["latin"].search(text) else None
    counts = {name: len(letters.findall(text)) for name, letters in _LETTERS.items()}
    letters = len(_LETTER.findall(text))
    if not letters or sum(counts.values()) < 0.7 * letters:
        return None
    if counts["kana"] and counts["kana"] + counts["han"] >= 0.2 * letters:
        return "kana"
    if counts["hangul"] >= 0.2 * letters:
        return "hangul"
    # a Chinese report may quote an English label, and an English one a Chinese label
    return "han" if counts["han"] >= 0.2 * letters else "latin"


def language_of(text: str, own: Mapping[str, Collection[str]] = MappingProxyType({})) -> str | None:
    """Return the code of the language that a folded text is written in; None where no file covers it.

    Scripts decide where they can. Languages of one script are told apart by their frequent words; a text of up to eight
    words by the terms that it holds, too, `own` ones of the user among them (language → words). Frequent words of
    languages without a file count against all.
    """
    script = script_of(text)
    able = [] if script is None else languages().of_script(script)
    if len(able) < 2 and script != "latin":
        return able[0] if able else None
    if script == "han" and len(text) > _SHORT_HAN:
        return "zh"  # Japanese of that length has kana
    if script != "latin":  # Han alone: Chinese, unless the terms of another language explain more
        return max(able, key=lambda code: (_characters_known(text, code), code == "zh"))
    text = text[:_ENOUGH]
    words = [word for word in _LATIN_WORD.findall(_INITIAL.sub(" ", text)) if word not in _OF_JSON]
    if not words:
        return None
    counts = Counter(code for word in words for code in languages().of_word.get(word, ()))
    shares = {code: counts[code] / len(words) for code in able}
    best, short = max(shares.values()), len(words) <= _SHORT
    near = max(0.03, 1.5 / len(words))  # in a sentence, a frequent word more or less decides nothing
    rivals = [code for code in able if shares[code] >= best - near]
    if short or len(rivals) > 1:  # the language whose words explain most of the text
        shares |= {code: shares[code] + _words_known(words, code, own.get(code, ())) / len(words) for code in rivals}
    first = max(rivals, key=lambda code: shares[code])
    strange = max((count / len(words) for code, count in counts.items() if code[0] == "?"), default=0.0)
    return first if shares[first] >= LEAST_COMMON and shares[first] >= strange else None


def _words_known(words: Sequence[str], code: str, own: Collection[str]) -> float:
    """Return how many words are terms of a language, or the user's, and no frequent ones; half for a part of a term."""
    common, (whole, parts) = languages().common[code], _terms_of(code)
    found = 0.0
    for word in words:
        if word not in common:
            found += 1.0 if word in own or whole.match(word) else 0.5 if parts.match(word) else 0.0
    return found


@lru_cache(maxsize=32)
def _terms_of(code: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return what finds a term of one word, and a word of a longer one: findings, conditions and negators."""
    one = languages()[code]
    phrases = [*one.intact, *one.defect, *(phrase for several in one.findings.values() for phrase in several)]
    phrases += [phrase for several in one.denials.values() for phrase in several]
    phrases += [phrase for kind in (BEFORE, AFTER, EITHER, SEEN) for phrase in one.grammar[kind]]
    plain = [fold(text.replace("*", "\0")).replace("\0", "*") for phrase in phrases for text in expanded(phrase)]
    terms = [re.findall(r"\*?\w+\*?", text) for text in plain]
    whole = {words[0] for words in terms if len(words) == 1}
    return _any_of(whole), _any_of({word for words in terms for word in words} - whole)


def _any_of(words: Collection[str]) -> re.Pattern[str]:
    texts = sorted(re.escape(word).replace(r"\*", r"\w*") for word in words)
    return re.compile(f"(?:{'|'.join(texts) or '(?!)'})$")


def _characters_known(text: str, code: str) -> int:
    """Return how many characters of a short text the terms of a language cover."""
    plain = text.translate(languages()[code].variants)
    return sum(len(phrase) for phrase in _phrases_of(code) if phrase in plain)


@lru_cache(maxsize=32)
def _phrases_of(code: str) -> frozenset[str]:
    """Return the terms of a language, and the words of its grammar."""
    one = languages()[code]
    phrases = [*one.intact, *one.defect, *(phrase for several in one.findings.values() for phrase in several)]
    phrases += [phrase for several in one.grammar.values() for phrase in several]
    return frozenset(text.translate(one.variants) for phrase in phrases for text in expanded(phrase)) - {""}


# --- marks ------------------------------------------------------------------------------------------------------------

APOSTROPHES = str.maketrans("’‘ʼ´`＇", "''''''")  # "´" would come apart into a blank and an accent
# Marks of Markdown and JSON are no words. A line of a table or list is a sentence; "a: 1, b: 2" is two.
_MARKUP = str.maketrans(dict.fromkeys('*_#`~"“”„«»「」『』', " "))
_PAIRS = re.compile(r"[,、](?=\s*\"?[^\W\d][^,、:\n]{0,40}\"?\s*:)")
_ASIDE = re.compile(r"\(([a-zà-ɏḁ-ỿ]+)\)")  # "dents (none), rust (yes)"
_ROW = re.compile(r"(?m)^\s*\|(.*)\|\s*$")
_HEADING = re.compile(r"(?m)^[ \t]*(?:#+[ \t]*(\S[^\n]*?)|\*\*([^*\n]+)\*\*)[ \t]*:?[ \t]*\n+")
_LABEL = re.compile(r":[ \t*_]*\n[ \t\n]*(?:[-*•+][ \t]+|\d+[.)][ \t]+)?")  # its value stands on the next line
_STRUCK = re.compile(r"~~([^~\n]+)~~")  # struck out: it holds no longer, see `layout`
_INLINE = r"(?:b|strong|i|em|u|small|span|code|mark|font|sub|sup|a|ref|phrase|p|li|h\d|td|th|div)"
_TAGGED = re.compile(rf"(?m)(?:^|(?<=>))[ \t]*<(?!{_INLINE}>)(\w+)>([^<>\n]*)</\1>")  # "<scratch>no</scratch>"
_DELETED = re.compile(r"</?(?:s|del|strike)>")
TAG = re.compile(r"</?([a-z]\w*)(?:\s+[\w-]+\s*=[^<>]*)?\s?/?>", re.IGNORECASE)  # of XML or HTML; no word
_BLOCKS = frozenset(("p", "br", "li", "ul", "ol", "div", "tr", "table", *(f"h{n}" for n in range(1, 7))))
_GLUED = re.compile(r"(?<=[가-힣])(?=[없않있])")


def lowered(text: str) -> str:
    """Return text in lower case: Turkish capitals lose their dot or gain one; a Korean "none" is a word of its own."""
    plain = text.lower()
    return plain if plain.isascii() else _GLUED.sub(" ", plain.replace("i\u0307", "i").replace("ı", "i"))


def _untagged(text: str) -> str:
    """Return text without tags: those of a list of values become its keys, of HTML paragraphs ends of a line."""
    text = _TAGGED.sub(r"; \1: \2; ", _DELETED.sub("~~", text))

    def stands_for(tag: re.Match[str]) -> str:
        mark = "\n" if tag[1] in _BLOCKS else "|" if tag[1] in ("td", "th") else " "
        return mark.ljust(len(tag[0]))

    return TAG.sub(stands_for, text)


@lru_cache(maxsize=1024)  # a caption is looked at for what it claims, and whether it is a refusal
def fold(text: str) -> str:
    """Return text without differences of case, width, apostrophe and markup; most texts keep their length."""
    text = text[:LONGEST]
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(APOSTROPHES))
        text = "".join(c for c in text if unicodedata.category(c) != "Cf") if not text.isprintable() else text
    else:
        text = text.replace("`", "'") if "`" in text and "```" not in text else text
    text = lowered(text).replace("\\n", "\n ")
    text = _untagged(text) if "<" in text and ">" in text else text
    text = _STRUCK.sub(r"; ✗ \1; ", text) if "~~" in text else text
    if "\n" in text:
        text = _HEADING.sub(lambda line: f"{line[1] or line[2]}: ", text)
        text = _LABEL.sub(": ", text)
    text = _ROW.sub(lambda row: " " + row[1].replace("|", ":", 1) + " ", text) if "|" in text else text
    text = _PAIRS.sub(lambda comma: _pair(text, comma.start()), text) if ":" in text else text
    text = _ASIDE.sub(r":\1;", text) if "(" in text else text
    return text.translate(_MARKUP)


def _pair(text: str, comma: int) -> str:
    """Return what a comma before "b:" is: "a: 1, b: 2" is two sentences, "a, b: none" is one."""
    start = max(text.rfind(mark, 0, comma) for mark in (". ", ";", "\n", "{"))
    return ";" if text.find(":", start + 1, comma) >= 0 else ","
