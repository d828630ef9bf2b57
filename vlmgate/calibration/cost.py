"""What a gate costs in the plant, per 1,000 images, next to what else could be done with them.

`bill` gives the cost of every threshold, `compare_policies` that of each way to work. All costs are in the plant's own
currency. Scores are turned so that higher = less to be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlmgate.calibration.figures import RESAMPLES, Mask, Vector, resampled
from vlmgate.config import Costs as Costs

FEW_ERRORS = 10  # accepted; a threshold that rests on fewer is chance
FOLDS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """N labelled readings: what is true of the part, and what the reading would do to it."""

    bad: Mask  # (N,) the part has a defect
    rejects: Mask  # (N,) the reading names a defect

    @property
    def escapes(self) -> Mask:
        """Return which bad parts would pass."""
        return self.bad & ~self.rejects

    @property
    def overkills(self) -> Mask:
        """Return which good parts would be rejected. One defect taken for another is neither."""
        return ~self.bad & self.rejects

    def trusted(self, costs: Costs) -> Vector:
        """Return (N,): cost of each image if its reading is accepted."""
        return costs.escape * self.escapes + costs.overkill * self.overkills

    def reviewed(self, costs: Costs) -> Vector:
        """Return (N,): expected cost of each image if a person looks at it."""
        missed, alarmed = costs.reviewer_miss * costs.escape, costs.reviewer_false_alarm * costs.overkill
        return costs.review + np.where(self.bad, missed, alarmed)


@dataclass(frozen=True, slots=True, eq=False)
class Bill:
    """Costs per 1,000 images at every threshold, R resamples of them; the first threshold accepts nothing."""

    thresholds: Vector  # (T,) rising; −inf, then every score there is
    gated: Vector  # (R, T)
    random: Vector  # (R, T) as many images routed, whichever they are
    routed: Vector  # (R, T) share of images that a person looks at

    @property
    def cheapest(self) -> NDArray[np.int64]:
        """Return (R,): index of the threshold of least cost, the widest of equals, for it spares people."""
        flipped = self.gated[:, ::-1]
        found: NDArray[np.int64] = self.gated.shape[1] - 1 - np.argmin(flipped, axis=1)
        return found


def bill(score: ArrayLike, outcomes: Outcomes, costs: Costs, weights: ArrayLike | None = None) -> Bill:
    """Return what every threshold on `score` (N,) costs; higher = less to be trusted, infinite is always routed.

    `weights` (R, N) say how often each image is drawn. The model's overhead is paid wherever it reads.
    """
    values = np.asarray(score, float)
    drawn = np.ones((1, len(values))) if weights is None else np.atleast_2d(np.asarray(weights, float))
    order = np.argsort(values, kind="stable")
    values, drawn = values[order], drawn[:, order]
    trusted, reviewed = outcomes.trusted(costs)[order], outcomes.reviewed(costs)[order]
    finite = np.isfinite(values)
    levels, starts = np.unique(values[finite], return_index=True)
    ends = np.append(starts[1:], finite.sum()).astype(int)
    nothing = np.zeros((len(drawn), 1))

    def upto(amount: Vector) -> Vector:
        """Return (R, T): the amounts of all images that each threshold accepts."""
        total = np.cumsum(drawn * amount, axis=1)
        return np.concatenate([nothing, total[:, ends - 1]], axis=1) if len(ends) else nothing

    count = drawn.sum(axis=1, keepdims=True)
    by_person = (drawn * reviewed).sum(axis=1, keepdims=True)
    by_model = (drawn * trusted).sum(axis=1, keepdims=True)
    share = 1 - upto(np.ones(len(values))) / count
    thousand = 1000 / count
    return Bill(
        thresholds=np.concatenate([[-np.inf], levels]),
        gated=thousand * (upto(trusted) + by_person - upto(reviewed)) + costs.overhead,
        random=thousand * (share * by_person + (1 - share) * by_model) + costs.overhead,
        routed=share,
    )


def line_weights(bad: Mask, rate: float | None) -> Vector:
    """Return (N,): how much each image counts where a share `rate` of the line's parts is bad; None = as labelled."""
    if rate is None:
        return np.ones(len(bad))
    weights: Vector = np.where(bad, rate / max(1, bad.sum()), (1 - rate) / max(1, (~bad).sum()))
    return weights


@dataclass(frozen=True, slots=True)
class Policy:
    """What one way to work costs; all figures are per 1,000 images, with the ends of the 95 % interval of the cost."""

    name: str
    cost: float
    low: float
    high: float
    reviewed: float  # images that a person looks at
    escapes: float  # bad parts that pass, those that the person passes included
    overkill: float  # good parts that are rejected, by the reading or the person


@dataclass(frozen=True, slots=True, eq=False)
class Bills:
    """What every policy costs, and what the cheapest gate rests on."""

    policies: tuple[Policy, ...]
    cheapest: float | None  # its threshold, chosen on all images; null where reviewing all is cheapest
    cheapest_errors: int  # errors among what it accepts
    break_even: dict[str, float | None]  # cost → the value at which the gate costs what reviewing everything does
    gate: str  # the policy that `break_even` is of


def compare_policies(
    score: Vector,
    outcomes: Outcomes,
    costs: Costs,
    guaranteed: Mask | None,
    weights: Vector | None = None,
    parts: ArrayLike | None = None,
) -> Bills:
    """Return what each way to work costs per 1,000 images.

    `score` (N,) is higher where a reading is less to be trusted, infinite where it never is; `guaranteed` (N,) is what
    the gate with a promise accepts. `weights` (N,) say how often each image stands for one of the line. The cheapest
    gate is chosen on four fifths of the images and graded on the fifth that had no part in it, in turn. Images with
    equal numbers in `parts` (N,) are in one fold, and are drawn together for the intervals.
    """
    count = len(score)
    share = np.ones(count) / count if weights is None else weights / weights.sum()
    part = np.arange(count) if parts is None else np.unique(np.asarray(parts), return_inverse=True)[1]
    fold = (np.random.default_rng(0).permutation(int(part.max()) + 1) % FOLDS)[part]
    frugal = np.zeros(count, bool)
    for i in range(FOLDS):
        held = fold == i
        if held.any() and not held.all():
            others = Outcomes(outcomes.bad[~held], outcomes.rejects[~held])
            frugal[held] = score[held] <= _cheapest(score[~held], others, costs, share[~held])
    threshold = _cheapest(score, outcomes, costs, share)
    like = frugal if guaranteed is None else guaranteed
    rows = {"review all": np.zeros(count), "review none": np.ones(count)}
    rows["random, same share"] = np.full(count, float((share * like).sum()))
    if guaranteed is not None:
        rows["guaranteed gate"] = guaranteed.astype(float)
    rows["cheapest gate, cross-val."] = frugal.astype(float)
    draws = [drawn * share for drawn in resampled(count, 0, RESAMPLES, part)]
    policies = tuple(_policy(name, accepted, outcomes, costs, share, draws) for name, accepted in rows.items())
    accepted = score <= threshold
    return Bills(
        policies,
        threshold if math.isfinite(threshold) else None,
        int(((outcomes.escapes | outcomes.overkills) & accepted).sum()),
        break_even(accepted if guaranteed is None else guaranteed, outcomes, costs, share),
        "cheapest gate" if guaranteed is None else "guaranteed gate",
    )


def _cheapest(score: Vector, outcomes: Outcomes, costs: Costs, share: Vector) -> float:
    found = bill(score, outcomes, costs, share)
    return float(found.thresholds[found.cheapest[0]])


def _policy(
    name: str, accepted: Vector, outcomes: Outcomes, costs: Costs, share: Vector, draws: Sequence[Vector]
) -> Policy:
    """Return the figures of a policy that accepts each image with a given chance."""
    overhead = 0.0 if name == "review all" else costs.overhead
    each = 1000 * (accepted * outcomes.trusted(costs) + (1 - accepted) * outcomes.reviewed(costs))
    spread = np.concatenate([(drawn @ each) / drawn.sum(axis=1) for drawn in draws]) + overhead
    missed = (1 - accepted) * outcomes.bad * costs.reviewer_miss
    alarmed = (1 - accepted) * ~outcomes.bad * costs.reviewer_false_alarm
    low, high = np.quantile(spread, [0.025, 0.975])
    return Policy(
        name,
        float(share @ each) + overhead,
        float(low),
        float(high),
        float(1000 * (share @ (1 - accepted))),
        float(1000 * (share @ (accepted * outcomes.escapes + missed))),
        float(1000 * (share @ (accepted * outcomes.overkills + alarmed))),
    )


def break_even(
    accepted: Mask, outcomes: Outcomes, costs: Costs, weights: Vector | None = None
) -> dict[str, float | None]:
    """Return for each cost the value at which a gate and reviewing everything cost the same; null if none does.

    Everything else stays as it is. Both bills are linear in each cost.
    """
    share = np.ones(len(accepted)) / len(accepted) if weights is None else weights / weights.sum()
    found: dict[str, float | None] = {}
    for name in ("escape", "overkill", "review", "overhead"):
        gaps = []
        for value in (0.0, 1.0):
            tried = replace(costs, **{name: value})
            saved = 1000 * float(((outcomes.reviewed(tried) - outcomes.trusted(tried)) * share)[accepted].sum())
            gaps.append(saved - tried.overhead)
        slope = gaps[1] - gaps[0]
        crossing = -gaps[0] / slope if abs(slope) > 1e-12 else math.nan
        found[name] = crossing if math.isfinite(crossing) and crossing >= 0 else None
    return found
