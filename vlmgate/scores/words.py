"""What a sentence asserts, as a set of words: folded, without filler, negation bound to what it negates.

`content_words` returns the set, `places` where in the text it stands, `agreed_weights` how much each word tells in a
folder. Function words and filler are English.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

LONGEST = 10_000  # characters of a caption that are compared
FEWEST_IMAGES = 20  # from which weights of words are better than none; some hundred are best
LEAST_WEIGHT = 0.01  # so that captions without a word that is agreed on are compared by the others

ARTICLES = frozenset({"a", "an", "the", "one", "some"})
_FUNCTION_WORDS = ARTICLES | frozenset(
    """
    this that these those it its it's there there's here is are was were be been being am do does did done has
    have had having can could will would shall should must and or as by of to for from in on at near
    into onto with within along across around about which who where when while if then than so also very quite
    rather just any each both such i we you they he she them their our your my me us but however although though
    yet except whereas not s
    """.split()
)
# How reports say that something is to be seen; without them "no scratch is visible" equals "no scratch".
_FILLER = frozenset(
    """
    visible seen see sign signs evidence trace traces apparent evident present appear appears appearing show
    shows showing shown noticeable obvious yes inspection surface part found detected observed indication
    indications image picture photo photograph only
    """.split()
)
# Names for something wrong that say nothing of what: "no damage" and "no defects" are one reading.
_ANY_DEFECT = frozenset("damage flaw fault imperfection blemish anomaly abnormality irregularity issue problem".split())
NEGATORS = frozenset(
    """
    no not without none never nor neither nothing cannot lack lacks lacking absence absent isn't aren't wasn't
    weren't doesn't don't didn't can't couldn't hasn't haven't won't wouldn't free zero
    """.split()
)
_LINKING = frozenset("is are was were be been can could".split())
# A negated verb carries the negation on to its object: "does not have a scratch".
_VERBS = _LINKING | frozenset("has have had having show shows showing".split())
# A negation reaches forward to the next of these: "no scratch on the washer" says nothing against the washer.
_SCOPE_ENDS = (
    frozenset(
        """
    but however although though yet except while whereas on in at near with along across around about over under
    above below between which that who where has have had show shows showing
    """.split()
    )
    | _LINKING
)
STOP = "."  # stands for every mark that ends a clause
_MARKS = frozenset(".;:!?()。；：！？、")
_CLAUSE_BREAK = re.compile(r"\s[-–—]+\s|[–—\n\r\u2028]+")  # dashes between clauses, lines of a list
_FREE_SUFFIX = re.compile(r"\b([^\W_]+)-free\b")
# Scripts written without spaces: kana, Chinese characters, Thai, Lao, Khmer, Myanmar.
SPACELESS = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]+")


@lru_cache(maxsize=4096)  # captions repeat, and fewer samples of an image are a part of its captions
def content_words(text: str) -> frozenset[str]:
    """Return what a caption asserts: a set of folded words, a negated word prefixed with "¬".

    Case and width are folded (NFKC), plurals cut, function words dropped, digits kept. Runs of scripts written without
    spaces become character bigrams. A caption of nothing but function words keeps them all, so the set is empty only
    for a caption without a letter or digit.
    """
    folded = fold(text)
    folded = _CLAUSE_BREAK.sub(" . ", _FREE_SUFFIX.sub(r" without \1 . ", folded))
    folded = re.sub(r"\bw/o\b", "without", folded).replace(" at all", "")
    bigrams = {pair for run in SPACELESS.findall(folded) for pair in _bigrams(run)}
    tokens = tokens_of(SPACELESS.sub(" ", folded))
    words = _bind_negation(tokens) | bigrams
    return frozenset(words or (token for token in tokens if token not in (STOP, ",")))


def agreed_weights(groups: Iterable[Sequence[str]]) -> dict[str, float]:
    """Return how well captions of one image agree on saying each word, from LEAST_WEIGHT to 1; higher = tells more.

    `groups` are the captions of each image of a folder. The weight is Fleiss' kappa of "says it or not" (Psychological
    Bulletin 76, 1971): 1 where all captions of an image say a word or none does, about 0 where it is said by chance. It
    is pooled over images of two captions or more. With fewer than FEWEST_IMAGES of them there are no weights.
    """
    split: dict[str, float] = defaultdict(float)  # pairs of captions of which one says a word, over K - 1
    said: Counter[str] = Counter()  # captions that say it
    images = captions = 0
    for texts in groups:
        k = len(texts)
        if k < 2:
            continue
        images, captions = images + 1, captions + k
        for word, times in Counter(word for text in texts for word in content_words(text)).items():
            split[word] += times * (k - times) / (k - 1)
            said[word] += times
    if images < FEWEST_IMAGES:
        return {}
    by_chance = {word: times * (1 - times / captions) for word, times in said.items()}
    return {word: max(LEAST_WEIGHT, 1 - split[word] / chance if chance else 0) for word, chance in by_chance.items()}


NEGATION = "¬"  # stands for a negator among the words of `places`
_SURFACE = r"\bw/o\b|\d+(?:[.,]\d+)+|{letter}+(?:['’]{letter}+)?"


def places(text: str) -> list[tuple[int, int, frozenset[str]]]:
    """Return (start, end, words) of what in a text stands for content words, in order; it may overlap.

    The words are those of `content_words` without the mark of negation; a negator is `NEGATION`, "one" is itself, for
    it may be a number. Function words and filler have no place.
    """
    head = text[:LONGEST]
    combining = "".join(sorted({c for c in head if unicodedata.category(c)[0] == "M"}))
    found: list[tuple[int, int, frozenset[str]]] = []
    for match in _surface_pattern(combining).finditer(head):
        folded = "without" if match[0].casefold() == "w/o" else fold(match[0])
        runs = SPACELESS.findall(folded)
        if runs and len(folded) == len(match[0]) == len(runs[0]) > 1:  # else folding has moved the characters
            found += [
                (match.start() + i, match.start() + i + 2, frozenset({folded[i : i + 2]}))
                for i in range(len(folded) - 1)
            ]
            continue
        words = {pair for run in runs for pair in _bigrams(run)}
        words |= {word for token in tokens_of(SPACELESS.sub(" ", folded)) if (word := _as_word(token)) is not None}
        if words:
            found.append((match.start(), match.end(), frozenset(words)))
    return found


@lru_cache(maxsize=64)
def _surface_pattern(combining: str) -> re.Pattern[str]:
    letter = f"(?:[^\\W_]|[{re.escape(combining)}])" if combining else "[^\\W_]"
    spaced = f"(?:(?!{SPACELESS.pattern[:-1]}){letter})"
    return re.compile(SPACELESS.pattern + "|" + _SURFACE.replace("{letter}", spaced), re.IGNORECASE)


def _as_word(token: str) -> str | None:
    if token in NEGATORS:
        return NEGATION
    if token == "one":
        return token
    return None if token in (STOP, ",") or token in _FUNCTION_WORDS or token in _FILLER else _stem(token)


def fold(text: str) -> str:
    """Return text without differences of case, width and apostrophe."""
    return unicodedata.normalize("NFKC", text[:LONGEST]).casefold().replace("’", "'")


def _bigrams(run: str) -> set[str]:
    return {run[i : i + 2] for i in range(len(run) - 1)} or {run}


def tokens_of(folded: str) -> list[str]:
    """Split into words, numbers with their decimals, commas and clause ends."""
    marks = "" if folded.isascii() else "".join(sorted({c for c in folded if unicodedata.category(c)[0] == "M"}))
    found = _token_pattern(marks).findall(folded)
    return [STOP if token in _MARKS else token for token in found]


@lru_cache(maxsize=64)
def _token_pattern(combining: str) -> re.Pattern[str]:
    """Return the pattern of a token; `combining` marks (vowel signs, accents) belong to the word they stand in."""
    letter = f"(?:[^\\W_]|[{re.escape(combining)}])" if combining else "[^\\W_]"
    return re.compile(rf"\d+(?:[.,]\d+)+|{letter}+(?:'{letter}+)?|[,.;:!?()。；：！？、]")


def _bind_negation(tokens: Sequence[str]) -> set[str]:
    """Return the content words, marked where a negation reaches them.

    A negator reaches forward to the end of its clause, to a preposition, a verb or the next noun phrase; where nothing
    follows it ("a scratch is not visible", "cracks: none") it reaches back over the noun phrase before it.
    """
    words: list[str] = []
    phrase_start = 0  # where the noun phrase began that a backward negation would take
    negating = reached = listing = False  # a negation is open; it has reached a word
    for i, token in enumerate(tokens):
        before = tokens[i - 1] if i else STOP
        after = tokens[i + 1] if i + 1 < len(tokens) else STOP
        if token in (",", STOP):
            negating = listing = negating and token == "," and _is_list(tokens[i + 1 :], listing)
            if not _says_nothing(tokens[i + 1 :]):
                phrase_start = len(words)
        elif token in NEGATORS and _negates(token, after, words):
            if (token == "absent" or _says_nothing(tokens[i + 1 :])) and len(words) > phrase_start:
                start = len(words) - 1 if token == "free" else phrase_start
                words[start:] = [word if word[0] == "¬" else f"¬{word}" for word in words[start:]]
                negating = False
            else:  # "not without" is a double negation; "neither … nor", "no … without" are two single ones
                negating = not (negating and not reached and token not in ("nor", "neither"))
                reached = False
        else:
            if reached and (token in _SCOPE_ENDS or (token in ARTICLES and before not in ("or", "nor"))):
                negating = False
            if token in ARTICLES or (token in _SCOPE_ENDS and token not in _LINKING):
                phrase_start = len(words)
            if token not in _FUNCTION_WORDS and token not in _FILLER:
                words.append(f"¬{_stem(token)}" if negating else _stem(token))
                reached = True
    return set(words)


def _negates(token: str, after: str, words: Sequence[str]) -> bool:
    """Say whether a negator negates here: "free" does in "free of" or at a clause end, "not" does not in "not only"."""
    if token == "free":
        return after in ("of", "from") or (after in (STOP, ",") and bool(words))
    return after != "only"


def _is_list(rest: Sequence[str], listing: bool) -> bool:
    """Say whether a comma stands in a list that a negation governs: "no scratches, dents or cracks"."""
    clause = rest[: rest.index(STOP)] if STOP in rest else rest
    if not clause or clause[0] in ARTICLES | _SCOPE_ENDS:
        return False
    if clause[0] == "and":
        return listing and len(clause) > 1 and clause[1] not in ARTICLES | _SCOPE_ENDS
    return "or" in clause or "nor" in clause or (",", "and") in pairwise(clause)


def _says_nothing(rest: Sequence[str]) -> bool:
    """Say whether no content word follows before the clause ends, though a negator or a filler may."""
    for token in rest:
        if token in (STOP, ",") or token in _SCOPE_ENDS - _VERBS:
            return True
        if token not in _FILLER and token not in NEGATORS and token not in ("be", "been", "to"):
            return False
    return True


def _stem(word: str) -> str:
    one = singular(word)
    return "defect" if one in _ANY_DEFECT else one


def singular(word: str) -> str:
    """Cut an English plural; after Harman's S-stemmer (J. Am. Soc. Inf. Sci. 42, 1991) with the -es of sibilants."""
    if len(word) <= 3 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    return word[:-1]
