"""What is said of a part: captions that tell the truth in hundreds of wordings, and questions with their true answers.

Start with `random_caption` and `random_question`. The wording says nothing of how plainly a defect shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vlmgate.config import ABSTENTION, DEFAULT_PROMPT, DEFAULT_QUESTION, question_prompt
from vlmgate.factory.world import CONDITIONS, DEFECTS, FINISHES, NONE, PARTS, POSITIONS, VISIBLE, Defect, Truth

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
SECOND_NAMES = {
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
    return SECOND_NAMES.get(name, name) if rng.random() < _OTHERWISE else name


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


# --- questions --------------------------------------------------------------------------------------------------------

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
    defect, were there one, would lie below it. Where it is not offered the answer is the truth, seen or not. "none"
    means none of those listed.
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
