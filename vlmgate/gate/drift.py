"""Compare the images of a run with those that a gate was calibrated on: a promise holds for no others.

`Kept.of` keeps a column's distribution, `shifts` compares it with that of a run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmgate.data import Reason, Record, Route

Vector = NDArray[np.float64]
Values = Sequence[float | None] | Vector

QUANTILES = 101  # that a distribution is kept as
FEWEST = 20  # values on either side; fewer tell nothing
CHANCE = 0.01  # of an alarm over all columns, where nothing has changed
LEAST_EFFECT = 0.1  # a smaller gap is of no account, however many images show it
COLUMNS = (
    *("vendi_score", "answer_share", "answer_probability", "mean_logprob"),
    *("novelty", "sharpness", "exposure", "contrast", "noise"),
)


@dataclass(frozen=True, slots=True)
class Kept:
    """The distribution of one column on the calibration set."""

    count: int
    quantiles: tuple[float, ...]  # rising, evenly spaced from the least to the greatest

    @classmethod
    def of(cls, values: Values) -> Kept | None:
        """Return the distribution of finite values; None where they are too few."""
        known = _finite(values)
        if len(known) < FEWEST:
            return None
        marks = np.quantile(known, np.linspace(0, 1, QUANTILES), method="inverted_cdf")
        return cls(len(known), tuple(float(f"{mark:.7g}") for mark in marks))


@dataclass(frozen=True, slots=True)
class Shift:
    """How far one column has moved."""

    column: str
    gap: float  # greatest distance of the two distribution functions, [0, 1]; the effect size
    p_value: float  # chance of such a gap if nothing has changed
    before: float  # median of the calibration set
    now: float  # median tonight
    alarm: bool


def shifts(kept: Mapping[str, Kept], tonight: Mapping[str, Values]) -> list[Shift]:
    """Compare every column that both sides have, by the two-sample test of Kolmogorov and Smirnov.

    An alarm takes both: a gap that chance makes in fewer than `CHANCE` of all nights (shared among the columns), and
    one of at least `LEAST_EFFECT`. The largest gap comes first.
    """
    pairs = {name: (kept[name], _finite(tonight[name])) for name in kept if name in tonight}
    pairs = {name: pair for name, pair in pairs.items() if len(pair[1]) >= FEWEST}
    found = [_shift(name, then, now, CHANCE / len(pairs)) for name, (then, now) in pairs.items()]
    return sorted(found, key=lambda shift: -shift.gap)


def has_alarm(drift: Mapping[str, Any] | None) -> bool:
    """Say whether a run's images do not look like the calibrated ones; `drift` is that of its provenance."""
    return bool(drift and drift["alarm"])


def alarm_of(drift: Mapping[str, Any] | None) -> str | None:
    """Return what an alarm means, as one line; None where there is none."""
    if drift is None or not has_alarm(drift):
        return None
    if drift.get("failed"):
        return (
            "Nothing is promised of this result: whether its images look like those that the gate was calibrated on "
            "could not be checked; see the log."
        )
    moved = [column["column"] for column in drift["columns"] if column["alarm"]]
    return (
        "Nothing is promised of this result: its images do not look like those that the gate was calibrated on "
        f"({', '.join(moved)})."
    )


def all_to_people(records: Iterable[Record]) -> list[Record]:
    """Return rows of which none is accepted, because the images have drifted."""
    return [
        replace(row, route=Route.HUMAN_REVIEW, reason=Reason.DRIFTED, decided_by=None, threshold=None)
        if row.route == Route.AUTO_ACCEPT
        else row
        for row in records
    ]


def _shift(name: str, then: Kept, now: Vector, chance: float) -> Shift:
    from scipy.stats import distributions

    marks = np.asarray(then.quantiles)
    points = np.union1d(marks, now)
    # What is kept knows the distribution to a hundredth, so that much of a gap is forgiven.
    before = np.searchsorted(marks, points, side="right") / len(marks)
    tonight = np.searchsorted(np.sort(now), points, side="right") / len(now)
    gap = max(0.0, float(np.abs(before - tonight).max()) - 1 / (QUANTILES - 1))
    effective = then.count * len(now) / (then.count + len(now))
    p_value = float(distributions.kstwo.sf(gap, max(1, round(effective))))
    alarm = p_value < chance and gap >= LEAST_EFFECT
    return Shift(name, gap, p_value, float(marks[len(marks) // 2]), float(np.median(now)), alarm)


def _finite(values: Values) -> Vector:
    table = np.array([math.nan if value is None else value for value in values], float)
    known: Vector = np.sort(table[np.isfinite(table)])
    return known
