"""Compare scores with limits; say where an image goes and why.

Knows columns, directions and limits; knows nothing of how a score was made or where a decision is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlmgate.errors import GateError
from vlmgate.records import Decision, Reason, Route, Scores

ScoreName = Literal["vendi_score", "agreement", "mean_dissimilarity", "mean_logprob"]
HIGHER_IS_WORSE: dict[str, bool] = {
    "vendi_score": True,
    "mean_dissimilarity": True,
    "agreement": False,
    "mean_logprob": False,
}
# Nobody's measurement, but strict, and the same for every K because it counts effective readings: short captions that
# split evenly between two defects come to 1.33, between a defect and none to 1.6. Summaries call it uncalibrated.
UNCALIBRATED_VENDI_SCORE = 1.25


@dataclass(frozen=True, slots=True)
class Gate:
    """How images are split: by a limit on a score, or by what a reviewer can look at.

    Exactly one of `threshold` and the two budgets is set; anything else raises `GateError`.
    """

    score: ScoreName = "vendi_score"
    threshold: float | None = None  # in the score's own units; the limit itself is still accepted
    budget_share: float | None = None  # share of all images, [0, 1]
    budget_count: int | None = None  # images
    default: bool = False  # nobody chose this limit

    def __post_init__(self) -> None:
        if sum(limit is not None for limit in (self.threshold, self.budget_share, self.budget_count)) != 1:
            raise GateError("a gate needs exactly one limit: a threshold or a review budget.")

    def describe(self) -> str:
        """Return the rule in a few words, e.g. "vendi_score ≤ 1.8"."""
        if self.budget_share is not None:
            return f"the {self.budget_share * 100:.6g}% of images most uncertain by {self.score} go to a person"
        if self.budget_count is not None:
            return f"the {self.budget_count:,} images most uncertain by {self.score} go to a person"
        sign = "≤" if HIGHER_IS_WORSE[self.score] else "≥"
        return f"{self.score} {sign} {self.threshold:.6g}"


def make_gate(
    *, num_samples: int, score: str = "vendi_score", threshold: float | None = None, review_budget: str | None = None
) -> Gate:
    """Return the gate that the options ask for; raises `GateError` where they contradict each other or mean nothing.

    `review_budget` is a share ("10%") or a number of images ("200"). Without either, the limit is the uncalibrated
    default, a Vendi score of `UNCALIBRATED_VENDI_SCORE`.
    """
    if score not in HIGHER_IS_WORSE:
        raise GateError(f"unknown score '{score}'; choose one of {', '.join(HIGHER_IS_WORSE)}.")
    if threshold is not None and review_budget is not None:
        raise GateError("--threshold and --review-budget exclude each other; give one of them.")
    name: ScoreName = score  # type: ignore[assignment]  # checked against the same names above
    if review_budget is not None:
        share, count = parse_share_or_count(review_budget, "--review-budget")
        return Gate(score=name, budget_share=share, budget_count=count)
    if threshold is not None:
        return Gate(score=name, threshold=_checked_threshold(name, threshold, num_samples))
    if score != "vendi_score":
        raise GateError(f"--score {score} has no default limit; give --threshold or --review-budget.")
    return Gate(threshold=min(UNCALIBRATED_VENDI_SCORE, float(num_samples)), default=True)


def parse_share_or_count(text: str, option: str) -> tuple[float | None, int | None]:
    """Read "10%" as (0.1, None) and "200" as (None, 200)."""
    match = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,12})?)\s*(%?)\s*", text, re.ASCII)
    if match and match[2] and float(match[1]) <= 100:
        return float(match[1]) / 100, None
    if match and not match[2] and "." not in match[1]:
        return None, int(match[1])
    raise GateError(f"{option} is '{text}'; give a share such as 10% or a number of images such as 200.")


def _checked_threshold(score: ScoreName, threshold: float, num_samples: int) -> float:
    low, high = {
        "vendi_score": (1.0, float(num_samples)),
        "agreement": (0.0, 1.0),
        "mean_dissimilarity": (0.0, 1.0),
        "mean_logprob": (-math.inf, 0.0),
    }[score]
    if not math.isfinite(threshold) or not low <= threshold <= high:
        raise GateError(
            f"--threshold is {threshold}; {score} lies between {low:g} and {high:g} with this many samples."
        )
    return threshold


# --- decisions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is known of one row when its route is chosen; `reason` is set where no score can save it."""

    key: tuple[str, int]  # (sha256, page): what shares it shares a decision; and the last word among equals
    scores: Scores | None
    reason: Reason | None


def decide(candidates: Sequence[Candidate], gate: Gate) -> list[Decision]:
    """Return a decision for each candidate, in order. Only a finite score within the limit is auto-accepted."""
    values = [_value(candidate, gate.score) for candidate in candidates]
    if gate.threshold is not None:
        return [_by_threshold(c, v, gate, gate.threshold) for c, v in zip(candidates, values, strict=True)]
    return _by_budget(candidates, values, gate)


def _value(candidate: Candidate, score: ScoreName) -> float | None:
    """Return the score such that higher is worse, or None where there is none that could be compared."""
    if candidate.reason is not None or candidate.scores is None:
        return None
    value: float | None = getattr(candidate.scores, score)
    if value is None or not math.isfinite(value):
        return None
    return value if HIGHER_IS_WORSE[score] else -value


def _by_threshold(candidate: Candidate, value: float | None, gate: Gate, threshold: float) -> Decision:
    if value is None:
        return Decision(Route.HUMAN_REVIEW, candidate.reason or Reason.NO_SCORE, None)
    limit = threshold if HIGHER_IS_WORSE[gate.score] else -threshold
    if value <= limit:
        return Decision(Route.AUTO_ACCEPT, Reason.AGREED, threshold)
    return Decision(Route.HUMAN_REVIEW, Reason.DISAGREED, threshold)


def _by_budget(candidates: Sequence[Candidate], values: Sequence[float | None], gate: Gate) -> list[Decision]:
    """Fill the budget: first what must be seen whatever its score (even beyond the budget), then the most uncertain.

    Equals are told apart by the mean log-probability of their captions (unknown first, then less likely first). Exact
    duplicates go the same way, so the last of the budget may bring its copies along.
    """
    budget = gate.budget_count or 0
    if gate.budget_share is not None:
        budget = math.ceil(round(gate.budget_share * len(candidates), 9))
    read = sum(candidate.reason is not Reason.NOT_READ for candidate in candidates)  # the others' turn comes later
    scored = [(-value, _logprob(c), c.key) for c, value in zip(candidates, values, strict=True) if value is not None]
    chosen = sorted(scored)[: max(0, budget - (read - len(scored)))]
    routed = {key for *_, key in chosen}
    limit = None if not chosen else -chosen[-1][0] * (1 if HIGHER_IS_WORSE[gate.score] else -1)
    decisions = []
    for candidate, value in zip(candidates, values, strict=True):
        if value is None:
            decisions.append(Decision(Route.HUMAN_REVIEW, candidate.reason or Reason.NO_SCORE, None))
        elif candidate.key in routed:
            decisions.append(Decision(Route.HUMAN_REVIEW, Reason.MOST_UNCERTAIN, limit))
        else:
            decisions.append(Decision(Route.AUTO_ACCEPT, Reason.LEAST_UNCERTAIN, limit))
    return decisions


def _logprob(candidate: Candidate) -> float:
    logprob = candidate.scores.mean_logprob if candidate.scores else None
    return -math.inf if logprob is None or not math.isfinite(logprob) else logprob
