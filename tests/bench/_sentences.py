"""What a sentence or an answer about a render says, whatever its wording: `read_sentence`, `majority`, `right`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from vlmgate.factory.captions import SECOND_NAMES, SOUND
from vlmgate.factory.world import CONDITIONS, DEFECTS, FINISHES, NONE, PARTS, POSITIONS

_SOUND = re.compile(r"\b(sound|intact)\b|\b(no|free of|without)\b.*\b(defects?|damage)\b")
_T = TypeVar("_T", bound=Hashable)


def right(answer: str | None, truth: Sequence[str], choices: Sequence[str]) -> bool:
    """Say whether an answer names a listed defect that the part has, or none where it has none of them."""
    listed = [name for name in truth if name in choices]
    return answer in listed if listed else answer in SOUND


@dataclass(frozen=True, slots=True)
class Said:
    """What a sentence says; null where it says nothing, something unknown, or contradicts itself."""

    part: str | None
    finish: str | None
    conditions: frozenset[str] | None  # empty = said to have no defect
    position: str | None  # of the defect named first


def read_sentence(text: str) -> Said:
    """Return what a sentence says, whatever its wording."""
    plain = " ".join(re.findall(r"[a-z]+", text.lower()))
    named = _found(plain, DEFECTS)
    conditions = None if len(set(named)) < len(named) else frozenset(named)
    if (_SOUND.search(plain) is not None) == bool(named):
        conditions = None
    positions = _found(plain, POSITIONS)
    return Said(_only(plain, PARTS), _only(plain, FINISHES), conditions, positions[0] if positions else None)


def majority(values: Sequence[_T | None]) -> _T | None:
    """Return the most frequent value that is not null; of equals, the one said first."""
    counts = Counter(value for value in values if value is not None)
    return counts.most_common(1)[0][0] if counts else None


def _forms(names: Sequence[str]) -> Mapping[str, str]:
    """Return every form of every name with the name that it stands for."""
    return {form: name for name in names for form in (name, SECOND_NAMES.get(name, name))}


def _found(plain: str, names: Sequence[str]) -> list[str]:
    """Return the names that occur, in order; one that is part of a longer one found does not count ("center")."""
    forms = _forms(names)
    pattern = "|".join(sorted(map(re.escape, forms), key=len, reverse=True))
    return [forms[hit] for hit in re.findall(rf"\b({pattern})\b", plain)]


def _only(plain: str, names: Sequence[str]) -> str | None:
    hits = set(_found(plain, names))
    return hits.pop() if len(hits) == 1 else None


def named(condition: frozenset[str] | None) -> str | None:
    """Return the gravest of the conditions that were said, or "none"."""
    return None if condition is None else min(condition, key=CONDITIONS.index, default=NONE)
