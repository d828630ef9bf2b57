"""Sentences about a part, and the way back from a sentence to what it says.

Knows words; knows nothing of images or models. One truth can be worded in hundreds of ways: frames, synonyms, and where
the finish stands. Wording says nothing of how sure anybody is; `parse` looks through it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from vlmgate.config import DEFAULT_PROMPT
from vlmgate.factory.world import CONDITIONS, DEFECTS, FINISHES, NONE, PARTS, POSITIONS, Defect, Truth

INSTRUCTIONS = (
    DEFAULT_PROMPT,
    "What does this inspection image show? Name the part and any defect.",
    "Describe this part and its condition.",
    "Describe the image.",
    "Write one sentence on the part in the photograph and on any damage to it.",
    "You are a quality inspector. What do you see?",
)
_WITH_DEFECT = (
    "A {part} with {defects}.",
    "The {part} in this image has {defects}.",
    "There is {defects} on the {part}.",
    "This {part} shows {defects}.",
    "{defects} can be seen on this {part}.",
    "The image shows a {part} with {defects}.",
    "Inspection of the {part} found {defects}.",
    "The surface of the {part} has {defects}.",
    "A damaged {part}: {defects}.",
    "Attention is due to {defects} on this {part}.",
)
_WITHOUT = (
    "A {part} with no visible defect.",
    "The {part} in this image has no defect.",
    "There is no visible defect on the {part}.",
    "This {part} is free of visible defects.",
    "No defect can be seen on this {part}.",
    "The image shows a {part} without any defect.",
    "Inspection of the {part} found no defect.",
    "The surface of the {part} shows no damage.",
    "A sound {part}.",
    "This {part} looks intact.",
)
_OTHERWISE = 0.25  # how often the second name is used
_SECOND_NAMES = {
    "washer": "flat washer",
    "gear": "gear wheel",
    "hex nut": "hexagonal nut",
    "plate": "mounting plate",
    "flange": "pipe flange",
    "bracket": "angle bracket",
    "scratch": "score mark",
    "crack": "fracture",
    "dent": "indentation",
    "stain": "discoloration",
    "rust": "corrosion",
    "chipped edge": "broken edge",
    "missing hole": "undrilled hole",
    "upper left": "top left",
    "upper center": "top center",
    "upper right": "top right",
    "center": "middle",
    "lower left": "bottom left",
    "lower center": "bottom center",
    "lower right": "bottom right",
}
_MASS_NOUNS = ("rust", "corrosion")
_SOUND = re.compile(r"\b(sound|intact)\b|\b(no|free of|without)\b.*\b(defects?|damage)\b")
_T = TypeVar("_T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Said:
    """What a sentence says; null where it says nothing, something unknown, or contradicts itself."""

    part: str | None
    finish: str | None
    conditions: frozenset[str] | None  # empty = said to have no defect
    position: str | None  # of the defect named first


def random_caption(truth: Truth, rng: np.random.Generator) -> str:
    """Say `truth` in a way drawn at random."""
    name = _name(truth.part, rng)
    part = f"{name} of {truth.finish}" if rng.random() < 0.15 else f"{truth.finish} {name}"
    frames = _WITH_DEFECT if truth.defects else _WITHOUT
    frame = frames[int(rng.integers(len(frames)))]
    text = frame.format(part=part, defects=_listed([_defect(one, rng) for one in truth.defects]))
    return text[0].upper() + text[1:]


def _defect(defect: Defect, rng: np.random.Generator) -> str:
    noun = _name(defect.condition, rng)
    article = "" if noun in _MASS_NOUNS else "an " if noun[0] in "aeiou" else "a "
    return f"{article}{noun} at the {_name(defect.position, rng)}"


def _name(name: str, rng: np.random.Generator) -> str:
    return _SECOND_NAMES.get(name, name) if rng.random() < _OTHERWISE else name


def _listed(items: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def some_captions(count: int = 30_000, seed: int = 0) -> Iterator[str]:
    """Yield sentences that cover the grammar, for making a tokenizer."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        kinds = sorted(map(str, rng.permutation(DEFECTS)[: int(rng.integers(0, 4))]), key=CONDITIONS.index)
        defects = tuple(Defect(kind, POSITIONS[int(rng.integers(9))]) for kind in kinds)
        part, finish = PARTS[int(rng.integers(len(PARTS)))], FINISHES[int(rng.integers(len(FINISHES)))]
        yield random_caption(Truth(part, finish, defects), rng)


def parse(text: str) -> Said:
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
    return {form: name for name in names for form in (name, _SECOND_NAMES.get(name, name))}


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
