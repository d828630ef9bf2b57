"""Compare several models' readings of the same labelled images; arithmetic, and no model. Call `compare`.

Whatever is compared is compared on the same images: each resample draws images, and every model is measured on those
(a paired bootstrap).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vlmgate.calibration.choose import SUBSETS, design_part, promise
from vlmgate.calibration.cost import Costs, bill, line_weights
from vlmgate.calibration.figures import RESAMPLES, Estimate, Ladder, Mask, Vector, estimate, resampled
from vlmgate.calibration.parts import Numbers
from vlmgate.calibration.readings import Evidence, Labelled, columns_there, evidence
from vlmgate.calibration.study import outcomes_of
from vlmgate.errors import LabelError
from vlmgate.report.terminal import notices

POWER = 1.96 + 0.84  # standard errors that a difference needs to be seen in four trials of five
_FEWEST = 20  # images; fewer show nothing
_ENOUGH = 1_000_000  # images; who needs more needs no difference


@dataclass(frozen=True, slots=True, eq=False)
class Contestant:
    """One model's readings."""

    name: str
    labelled: Labelled
    provenance: Mapping[str, Any]
    seconds: Mapping[int, float]  # an image, by number of samples; empty where nobody has measured
    memory: int | None  # bytes at the most; null where nobody has measured

    @property
    def parameters(self) -> int | None:
        """Return how many the model has."""
        found = (self.provenance.get("model") or {}).get("num_parameters")
        return found if isinstance(found, int) else None

    @property
    def device(self) -> str:
        """Return where it ran, and in what: "cpu float32"."""
        model = self.provenance.get("model") or {}
        return f"{model.get('device', '?')} {model.get('dtype', '?')}"


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """What one model is worth."""

    contestant: Contestant
    accuracy: Estimate  # of all images
    aurc: Estimate  # this and the next two of the images that the score was not chosen on
    coverage: Estimate  # at the target risk, in hindsight
    promised: float | None  # coverage of a gate with a promise; null where there is none
    seconds: float | None  # an image
    by_samples: tuple[tuple[int, float, float], ...]  # (samples, seconds an image, AURC), as far as timed
    cost: Estimate | None = None  # per 1,000 images, of the cheapest gate, in hindsight; null without costs


def letter(number: int) -> str:
    """Return what stands for a model in a picture: A, B, …, Z, A2, …"""
    return chr(ord("A") + number % 26) + (str(number // 26 + 1) if number >= 26 else "")


@dataclass(frozen=True, slots=True)
class Difference:
    """What another model has more than the first; with its 95 % interval and standard error."""

    figure: str
    value: float
    low: float
    high: float
    error: float
    images: int

    @property
    def told(self) -> bool:
        """Say whether the images can tell the two apart."""
        return self.low > 0 or self.high < 0

    @property
    def needed(self) -> int | None:
        """Return how many labelled images would tell them apart, were the difference what it seems; null if too many.

        Standard errors shrink with the root of the number: n images tell a difference d with four chances in five at
        95 % where d is 2.8 standard errors.
        """
        if not self.value or not self.error:
            return None
        needed = self.images * (POWER * self.error / abs(self.value)) ** 2
        return math.ceil(needed) if needed <= _ENOUGH else None


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """All models, and what each has more than the first."""

    standings: tuple[Standing, ...]
    differences: tuple[Mapping[str, Difference], ...]  # of each further model from the first, by figure
    images: int  # labelled ones that every model has read
    graded: int  # of these, those that no score was chosen on
    num_samples: int  # that every model is judged by
    score: str  # that images are ordered by
    target_risk: float
    confidence: float
    costs: bool
    notes: tuple[str, ...]


def compare(
    contestants: Sequence[Contestant],
    *,
    target_risk: float,
    confidence: float,
    score: str | None = None,
    costs: Sequence[Costs] | None = None,
    defect_rate: float | None = None,
) -> Comparison:
    """Measure every model on the images that all have read; raises `LabelError` where that says nothing.

    The score that images are ordered by is the same for every model, or chance in choosing it would pass for a
    difference. It is that of least mean AURC on a third of the images, picked by their hashes; the others grade it. A
    given `score` is graded on all. `costs` has one for each model.
    """
    contestants, notes = _in_common(contestants)
    samples = min(one.labelled.num_samples for one in contestants)
    design = design_part(contestants[0].labelled)
    graded = np.ones(len(design), bool) if score else ~design
    stands = contestants[0].labelled.stands  # one image a part
    if (graded & stands).sum() < _FEWEST or (not score and (design & stands).sum() < _FEWEST // 2):
        what = "parts" if contestants[0].labelled.grouped else "images"
        raise LabelError(f"{int(stands.sum()):,} labelled {what} that every model has read are too few; label more.")
    sides = [evidence(one.labelled, samples) for one in contestants]
    column = _score_of_all(contestants, sides, design, score)
    prices = [None] * len(sides) if costs is None else [*costs]
    figures = []
    for one, side, price in zip(contestants, sides, prices, strict=True):
        figures.append(_figures(side, column, graded, target_risk))
        if price is not None:
            least = _least_cost(one.labelled, side, column, graded, price, defect_rate)
            figures[-1]["cost"] = _Figure(least, int(graded.sum()))
    drawn = _resampled(figures, contestants[0].labelled.part_of, graded)
    whole = [
        {name: float(figure.of(np.ones((1, figure.images)))[0]) for name, figure in one.items()} for one in figures
    ]
    standings = []
    for i, (one, side) in enumerate(zip(contestants, sides, strict=True)):
        made = promise(one.labelled, side, column, design, kind="risk", target=target_risk, confidence=confidence)
        standings.append(
            Standing(
                contestant=one,
                promised=made.coverage if made.holds else None,
                seconds=one.seconds.get(samples),
                by_samples=_by_samples(one, column, graded),
                **{name: estimate(value, drawn[i][name]) for name, value in whole[i].items()},
            )
        )
    differences = tuple(
        {
            name: _difference(name, whole[i][name] - whole[0][name], drawn[i][name] - drawn[0][name], figure.images)
            for name, figure in figures[0].items()
        }
        for i in range(1, len(contestants))
    )
    return Comparison(
        standings=tuple(standings),
        differences=differences,
        images=len(design),
        graded=int(graded.sum()),
        num_samples=samples,
        score=column,
        target_risk=target_risk,
        confidence=confidence,
        costs=costs is not None,
        notes=(*notes, *_other_settings(contestants), *(text.removesuffix(".") for text in _disowned(contestants))),
    )


def _in_common(contestants: Sequence[Contestant]) -> tuple[list[Contestant], list[str]]:
    """Return all with the images that every one has read, in one order."""
    held = [{(r.sha256, r.page): i for i, r in enumerate(one.labelled.records)} for one in contestants]
    common = sorted(set.intersection(*(set(keys) for keys in held)), key=str)
    if not common:
        raise LabelError("no labelled image was read by every model; compare results of the same images.")
    notes = [
        f"{len(keys) - len(common):,} images that {one.name} has read and another has not are left out"
        for one, keys in zip(contestants, held, strict=True)
        if len(keys) > len(common)
    ]
    notes += [f"{one.name}: {text}" for one in contestants for text in one.labelled.notes]
    kept = [one.labelled.only([keys[key] for key in common]) for one, keys in zip(contestants, held, strict=True)]
    # One set of parts for all, that of the first model that tells any: each model sees near copies in its own way.
    parts = next((one.parts for one in kept if one.parts), ())
    return [replace(one, labelled=replace(k, parts=parts)) for one, k in zip(contestants, kept, strict=True)], notes


def _disowned(contestants: Sequence[Contestant]) -> list[str]:
    """Return what must be known of a model that is compared, each text once."""
    return [*dict.fromkeys(text for one in contestants for text in notices(one.provenance))]


def _other_settings(contestants: Sequence[Contestant]) -> list[str]:
    """Say which settings differed between models."""
    notes = []
    first = contestants[0].provenance["sampling"]
    for one in contestants[1:]:
        its = one.provenance["sampling"]
        keys = ("prompt", "question", "choices", "temperature", "top_p", "top_k", "max_new_tokens", "seed", "views")
        other = [key.replace("_", " ") for key in keys if its.get(key) != first.get(key)]
        if other:
            notes.append(f"{one.name} was read with another {', '.join(other)} than {contestants[0].name}")
    if len({one.device for one in contestants}) > 1:
        notes.append("times were taken on different devices: " + ", ".join(f"{c.name} {c.device}" for c in contestants))
    return notes


def _score_of_all(contestants: Sequence[Contestant], sides: Sequence[Evidence], design: Mask, score: str | None) -> str:
    """Return the score that is best on the design part, over all models; raises `LabelError` where one has it not."""
    for one, found in zip(contestants, sides, strict=True):
        if score is not None and score not in columns_there(found):
            raise LabelError(f"--score {score}: {one.name} has none; it has {', '.join(columns_there(found))}.")
    if score is not None:
        return score
    shared = [column for column in columns_there(sides[0]) if all(column in columns_there(side) for side in sides)]
    areas = [
        sum(float(Ladder.of(side.gated(column)[design], side.wrong[design]).aurc()[0]) for side in sides)
        for column in shared
    ]
    return shared[int(np.argmin(np.round(areas, 9)))]


@dataclass(frozen=True, slots=True, eq=False)
class _Figure:
    """A figure of one model that any resample of its images can be asked for."""

    of: Callable[[Vector], Vector]  # weights (R, N) → (R,)
    images: int  # N: all, or those that no score was chosen on


def _figures(found: Evidence, column: str, graded: Mask, target: float) -> dict[str, _Figure]:
    score, wrong, count = found.gated(column)[graded], found.wrong[graded], int(graded.sum())
    return {
        "accuracy": _Figure(lambda w: 1 - (w @ found.wrong.astype(float)) / w.sum(axis=1), len(graded)),
        "aurc": _Figure(lambda w: Ladder.of(score, wrong, w).aurc(), count),
        "coverage": _Figure(lambda w: Ladder.of(score, wrong, w).coverage_at(target), count),
    }


def _least_cost(
    labelled: Labelled, found: Evidence, column: str, graded: Mask, costs: Costs, defect_rate: float | None
) -> Callable[[Vector], Vector]:
    """Return what gives (R,) the cost per 1,000 images of the gate that is cheapest in each resample.

    Every resample chooses its own threshold. With thresholds that were chosen once and for all, by whatever part of the
    images, chance in choosing them would pass for a difference: 19 % of equal pairs were told apart, now it is 2.5 %
    (tests.bench.compare).
    """
    outcomes = outcomes_of(labelled, found, graded)
    score, weights = found.gated(column)[graded], line_weights(labelled.bad, defect_rate)[graded]

    def least(drawn: Vector) -> Vector:
        cost: Vector = bill(score, outcomes, costs, drawn * weights).gated.min(axis=1)
        return cost

    return least


def _resampled(figures: Sequence[Mapping[str, _Figure]], parts: Numbers, graded: Mask) -> list[dict[str, Vector]]:
    """Return every figure of every model in each of R resamples of whole parts, the same ones for all models."""
    drawn: list[dict[str, list[Vector]]] = [{name: [] for name in one} for one in figures]
    for count in {figure.images for figure in figures[0].values()}:
        for weights in resampled(count, 0, RESAMPLES, parts if count == len(parts) else parts[graded]):
            for found, one in zip(drawn, figures, strict=True):
                for name, figure in one.items():
                    if figure.images == count:
                        found[name].append(figure.of(weights))
    return [{name: np.concatenate(some) for name, some in one.items()} for one in drawn]


def _by_samples(one: Contestant, column: str, graded: Mask) -> tuple[tuple[int, float, float], ...]:
    """Return (samples, seconds an image, AURC) for every number of samples that was timed."""
    found = []
    for k in (k for k in SUBSETS if k <= one.labelled.num_samples and k in one.seconds):
        fewer = evidence(one.labelled, k)
        area = Ladder.of(fewer.gated(column)[graded], fewer.wrong[graded]).aurc()[0]
        found.append((k, one.seconds[k], float(area)))
    return tuple(found)


def _difference(name: str, value: float, drawn: Vector, images: int) -> Difference:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(name, value, float(low), float(high), float(np.std(drawn)), images)
