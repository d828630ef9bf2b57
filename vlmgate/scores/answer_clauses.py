"""Say what the clauses of an answer assert and deny; start with `clauses_of` and `claims_of`.

A clause with a negation denies all that it names, or the answer is unclear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from vlmgate.scores.answer_tokens import OBJECTS, STOPS, Token, UnclearError
from vlmgate.scores.answer_words import Language, is_one_of, is_or


@dataclass(slots=True)
class Claims:
    """What some clauses say."""

    asserted: set[str] = field(default_factory=set)  # choices
    denied: set[str] = field(default_factory=set)
    finding: bool = False  # a defect that is no choice is named
    generic: bool = False  # a defect of no kind in particular is
    sign: bool = False
    good: bool = False
    denies_all: bool = False  # "no defects", not "no other defects"
    denies_finding: bool = False  # of a defect that is no choice
    partial: set[str] = field(default_factory=set)  # choices in a clause with a place or a size


@dataclass(slots=True)
class Clause:
    """What stands between two marks."""

    mark: str  # the one before it: "" at the beginning, "." for every stop, ",", ":"
    tokens: list[Token]

    def has(self, *kinds: str) -> bool:
        """Say whether it holds a token of one of some classes."""
        return any(token.kind in kinds for token in self.tokens)

    def only(self, *kinds: str) -> bool:
        """Say whether it holds none of any other class."""
        return all(token.kind in kinds for token in self.tokens)

    def praises(self) -> bool:
        """Say whether it calls something good, and nothing else."""
        objects = [token for token in self.tokens if token.kind in OBJECTS]
        fine = all(token.kind == "choice" and is_one_of(token.text, "fine") for token in objects)
        return fine and (bool(objects) or self.has("good")) and not self.has("negators")

    def denies_backwards(self) -> bool:
        """Say whether its negation stands behind what it denies: "cracks are not visible"."""
        kinds = [token.kind for token in self.tokens if token.kind in (*OBJECTS, "negators")]
        return kinds[-1:] == ["negators"]


def _first_kind(tokens: Sequence[Token]) -> str:
    return next((token.kind for token in tokens if token.kind != "articles"), "")


def _is_object(token: Token) -> bool:
    """Say whether a token names what may stand in a list; a "yes" does not."""
    return token.kind in OBJECTS and not (token.kind == "choice" and is_one_of(token.text, "polar"))


def clauses_of(tokens: Sequence[Token]) -> list[Clause]:
    """Return the clauses of an answer: what stands between marks, and what "without" begins."""
    found = [Clause("", [])]
    for i, token in enumerate(tokens):
        now = found[-1]
        if token.kind == "without":
            if now.has(*OBJECTS, "good") and not now.has("negators"):  # "ok without scratches"
                found.append(Clause(",", []))
            token = Token("negators", token.text)
        if token.kind == "nor":
            token = Token("or" if now.has("negators") else "negators", token.text)
        breaks = token.kind == "list" and (not i or not _is_object(tokens[i - 1]))
        if token.kind == "and" and now.praises() and _first_kind(tokens[i + 1 :]) == "words":
            breaks = True  # "clean and shows no damage"
        if token.kind != "mark" and not breaks:
            found[-1].tokens.append(token)
            continue
        mark = "," if breaks or token.text in "()[]-" else "." if token.text in STOPS else token.text
        if found[-1].tokens:
            found.append(Clause(mark, []))
        elif mark == ".":  # the stronger of two
            found[-1].mark = mark
    return [clause for clause in found if clause.tokens]


def claims_of(clauses: Sequence[Clause], language: Language) -> Claims:
    """Return what clauses say; raises where one of them cannot be relied on."""
    claims = Claims()
    listing = False  # what a negation denies may go on behind a comma
    for i, clause in enumerate(clauses):
        tokens = _with_fine_lines(clause.tokens)
        objects = [token for token in tokens if token.kind in OBJECTS]
        if clause.has("label", "letter", "quote", "yes") or tokens[0].text in language.asks:
            raise UnclearError
        if is_or(tokens[-1].text) or (is_or(tokens[0].text) and not listing):  # something is left open
            raise UnclearError
        listing = listing and clause.mark == ","
        if clause.has("negators"):
            joined = tokens[0].kind == "or" and not listing  # "a scratch, or no crack"
            if joined or clause.has("good", "reasoning") or not _denies_each(tokens, language):
                raise UnclearError
            if clause.mark == "," and clause.denies_backwards() and i and clauses[i - 1].has(*OBJECTS):
                raise UnclearError  # "scratches, cracks are not visible"
            listing = True
            _deny(claims, clause, objects)
            continue
        fine = all(token.kind == "choice" and is_one_of(token.text, "fine") for token in objects)
        if listing and objects and not fine:
            listed = clause.only(*OBJECTS, "articles", "degrees", "or", "others", "list")
            if listed and (clause.has("or", "list") or _goes_on(clauses[i + 1 :])):
                _deny(claims, clause, objects)
                continue
            if listed or not _asserts_anew(tokens, language):
                raise UnclearError  # "no scratch, crack"
        listing = False
        if clause.has("or", "list") or (clause.has("seers") and not objects):
            raise UnclearError
        claims.asserted |= {token.text for token in tokens if token.kind == "choice"}
        claims.finding |= any(token.kind == "findings" for token in tokens)
        claims.generic |= any(token.kind == "generic" for token in tokens)
        claims.sign |= any(token.kind == "signs" for token in tokens)
        claims.good |= any(token.kind == "good" for token in tokens) and not clause.has("others")
        if clause.has("places", "degrees", "seers"):
            claims.partial |= {token.text for token in tokens if token.kind == "choice"}
    return claims


def _with_fine_lines(tokens: Sequence[Token]) -> list[Token]:
    """Return tokens in which "fine" before a defect is its size."""
    found = list(tokens)
    for i, (token, after) in enumerate(pairwise(tokens)):
        if token == Token("good", "fine") and after.kind in OBJECTS:
            found[i] = Token("degrees", "fine")
    return found


def _denies_each(tokens: Sequence[Token], language: Language) -> bool:
    """Say whether a clause surely denies all that it names: "no cracks or dents", "no cracks and no dents".

    One negation, or the same one before each thing; all things on one side of it, with nothing but "or" between them.
    An "and" counts behind few of them: in "no cracks and dents on the rim" there may be dents.
    """
    places = [i for i, token in enumerate(tokens) if token.kind in OBJECTS]
    negations = [i for i, token in enumerate(tokens) if token.kind == "negators"]
    if not places or len({tokens[i].text for i in negations}) != 1:
        return False
    if any(not any(start < place < end for place in places) for start, end in pairwise(negations)):
        return False  # "not not"
    before = places[0] < negations[0]
    if before and (places[-1] > negations[0] or len(negations) > 1):
        return False
    if before and not language.behind and any(t.kind not in ("articles", "degrees") for t in tokens[: places[0]]):
        return False  # "it has a scratch and cracks are not visible"
    if not before and language.behind and len(places) > 1:
        return False
    for start, end in pairwise(places):
        between = [token.kind for token in tokens[start + 1 : end]]
        if not {*between} <= {"or", "and", "list", "articles", "degrees", "others", "negators"}:
            return False
        if "or" in between and "articles" in between:  # "no crack or the scratch is visible"
            return False
        if not between and tokens[end].kind not in ("signs", "generic"):
            return False
        if "and" in between and between[-1] not in ("and", "negators", "others"):
            return False
        if "and" in between and "negators" not in between and places[0] > negations[0]:
            reaches = tuple(tokens[negations[0]].text.split()) in language.over_and
            if not reaches or tokens[places[-1] + 1 :]:
                return False
    return all(any(start < place for place in places) for start in negations) or places[-1] < negations[0]


def _deny(claims: Claims, clause: Clause, objects: Sequence[Token]) -> None:
    fine = [token for token in objects if token.kind == "choice" and is_one_of(token.text, "fine")]
    if fine and len(fine) < len(objects):  # "ok, and no cracks" without its comma, most likely
        raise UnclearError
    claims.denied |= {token.text for token in objects if token.kind == "choice"}
    if any(token.kind in ("generic", "signs") for token in objects) and not clause.has("others"):
        claims.denies_all = True
    if any(token.kind == "findings" for token in objects):
        claims.denies_finding = True


def _asserts_anew(tokens: Sequence[Token], language: Language) -> bool:
    """Say whether a clause surely does not go on with a list: "there is a crack", "a crack"."""
    return tokens[0].kind == "articles" or tuple(tokens[0].text.split()) in language.exists


def _goes_on(clauses: Sequence[Clause]) -> bool:
    """Say whether a list of what is denied goes on to an "or": "no scratches, cracks, or dents"."""
    for clause in clauses:
        if clause.mark != "," or not clause.only(*OBJECTS, "articles", "degrees", "or", "others"):
            return False
        if clause.has("or"):
            return True
    return False
