"""What can be said of a rate after counting errors: exact binomial bounds, `certify` a threshold, `audit` a gate.

All rates are shares of wrong readings in [0, 1]; higher is worse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vlmgate.calibration.labels import Labels, respelt
from vlmgate.data import Key, Record, Route

CONFIDENCE = 0.95  # of each bound of an audit


def upper_bound(errors: int, count: int, confidence: float) -> float:
    """Return the exact one-sided upper bound of a rate after `errors` in `count`, in [0, 1]; 1 after no count at all.

    Clopper & Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial" (Biometrika
    26, 1934): the rate at which so few errors have a chance of 1 − confidence.
    """
    from scipy.special import betaincinv

    _check(errors, count, confidence)
    return 1.0 if errors >= count else float(betaincinv(errors + 1, count - errors, confidence))


def lower_bound(errors: int, count: int, confidence: float) -> float:
    """Return the exact one-sided lower bound of a rate after `errors` in `count`, in [0, 1]."""
    from scipy.special import betaincinv

    _check(errors, count, confidence)
    return 0.0 if errors == 0 else float(betaincinv(errors, count - errors + 1, 1 - confidence))


def interval(part: int, whole: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the exact two-sided interval of a share, in [0, 1]; all of it after no count at all."""
    each = 1 - (1 - confidence) / 2
    return (lower_bound(part, whole, each), upper_bound(part, whole, each)) if whole else (0.0, 1.0)


def images_needed(target: float, confidence: float, errors: int = 0) -> int:
    """Return how many accepted images with that many errors it takes to certify `target`, a rate in (0, 1).

    Without errors the least n with (1 − target)^n ≤ 1 − confidence: 299 for 1 % at 95 %.
    """
    from scipy.special import betainc

    _check(errors, errors, confidence)
    if not 0 < target < 1:
        raise ValueError(f"a target risk of {target} can be certified by no number of images; between 0 and 1 it can.")
    low, high = errors, max(8, 2 * errors)
    while betainc(errors + 1, high - errors, target) < confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if middle > errors and betainc(errors + 1, middle - errors, target) >= confidence:
            high = middle
        else:
            low = middle
    return high


@dataclass(frozen=True, slots=True)
class Step:
    """A threshold with what was counted up to it on the images that certify."""

    threshold: float
    errors: int
    count: int


@dataclass(frozen=True, slots=True)
class Certified:
    """How far a promise holds."""

    step: Step | None  # the widest threshold of which it holds; null where it holds of none
    bound: float | None  # upper bound of the rate there


def certify(steps: Sequence[Step], target: float, confidence: float) -> Certified:
    """Test thresholds one after the other, from the safest; return the widest before the first that fails.

    Fixed-sequence testing needs no correction for how many thresholds are tried, provided that their order, and the
    one to begin with, were fixed before these labels were seen: Angelopoulos et al., "Learn then Test" (2021). The
    chance that the true rate at the result exceeds `target` is at most 1 − confidence.
    """
    found = Certified(None, None)
    for step in steps:
        bound = upper_bound(step.errors, step.count, confidence)
        if bound > target:
            break
        found = Certified(step, bound)
    return found


def _check(errors: int, count: int, confidence: float) -> None:
    if not 0 <= errors <= count:
        raise ValueError(f"{errors} errors among {count} images: cannot be.")
    if not (math.isfinite(confidence) and 0 < confidence < 1):
        raise ValueError(f"confidence is {confidence}; allowed: between 0 and 1.")


@dataclass(frozen=True, slots=True)
class Judged:
    """Verdicts on the images of one route."""

    images: int  # with that route and a reading, each content once
    checked: int  # with a verdict
    wrong: int  # of those, wrong or unusable
    low: float | None  # one-sided bounds of the true share of wrong readings; null where nothing was checked
    high: float | None


@dataclass(frozen=True, slots=True)
class Audit:
    """What the verdicts say of what a gate let through, and of what it held back."""

    accepted: Judged
    routed: Judged
    unmatched: int  # verdicts on images that the result does not hold


def audit(records: Sequence[Record], several: Sequence[Labels]) -> Audit:
    """Count verdicts by route; of an image with several, the last counts.

    The bounds are those of Clopper & Pearson. They hold where the checked images are a random sample of their route, as
    `vlmgate review --accepted` draws them.
    """
    by_content = {key: verdict for labels in several for key, verdict in labels.by_content.items()}
    names = {record.file_name for record in records}
    by_name = respelt({key: verdict for labels in several for key, verdict in labels.by_name.items()}, names)
    seen: dict[Key, tuple[str, str | None]] = {}
    matched: set[tuple[str, int]] = set()
    for record in records:
        if record.captions is None or record.sha256 is None:
            continue
        content, name = (record.sha256, record.page), (record.file_name, record.page)
        verdict = by_content.get(content) or by_name.get(name)
        matched |= {key for key in (content, name) if key in by_content or key in by_name}
        if content not in seen or verdict is not None:
            seen[content] = (record.route, verdict)
    return Audit(
        accepted=_judged([verdict for route, verdict in seen.values() if route == Route.AUTO_ACCEPT]),
        routed=_judged([verdict for route, verdict in seen.values() if route == Route.HUMAN_REVIEW]),
        unmatched=sum(key not in matched for key in by_content or by_name),
    )


def _judged(verdicts: Sequence[str | None]) -> Judged:
    judged = [verdict for verdict in verdicts if verdict is not None]
    wrong = sum(verdict != "correct" for verdict in judged)
    if not judged:
        return Judged(len(verdicts), 0, 0, None, None)
    bounds = lower_bound(wrong, len(judged), CONFIDENCE), upper_bound(wrong, len(judged), CONFIDENCE)
    return Judged(len(verdicts), len(judged), wrong, *bounds)


def lines(found: Audit) -> list[str]:
    """Return the tally in words."""
    text = []
    for judged, name, bound in ((found.accepted, "auto-accepted", "at most"), (found.routed, "routed", "at least")):
        if not judged.checked or judged.low is None or judged.high is None:
            text.append(f"Of {judged.images:,} {name} images nobody has judged one.")
            continue
        value = judged.high if bound == "at most" else judged.low
        text.append(
            f"Of {judged.images:,} {name} images {judged.checked:,} were judged, {judged.wrong:,} of them wrong or "
            f"unusable; with {CONFIDENCE:.0%} confidence {bound} {value:.2%} of all are, if they were drawn at random."
        )
    if found.unmatched:
        text.append(f"{found.unmatched:,} verdicts are on images that this result does not hold.")
    return text
