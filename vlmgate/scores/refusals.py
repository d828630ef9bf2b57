"""Find readings that are none: empty, refused, cut off, overflowed. `degenerate` looks at the captions of one image.

Such a reading goes to a person before any score is looked at: K equal refusals agree perfectly.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from vlmgate.data import Caption, Reason
from vlmgate.scores.findings import load_vocabulary
from vlmgate.scores.language import fold, languages, lowered, script_of

LONGEST = 10_000  # characters of a caption that are looked at
_CHAT_TOKEN = re.compile(r"<(?:unk|image|pad|\|\w+\|)>", re.IGNORECASE)
_SHORT = 12  # words
REMARK = 200  # characters; in a longer caption "it is hard to tell what …" is a remark, and no refusal
_UNSEEN = dict.fromkeys(map(ord, "\u115f\u1160\u3164\uffa0"))  # fillers of Hangul: letters that nobody sees
# --- phrases ----------------------------------------------------------------------------------------------------------

_GROUP = re.compile(r"\{([^{}]*)\}")
_BETWEEN = r"[^\w.!?\n]{1,3}"  # between two words of a phrase: a space, or a comma and a space
_GAP = r"[^.!?;\n。！？]{0,8}"  # where words are not spaced


_Found = tuple[re.Pattern[str], bool]  # of a phrase, and whether it must stand at the beginning


class Phrases:
    """Finds phrases of one language in folded texts; their syntax is that of `language.Scanner`.

    Phrases of refusals have many alternatives, so they are kept as patterns, by the words that they may begin with.
    """

    def __init__(self, phrases: Sequence[str], *, spaced: bool) -> None:
        self.spaced = spaced
        self._by_first: dict[str, list[_Found]] = {}
        self._loose: list[tuple[re.Pattern[str], _Found]] = []
        for phrase in phrases:
            found = re.compile(self._pattern(phrase)), phrase.startswith("^")
            for first in self._firsts(_words(phrase.strip("^$ "))):
                if "*" in first:
                    self._loose.append((re.compile(first.replace("*", r"\w*")), found))
                else:
                    self._by_first.setdefault(first, []).append(found)

    def found(self, folded: str) -> bool:
        """Say whether a folded text holds one of them."""
        begin = next((i for i, character in enumerate(folded) if character.isalnum()), 0)
        places = _TOKENS.finditer(folded) if self.spaced else re.finditer(r"\S", folded)
        for place in places:
            known = self._by_first.get(place[0], [])
            if self._loose:
                known = [*known, *(found for first, found in self._loose if first.fullmatch(place[0]))]
            for pattern, first in known:
                if (not first or place.start() <= begin) and pattern.match(folded, place.start()):
                    return True
        return False

    def _pattern(self, phrase: str) -> str:
        ends = phrase.endswith("$")
        parts: list[str] = []
        between, begun = _BETWEEN if self.spaced else "", False
        for word in _words(phrase.strip("^$ ")):
            if word == "...":
                parts.append(rf"(?:{between}\w+){{0,3}}" if self.spaced else _GAP)
                continue
            pieces = _GROUP.split(word)  # outside and inside of groups, in turn
            pieces = [
                f"(?:{'|'.join(map(self._escaped, piece.split('|')))})" if n % 2 else self._escaped(piece)
                for n, piece in enumerate(pieces)
            ]
            text = "".join(pieces)
            optional = "?" * _is_optional(word)
            parts.append(
                f"(?:{between}{text}){optional}" if begun else f"(?:{text}{between * bool(optional)}){optional}"
            )
            begun = begun or not optional
        begin = r"(?<![^\W_])" if self.spaced else ""
        end = r"\W*$" if ends else r"(?![^\W_])" if self.spaced else ""
        return begin + "".join(parts) + end

    def _escaped(self, text: str) -> str:
        plain = re.escape(text).replace(r"\*", r"\w*")
        return re.sub(r"(?:\\ )+", lambda _: _BETWEEN if self.spaced else "", plain)

    def _firsts(self, words: Sequence[str]) -> set[str]:
        """Return the words, or characters, that a phrase may begin with."""
        if not words:
            return set()
        groups = _GROUP.split(words[0])
        texts = {groups[0]}
        for i in range(1, len(groups), 2):  # only what is not past its first word goes on
            done = {text for text in texts if " " in text.lstrip() or (text and not self.spaced)}
            texts = done | {t + one + groups[i + 1] for t in texts - done for one in groups[i].split("|")}
        found = {text.split()[0] if self.spaced else text[0] for text in texts if text.strip()}
        return found | self._firsts(words[1:]) if any(not text.strip() for text in texts) else found


_TOKENS = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def _words(phrase: str) -> list[str]:
    """Return the words of a phrase; a group in braces is one, with what it is written together with."""
    return re.findall(r"(?:\{[^{}]*\}|[^\s{}])+", phrase)


def _is_optional(word: str) -> bool:
    return _GROUP.fullmatch(word) is not None and "" in word[1:-1].split("|")


@lru_cache(maxsize=64)
def _phrases(code: str, kind: str) -> Phrases:
    one = languages()[code]
    phrases = one.refusals if kind == "refusals" else one.unclear
    plain = [lowered(phrase.replace("’", "'")).translate(one.variants) for phrase in phrases]
    return Phrases([phrase.replace("'", " ") for phrase in plain] if one.elision else plain, spaced=one.spaced)


# What a chat is made of besides what is said, and what a sentence is made of before it says anything.
_MARKUP = re.compile(r"<[^<>]{0,40}>|\[/?(?:pad|unk|cls|sep|mask|inst|bos|eos)\]")
_ROLES = re.compile(r"\b(?:user|human|assistant|system|model|question|answer|caption|description)\b")
_HOLLOW = frozenset(
    """
    a an the this that these those it its it's there here here's is are was were be of to in and or i we you go
    image picture photo photograph show shows showing shown display displays depict depicts contain contains
    sure certainly course hmm
    """.split()
)
_HOLLOW_ALONE = frozenset("an the this that it image picture photo photograph sure certainly hmm".split())
_APOSTROPHE = re.compile("[’‘ʼʻ´`＇]")


def _folded(text: str) -> str:
    """Return the text in one case, width and apostrophe, without characters that nobody sees."""
    if text.isascii():  # most are
        return text.replace("`", "'").casefold()
    text = _APOSTROPHE.sub("'", text)  # before NFKC makes a space and an accent of some
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if unicodedata.category(c) != "Cf")


@lru_cache(maxsize=4096)
def says_nothing(text: str, prompt: str = "") -> bool:
    """Say whether a caption asserts nothing: empty, the prompt again, marks of a chat, the beginning of a sentence.

    A word alone is taken for what was asked for ("ok", "4", "A"), but for a few; so is a longer text that may not be.
    """
    if is_empty(text):
        return True
    if len(text) > _LONG + 4 * len(prompt) and not _is_hollow(_folded(text[: _LONG + 4 * len(prompt)])):
        return _is_loop(_letters(text[:LONGEST]))
    said = _ROLES.sub(" ", _MARKUP.sub(" ", _folded(text[:LONGEST])))
    letters, asked = _letters(said), _letters(_ROLES.sub(" ", _folded(prompt)))
    if asked and len(asked) > 2:
        letters = letters.replace(asked, "")
    if not letters or _letters(text) == _letters(prompt) or _is_loop(letters):
        return True
    return _is_hollow(said)


_LONG = 400  # characters; what says something in so many, and more than the prompt over and over, says something


def _is_hollow(said: str) -> bool:
    tokens = said.replace("_", " ").split()
    words = [word for word in (token.strip(".,;:!?()[]{}*\"'-–—…") for token in tokens) if word]
    return all(word in (_HOLLOW if len(words) > 1 else _HOLLOW_ALONE) for word in words)


def _is_loop(letters: str) -> bool:
    """Say whether a text is a short piece three times or more, however it is cut into words; its end may be torn."""
    if letters.isdigit():  # a serial number
        return False
    n = len(letters)
    period = letters.find(letters[: n - n // 3], 1) if n >= 8 else -1
    while period > 0:  # where the text begins anew, in its first third
        if letters.startswith(letters[period:]):
            return True
        period = letters.find(letters[: n - n // 3], period + 1)
    return False


@lru_cache(maxsize=4096)
def is_empty(text: str) -> bool:
    """Say whether a caption says nothing: no letter or digit, one of them only, or few words over and over."""
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    characters = _letters(text)
    characters = characters if characters.isascii() else characters.translate(_UNSEEN)
    if not characters or (len(characters) >= 4 and len(set(characters)) == 1):
        return True
    words = re.findall(r"\w+", folded)
    most = max(Counter(words).values(), default=0)
    if (len(words) >= 3 and most >= 0.7 * len(words)) or _repeats(words, 3, 9):
        return True
    return len(characters) > 12 * len(words) and _repeats(characters, 8, 40)  # words are not spaced


def _repeats(pieces: Sequence[str], size: int, fewest: int) -> bool:
    """Say whether a text is mostly the same run of pieces over and over; long descriptions repeat words, not runs."""
    if len(pieces) < fewest:
        return False
    runs = {*zip(*(pieces[i:] for i in range(size)), strict=False)}
    return 3 * len(runs) <= len(pieces) - size + 1


@lru_cache(maxsize=1024)
def _letters(text: str) -> str:
    if text.isascii():
        return _NO_LETTER.sub("", text.lower())
    return _NO_LETTER.sub("", unicodedata.normalize("NFKC", text).casefold())


_NO_LETTER = re.compile(r"[\W_]+")


@lru_cache(maxsize=16384)  # fewer samples of an image are a part of its captions again
def is_refusal(text: str) -> bool:
    """Say whether a caption declines to answer, or says that it cannot tell.

    The phrases are those of the language files. Some are refusals whatever else is said ("please upload an image");
    others ("the image is dark") are none in a caption that says something of the part's condition.
    """
    if _CHAT_TOKEN.search(text):
        return True
    claims = load_vocabulary().claims(text)
    folded = " ".join(fold(text).split())
    script = script_of(folded)
    every = languages().of_script(script)
    short = len(folded.split()) <= _SHORT and len(folded) <= 10 * _SHORT  # may be taken for a neighbour's language
    several = not claims.language or (short and not claims.states)
    codes = every if several else [code for code in every if code in (claims.language, "en")]
    if script not in (None, "latin"):
        codes.append("en")  # a model may decline in English whatever it was asked in
    claimed = claims.states or len(folded) > REMARK
    for code in codes:
        plain = folded.replace("'", " ") if languages()[code].elision else folded.translate(languages()[code].variants)
        if _phrases(code, "refusals").found(plain) or (not claimed and _phrases(code, "unclear").found(plain)):
            return True
    return False


def degenerate(captions: Sequence[Caption], prompt: str = "") -> Reason | None:
    """Return why these captions are no reading, or None where every one of them can be scored.

    One bad caption is enough: what it would have said is unknown, and unknown is for a person.
    """
    if not captions or any(caption.finish == "non-finite" for caption in captions):
        return Reason.NON_FINITE if captions else Reason.EMPTY_CAPTION
    if any(is_empty(caption.text) for caption in captions):
        return Reason.EMPTY_CAPTION
    if any(caption.finish == "refused" or is_refusal(caption.text) for caption in captions):
        return Reason.REFUSED
    if any(says_nothing(caption.text, prompt) for caption in captions):
        return Reason.EMPTY_CAPTION
    if any(caption.finish != "stop" for caption in captions):
        return Reason.CUT_OFF
    return None
