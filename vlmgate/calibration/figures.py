"""Figures of quality: how well a score puts right readings before wrong ones, and how far readings agree with labels.

`measure` returns every figure of a score with its interval; `agreement` compares answers with labels.

Scores are given so that higher = less to be trusted; infinite = nothing would accept it. A wrong reading counts 1, a
right one 0. Images of the same score are accepted together or not at all: where a figure runs over single images, it is
the mean over all their orders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]
RESAMPLES = 1_000
FEWEST_OF_A_KIND = 5  # wrong readings, or right ones, for an AUROC to be worth printing
_CHUNK = 2_000_000  # weights held at once while resampling


@dataclass(frozen=True, slots=True, eq=False)
class Ladder:
    """Readings grouped by score, the safest first: G groups of equal scores, N readings, R resamples of them."""

    levels: Vector  # (G,) rising scores
    numbers: Vector  # (R, G) readings at each level
    errors: Vector  # (R, G) wrong ones among them

    @classmethod
    def of(cls, score: ArrayLike, wrong: ArrayLike, weights: ArrayLike | None = None) -> Ladder:
        """Group N readings; `weights` (R, N) say how often each is drawn, without them each is there once.

        Raises `ValueError` for a score that is no number, or vectors of different lengths.
        """
        values, errors = np.asarray(score, float), np.asarray(wrong, float)
        if values.shape != errors.shape or values.ndim != 1 or not len(values):
            raise ValueError(f"scores {values.shape} and errors {errors.shape}: two vectors of one length, not empty.")
        if np.isnan(values).any():
            raise ValueError("a score is not a number; readings without one count as infinite.")
        order = np.argsort(values, kind="stable")
        levels, starts = np.unique(values[order], return_index=True)
        drawn = np.ones((1, len(values))) if weights is None else np.atleast_2d(np.asarray(weights, float))
        drawn = drawn[:, order]
        return cls(
            levels=levels,
            numbers=np.add.reduceat(drawn, starts, axis=1),
            errors=np.add.reduceat(drawn * errors[order], starts, axis=1),
        )

    @property
    def accepted(self) -> Vector:
        """Return (R, G): readings accepted up to each level."""
        total: Vector = np.cumsum(self.numbers, axis=1)
        return total

    @property
    def mistaken(self) -> Vector:
        """Return (R, G): wrong readings among those accepted up to each level."""
        total: Vector = np.cumsum(self.errors, axis=1)
        return total

    def auroc(self) -> Vector:
        """Return (R,): how often a wrong reading scores higher than a right one, ties counting half; 0.5 = chance.

        Not a number where all readings are right, or all wrong.
        """
        right = self.numbers - self.errors
        below = np.cumsum(right, axis=1) - right
        wins = (self.errors * (below + right / 2)).sum(axis=1)
        pairs = self.errors.sum(axis=1) * right.sum(axis=1)
        return _share(wins, pairs)

    def aurc(self) -> Vector:
        """Return (R,): mean risk over all coverages, in [0, 1]; lower is better.

        Geifman, Uziel & El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers" (ICLR 2019). Within
        a group of n readings, e of them wrong, after N readings and E errors, the risk after k more is on average
        (E + k e/n) / (N + k), which sums up to e + (E − N e/n) (H(N + n) − H(N)), H being the harmonic numbers.
        """
        before, errors = self.accepted - self.numbers, self.mistaken - self.errors
        share = _share(self.errors, self.numbers, empty=0.0)
        total = self.accepted[:, -1]
        harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, int(total.max()) + 1))])
        steps = harmonic[self.accepted.astype(int)] - harmonic[before.astype(int)]
        area: Vector = (self.errors + (errors - before * share) * steps).sum(axis=1) / total
        return area

    def augrc(self) -> Vector:
        """Return (R,): mean over all coverages of the share of all readings that is accepted and wrong; lower = better.

        In [0, 1/2]. Traub et al., "Overcoming Common Flaws in the Evaluation of Selective Classification Systems"
        (NeurIPS 2024).
        """
        errors, total = self.mistaken - self.errors, self.accepted[:, -1]
        area: Vector = (errors * self.numbers + self.errors * (self.numbers + 1) / 2).sum(axis=1) / total**2
        return area

    def risk_at(self, coverage: float) -> Vector:
        """Return (R,): share of wrong readings among the safest `coverage` of all; lower is better."""
        total = self.accepted[:, -1]
        wanted = np.maximum(coverage * total, 1e-9)
        rows = np.arange(len(total))
        at = np.minimum((self.accepted < wanted[:, None] - 1e-9).sum(axis=1), self.numbers.shape[1] - 1)
        before = (self.accepted - self.numbers)[rows, at]
        share = _share(self.errors[rows, at], self.numbers[rows, at], empty=0.0)
        errors = (self.mistaken - self.errors)[rows, at] + (wanted - before) * share
        risk: Vector = errors / wanted
        return risk

    def coverage_at(self, risk: float) -> Vector:
        """Return (R,): the largest share of readings that a threshold accepts with at most this risk; higher is better.

        Optimistic, for it is chosen on the readings that it is measured on: see `guarantee` for what can be promised.
        """
        kept = np.isfinite(self.levels) & (_share(self.mistaken, self.accepted, empty=0.0) <= risk)
        covered: Vector = np.where(kept, self.accepted, 0).max(axis=1) / self.accepted[:, -1]
        return covered


FIGURES: Mapping[str, Callable[[Ladder], Vector]] = {
    "auroc": Ladder.auroc,
    "aurc": Ladder.aurc,
    "augrc": Ladder.augrc,
    "risk at 80 % coverage": lambda ladder: ladder.risk_at(0.8),
    "coverage at 5 % risk": lambda ladder: ladder.coverage_at(0.05),
}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with the ends of its 95 % interval; null where it cannot be computed."""

    value: float | None
    low: float | None
    high: float | None


def measure(score: ArrayLike, wrong: ArrayLike, parts: ArrayLike | None = None) -> dict[str, Estimate]:
    """Return every figure of `FIGURES` with its 95 % percentile interval over resampled readings.

    `parts` (N,) are numbers that readings of one part share; parts are resampled whole then. Where fewer than
    `FEWEST_OF_A_KIND` readings are wrong, or right, AUROC would be chance and is null.
    """
    values, errors = np.asarray(score, float), np.asarray(wrong, float)
    whole = Ladder.of(values, errors)
    drawn: dict[str, list[Vector]] = {name: [] for name in FIGURES}
    for weights in resampled(len(values), 0, RESAMPLES, parts):
        ladder = Ladder.of(values, errors, weights)
        for name, figure in FIGURES.items():
            drawn[name].append(figure(ladder))
    found = {name: estimate(figure(whole)[0], np.concatenate(drawn[name])) for name, figure in FIGURES.items()}
    wrongs = int(errors.sum())
    if min(wrongs, len(errors) - wrongs) < FEWEST_OF_A_KIND:
        found["auroc"] = Estimate(None, None, None)
    return found


def resampled(count: int, seed: int, resamples: int, parts: ArrayLike | None = None) -> list[Vector]:
    """Return how often each of `count` readings is drawn, in chunks of (R, count); equal for an equal seed.

    Readings of one part (equal numbers in `parts` (count,)) are drawn together, for they are no trials apart.
    """
    of = np.arange(count) if parts is None else np.unique(np.asarray(parts), return_inverse=True)[1]
    number = int(of.max()) + 1
    rng = np.random.default_rng(seed)
    step = max(1, min(resamples, _CHUNK // count))
    chances = np.full(number, 1 / number)
    return [
        rng.multinomial(number, chances, size=min(step, resamples - done)).astype(float)[:, of]
        for done in range(0, resamples, step)
    ]


def estimate(value: float, drawn: Vector) -> Estimate:
    """Return a figure with the 95 % percentile interval of its resamples (R,)."""
    known = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or not len(known):
        return Estimate(None, None, None)
    low, high = np.quantile(known, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))


def _share(part: Vector, whole: Vector, empty: float = np.nan) -> Vector:
    """Return part / whole, and `empty` where the whole is nothing."""
    share: Vector = np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, empty), where=whole > 0)
    return share


# --- agreement with the truth, and of repeated readings ---------------------------------------------------------------


# The limits of AIAG's manual; no plant need keep to them.
CUSTOMARY = {"effectiveness": (">=", 0.90), "miss rate": ("<=", 0.02), "false-alarm rate": ("<=", 0.05)}


@dataclass(frozen=True, slots=True)
class Agreement:
    """Shares as (part, whole); null where there is nothing to count.

    AIAG, "Measurement Systems Analysis" (4th edition, 2010), chapter III, section C.
    """

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
