"""Questions with a list of choices, and the answer that a truthful witness of a render gives.

Knows words and what is visible; knows nothing of images or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlmgate.config import ABSTENTION, DEFAULT_QUESTION, question_prompt
from vlmgate.factory.world import CONDITIONS, DEFECTS, NONE, VISIBLE

# How a question can be worded; the first is what `vlmgate scan --question` asks.
_WORDINGS = (
    "",
    "Which of these does the part show: {choices}{offer}?",
    "What is the condition of this part? Choose from: {choices}{offer}.",
    "Look at the part. Name what is wrong with it, in one of these words: {choices}{offer}.",
)
NUM_WORDINGS = len(_WORDINGS)
SOUND = (NONE, "ok", "good", "no defect")  # what a list may call a part without any of its defects


@dataclass(frozen=True, slots=True)
class Seen:
    """The defects of a render, gravest first, and how plainly each shows."""

    conditions: tuple[str, ...]
    visibilities: tuple[float, ...]
    ghost_visibility: float  # of any defect on this photograph, there or not


@dataclass(frozen=True, slots=True)
class Question:
    """Choices in the order in which they are listed, and whether "unsure" is offered after them."""

    choices: tuple[str, ...]
    abstain: bool
    wording: int = 0

    def text(self) -> str:
        """Return the prompt."""
        if self.wording == 0:
            return question_prompt(DEFAULT_QUESTION, self.choices, abstain=self.abstain)
        offer = f", or {ABSTENTION} if you cannot tell" if self.abstain else ""
        return _WORDINGS[self.wording].format(choices=", ".join(self.choices), offer=offer)


FULL = Question((*DEFECTS, NONE), abstain=True)  # every condition; what evaluation asks


def random_question(seen: Seen, rng: np.random.Generator) -> Question:
    """Draw a question that has a true answer for this render: any subset of the conditions, in any order."""
    count = int(rng.integers(1, len(DEFECTS) + 1))
    chosen = [str(name) for name in rng.permutation(DEFECTS)[:count]]
    if not set(chosen) & set(seen.conditions) or rng.random() < 0.9:
        chosen.append(NONE if rng.random() < 0.6 else SOUND[int(rng.integers(len(SOUND)))])
    if len(chosen) == 1:
        chosen.append(NONE)
    order = rng.permutation(len(chosen))
    return Question(tuple(chosen[i] for i in order), bool(rng.random() < 0.5), int(rng.integers(NUM_WORDINGS)))


def true_answer(question: Question, seen: Seen) -> str:
    """Return the gravest visible defect that is listed, "unsure" where the truth cannot be seen, or the word for none.

    "unsure" is the answer where every listed defect of the part lies below the visibility bound, and where a listed
    defect, were there one, would lie below it. Where it is not offered the truth is told, seen or not. "none" means
    none of those listed.
    """
    listed = [name for name in seen.conditions if name in question.choices]
    visible = [
        name
        for name, seen_at in zip(seen.conditions, seen.visibilities, strict=True)
        if seen_at >= VISIBLE and name in listed
    ]
    if visible:
        return min(visible, key=CONDITIONS.index)
    if question.abstain and (listed or seen.ghost_visibility < VISIBLE):
        return ABSTENTION
    return listed[0] if listed else sound_word(question.choices)


def sound_word(choices: Sequence[str]) -> str:
    """Return the choice that stands for a part without any of the listed defects."""
    return next(choice for choice in choices if choice in SOUND)


def right(answer: str | None, truth: Sequence[str], choices: Sequence[str]) -> bool:
    """Say whether an answer names a listed defect that the part has, or none where it has none of them."""
    listed = [name for name in truth if name in choices]
    return answer in listed if listed else answer in SOUND
