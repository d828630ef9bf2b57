"""Choose a score, a number of samples and thresholds, so that what is promised of them stays exact.

Call `choose_score`, `compare_counts` and `promise`, in this order.

Whatever is chosen by looking at labels may not be graded by the same labels. So a third of the images, picked by their
hashes, is there to choose on (the design part): score, samples, the threshold to begin with, one limit or one for each
kind of answer. The other two thirds certify what was chosen, by fixed-sequence testing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vlmgate.calibration.figures import FIGURES, Ladder, Mask, Vector, resampled
from vlmgate.calibration.guarantee import Certified, Step, certify, images_needed, upper_bound
from vlmgate.calibration.readings import OF_KERNEL, Evidence, Labelled, columns_there, drawn

DESIGN_SHARE = 1 / 3
FOLDS = 5
SUBSETS = (2, 3, 4, 6, 8, 12, 16)
_RESAMPLES = 400
_ENOUGH = 10_000_000  # images; nobody labels more
_FEW = 20  # accepted images; fewer show no rate

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


def compare_counts(several: Sequence[Evidence], score: str, of: Mask) -> SampleCounts:
    """Return AURC for each K and the smallest K that is at most one standard error behind the best.

    The rule is that of Breiman et al. ("Classification and Regression Trees", 1984), with the error of the paired
    difference: every K is measured on the same images.
    """
    vectors = [(one.gated(score)[of], one.wrong[of]) for one in several]
    areas = [float(Ladder.of(*pair).aurc()[0]) for pair in vectors]
    best = int(np.argmin(np.round(areas, 9)))
    draws: list[list[Vector]] = [[] for _ in several]
    for weights in resampled(int(of.sum()), 0, _RESAMPLES):
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
    errors: int = 0  # on the images that certify, within all limits
    count: int = 0  # accepted images, or truly defective ones for escapes
    bound: float | None = None  # upper bound of the rate; null where nothing is promised
    coverage: float = 0.0  # share of the certifying images that is accepted, [0, 1]
    overkill: tuple[int, int] | None = None  # good parts accepted as defective, of all good ones that certify
    needed: int | None = None  # labelled images that it would take, where nothing is promised; null if none would do

    @property
    def holds(self) -> bool:
        """Say whether there is a promise."""
        return self.bound is not None

    @property
    def per_answer(self) -> bool:
        """Say whether limits differ by answer."""
        return len(self.groups) > 1

    def accepts(self, one: Evidence, score: str) -> Mask:
        """Return (N,): what its limits accept."""
        values = one.gated(score)
        accepted = np.zeros(len(values), bool)
        for group in self.groups:
            if group.certified.step is not None:
                accepted |= _inside(one, group.answers) & (values <= group.certified.step.threshold)
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
    as good. With `per_answer` the good answer may have its own limit; both groups are tested at half the chance of
    being wrong, and that is kept only where it accepts more on the design part.
    """
    trial = _Trial(labelled, one, score, design, kind, target, confidence)
    groups: list[Answers] = [None]
    if per_answer and labelled.good is not None:
        by_answer: list[Answers] = [(labelled.good,), tuple(c for c in labelled.choices if c != labelled.good)]
        if trial.test(by_answer, foresee=True).coverage > trial.test(groups, foresee=True).coverage:
            groups = by_answer
    made = trial.test(groups)
    return made if made.holds else replace(made, needed=trial.needed())


def _inside(one: Evidence, answers: Answers) -> Mask:
    """Return (N,): which readings a group holds."""
    if answers is None:
        return np.ones(len(one.answers), bool)
    return np.isin(np.array([answer or "" for answer in one.answers]), answers)


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """What is promised, of which score, and the images to choose and to certify on."""

    labelled: Labelled
    one: Evidence
    score: str
    design: Mask  # (N,) the others certify
    kind: Target
    target: float
    confidence: float

    def test(self, groups: Sequence[Answers], *, foresee: bool = False) -> Promise:
        """Test each group's thresholds; with `foresee`, on the design part's own counts scaled to the rest's size."""
        design, rest = self.design, ~self.design
        values = self.one.gated(self.score)
        scale = float(rest.sum() / max(1, design.sum()))
        confidence = 1 - (1 - self.confidence) / len(groups)
        results = []
        for answers in groups:
            inside = _inside(self.one, answers)
            grid = np.unique(values[design & inside & np.isfinite(values)])
            seen = self._steps(design, inside, grid)
            begin = _start(seen, scale, confidence) if self.kind == "risk" else 0
            if foresee:
                tried = [Step(s.threshold, round(s.errors * scale), round(s.count * scale)) for s in seen]
            else:
                tried = self._steps(rest, inside, grid)
            results.append(GroupResult(answers, certify(tried[begin:], self.target, confidence)))
        return self._count(design if foresee else rest, tuple(results))

    def _count(self, counted: Mask, results: tuple[GroupResult, ...]) -> Promise:
        """Return what was counted within all limits; how many labels it would take is not known here."""
        bare = Promise(self.kind, self.target, self.confidence, results)
        accepted = bare.accepts(self.one, self.score) & counted
        base = accepted if self.kind == "risk" else self.labelled.bad & counted
        good = self.labelled.known & ~self.labelled.bad & counted
        rejected = accepted & good & ~self.one.says(self.labelled.good)
        bounds = [result.certified.bound for result in results if result.certified.bound is not None]
        return replace(
            bare,
            errors=int((self._errors & accepted).sum()),
            count=int(base.sum()),
            # The whole is no worse than the worst of its groups; all escapes are in the good answer's.
            bound=max(bounds) if bounds and accepted.any() else None,
            coverage=float(accepted.sum() / max(1, counted.sum())),
            overkill=(int(rejected.sum()), int(good.sum())) if self.labelled.good is not None and good.any() else None,
        )

    @property
    def _errors(self) -> Mask:
        """Return (N,): what a promise of this kind counts, if it is accepted."""
        return self.one.wrong if self.kind == "risk" else self.labelled.bad & self.one.says(self.labelled.good)

    def _steps(self, part: Mask, inside: Mask, grid: Vector) -> list[Step]:
        """Return what is counted up to each threshold: of the accepted readings, or of all bad parts for escapes."""
        values = self.one.gated(self.score)
        counts = np.searchsorted(np.sort(values[part & inside]), grid, side="right")
        errors = np.searchsorted(np.sort(values[part & inside & self._errors]), grid, side="right")
        if self.kind == "escapes":
            counts = np.full(len(grid), (self.labelled.bad & part).sum())
        return [Step(float(t), int(e), int(n)) for t, e, n in zip(grid, errors, counts, strict=True)]

    def needed(self) -> int | None:
        """Return about how many labelled images a promise would take, going by all that are there; null if none do."""
        certifying = 1 - DESIGN_SHARE
        if self.kind == "escapes":
            share = float(self.labelled.bad.mean())
            return None if share == 0 else math.ceil(images_needed(self.target, self.confidence) / share / certifying)
        values = self.one.gated(self.score)
        total, known = len(values), values[np.isfinite(values)]
        levels = np.unique(np.quantile(known, np.linspace(0, 1, 21), method="inverted_cdf")) if len(known) else known
        everything = np.ones(total, bool)
        least = min(_FEW, len(known))  # where little is accepted at all, all of it is the best guess
        labels = [
            wanted / (step.count / total) / certifying
            for step in self._steps(everything, everything, levels)
            if step.count >= least
            and (wanted := _images_at(step.errors / step.count, self.target, self.confidence)) is not None
        ]
        return math.ceil(min(labels)) if labels else None


def _start(seen: Sequence[Step], scale: float, confidence: float) -> int:
    """Return the threshold to begin with: where the bound would be lowest, going by the design part.

    The narrowest accepts too few images to certify anything. Half an error more than seen keeps a lucky stretch short.
    """
    if not seen:
        return 0
    foreseen = [(round((s.errors + 0.5) * scale), max(1, round((s.count + 1) * scale))) for s in seen]
    return int(np.argmin([upper_bound(min(errors, count), count, confidence) for errors, count in foreseen]))


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
