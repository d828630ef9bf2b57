"""How far readings agree with the truth and with themselves, as the study of a measuring system by attributes puts it.

Knows labels and counts; knows nothing of scores or images. AIAG, "Measurement Systems Analysis" (4th edition, 2010),
chapter III, section C. The limits are customary there; no plant need keep to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CUSTOMARY = {"effectiveness": (">=", 0.90), "miss rate": ("<=", 0.02), "false-alarm rate": ("<=", 0.05)}


@dataclass(frozen=True, slots=True)
class Agreement:
    """Shares with their counts; null where there is nothing to count."""

    effectiveness: tuple[int, int]  # readings that equal the truth, of all
    misses: tuple[int, int]  # bad parts taken for good, of all bad ones
    false_alarms: tuple[int, int]  # good parts taken for bad, of all good ones
    kappa: float | None  # agreement beyond chance, −1 to 1; higher is better
    repeatability: tuple[int, int]  # images of which every repeated reading says the same, of all that were repeated


def agreement(
    truths: Sequence[str], answers: Sequence[str | None], good: str, repeats: Sequence[Sequence[str | None]] = ()
) -> Agreement:
    """Compare `answers` with `truths`; an image without an answer agrees with nothing and is neither good nor bad.

    `repeats` holds for each image what it was read as with several seeds.
    """
    pairs = list(zip(truths, answers, strict=True))
    bad = [answer for truth, answer in pairs if truth != good]
    sound = [answer for truth, answer in pairs if truth == good]
    repeated = [set(several) for several in repeats if len(several) > 1]
    return Agreement(
        effectiveness=(sum(truth == answer for truth, answer in pairs), len(pairs)),
        misses=(sum(answer == good for answer in bad), len(bad)),
        false_alarms=(sum(answer is not None and answer != good for answer in sound), len(sound)),
        kappa=kappa(truths, ["" if answer is None else answer for answer in answers]),
        repeatability=(sum(len(several) == 1 for several in repeated), len(repeated)),
    )


def kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Return agreement beyond chance of two label lists, −1 to 1; null where chance alone would agree always.

    Cohen, "A coefficient of agreement for nominal scales" (Educational and Psychological Measurement 20, 1960).
    """
    if not first:
        return None
    names = sorted({*first, *second})
    a = np.array([names.index(name) for name in first])
    b = np.array([names.index(name) for name in second])
    observed = float((a == b).mean())
    expected = float((np.bincount(a, minlength=len(names)) * np.bincount(b, minlength=len(names))).sum() / len(a) ** 2)
    return None if expected >= 1 else (observed - expected) / (1 - expected)
