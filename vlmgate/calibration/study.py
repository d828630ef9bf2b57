"""All that a calibration finds out, from labelled readings: arithmetic, and no model.

Knows the order in which things are chosen; knows nothing of files, models or of how anything is shown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vlmgate.calibration.agreement import Agreement, agreement
from vlmgate.calibration.choose import (
    SUBSETS,
    Choice,
    Promise,
    SampleCounts,
    choose_score,
    compare_counts,
    design_part,
    promise,
)
from vlmgate.calibration.cost import Bills, Costs, Outcomes, compare_policies
from vlmgate.calibration.figures import Estimate, Vector, measure
from vlmgate.calibration.readings import OF_KERNEL, Evidence, Labelled, Mask, columns_there, evidence, in_own_units
from vlmgate.config import CalibrateConfig
from vlmgate.errors import LabelError
from vlmgate.gate.drift import COLUMNS, Kept
from vlmgate.gate.rules import HIGHER_IS_WORSE, Gate, Limit, never, parse_limit, safe_limit
from vlmgate.run.rescore import said_of
from vlmgate.scores.answers import parse, tally
from vlmgate.scores.kernels import Kernel
from vlmgate.scores.novelty import FEWEST, Reference, unpack

FEW = 20  # wrong readings, or right ones; with fewer every figure is shaky
_FEWEST_FEATURES = 30  # images of the design part; a reference of fewer would call half of the rest strange


@dataclass(frozen=True, slots=True)
class QualityRow:
    """How well one score tells wrong readings from right ones, on all labelled images."""

    score: str
    kernel: str | None  # null where no kernel has a say
    figures: Mapping[str, Estimate]


@dataclass(frozen=True, eq=False)
class Study:
    """What was found; see `study`."""

    config: CalibrateConfig
    labelled: Labelled
    design: Mask  # (N,)
    quality: tuple[QualityRow, ...]
    best: Choice  # on all images, cross-validated
    chosen: Choice  # on the design part; what the gate goes by
    counts: SampleCounts  # on all images
    proposed: int  # samples of the gate
    final: Evidence  # of the gate's samples and kernel, within its limits
    score: str  # that the gate goes by
    held_out: Mapping[str, Estimate]  # figures of that score on the images that certify
    promise: Promise | None  # null for the gate of least cost, which promises nothing
    bills: Bills | None
    costs: Costs | None
    agreement: Agreement | None
    repeats: tuple[int, int]  # readings per image that were compared with one another, samples of each
    reference: Reference | None  # of the design part's vision features
    novelty: Vector | None  # (N,) distance from it
    limits: tuple[Limit, ...]  # beside the calibrated one
    notes: tuple[str, ...]

    @cached_property
    def accepted(self) -> Mask:
        """Return (N,): what the gate accepts, nothing where there is none."""
        if self.promise is not None:
            return self.promise.accepts(self.final, self.score)
        found: Mask = self.final.gated(self.score) <= (
            -math.inf if self.bills is None or self.bills.cheapest is None else self.bills.cheapest
        )
        return found

    def gate(self) -> Gate | None:
        """Return the gate; None where nothing may be accepted."""
        if self.config.rule == "cost":
            threshold = None if self.bills is None else self.bills.cheapest
            if threshold is None:
                return None
            return Gate(self.score, in_own_units(self.score, threshold), limits=self.limits)
        if self.promise is None or not self.promise.holds:
            return None
        return _gate_of(self.promise, self.score, self.limits, self.labelled.choices)

    def drift(self) -> dict[str, Kept]:
        """Return how the columns that tell of drift are distributed, novelty on images that made no reference."""
        rest = ~self.design
        found: dict[str, Kept | None] = {}
        for column in COLUMNS:
            if column == "novelty":
                found[column] = None if self.novelty is None else Kept.of(self.novelty[rest])
            elif column in self.final.scores:
                sign = 1.0 if HIGHER_IS_WORSE[column] else -1.0
                found[column] = Kept.of(sign * self.final.scores[column])
            else:
                found[column] = Kept.of([getattr(record, column) for record in self.labelled.records])
        return {column: kept for column, kept in found.items() if kept is not None}


def _gate_of(made: Promise, score: str, limits: Sequence[Limit], choices: Sequence[str]) -> Gate:
    """Return the gate of a promise: its widest threshold, and for the answers of a narrower group a limit each."""
    steps = [(group.answers, group.certified.step) for group in made.groups]
    widest = max(step.threshold for _, step in steps if step is not None)
    narrower = []
    for answers, step in steps:
        for answer in answers or ():
            if step is None:
                narrower.append(never(score, answer))
            elif step.threshold < widest:
                narrower.append(safe_limit(score, in_own_units(score, step.threshold), answer))
    return Gate(score, in_own_units(score, widest), limits=(*limits, *narrower))


def study(
    labelled: Labelled, kernels: Mapping[str, Kernel], config: CalibrateConfig, costs: Costs | None = None
) -> Study:
    """Find out all of it; raises `LabelError` where the labels cannot support what is asked, whatever is done."""
    design = design_part(labelled)
    everything = np.ones(len(design), bool)
    reference, novelty = _features(labelled, design)
    limits, notes = _limits(labelled, config, novelty is not None)
    own = None if novelty is None else _values(novelty)  # scan --gate measures from that reference, too
    most = labelled.num_samples
    whole = [
        evidence(labelled, most, kernel, name=name, limits=limits, novelty=own) for name, kernel in kernels.items()
    ]
    _check(labelled, whole[0], config)
    graded = everything if config.rule == "cost" else design
    best = choose_score(whole, everything)
    chosen = choose_score(whole, graded, config.score)
    kernel = kernels[chosen.kernel]
    fewer = labelled.views == 1 and (labelled.kind != "verdict" or bool(labelled.choices))  # may be judged at all
    tried = [k for k in SUBSETS if k < most] + [most] if fewer else [most]
    if config.gate_samples is not None and config.gate_samples not in tried:
        tried = sorted({*tried, _asked(config.gate_samples, labelled)})
    several = {
        k: evidence(labelled, k, kernel, name=chosen.kernel, limits=limits, novelty=own) for k in tried if k != most
    }
    several[most] = next(one for one in whole if one.kernel == chosen.kernel)
    counts = compare_counts(list(several.values()), chosen.score, everything)
    proposed = compare_counts(list(several.values()), chosen.score, graded).proposed
    if config.gate_samples is not None:
        proposed = config.gate_samples
    final = several[proposed]
    for text in config.limits:
        parse_limit(text, proposed)  # a scan with so many samples must be able to read it
    made = (
        promise(
            labelled,
            final,
            chosen.score,
            design,
            kind=config.target,
            target=config.target_risk,
            confidence=config.confidence,
            per_answer=config.per_answer,
        )
        if config.rule == "guarantee"
        else None
    )
    rest = ~design
    told, repeats = _agreement(labelled, final)
    return Study(
        config=config,
        labelled=labelled,
        design=design,
        quality=_quality(whole),
        best=best,
        chosen=chosen,
        counts=counts,
        proposed=proposed,
        final=final,
        score=chosen.score,
        held_out=measure(final.gated(chosen.score)[rest], final.wrong[rest]) if rest.any() else {},
        promise=made,
        bills=_bills(labelled, final, chosen.score, made, config, costs),
        costs=costs,
        agreement=told,
        repeats=repeats,
        reference=reference,
        novelty=novelty,
        limits=limits,
        notes=(*labelled.notes, *notes, *_warnings(labelled, whole[0])),
    )


def _asked(samples: int, labelled: Labelled) -> int:
    if samples > labelled.num_samples or labelled.views > 1:
        raise LabelError(
            f"--gate-samples {samples}: {labelled.num_samples} samples were drawn"
            + (", from several views." if labelled.views > 1 else "; calibrate with more --num-samples.")
        )
    return samples


def _check(labelled: Labelled, whole: Evidence, config: CalibrateConfig) -> None:
    """Raise `LabelError` where nothing can be learnt, or what was asked for concerns nothing that is there."""
    if config.score is not None and config.score not in columns_there(whole):
        raise LabelError(
            f"--score {config.score}: these readings have none; they have {', '.join(columns_there(whole))}."
        )
    if config.per_answer and labelled.good is None:
        raise LabelError("--per-answer needs to know which class passes a part; name it with --good.")
    if config.target == "escapes" and (labelled.good is None or not labelled.bad.any()):
        raise LabelError(
            "--target escapes needs to know which class passes a part, and defective parts; name the class with --good."
        )
    if not whole.usable.any():
        why = ", ".join(f"{number:,} × {reason}" for reason, number in Counter(whole.barred).most_common(3))
        raise LabelError(
            f"no labelled image has a usable reading, so no gate would accept one ({why}); `vlmgate show RESULT "
            "--routed` shows them, and --label-map '0=good' gives classes names that a model can answer with."
        )


def _warnings(labelled: Labelled, whole: Evidence) -> list[str]:
    notes = []
    wrong, right = int(whole.wrong.sum()), int((~whole.wrong).sum())
    word = labelled.word
    other = "clear" if word == "ambiguous" else "right"
    for number, name in ((wrong, word), (right, other)):
        if number < FEW:
            notes.append(
                f"only {number:,} {name} reading{'' if number == 1 else 's'}: figures that tell {word} from {other} "
                f"are shaky, or none; label more images, {name} ones above all"
            )
    return notes


# --- vision features --------------------------------------------------------------------------------------------------


def _features(labelled: Labelled, design: Mask) -> tuple[Reference | None, Vector | None]:
    """Return a reference of the design part's features, and the distance (N,) of all images from it."""
    packed = [record.vision_features for record in labelled.records]
    lengths = [len(one) for one in packed if one]
    if not lengths:
        return None, None
    length = max(set(lengths), key=lengths.count)
    there = np.array([one is not None and len(one) == length for one in packed])
    if (there & design).sum() < max(FEWEST, _FEWEST_FEATURES):
        return None, None
    table = unpack([one for one, known in zip(packed, there, strict=True) if known and one])
    made_of = (str(r.sha256)[:16] for r, d, t in zip(labelled.records, design, there, strict=True) if d and t)
    reference = Reference.fit(table[design[there]], note=" ".join(made_of))
    return reference, np.round(reference.novelty_of(packed), 6)


def _values(novelty: Vector) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in novelty]


def _limits(labelled: Labelled, config: CalibrateConfig, known: bool) -> tuple[tuple[Limit, ...], list[str]]:
    limits = [parse_limit(text, labelled.num_samples) for text in config.limits]
    notes = []
    if any(limit.column == "novelty" for limit in limits):
        raise LabelError("--limit on novelty: use --novelty-limit, which is measured from the calibrated images.")
    if math.isfinite(config.novelty_limit):
        if known:
            limits.append(Limit("novelty", "<=", config.novelty_limit))
        else:
            notes.append(
                f"no limit on novelty: it takes vision features of {3 * _FEWEST_FEATURES} labelled images or more"
            )
    return tuple(limits), notes


# --- figures ----------------------------------------------------------------------------------------------------------


def _quality(whole: Sequence[Evidence]) -> tuple[QualityRow, ...]:
    rows = []
    for i, one in enumerate(whole):
        for column in columns_there(one):
            if i == 0 or column in OF_KERNEL:
                kernel = one.kernel if column in OF_KERNEL else None
                rows.append(QualityRow(column, kernel, measure(one.scores[column], one.wrong)))
    chance = np.random.default_rng(0).random(len(whole[0].wrong))
    return (*rows, QualityRow("random", None, measure(chance, whole[0].wrong)))


def _bills(
    labelled: Labelled, final: Evidence, score: str, made: Promise | None, config: CalibrateConfig, costs: Costs | None
) -> Bills | None:
    if costs is None:
        return None
    known = labelled.known
    bad, sound = labelled.bad & known, ~labelled.bad & known
    if labelled.good is None or not bad.any() or not sound.any():
        raise LabelError(
            "costs need to know which class passes a part, and good and defective parts; name the class with --good."
        )
    weights = np.ones(int(known.sum()))
    if config.defect_rate is not None:
        rate = config.defect_rate
        weights = np.where(bad[known], rate / bad.sum(), (1 - rate) / sound.sum())
    outcomes = Outcomes(bad[known], ~final.says(labelled.good)[known])
    guaranteed = made.accepts(final, score)[known] if made is not None and made.holds else None
    return compare_policies(final.gated(score)[known], outcomes, costs, guaranteed, weights)


def _agreement(labelled: Labelled, final: Evidence) -> tuple[Agreement | None, tuple[int, int]]:
    """Return the figures of agreement, and how many readings of how many samples each were compared.

    Samples are drawn independently, so disjoint runs of them are readings with other seeds.
    """
    if labelled.good is None or not labelled.known.all() or labelled.kind == "ambiguity":
        return None, (0, 0)
    each = final.num_samples
    if labelled.num_samples // each < 2:
        each = labelled.num_samples // 2
    times = labelled.num_samples // each
    repeats = []
    for record in labelled.records:
        answers = said_of(record).answers or ()
        parsed = [
            parse(a.text, labelled.choices) if a.finish == "stop" else parse("", labelled.choices) for a in answers
        ]
        repeats.append([tally(parsed[i * each : (i + 1) * each]).answer for i in range(times)] if parsed else [])
    truths = [truth or "" for truth in labelled.truths]
    return agreement(truths, final.answers, labelled.good, repeats), (times, each)
