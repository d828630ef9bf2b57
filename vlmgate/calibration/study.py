"""All that a calibration finds out from labelled readings; arithmetic, and no model. Call `study`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

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
from vlmgate.calibration.cost import Bills, Costs, Outcomes, compare_policies, line_weights
from vlmgate.calibration.figures import Agreement, Estimate, Mask, Vector, agreement, kappa, measure
from vlmgate.calibration.limits import deciding_novelty, limits_of
from vlmgate.calibration.parts import Numbers
from vlmgate.calibration.readings import OF_KERNEL, Evidence, Labelled, columns_there, evidence, in_own_units
from vlmgate.calibration.tries import Tried
from vlmgate.config import CalibrateConfig
from vlmgate.errors import LabelError, count
from vlmgate.gate.drift import COLUMNS, Kept
from vlmgate.gate.rules import HIGHER_IS_WORSE, Gate, Limit, never, parse_limit, safe_limit
from vlmgate.run.rescore import said_of
from vlmgate.scores.answer_probability import is_scored
from vlmgate.scores.diversity import Kernel
from vlmgate.scores.novelty import FEWEST, Reference, unpack
from vlmgate.scores.score import Scorer

_FEW_READINGS = 20  # wrong ones, or right ones; with fewer every figure is shaky
_ENOUGH_TO_SEE = 20  # images; of fewer, chance agrees or disagrees
_SLIGHT = 0.2  # kappa; what lies below is called slight (Landis & Koch, Biometrics 33, 1977)
_FEWEST_FEATURES = 30  # images of the design part; a reference of fewer would call half of the rest strange


@dataclass(frozen=True, slots=True)
class ScoreFigures:
    """How well one score tells wrong readings from right ones, on all labelled images, within the limits."""

    score: str
    kernel: str | None  # null where the score depends on none
    figures: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class Blindness:
    """Answers that have next to nothing to do with the labels."""

    answer: str  # the most frequent one
    times: int
    images: int
    bad: int  # defective parts among those with that answer
    kappa: float  # agreement beyond chance, at most 1


@dataclass(frozen=True, slots=True)
class Passed:
    """What the gate accepts, one image a part, against the labels."""

    figures: Agreement  # of what is accepted
    overkill: tuple[int, int] | None  # good parts accepted as defective, of all good ones; null without a good class
    escapes: tuple[int, int] | None  # defective parts accepted as good, of all defective ones


@dataclass(frozen=True, eq=False)
class Study:
    """What was found; see `study`."""

    config: CalibrateConfig
    labelled: Labelled
    design: Mask  # (N,)
    quality: tuple[ScoreFigures, ...]
    best: Choice  # on all images, cross-validated
    chosen: Choice  # on the design part; what the gate goes by
    counts: SampleCounts  # on all images
    final: Evidence  # of the gate's samples and kernel, within its limits
    promise: Promise | None  # null for the gate of least cost, which promises nothing
    bills: Bills | None  # null without costs
    costs: Costs | None
    agreement: Agreement | None
    repeats: tuple[int, int]  # readings per image that were compared with one another, samples of each
    reference: Reference | None  # of the design part's vision features
    novelty: Vector | None  # (N,) distance from it
    limits: tuple[Limit, ...]  # besides the calibrated one
    notes: tuple[str, ...]
    within: int  # images within the limits, which `quality` is of
    builtin: bool = False  # the built-in model read them, which knows rendered sample parts only
    tried: Tried | None = None  # what earlier tries on the same labels leave of a promise; null without any promise

    @property
    def promised(self) -> bool:
        """Say whether something is promised: the labels support it, and were not tried before."""
        return self.promise is not None and self.promise.holds and (self.tried is None or self.tried.holds)

    @property
    def score(self) -> str:
        """Return the score that the gate goes by."""
        return self.chosen.score

    @property
    def proposed(self) -> int:
        """Return the number of samples of the gate."""
        return self.final.num_samples

    @cached_property
    def held_out(self) -> Mapping[str, Estimate]:
        """Return the figures of the gate's score on the images that certify."""
        rest = ~self.design
        if not rest.any():
            return {}
        return measure(self.final.gated(self.score)[rest], self.final.wrong[rest], self.labelled.part_of[rest])

    @cached_property
    def accepted(self) -> Mask:
        """Return (N,): what the gate accepts, nothing where there is none."""
        if self.promise is not None:
            return self.promise.accepts(self.final, self.score)
        least = -math.inf if self.bills is None or self.bills.cheapest is None else self.bills.cheapest
        found: Mask = self.final.gated(self.score) <= least
        return found

    @cached_property
    def passed(self) -> Passed | None:
        """Return what the gate accepts against the labels; null without a gate, or where labels tell no class."""
        held = self.labelled
        part = held.stands & held.known & (~self.design if self.promise is not None else True)
        if held.kind == "ambiguity" or self.gate() is None or not part.any():
            return None
        accepted = part & self.accepted
        rows = np.flatnonzero(accepted)
        truths, answers = [held.truths[i] or "" for i in rows], [self.final.answers[i] for i in rows]
        figures = agreement(truths, answers, held.good or "")
        if held.good is None:
            return Passed(figures, None, None)
        says, bad = self.final.says(held.good), held.bad
        return Passed(
            figures,
            (int((accepted & ~bad & ~says).sum()), int((part & ~bad).sum())),
            (int((accepted & bad & says).sum()), int((part & bad).sum())),
        )

    @cached_property
    def blindness(self) -> Blindness | None:
        """Return that the answers have next to nothing to do with the labels, neither by class nor by good and bad."""
        held = self.labelled
        if held.kind != "class" or len(held.records) < _ENOUGH_TO_SEE:
            return None
        answers = [answer or "no answer" for answer in self.final.answers]
        pairs = [(list(held.labels), answers)]
        if held.good is not None:
            pairs.append(([str(t == held.good) for t in held.labels], [str(a == held.good) for a in answers]))
        agreed = max(kappa(*pair) or 0.0 for pair in pairs)
        if agreed >= _SLIGHT:
            return None
        answer, times = Counter(answers).most_common(1)[0]
        bad = sum(bool(b) and a == answer for b, a in zip(held.bad, answers, strict=True)) if held.good else 0
        return Blindness(answer, times, len(answers), bad, agreed)

    def gate(self) -> Gate | None:
        """Return the gate; None where nothing may be accepted."""
        if self.config.rule == "cost":
            threshold = None if self.bills is None else self.bills.cheapest
            if threshold is None:
                return None
            return Gate(self.score, in_own_units(self.score, threshold), limits=self.limits)
        if self.promise is None or not self.promise.holds:
            return None
        return _gate_of(self.promise, self.score, self.limits)

    def drift(self) -> dict[str, Kept]:
        """Return how the columns that show drift are distributed; novelty on images that made no reference."""
        found: dict[str, Kept | None] = {}
        stands = self.labelled.stands  # one image a part: a distribution is no surer for near copies
        for column in COLUMNS:
            if column == "novelty":
                found[column] = None if self.novelty is None else Kept.of(self.novelty[~self.design & stands])
            elif column in self.final.scores:
                sign = 1.0 if HIGHER_IS_WORSE[column] else -1.0
                found[column] = Kept.of(sign * self.final.scores[column][stands])
            else:
                rows = [r for r, one in zip(self.labelled.records, stands, strict=True) if one]
                found[column] = Kept.of([getattr(record, column) for record in rows])
        return {column: kept for column, kept in found.items() if kept is not None}


def _gate_of(made: Promise, score: str, limits: Sequence[Limit]) -> Gate:
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
    labelled: Labelled,
    kernels: Mapping[str, Kernel],
    config: CalibrateConfig,
    costs: Costs | None = None,
    tried: Tried | None = None,
) -> Study:
    """Find out all of it; raises `LabelError` where the labels cannot support what is asked, whatever is done.

    `tried` says what earlier tries on these labels leave: which images may certify, and at which confidence.
    """
    design, confidence = design_part(labelled), config.confidence
    if tried is not None and tried.holds:
        confidence = tried.confidence(confidence)
        if not tried.usable.all():  # what is new certifies, all of it
            design = ~tried.usable | (design & tried.touched)
    everything = np.ones(len(design), bool)
    reference, novelty = _features(labelled, design)
    why_none = _why_no_reference(labelled, design) if reference is None else None
    limits, notes = limits_of(labelled, design, config, why_none)
    own = deciding_novelty(labelled, novelty)  # as `scan --gate` measures it

    def scored(num_samples: int, kernel: str) -> Evidence:
        return evidence(labelled, num_samples, kernels[kernel], name=kernel, limits=limits, novelty=own)

    most = labelled.num_samples
    whole = {name: scored(most, name) for name in kernels}
    first, *_ = whole.values()
    _check(labelled, first, config)
    graded = everything if config.rule == "cost" else design
    parts = labelled.part_of
    best = choose_score([*whole.values()], everything, parts=parts)
    chosen = choose_score([*whole.values()], graded, config.score, parts)
    several = [scored(k, chosen.kernel) for k in _counts_to_try(labelled, config) if k != most]
    several.append(whole[chosen.kernel])
    proposed = config.gate_samples or compare_counts(several, chosen.score, graded, parts).proposed
    final = next(one for one in several if one.num_samples == proposed)
    for text in config.limits:
        parse_limit(text, proposed)  # a scan with so many samples must be able to read it
    made = None
    if config.rule == "guarantee":
        made = promise(
            labelled,
            final,
            chosen.score,
            design,
            kind=config.target,
            target=config.target_risk,
            confidence=confidence,
            per_answer=config.per_answer,
        )
    agreed, repeats = _agreement(labelled, final)
    return Study(
        config=config,
        labelled=labelled,
        design=design,
        quality=_quality([*whole.values()], parts),
        within=int(first.within.sum()),
        best=best,
        chosen=chosen,
        counts=compare_counts(several, chosen.score, everything, parts),
        final=final,
        promise=made,
        bills=None if costs is None else _bills(labelled, final, chosen.score, made, config, costs),
        costs=costs,
        agreement=agreed,
        repeats=repeats,
        reference=reference,
        novelty=novelty,
        limits=limits,
        notes=(*labelled.notes, *(tried.notes if tried else ()), *notes, *_warnings(labelled, first)),
        tried=tried,
    )


def _counts_to_try(labelled: Labelled, config: CalibrateConfig) -> list[int]:
    """Return the numbers of samples that are compared, rising; raises `LabelError` for one that was not drawn."""
    most, wanted = labelled.num_samples, config.gate_samples
    if labelled.views > 1 or (labelled.kind == "verdict" and not labelled.choices):  # fewer cannot be judged
        tried = {most}
    else:
        tried = {most, *(k for k in SUBSETS if k < most)}
    if wanted is not None and wanted not in tried:
        if wanted > most or labelled.views > 1:
            raise LabelError(
                f"--gate-samples {wanted}: {most} samples were drawn"
                + (", from several views." if labelled.views > 1 else "; calibrate with more --num-samples.")
            )
        tried.add(wanted)
    return sorted(tried)


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
    word = labelled.word
    other = "clear" if word == "ambiguous" else "right"
    counts = ((int(whole.wrong.sum()), word), (int((~whole.wrong).sum()), other))
    return [
        f"only {count(number, f'{name} reading')}: figures that tell {word} from {other} are shaky, "
        f"or none; label more images, {name} ones above all"
        for number, name in counts
        if number < _FEW_READINGS
    ]


def _features(labelled: Labelled, design: Mask) -> tuple[Reference | None, Vector | None]:
    """Return a reference of the design part's features, and the distance (N,) of all images from it."""
    packed = [record.vision_features for record in labelled.records]
    lengths = [len(one) for one in packed if one]
    if not lengths:
        return None, None
    length = max(set(lengths), key=lengths.count)
    there = np.array([one is not None and len(one) == length for one in packed])
    fitted = there & design & labelled.stands  # one image a part, or each would be its neighbour's near copy
    if fitted.sum() < max(FEWEST, _FEWEST_FEATURES):
        return None, None
    table = unpack([one for one, known in zip(packed, there, strict=True) if known and one])
    made_of = (str(r.sha256)[:16] for r, d, t in zip(labelled.records, design, there, strict=True) if d and t)
    reference = Reference.fit(table[fitted[there]], note=" ".join(made_of))
    return reference, np.round(reference.novelty_of(packed), 6)


def _why_no_reference(labelled: Labelled, design: Mask) -> str:
    there = np.array([record.vision_features is not None for record in labelled.records])
    if not there.any():
        return "the readings hold no vision features"
    what = "parts" if labelled.grouped else "images"
    return (
        f"it takes vision features of {_FEWEST_FEATURES} {what} that choose, and there are "
        f"{int((there & design & labelled.stands).sum()):,}; label more"
    )


def _quality(whole: Sequence[Evidence], parts: Numbers) -> tuple[ScoreFigures, ...]:
    """Return the figures of every score, and of chance, on the images that a gate might accept.

    What is beyond a limit comes last under every score, so these order the scores as `choose_score` does.
    """
    within = whole[0].within
    wrong, of = whole[0].wrong[within], np.asarray(parts)[within]
    rows = []
    for i, one in enumerate(whole):
        for column in columns_there(one):
            if i == 0 or column in OF_KERNEL:
                name = one.kernel if column in OF_KERNEL else None
                rows.append(ScoreFigures(column, name, measure(one.gated(column)[within], one.wrong[within], of)))
    chance = np.random.default_rng(0).random(len(wrong))
    return (*rows, ScoreFigures("random", None, measure(chance, wrong, of)))


def _bills(
    labelled: Labelled, final: Evidence, score: str, made: Promise | None, config: CalibrateConfig, costs: Costs
) -> Bills:
    known = labelled.known
    outcomes = outcomes_of(labelled, final, known)
    guaranteed = made.accepts(final, score)[known] if made is not None and made.holds else None
    weights = line_weights(outcomes.bad, config.defect_rate)
    parts = labelled.part_of[known]
    return compare_policies(final.gated(score)[known], outcomes, costs, guaranteed, weights, parts)


def outcomes_of(labelled: Labelled, one: Evidence, part: Mask) -> Outcomes:
    """Return what the readings of a part of the images would do; raises `LabelError` where costs mean nothing."""
    bad, known = labelled.bad, labelled.known
    if labelled.good is None or not (bad & known).any() or not (~bad & known).any():
        raise LabelError(
            "costs need to know which class passes a part, and good and defective parts; name the class with --good."
        )
    return Outcomes(bad[part], ~one.says(labelled.good)[part])


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
    scorer = Scorer(labelled.prompt, labelled.choices, terms=labelled.terms)
    answers = [said_of(record).answers or () for record in labelled.records]
    repeats = [
        [scorer.answer(several[i * each : (i + 1) * each] if not is_scored(several) else several) for i in range(times)]
        if several
        else []
        for several in answers
    ]
    truths = [truth or "" for truth in labelled.truths]
    return agreement(truths, final.answers, labelled.good, repeats), (times, each)
