"""What the captions of one image claim, for people: in words, and where in the captions it stands.

    >>> groups(["A long scratch.", "Scratched at the rim.", "No defects."], load_vocabulary())
    [('scratch', 2), ('no defect', 1)]

`claims_line` is that in one line, `dispute` says which claim captions contradict each other on, and `places` finds the
words of the claims that not all captions make alike. How captions are compared stands in `diversity`.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlmgate.scores import language as lang
from vlmgate.scores.binding import bind
from vlmgate.scores.diversity import against_answer, kinds_that_differ, most_disputed, readings
from vlmgate.scores.findings import ANY, NO_DEFECT, Claims, Vocabulary, load_vocabulary
from vlmgate.scores.language import APOSTROPHES, LONGEST, TAG, Mark, fold, lowered
from vlmgate.scores.measures import is_contrast, is_measure, kind_of
from vlmgate.scores.sentence import NONE, NOT, SAID, UNNAMED, Item, sentences

NO_CLAIM = "nothing of the condition"
NO_LANGUAGE = "language not known"
MOST_GROUPS = 8  # of one image that are named
_SIZE = re.compile(r"([=<>≤≥±+-])(\d[\d.e+-]*)(\S*)")
_CONTRAST = re.compile(r"~([^:]+):([^>]+)(?:>(.*))?")
_COMPARISON = re.compile(r"(\w+):(\w*)>(\w*)")

Range = tuple[int, int]  # start and end in a text, the end excluded


def vocabulary_of(sampling: Mapping[str, Any]) -> Vocabulary:
    """Return the vocabulary that a result was scored with; `sampling` is that of its provenance."""
    return load_vocabulary(sampling.get("terms"), sampling.get("choices") or ())


# --- in words ---------------------------------------------------------------------------------------------------------


def in_words(claim: str) -> str:
    """Return a claim for people: "flow mark", "< 0.5 mm", "longer: left > right"."""
    if claim == UNNAMED:
        return "some defect"
    if re.fullmatch(r"=[^;\s]+(?:;[^;\s]+)+", claim):
        return " then ".join(map(in_words, claim[1:].split(";")))
    if size := _SIZE.fullmatch(claim):
        sign, value, unit = size.groups()
        value = sign + value if sign in "+-±" else value
        return " ".join(part for part in (sign.strip("=+-±"), value, unit) if part)
    if contrast := _CONTRAST.fullmatch(claim):
        return _contrast_in_words(*contrast.groups())
    if pair := _COMPARISON.fullmatch(claim):
        return f"{pair[1]}: {pair[2] or 'others'} > {pair[3] or 'others'}"
    return claim.replace("_", " ")  # a choice may have any name


def _contrast_in_words(kind: str, value: str, other: str | None) -> str:
    if other is not None:
        return f"of {value}, not of {other}"
    kind, _, thing = kind.replace("_", " ").partition(" ")
    return f"{value} {thing}…" if thing and thing[-1].isalpha() else value


def groups(captions: Sequence[str], vocabulary: Vocabulary) -> list[tuple[str, int]]:
    """Return what the captions claim and how many claim it, the most frequent first; the last may be all others.

    Captions with the same claims are one group. Denials are named where another caption asserts what they deny, sizes
    and comparisons where two captions give different ones.
    """
    claims = [vocabulary.claims(text) for text in captions]
    disputed, differ = frozenset().union(*(one.defects for one in claims)), kinds_that_differ(claims)
    members: dict[tuple[frozenset[str], ...] | str, list[Claims]] = {}
    for text, one in zip(captions, claims, strict=True):
        members.setdefault(_group(text, one, disputed, differ), []).append(one)
    named = [(_name(key, several), len(several)) for key, several in members.items()]
    ordered = sorted(named, key=lambda pair: (-pair[1], pair[0]))
    rest = sum(times for _, times in ordered[MOST_GROUPS:])
    return ordered[:MOST_GROUPS] + [("something else", rest)] * (rest > 0)


def claims_line(captions: Sequence[str], vocabulary: Vocabulary) -> str:
    """Return the groups in one line: "6 of 8 scratch · 2 of 8 no defect"."""
    return " · ".join(f"{times} of {len(captions)} {words}" for words, times in groups(captions, vocabulary))


def summed_up(text: str, vocabulary: Vocabulary) -> str | None:
    """Return what one caption claims; None where it claims nothing for sure, so that its own words must do."""
    return groups([text], vocabulary)[0][0] if vocabulary.claims(text).certain else None


def _group(
    text: str, claims: Claims, disputed: Iterable[str], differ: frozenset[str]
) -> tuple[frozenset[str], ...] | str:
    """Return what captions of one group have in common."""
    if not claims.states and not claims.hedged:
        unknown = claims.language is None and any(map(str.isalpha, text))
        return NO_LANGUAGE if unknown else NO_CLAIM
    denied = frozenset(claim for claim in disputed if claims.denies(claim)) if claims.defects else frozenset()
    return _compared(claims, differ), claims.hedged, denied


def _compared(claims: Claims, differ: frozenset[str]) -> frozenset[str]:
    """Return what a caption asserts, sizes and comparisons as far as they are compared."""
    return frozenset(claim for claim in claims.asserted if not is_measure(claim) or kind_of(claim) in differ)


def _name(key: tuple[frozenset[str], ...] | str, several: Sequence[Claims]) -> str:
    if isinstance(key, str):
        return key
    asserted, hedged, disputed = key
    findings_first = sorted(asserted, key=lambda claim: (is_measure(claim), in_words(claim)))
    said = [in_words(claim) for claim in findings_first] + sorted(f"perhaps {in_words(claim)}" for claim in hedged)
    denials = [frozenset(claim for claim in one.denied if not is_measure(claim)) for one in several]
    denied = frozenset().union(*denials)
    if several[0].defects or hedged:
        no = sorted(f"no {in_words(claim)}" for claim in disputed)
    elif ANY in denied or len(denied) > 3 or len(set(denials)) > 1:
        no = [NO_DEFECT] if denied else []
    else:
        no = sorted(f"no {in_words(claim)}" for claim in denied)
    if not said and not no:  # nothing but sizes that agree
        said = sorted(in_words(claim) for claim in several[0].asserted if not is_contrast(claim))
    return ", ".join(said + no) or NO_CLAIM


def dispute(captions: Sequence[str], answer: str | None, why: str, vocabulary: Vocabulary) -> str:
    """Return why captions are contradicted, with the claim that the column `contradiction` counts.

    "why: 5 of 8 say scratch, 3 of 8 deny it", or "8 of 8 readings contradict the answer 'no defect'"; `why` alone where
    a vocabulary of today finds no contradiction.
    """
    claims, k = [vocabulary.claims(text) for text in captions], len(captions)
    disputed = most_disputed(claims)
    against = 0 if answer is None else against_answer(claims, vocabulary.claims_of_answer(answer))
    if answer is not None and against > (0 if disputed is None else min(disputed.backers, disputed.deniers)):
        return f"{against} of {k} readings contradict the answer '{answer}'"
    if disputed is None:
        return why
    denying = "say the opposite" if is_measure(disputed.claim) else "deny it"
    return f"{why}: {disputed.backers} of {k} say {in_words(disputed.claim)}, {disputed.deniers} of {k} {denying}"


# --- where it stands --------------------------------------------------------------------------------------------------


def places(texts: Sequence[str], vocabulary: Vocabulary) -> list[list[Range]]:
    """Return for each text where the claims stand that not all texts make alike: findings, and what negates or hedges.

    The ranges are in order and do not touch. A text whose folding cannot be followed back has none, and so has one
    without a claim; empty texts are not compared with.
    """
    claims = [vocabulary.claims(text) for text in texts]
    spoken = [one for text, one in zip(texts, claims, strict=True) if text.strip()]
    said = set(readings(spoken))
    if len(said) < 2 and None not in said:
        return [[] for _ in texts]
    differ = kinds_that_differ(spoken)
    points = {one: _points(one, differ) for one in claims}
    common = frozenset.intersection(*(points[one] for one in spoken)) if spoken else frozenset()
    doubted = frozenset().union(*(one.defects | one.hedged for one in claims))
    return [
        _ranges(text, one, vocabulary, points[one] - common, doubted) if text.strip() else []
        for text, one in zip(texts, claims, strict=True)
    ]


def _points(claims: Claims, differ: frozenset[str]) -> frozenset[tuple[int, str]]:
    """Return each claim with its sign; all denials are one claim where no defect is asserted."""
    said = {(SAID, claim) for claim in _compared(claims, differ)} | {(NONE, claim) for claim in claims.hedged}
    denies = claims.certain and claims.denied and not claims.defects
    return frozenset(said | ({(NOT, NO_DEFECT)} if denies else set()))


def _ranges(
    text: str,
    claims: Claims,
    vocabulary: Vocabulary,
    own: frozenset[tuple[int, str]],
    doubted: frozenset[str],
) -> list[Range]:
    """Return where the claims `own` stand, and the denials of what another caption asserts or hedges (`doubted`)."""
    folded = fold(text)
    denials: list[Range] = []  # in the folded text, as are the marked
    marked: list[Range] = []
    for span in claims.spans:
        claim = UNNAMED if span.claim == lang.INTACT else vocabulary.kin.get(span.claim, span.claim)
        denying = span.sign == NOT or (span.claim == lang.INTACT and span.sign == SAID)
        if {(SAID, claim), (NONE, claim)} & own and not (is_measure(claim) and span.sign == NOT):
            marked.append((span.start, span.end))
        elif denying and not is_measure(claim):
            against = doubted if claim == UNNAMED else doubted & {claim}
            (marked if against else denials).append((span.start, span.end))
    if not any(claim in doubted for claim in claims.denied) and not (ANY in claims.denied and doubted):
        marked += denials if (NOT, NO_DEFECT) in own else []  # what it denies, nobody asserts
    if not marked:
        return []
    bound = _deciding(folded, claims, vocabulary)
    marked += [place for span in marked for place in bound.get(span, ())]
    return _joined(text, _traced(text, folded, marked))


# What binds, but neither denies nor hedges.
_OTHERS = (lang.VERB, lang.SEEN, lang.END, lang.ARTICLE, lang.IGNORE, lang.AND, lang.BREAK, lang.YES, lang.ASK)
_DECIDE = frozenset(lang.GRAMMAR).difference(_OTHERS, (lang.DOUBLE, lang.EXCEPT, lang.EXCEPT_AFTER))
_MOST_DECIDING = 12  # negators and hedges in a sentence; beyond, a hostile text would take long


def _deciding(folded: str, claims: Claims, vocabulary: Vocabulary) -> dict[Range, list[Range]]:
    """Return for each finding that is denied or hedged the negator or hedge that makes it so.

    It is the nearest that would do it alone; where none would, all without which the finding had another sign.
    """
    found: dict[Range, list[Range]] = {}
    if not claims.language:
        return found
    scanner = vocabulary.scanner(claims.language)

    def signs(part: Sequence[Mark], silenced: set[int]) -> dict[tuple[str, int], int]:
        marks = [mark._replace(kind=lang.WORD, name="x") if i in silenced else mark for i, mark in enumerate(part)]
        return {(one.claim, one.start): one.sign for one in bind(marks, scanner.language)}

    for part in sentences(scanner.scan(folded)):
        deciding = {i for i, mark in enumerate(part) if mark.kind in _DECIDE or (mark.kind, mark.name) == _ZERO}
        items = [item for item in bind(part, scanner.language) if item.sign != SAID]
        if not items or not deciding or len(deciding) > _MOST_DECIDING:
            continue
        none = signs(part, deciding)
        alone = {i: signs(part, deciding - {i}) for i in sorted(deciding)}
        without = {i: signs(part, {i}) for i in sorted(deciding)}
        for item in items:
            key = item.claim, item.start
            if none.get(key) == item.sign:
                continue  # "intact"
            by = sorted((i for i in alone if alone[i].get(key) == item.sign), key=lambda i: _gap(part[i], item))[:1]
            by = by or [i for i in without if without[i].get(key) != item.sign]
            found[item.start, item.end] = [(part[i].start, part[i].end) for i in by]
    return found


def _gap(mark: Mark, item: Item) -> int:
    return max(item.start - mark.end, mark.start - item.end)


_ZERO = (lang.WORD, "0")  # "Scratches: 0"


def _joined(text: str, ranges: Iterable[Range]) -> list[Range]:
    """Return ranges in order, those joined that overlap or have nothing but blanks or a hyphen between them."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if found and (start <= found[-1][1] or not text[found[-1][1] : start].strip(" \t\u3000-")):
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


# --- from the folded text back to the text ----------------------------------------------------------------------------

_SIGNS = frozenset("<>≤≥=+±%°")


def _traced(text: str, folded: str, spans: Iterable[Range]) -> list[Range]:
    """Return where spans of the folded text stand in the text; nothing where that cannot be told for sure.

    Folding changes width, case and marks of layout, and so the length. Letters, digits and signs stay in their order:
    the n-th of one text is the n-th of the other, and both must be the same to the last one.
    """
    letters, origins = _letters(text)
    own = [i for i, c in enumerate(folded) if _stays(c)]
    if [folded[i] for i in own] != letters:
        return []
    found = []
    for start, end in spans:
        first, last = bisect_left(own, start), bisect_left(own, end) - 1
        if first <= last:
            begin = origins[first][0]
            minus = folded[start] in "-−" and text[begin - 1 : begin] in ("-", "−", "－")
            found.append((begin - minus, origins[last][1]))
    return found


def _letters(text: str) -> tuple[list[str], list[Range]]:
    """Return the letters, digits and signs of a text as folding leaves them, and where each comes from.

    A character and the accents and vowels that join it are one piece of the text.
    """
    letters: list[str] = []
    origins: list[Range] = []
    head, before = text[:LONGEST].translate(APOSTROPHES), ""
    head = TAG.sub(lambda tag: " " * len(tag[0]), head)
    i = 0
    while i < len(head):
        end = i + 1
        while end < len(head) and not head[end].isascii() and _joins(head[end]):
            end += 1
        piece = head[i:end]
        for c in piece.lower() if piece.isascii() else lowered(unicodedata.normalize("NFKC", piece)):
            if _stays(c) and not (c == "n" and before == "\\"):  # "\n", spelt out, is a line's end
                letters.append(c)
                origins.append((i, end))
            if c.isascii() or unicodedata.category(c) != "Cf":
                before = c
        i = end
    return letters, origins


def _stays(c: str) -> bool:
    return c.isalnum() or c in _SIGNS


def _joins(c: str) -> bool:
    first = unicodedata.normalize("NFKC", c)[:1]
    return unicodedata.category(first)[0] == "M" or "\u1160" <= first <= "\u11ff"  # vowels and finals of Hangul
