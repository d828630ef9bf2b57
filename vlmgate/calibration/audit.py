"""Count what people found among auto-accepted images, and bound what that says of all of them.

`audit` counts verdicts by route, `lines` puts the counts in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlmgate.calibration.guarantee import lower_bound, upper_bound
from vlmgate.calibration.labels import Labels
from vlmgate.data import Key, Record, Route

CONFIDENCE = 0.95  # of each bound


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
    by_name = {key: verdict for labels in several for key, verdict in labels.by_name.items()}
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
