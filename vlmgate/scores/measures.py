"""Sizes and comparisons that a caption claims: "< 0.5 mm", "+0.1 mm", "the left bolt is longer than the right one".

`measures_of` returns them as claims. A size is a sign, a value in the unit of its kind, and that unit: "<0.5mm". A
comparison is "length:left>right", whichever way round it is worded. What excludes a claim is returned as denied, so
that captions with opposite signs contradict each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from vlmgate.scores import language as lang
from vlmgate.scores.language import Language, Mark

Found = tuple[str, int, int, int]  # claim, sign (1 asserted, -1 denied, 0 unclear), start, end

# Words for a unit, in several languages; each is matched as a whole word. The value is in the unit of its kind.
_UNITS: tuple[tuple[str, float, str], ...] = (
    ("nm", 1e-6, "mm"),
    (r"[µμu]m|mi[ck]rons?|micr[oô]mét|mi[ck]rom\w+|微米|マイクロメートル|마이크로미터", 1e-3, "mm"),
    (r"mm|mill?i(?:mètre|metro|mètr|meter|metre|metr)\w*|milímetros?|毫米|ミリ(?:メートル)?|밀리(?:미터)?", 1.0, "mm"),
    ("mi-?li-?mét", 1.0, "mm"),
    (r"cm|[csz]ent[iíy]m[eèé]t\w+|centímetros?|厘米|センチ(?:メートル)?|센티(?:미터)?", 10.0, "mm"),
    ("santimetre|xen-?ti-?mét|xăng-?ti-?mét", 10.0, "mm"),
    (r"m|met(?:er|re|ro|ri)s?|mét|mètres?|米|メートル|미터", 1000.0, "mm"),
    (r"inch(?:es)?|zoll|pouces?|pulgadas?|pollic[ei]|インチ|英寸|인치", 25.4, "mm"),
    ("mils?|thou", 0.0254, "mm"),
    ("mg", 1e-3, "g"),
    (r"g|gram\w*|克|グラム|그램", 1.0, "g"),
    (r"kg|kilogram\w*|公斤|千克|キロ(?:グラム)?|킬로그램", 1000.0, "g"),
    (r"%|per ?cent|prozent|pour cent|por ciento|per cento|procent\w*|phần trăm|パーセント|퍼센트", 1.0, "%"),
    ("°c|℃|度c", 1.0, "°C"),
    ("°f", 1.0, "°F"),
    (r"°|deg(?:rees?)?|grad[oi]?s?|degrés?|stopni\w*|derece|độ|度|도", 1.0, "°"),
    ("mv", 1e-3, "V"),
    ("v|volts?", 1.0, "V"),
    ("ma", 1e-3, "A"),
    ("a|amps?|amperes?", 1.0, "A"),
    ("kω|kohms?", 1000.0, "Ω"),
    ("ω|ohms?", 1.0, "Ω"),
    (r"n·?m|newton ?met(?:er|re)s?", 1.0, "Nm"),
    ("mpa", 10.0, "bar"),
    ("bar", 1.0, "bar"),
    ("psi", 0.0689476, "bar"),
    ("ms", 1e-3, "s"),
    ("s|sec(?:onds?)?", 1.0, "s"),
    ("rpm", 1.0, "rpm"),
    ("px|pixels?", 1.0, "px"),
)
_UNIT = "|".join(f"(?P<u{n}>{words})" for n, (words, _, _) in enumerate(_UNITS))
_SIGNS = {"<": "<", ">": ">", "<=": "≤", ">=": "≥", "≤": "≤", "≥": "≥", "±": "±", "+": "+", "-": "-", "−": "-"}
_SIGNS |= {"+/-": "±", "=<": "≤", "=>": "≥", "⩽": "≤", "⩾": "≥", "~": "=", "≈": "=", "=": "="}
_SIGN = r"(?P<sign>\+/-|<=|>=|=<|=>|[<>≤≥⩽⩾±+\-−~≈=])?"
_NUMBER = r"(?P<value>\d+(?:[.,]\d+)*|[.,]\d+)"
_SIZE = re.compile(rf"{_SIGN}\s*{_NUMBER}\s*-?(?:{_UNIT})(?![a-zà-ɏḁ-ỿ])")
_DIGIT = re.compile(r"\d")
_DIGITS = re.compile(r"(?<![\d.,])(?:\d|[.,]\d)")  # where a number begins
_LEAD = re.compile(r"(?:\+/-|<=|>=|=<|=>|[<>≤≥⩽⩾±+\-−~≈=])\s*$")
_BARE = re.compile(rf"(?P<sign><=|>=|=<|=>|[<>≤≥⩽⩾±])\s*{_NUMBER}")  # a limit without a unit
_EXCLUDES = {"<": ">≥", "≤": ">", ">": "<≤", "≥": "<", "+": "-", "-": "+"}
_COMPARATORS = {
    "less": "<",
    "more": ">",
    "at_most": "≤",
    "at_least": "≥",
    "about": "=",
    "plus": "+",
    "minus": "-",
    "plus_minus": "±",
}
# A comparative and its converse are one dimension.
_CONVERSE = {
    "shorter": "longer",
    "smaller": "larger",
    "narrower": "wider",
    "lower": "higher",
    "thinner": "thicker",
    "brighter": "darker",
    "shallower": "deeper",
    "looser": "tighter",
    "lighter": "heavier",
    "less": "more",
    "older": "newer",
    "smoother": "rougher",
}
_SENTENCE = re.compile(r"(?:[^.;!?\n。！？；]|(?<=\d)\.(?=\d))+")


_MEASURE = re.compile(r"[=<>≤≥±+-]+\d|[a-z]+:[^:\s]*>|~")  # a size, what is more than what, or a contrast
PART = "part"  # the kind of contrasts that tell which part has a defect


def is_measure(claim: str) -> bool:
    """Say whether a claim is a size, a comparison or a contrast, and no finding."""
    return _MEASURE.match(claim) is not None


def is_contrast(claim: str) -> bool:
    """Say whether a claim is a contrast: it tells captions apart, and alone says nothing of a part's condition."""
    return claim.startswith("~")


def kind_of(claim: str) -> str:
    """Return the kind of a size, comparison or contrast: its unit, what is compared, or what it is the state of."""
    if is_contrast(claim):
        return claim.rpartition(":")[0]
    if ":" in claim:
        return claim.partition(":")[0]
    return ";" if ";" in claim else claim.lstrip("=<>≤≥±+-").lstrip("0123456789.e+-")


def measures_of(folded: str, marks: Sequence[Mark], language: Language) -> list[Found]:
    """Return the sizes and comparisons in a folded text, and what they exclude."""
    found: list[Found] = []
    if _DIGIT.search(folded):
        found += _sizes(folded, language)
    if language.measures.get("than"):
        found += _comparisons(folded, marks, language)
    return found


# --- sizes ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _comparators(code: str) -> tuple[tuple[str, re.Pattern[str], re.Pattern[str], str], ...]:
    """Return (first word, before a number, after one, sign), the longest phrases first."""
    data, spaced = lang.languages()[code].measures, lang.languages()[code].spaced
    phrases = sorted(
        ((lang.fold(phrase).strip(), kind) for kind in _COMPARATORS for phrase in data.get(kind, ())),
        key=lambda one: -len(one[0]),
    )
    known = []
    for phrase, kind in phrases:
        words = re.escape(phrase).replace(r"\ ", r"\s+")
        known.append(
            (
                phrase.split()[0],  # looked for first: most phrases are not there
                re.compile(rf"(?:^|\b|(?<=\W)){words}\s*\(?$" if spaced else rf"{words}\s*\(?$"),
                re.compile(rf"^\s*{words}(?![a-zà-ɏḁ-ỿ])"),
                _COMPARATORS[kind],
            )
        )
    return tuple(known)


def _sizes(folded: str, language: Language) -> Iterator[Found]:
    order: list[str] = []
    taken: list[tuple[int, int]] = []
    for number in _DIGITS.finditer(folded):
        if taken and number.start() < taken[-1][1]:
            continue
        lead = _LEAD.search(folded, max(0, number.start() - 4), number.start())
        match = _SIZE.match(folded, lead.start() if lead else number.start())
        if match is None:
            continue
        if match["sign"] in ("-", "+") and match.start() and folded[match.start() - 1].isalnum():
            continue  # "M-8 mm", a range
        if _is_word(match, folded, language):
            continue
        n = next(n for n in range(len(_UNITS)) if match[f"u{n}"])
        if match[f"u{n}"] in language.measures.get("not_units", ()) and folded[match.start(f"u{n}") - 1] == " ":
            continue  # "de 2 a 3 mm"
        _, factor, unit = _UNITS[n]
        taken.append(match.span())
        yield from _size(match, folded, language, factor, unit, order)
    for match in _BARE.finditer(folded):
        if not any(start <= match.start() < end for start, end in taken):
            yield from _size(match, folded, language, 1.0, "", order)
    if len(set(order)) > 1:  # "4 mm left, 6 mm right" is not "6 mm left, 4 mm right"
        yield "=" + ";".join(order), 1, len(folded), len(folded)


def _is_word(match: re.Match[str], folded: str, language: Language) -> bool:
    """Say whether what stands after a number is a word of the language: "piny 3 a 4" are no amperes."""
    text = match[0].split()
    goes_on = re.match(r"\s+\w", folded[match.end() : match.end() + 8])
    return bool(goes_on) and len(text) > 1 and text[-1] in language.measures.get("not_units", ())


def _size(
    match: re.Match[str], folded: str, language: Language, factor: float, unit: str, order: list[str]
) -> Iterator[Found]:
    value = _number(match["value"], decimal=language.measures.get("decimal", "."))
    sign = _SIGNS.get(match["sign"] or "", "=")
    before, after = folded[max(0, match.start() - 40) : match.start()].rstrip(), folded[match.end() : match.end() + 24]
    if sign == "=":
        near = before + after
        for word, leads, follows, meaning in _comparators(language.code):
            if word not in near:
                continue
            if leads.search(before) or follows.search(after):
                if meaning == "=":
                    before = leads.sub("", before).rstrip()
                    continue
                sign = meaning
                break
    size = f"{value * factor:.6g}{unit}"
    order.append(sign + size)
    yield sign + size, 1, match.start(), match.end()
    for other in _EXCLUDES.get(sign, ""):
        yield other + size, -1, match.start(), match.end()


def _number(text: str, decimal: str) -> float:
    """Return a number; a mark before exactly three digits parts thousands unless it is the language's decimal mark."""
    marks = re.findall(r"[.,]", text)
    if len(marks) == 1 and not (marks[0] != decimal and re.fullmatch(r"[1-9]\d{0,2}[.,]\d{3}", text)):
        return float(text.replace(",", "."))
    if len(set(marks)) == 2:
        last = max(text.rfind("."), text.rfind(","))
        return float(re.sub(r"[.,]", "", text[:last]) + "." + text[last + 1 :])
    return float(re.sub(r"[.,]", "", text))


# --- comparisons ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _words(code: str) -> tuple[re.Pattern[str] | None, re.Pattern[str], re.Pattern[str] | None, dict[str, str]]:
    """Return what finds comparatives, "than" and sides, and the name of each phrase."""
    one = lang.languages()[code]
    names: dict[str, str] = {}

    def pattern(groups: Mapping[str, Sequence[str]]) -> re.Pattern[str] | None:
        phrases = {lang.fold(phrase).strip(): name for name, several in groups.items() for phrase in several}
        names.update(phrases)
        longest = sorted(phrases, key=lambda phrase: -len(phrase))
        if not longest:
            return None
        text = "|".join(re.escape(phrase) for phrase in longest)
        if one.spaced and code != "ko":
            return re.compile(rf"(?<![^\W_])(?:{text})(?![^\W_])")
        return re.compile(f"(?:{text})(?!度)")  # "长度", a length, is not "longer"

    data = one.measures
    than = pattern({"than": data["than"], "than_after": data.get("than_after", ())})
    if than is None:
        raise ValueError(f"languages/{code}.toml: measures.than is empty")
    return pattern(data.get("comparatives", {})), than, pattern(data.get("sides", {})), names


def _may_compare(folded: str, language: Language) -> bool:
    """Say whether a word of a comparative or "than" may be there: most captions compare nothing."""
    return not language.spaced or language.code == "ko" or not _first_words(language.code).isdisjoint(folded.split())


@lru_cache(maxsize=64)
def _first_words(code: str) -> frozenset[str]:
    """Return the words that stand in comparatives, with the marks that may follow them."""
    phrases = [
        phrase for several in lang.languages()[code].measures.get("comparatives", {}).values() for phrase in several
    ]
    words = {lang.fold(phrase).split()[-1] for phrase in phrases}
    return frozenset(word + mark for word in words for mark in ("", ",", ".", ";", ":"))


def _comparisons(folded: str, marks: Sequence[Mark], language: Language) -> Iterator[Found]:
    comparatives, than, sides, names = _words(language.code)
    if comparatives is None or not _may_compare(folded, language) or not comparatives.search(folded):
        return
    for sentence in _SENTENCE.finditer(folded):
        text, offset = sentence[0], sentence.start()
        marker = than.search(text)
        for found in comparatives.finditer(text):
            if marker is None and len(found[0]) == 1 and not language.spaced:
                continue  # "长" is "long" and "longer"
            name = names[found[0]]
            near = [(names[m[0]], m.start(), m.end()) for m in sides.finditer(text)] if sides else []
            near = [one for one in near if one[2] <= found.start() or one[1] >= found.end()]
            follows = language.measures.get("than_follows", False)
            later = None if follows else than.search(text, found.end())
            marker = later or than.search(text)
            follows = follows or (marker is not None and names[marker[0]] == "than_after")
            pair = None
            if marker is not None and re.match(r"\W*\d", text[marker.end() :]):
                continue  # a size
            if marker is not None:
                pair = _pair(near, marker, after=not follows)
                if pair is None and (follows or later is not None):
                    pair = _nouns(marks, offset + found.start(), offset + found.end(), offset + marker.start())
            if marker is None and any(0 <= begin - found.end() <= 1 for _, begin, _ in near):
                continue  # "at the lower right"
            if (
                marker is None
                and language.spaced
                and any(mark.kind in _NOUNS and 0 <= mark.start - offset - found.end() <= 1 for mark in marks)
            ):
                continue  # "a smaller hole at the right" compares nothing
            named = not language.measures.get("than_needed", False)  # "ein kleiner Kratzer" compares nothing
            if pair is None and near and named and (marker is None or not follows):
                pair = near[0][0], ""
            if pair is None:
                continue
            start, end = offset + found.start(), offset + found.end()
            negated = any(
                mark.kind in (lang.BEFORE, lang.AFTER, lang.EITHER, lang.NEAR, lang.HEDGE, lang.HEDGE_AFTER)
                and offset <= mark.start < offset + len(text)
                for mark in marks
            )
            first, second = pair if name not in _CONVERSE else (pair[1], pair[0])
            dimension = _CONVERSE.get(name, name)
            yield f"{dimension}:{first}>{second}", 0 if negated else 1, start, end
            if not negated:
                yield f"{dimension}:{second}>{first}", -1, start, end


def _pair(near: Sequence[tuple[str, int, int]], than: re.Match[str], *, after: bool) -> tuple[str, str] | None:
    """Return the side that has more, and the side that it is compared with, which stands next to "than"."""
    left = [name for name, _, end in near if end <= than.start()]
    right = [name for name, start, _ in near if start >= than.end()]
    if after:
        second = right[0] if right else None
        others = [*reversed(left), *right[1:]]
    else:
        second = left[-1] if left else None
        others = [*reversed(left[:-1]), *right]
    first = next((name for name in others if name != second), None)
    return None if first is None or second is None else (first, second)


def _nouns(marks: Sequence[Mark], start: int, end: int, than: int) -> tuple[str, str] | None:
    """Return the words that tell apart what is compared, where no sides are named: the first after an article."""
    before = [mark for mark in marks if mark.end <= min(start, than)]
    after = [mark.name for mark in marks if mark.start > max(end, than) and mark.kind in _NOUNS]
    article = max((n for n, mark in enumerate(before) if mark.kind == lang.ARTICLE), default=-1)
    named = [mark.name for mark in before[article + 1 :] if mark.kind in _NOUNS]
    return (named[0] if article >= 0 else named[-1], after[0]) if named and after else None


_NOUNS = (lang.WORD, lang.FINDING)
