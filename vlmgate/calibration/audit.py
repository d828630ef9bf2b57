"""Tally what people found among auto-accepted images, and what that says of all of them.

Knows rows, verdicts and bounds; knows nothing of pages, gates or of how anything is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlmgate.calibration.guarantee import lower_bound, upper_bound
from vlmgate.calibration.labels import Labels
from vlmgate.data import Record, Route

CONFIDENCE = 0.95  # of each bound


@dataclass(frozen=True, slots=True)
class Tally:
    """Verdicts on the images of one route."""

    images: int  # with that route and a reading, each content once
    checked: int  # with a verdict
    wrong: int  # of those, wrong or unusable
    low: float | None  # one-sided bounds of the true share of wrong readings; null where nothing was checked
    high: float | None


@dataclass(frozen=True, slots=True)
class Audit:
    """What the verdicts say of what a gate let through, and of what it held back."""

    accepted: Tally
    routed: Tally
    unmatched: int  # verdicts on images that the result does not hold


def audit(records: Sequence[Record], several: Sequence[Labels]) -> Audit:
    """Count verdicts by route; of an image with several, the last counts.

    The bounds are those of Clopper & Pearson. They hold where the checked images are a random sample of their route, as
    `vlmgate review --accepted` draws them.
    """
    by_content = {key: verdict for labels in several for key, verdict in labels.by_content.items()}
    by_name = {key: verdict for labels in several for key, verdict in labels.by_name.items()}
    seen: dict[tuple[str, int], tuple[str, str | None]] = {}
    matched: set[tuple[str, int]] = set()
    for record in records:
        if record.captions is None or record.sha256 is None:
            continue
        content, name = (record.sha256, record.page), (record.file_name, record.page)
        verdict = by_content.get(content) or by_name.get(name)
        matched |= {key for key in (content, name) if key in by_content or key in by_name}
        if content not in seen or verdict is not None:
            seen[content] = (record.route, verdict)
    told = by_content or by_name
    return Audit(
        accepted=_tally([verdict for route, verdict in seen.values() if route == Route.AUTO_ACCEPT]),
        routed=_tally([verdict for route, verdict in seen.values() if route == Route.HUMAN_REVIEW]),
        unmatched=sum(key not in matched for key in told),
    )


def _tally(verdicts: Sequence[str | None]) -> Tally:
    judged = [verdict for verdict in verdicts if verdict is not None]
    wrong = sum(verdict != "correct" for verdict in judged)
    if not judged:
        return Tally(len(verdicts), 0, 0, None, None)
    bounds = lower_bound(wrong, len(judged), CONFIDENCE), upper_bound(wrong, len(judged), CONFIDENCE)
    return Tally(len(verdicts), len(judged), wrong, *bounds)


def lines(found: Audit) -> list[str]:
    """Return the tally in words."""
    told = []
    for tally, name, bound in ((found.accepted, "auto-accepted", "at most"), (found.routed, "routed", "at least")):
        if not tally.checked or tally.low is None or tally.high is None:
            told.append(f"Of {tally.images:,} {name} images nobody has judged one.")
            continue
        value = tally.high if bound == "at most" else tally.low
        told.append(
            f"Of {tally.images:,} {name} images {tally.checked:,} were judged, {tally.wrong:,} of them wrong or "
            f"unusable; with {CONFIDENCE:.0%} confidence {bound} {value:.2%} of all are, if they were drawn at random."
        )
    if found.unmatched:
        told.append(f"{found.unmatched:,} verdicts are on images that this result does not hold.")
    return told
