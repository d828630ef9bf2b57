"""Sentences about a part, and the way back from a sentence to what it says.

Knows words; knows nothing of images or models. The nouns of what is said are fixed; the frame around them varies.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vlmgate.builtin.world import CONDITIONS, FINISHES, NONE, PARTS, POSITIONS, Truth
from vlmgate.config import DEFAULT_PROMPT

INSTRUCTIONS = (
    DEFAULT_PROMPT,
    "What does this inspection image show? Name the part and any defect.",
    "Describe this part and its condition.",
    "Describe the image.",
)
_WITH_DEFECT = (
    "A {part} with {defect} at the {position}.",
    "The {part} in this image has {defect} at the {position}.",
    "There is {defect} at the {position} of the {part}.",
    "This {part} shows {defect} at the {position}.",
    "{defect} is visible at the {position} of this {part}.",
    "The image shows a {part} with {defect} at the {position}.",
    "Inspection of the {part} found {defect} at the {position}.",
    "The surface of the {part} has {defect} at the {position}.",
)
_WITHOUT = (
    "A {part} with no visible defect.",
    "The {part} in this image has no defect.",
    "There is no visible defect on the {part}.",
    "This {part} is free of visible defects.",
    "No defect is visible on this {part}.",
    "The image shows a {part} without any defect.",
    "Inspection of the {part} found no defect.",
    "The surface of the {part} shows no damage.",
)
NUM_FRAMES = len(_WITH_DEFECT)
# Words on which the meaning hangs; training weighs them more than the frame around them.
KEY_WORDS = frozenset({"no", "free", "without", "with", "has", "shows", "found", "is", "No"}) | frozenset(
    word for name in (*CONDITIONS[1:], *POSITIONS) for form in (name, name.capitalize()) for word in form.split()
)


@dataclass(frozen=True, slots=True)
class Said:
    """What a sentence says; null where it says nothing, something unknown, or two things at once."""

    part: str | None
    finish: str | None
    condition: str | None
    position: str | None


def caption(truth: Truth, frame: int) -> str:
    """Say `truth` in one of `NUM_FRAMES` ways."""
    part = f"{truth.finish} {truth.part}"
    if truth.condition == NONE:
        return _sentence(_WITHOUT[frame].format(part=part))
    defect = truth.condition if truth.condition == "rust" else f"a {truth.condition}"
    return _sentence(_WITH_DEFECT[frame].format(part=part, defect=defect, position=truth.position))


def all_captions() -> Iterator[str]:
    """Yield every sentence of the grammar."""
    for part in PARTS:
        for finish in FINISHES:
            for condition in CONDITIONS:
                for position in POSITIONS if condition != NONE else (None,):
                    for frame in range(NUM_FRAMES):
                        yield caption(Truth(part, finish, condition, position), frame)


def random_caption(truth: Truth, rng: np.random.Generator) -> str:
    """Say `truth` in a way drawn at random."""
    return caption(truth, int(rng.integers(NUM_FRAMES)))


def parse(text: str) -> Said:
    """Return what a sentence says."""
    plain = " ".join(re.findall(r"[a-z]+", text.lower()))
    condition = _only(plain, CONDITIONS[1:])
    denied = re.search(r"\b(no|free of|without)\b.*\b(defects?|damage)\b", plain) is not None
    if denied:
        condition = NONE if condition is None and not _found(plain, CONDITIONS[1:]) else None
    return Said(_only(plain, PARTS), _only(plain, FINISHES), condition, _only(plain, POSITIONS))


def majority(values: Sequence[str | None]) -> str | None:
    """Return the most frequent value that is not null; of equals, the one said first."""
    counts = Counter(value for value in values if value is not None)
    return counts.most_common(1)[0][0] if counts else None


def _found(plain: str, names: Sequence[str]) -> list[str]:
    """Return the names that occur; one that is part of a longer one found does not count ("center")."""
    hits: list[str] = []
    for name in sorted(names, key=len, reverse=True):
        if re.search(rf"\b{name}\b", plain):
            hits.append(name)
            plain = re.sub(rf"\b{name}\b", "|", plain)
    return hits


def _only(plain: str, names: Sequence[str]) -> str | None:
    hits = _found(plain, names)
    return hits[0] if len(hits) == 1 else None


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
