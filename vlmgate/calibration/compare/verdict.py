"""Say in one plain sentence whether another model is worth it, and where one cannot tell.

Knows differences and how to put them; knows nothing of how they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping

from vlmgate.calibration.compare.compare import Comparison, Difference, Standing
from vlmgate.calibration.report import percent

_UNITS = {"aurc": "mean share of wrong readings among the accepted (AURC)", "cost": "cost per 1,000 images"}


def verdicts(found: Comparison) -> list[str]:
    """Return a sentence for each further model, beside the first."""
    first, *others = found.standings
    return [
        _verdict(found, first, other, differences) for other, differences in zip(others, found.differences, strict=True)
    ]


def _verdict(found: Comparison, first: Standing, other: Standing, differences: Mapping[str, Difference]) -> str:
    """Go by costs where they are known, else by AURC, which holds accuracy and how well doubt is told."""
    name = "cost" if found.costs else "aurc"
    one = differences[name]
    a, b = first.contestant.name, other.contestant.name
    slower = _slower(first, other)
    if not one.told:
        low, high = _signed(name, one.low), _signed(name, one.high)
        between = f"the difference in {_UNITS[name]} lies between {low} and {high}"
        these = f"with these {one.images:,} images"
        if one.needed is None:
            return f"Cannot tell {b} from {a} {these}, nor with any number that can be labelled: {between}."
        needed = f"it would take about {one.needed:,} if the difference is what it seems"
        return f"Cannot tell whether {b} is worth it instead of {a} {these}: {between}; {needed}."
    better = one.value < 0
    interval = f"{_signed(name, one.low)} to {_signed(name, one.high)}"
    if name == "cost":
        worth = "is worth it" if better else "is not worth it"
        spared = "saves" if better else "costs"
        more = "" if better else " more"
        figure = f"it {spared} {abs(one.value):,.0f}{more} per 1,000 images (difference {interval}, 95% interval)"
        return f"{b} {worth} instead of {a} on these images: {figure}{slower}."
    coverage = differences["coverage"]
    beside = ""
    if coverage.told:
        number = f"{100 * abs(coverage.value):.0f} {'more' if coverage.value > 0 else 'fewer'} in 100"
        beside = f", and {number} could be accepted at {percent(found.target_risk)} risk"
    tail = ""
    if better and "times the time" in slower:
        tail = "; whether that is worth it, your costs tell (--cost-escape, --cost-review)"
    return (
        f"{b} reads {'better' if better else 'worse'} than {a} on these images: AURC {_value(other)} instead of "
        f"{_value(first)} (difference {interval}, 95% interval){beside}{slower}{tail}."
    )


def _slower(first: Standing, other: Standing) -> str:
    if not first.seconds or not other.seconds:
        return ""
    ratio = other.seconds / first.seconds
    if ratio >= 1.05:
        return f"; it takes {ratio:.1f} times the time an image"
    return f"; it takes {ratio:.2f} of the time an image" if ratio <= 0.95 else "; it takes the same time an image"


def _value(standing: Standing) -> str:
    return f"{standing.aurc.value:.3f}"


def _signed(name: str, value: float) -> str:
    return f"{value:+,.0f}" if name == "cost" else f"{value:+.3f}"
