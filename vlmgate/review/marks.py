"""Which words several readings of one image disagree on.

Knows texts and the words in them; knows nothing of pages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from vlmgate.errors import plain
from vlmgate.scores.words import NEGATION, content_words, places

_NUMBERS = frozenset("two three four five six seven eight nine ten eleven twelve dozen".split())
_JOINED = re.compile(r"[\s-]?")  # what two marked words may have between them and still be one mark


def differing(texts: Sequence[str]) -> list[list[tuple[int, int]]]:
    """Return for each text the ranges of characters (start, end) of the words that not every text asserts.

    A word counts as it is bound: "scratch" in "no scratch" is another word than in "a scratch", and the negator is part
    of the difference. Numbers count; function words and filler do not. Texts without a word are not compared with.
    """
    sets = [content_words(text) for text in texts]
    spoken = [words for words in sets if words]
    common = frozenset.intersection(*spoken) if spoken else frozenset()
    counted = any(_is_number(word.lstrip("¬")) for words in sets for word in words - common)
    return [_ranges(text, words - common, counted) for text, words in zip(texts, sets, strict=True)]


def _is_number(word: str) -> bool:
    return word in _NUMBERS or word[:1].isdecimal()


def _ranges(text: str, unshared: frozenset[str], counted: bool) -> list[tuple[int, int]]:
    negated = any(word.startswith("¬") for word in unshared)
    found: list[tuple[int, int]] = []
    for start, end, words in places(text):
        marked = (
            (negated and NEGATION in words)
            or (counted and "one" in words)
            or any(word in unshared or f"¬{word}" in unshared for word in words)
        )
        if not marked:
            continue
        if found and (start <= found[-1][1] or _JOINED.fullmatch(text, found[-1][1], start)):
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def pieces(text: str, ranges: Sequence[tuple[int, int]]) -> list[str]:
    """Return a text cut at the ranges: what is not marked and what is, in turn, fit to be shown."""
    cuts = [0, *(place for pair in ranges for place in pair), len(text)]
    return [shown(text[a:b]) for a, b in pairwise(cuts)]


def shown(text: str) -> str:
    """Return a text as a page shows it: lines stay lines, all else that could steer a display is escaped."""
    lines = text.replace("\r\n", "\n").replace("\t", " ").split("\n")
    return "\n".join(plain(line) for line in lines)
