"""Choose a score, a number of samples and thresholds, such that what is promised of them stays exact.

Knows evidence, masks and counts; knows nothing of files, costs or how anything is shown.

Whatever is chosen by looking at labels may not be graded by the same labels. So a third of the images, told by their
hashes, is there to choose on (the design part): score, samples, the threshold to begin with, one limit or one for each
kind of answer. The other two thirds certify what was chosen, by fixed-sequence testing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vlmgate.calibration.figures import FIGURES, Ladder, Vector, resampled
from vlmgate.calibration.guarantee import Certified, Step, certify, images_needed, upper_bound
from vlmgate.calibration.readings import OF_KERNEL, Evidence, Labelled, Mask, columns_there, drawn

DESIGN_SHARE = 1 / 3
FOLDS = 5
SUBSETS = (2, 3, 4, 6, 8, 12, 16)
_RESAMPLES = 400
_ENOUGH = 10_000_000  # images; nobody labels more
_FEW = 20  # accepted images; of fewer no rate can be told

Target = Literal["risk", "escapes"]


def design_part(labelled: Labelled) -> Mask:
    """Return (N,): the images to choose on; which they are follows from their bytes alone."""
    return np.array([drawn(record, "design") < DESIGN_SHARE for record in labelled.records])


# --- which score ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """The score of least AURC, and what it is worth on images that had no part in choosing it."""

    kernel: str
    score: str
    held_out: dict[str, float | None]  # figure → mean over folds of what was chosen on the others
    folds: tuple[str, ...]  # what each fold's others chose, as "score (kernel)"

    @property
    def name(self) -> str:
        """Return the score with its kernel, where that has a say."""
        return named(self.kernel, self.score)


def choose_score(candidates: Sequence[Evidence], of: Mask, only: str | None = None) -> Choice:
    """Return the best score under any kernel on some images, cross-validated; with `only`, the best kernel for that.

    In each fold the score that is best on the others is measured on the fold; the figures are the means. Among equals
    the first wins, in the order of `SCORES`.
    """
    pairs = [(one, c) for one in candidates for c in columns_there(one) if only is None or c == only]
    fold = np.random.default_rng(0).permutation(len(of)) % FOLDS
    figures: dict[str, list[float]] = {name: [] for name in FIGURES}
    chosen = []
    for i in range(FOLDS):
        fitted, held = of & (fold != i), of & (fold == i)
        if not fitted.any() or not held.any():
            continue
        one, column = _least_aurc(pairs, fitted)
        chosen.append(named(one.kernel, column))
        ladder = Ladder.of(one.gated(column)[held], one.wrong[held])
        for name, figure in FIGURES.items():
            figures[name].append(float(figure(ladder)[0]))
    one, column = _least_aurc(pairs, of)
    return Choice(one.kernel, column, {name: _mean(values) for name, values in figures.items()}, tuple(chosen))


def _least_aurc(pairs: Sequence[tuple[Evidence, str]], of: Mask) -> tuple[Evidence, str]:
    areas = [float(Ladder.of(one.gated(column)[of], one.wrong[of]).aurc()[0]) for one, column in pairs]
    return pairs[int(np.argmin(np.round(areas, 9)))]


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else None


def named(kernel: str, column: str) -> str:
    """Return a score with its kernel, where that has a say: "vendi_score (words)"."""
    return f"{column} ({kernel})" if column in OF_KERNEL else column


# --- how many samples -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SampleCount:
    """What the first K samples of each image are worth."""

    num_samples: int  # K
    aurc: float  # lower is better
    behind: float  # AURC above that of the best K
    error: float  # standard error of that difference, of paired resamples; 0 for the best itself


@dataclass(frozen=True, slots=True)
class SampleCounts:
    """AURC by number of samples, and the fewest that will do."""

    rows: tuple[SampleCount, ...]
    best: int
    proposed: int


def compare_counts(several: Sequence[Evidence], score: str, of: Mask, *, seed: int = 0) -> SampleCounts:
    """Return AURC for each K and the smallest K that is at most one standard error behind the best.

    The rule is that of Breiman et al. ("Classification and Regression Trees", 1984), with the error of the paired
    difference: every K is measured on the same images.
    """
    vectors = [(one.gated(score)[of], one.wrong[of]) for one in several]
    areas = [float(Ladder.of(*pair).aurc()[0]) for pair in vectors]
    best = int(np.argmin(np.round(areas, 9)))
    draws: list[list[Vector]] = [[] for _ in several]
    for weights in resampled(int(of.sum()), seed, _RESAMPLES):
        for i, pair in enumerate(vectors):
            draws[i].append(Ladder.of(*pair, weights).aurc())
    spread = [np.concatenate(some) for some in draws]
    rows = tuple(
        SampleCount(one.num_samples, area, area - areas[best], float(np.std(drawn_areas - spread[best])))
        for one, area, drawn_areas in zip(several, areas, spread, strict=True)
    )
    proposed = next(row for row in rows if row.behind <= row.error + 1e-12)
    return SampleCounts(rows, several[best].num_samples, proposed.num_samples)


# --- which thresholds -------------------------------------------------------------------------------------------------


Answers = tuple[str, ...] | None  # readings that share a threshold: those with some answers; None = all


@dataclass(frozen=True, slots=True)
class GroupResult:
    """The limit of one group, in units of the turned score, and what was counted up to it."""

    answers: Answers
    certified: Certified


@dataclass(frozen=True, slots=True)
class Promise:
    """What can be said of the gate with the confidence asked for, or why nothing can."""

    target_kind: Target
    target: float
    confidence: float
    groups: tuple[GroupResult, ...]
    errors: int  # on the images that certify, within all limits
    count: int  # accepted images, or truly defective ones for escapes
    bound: float | None  # upper bound of the rate; null where nothing is promised
    coverage: float  # share of the certifying images that is accepted, [0, 1]
    overkill: tuple[int, int] | None  # good parts accepted as defective, of all good ones that certify
    needed: int | None  # labelled images that it would take, where nothing is promised; null if no number would do
    per_answer: bool = False

    @property
    def holds(self) -> bool:
        """Say whether there is a promise."""
        return self.bound is not None

    def accepts(self, one: Evidence, score: str) -> Mask:
        """Return (N,): what its limits accept."""
        values = one.gated(score)
        accepted = np.zeros(len(values), bool)
        for group in self.groups:
            if group.certified.step is not None:
                inside = _inside(one, group.answers)
                accepted |= inside & (values <= group.certified.step.threshold)
        return accepted


def promise(
    labelled: Labelled,
    one: Evidence,
    score: str,
    design: Mask,
    *,
    kind: Target,
    target: float,
    confidence: float,
    per_answer: bool = False,
) -> Promise:
    """Return the widest limits of which the promise holds.

    "risk": of accepted readings, at most `target` are wrong. "escapes": of truly defective parts, at most `target` pass
    as good. With `per_answer` the good answer may have a limit of its own; both groups are tested at half the chance of
    being wrong, and that is kept only where it accepts more on the design part.
    """
    groups: list[Answers] = [None]
    if per_answer and labelled.good is not None:
        apart: list[Answers] = [(labelled.good,), tuple(c for c in labelled.choices if c != labelled.good)]
        foreseen = [
            _tested(labelled, one, score, design, some, kind, target, confidence, foresee=True)
            for some in (groups, apart)
        ]
        if foreseen[1].coverage > foreseen[0].coverage:
            groups = apart
    made = _tested(labelled, one, score, design, groups, kind, target, confidence)
    needed = None if made.holds else _needed(labelled, one, score, kind, target, confidence)
    return replace(made, needed=needed, per_answer=len(groups) > 1)


def _inside(one: Evidence, answers: Answers) -> Mask:
    """Return (N,): which readings a group holds."""
    if answers is None:
        return np.ones(len(one.answers), bool)
    return np.isin(np.array([answer or "" for answer in one.answers]), answers)


def _errors(labelled: Labelled, one: Evidence, kind: Target) -> Mask:
    """Return (N,): what a promise of this kind counts, if it is accepted."""
    return one.wrong if kind == "risk" else labelled.bad & one.says(labelled.good)


def _tested(
    labelled: Labelled,
    one: Evidence,
    score: str,
    design: Mask,
    groups: Sequence[Answers],
    kind: Target,
    target: float,
    confidence: float,
    *,
    foresee: bool = False,
) -> Promise:
    """Test each group's thresholds; with `foresee`, on the design part's own counts scaled to the rest's size."""
    values = one.gated(score)
    rest = ~design
    base = labelled.bad
    error = _errors(labelled, one, kind)
    scale = float(rest.sum() / max(1, design.sum()))
    share = 1 - (1 - confidence) / len(groups)
    results = []
    for answers in groups:
        inside = _inside(one, answers)
        grid = np.unique(values[design & inside & np.isfinite(values)])
        fixed = None if kind == "risk" else int((base & design).sum())
        seen = _steps(values, error, design & inside, grid, fixed)
        begin = _start(seen, scale, share) if kind == "risk" else 0
        if foresee:
            tried = [Step(s.threshold, round(s.errors * scale), round(s.count * scale)) for s in seen]
        else:
            fixed = None if kind == "risk" else int((base & rest).sum())
            tried = _steps(values, error, rest & inside, grid, fixed)
        tested = certify(tried[begin:], target, share)
        results.append(GroupResult(answers, tested))
    counted = design if foresee else rest
    return _promised(labelled, one, score, counted, results, kind, target, confidence)


def _promised(
    labelled: Labelled,
    one: Evidence,
    score: str,
    counted: Mask,
    results: Sequence[GroupResult],
    kind: Target,
    target: float,
    confidence: float,
) -> Promise:
    """Return what was counted within all limits; how many labels it would take is not known here."""
    empty = Promise(kind, target, confidence, tuple(results), 0, 0, None, 0.0, None, None)
    accepted = empty.accepts(one, score) & counted
    base = accepted if kind == "risk" else labelled.bad & counted
    errors, count = int((_errors(labelled, one, kind) & accepted).sum()), int(base.sum())
    bounds = [result.certified.bound for result in results if result.certified.bound is not None]
    sound = labelled.known & ~labelled.bad & counted
    rejected = accepted & sound & ~one.says(labelled.good)
    held = bool(bounds) and accepted.any()
    # Of groups that are promised apart the whole is no worse than the worst; of escapes, all are in the good answer's.
    bound = max(bounds) if held else None
    return replace(
        empty,
        errors=errors,
        count=count,
        bound=bound,
        coverage=float(accepted.sum() / max(1, counted.sum())),
        overkill=(int(rejected.sum()), int(sound.sum())) if labelled.good is not None and sound.any() else None,
    )


def _steps(values: Vector, error: Mask, of: Mask, grid: Vector, fixed: int | None) -> list[Step]:
    """Return what is counted up to each threshold; `fixed` takes the place of the accepted ones as the base."""
    order = np.sort(values[of])
    wrong = np.sort(values[of & error])
    counts = np.searchsorted(order, grid, side="right")
    errors = np.searchsorted(wrong, grid, side="right")
    return [
        Step(float(t), int(e), int(n) if fixed is None else fixed) for t, e, n in zip(grid, errors, counts, strict=True)
    ]


def _start(seen: Sequence[Step], scale: float, confidence: float) -> int:
    """Return the threshold to begin with: where the bound would be lowest, going by the design part.

    The narrowest accepts too few images to certify anything. Half an error more than seen keeps a lucky stretch short.
    """
    if not seen:
        return 0
    foreseen = [(round((s.errors + 0.5) * scale), max(1, round((s.count + 1) * scale))) for s in seen]
    return int(np.argmin([upper_bound(min(errors, count), count, confidence) for errors, count in foreseen]))


def _needed(
    labelled: Labelled, one: Evidence, score: str, kind: Target, target: float, confidence: float
) -> int | None:
    """Return about how many labelled images a promise would take, going by all that are there; null if none will do."""
    values = one.gated(score)
    total = len(values)
    certifying = 1 - DESIGN_SHARE
    if kind == "escapes":
        share = float(labelled.bad.mean())
        return None if share == 0 else math.ceil(images_needed(target, confidence) / share / certifying)
    best: float | None = None
    known = values[np.isfinite(values)]
    levels = np.unique(np.quantile(known, np.linspace(0, 1, 21), method="inverted_cdf")) if len(known) else known
    for step in _steps(values, one.wrong, np.ones(total, bool), levels, None):
        wanted = _images_at(step.errors / step.count, target, confidence)
        if wanted is not None and step.count >= min(_FEW, total):
            labels = wanted / (step.count / total) / certifying
            best = labels if best is None else min(best, labels)
    return None if best is None else math.ceil(best)


def _images_at(rate: float, target: float, confidence: float) -> int | None:
    """Return how many accepted images certify `target` where a share `rate` of them is wrong."""
    low, high = 0, images_needed(target, confidence)
    while upper_bound(round(rate * high), high, confidence) > target:
        low, high = high, 2 * high
        if rate >= target or high > _ENOUGH:
            return None
    while high - low > 1 + high // 1000:
        middle = (low + high) // 2
        if upper_bound(round(rate * middle), middle, confidence) > target:
            low = middle
        else:
            high = middle
    return high
