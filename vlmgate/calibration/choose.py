"""Choose a score, a number of samples and thresholds, so that what is promised of them stays exact.

Call `choose_score`, `compare_counts` and `promise`, in this order.

Whatever is chosen by looking at labels may not be graded by the same labels. So a third of the parts, picked by the
hashes of their images, is there to choose on (the design part): score, samples, the threshold to begin with, one limit
or one for each kind of answer. The other two thirds certify what was chosen, by fixed-sequence testing. A part is
chosen on or certifies with all of its images.

One part is one trial. It counts as accepted where the image that stands for it (drawn by hash) is accepted, and as an
error, and then as accepted too, where any accepted image of it is wrong. This bounds two rates at once. Let x and y be
the chances that a part's drawn image is accepted and wrong, and that it is accepted; d the chance that another image of
the part is an accepted error while the drawn one is routed. At least x + d of the parts are errors among y + d trials,
and (x + d) / (y + d) is at least x / y: the risk of an image. The trials are never more than the parts of which some
image is accepted, so the share of those with an accepted error is bounded as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlmgate.calibration.figures import FIGURES, Ladder, Mask, Vector, resampled
from vlmgate.calibration.guarantee import Certified, Step, certify, images_needed, upper_bound
from vlmgate.calibration.readings import OF_KERNEL, Evidence, Labelled, columns_there, drawn

DESIGN_SHARE = 1 / 3
FOLDS = 5
SUBSETS = (2, 3, 4, 6, 8, 12, 16)
_RESAMPLES = 400
_FAR = 10  # times what an errorless gate takes; a number beyond says only that the rate is too near to the target

Target = Literal["risk", "escapes"]


def design_part(labelled: Labelled) -> Mask:
    """Return (N,): the images to choose on, all of a part or none; which they are follows from their bytes alone."""
    own = np.array([drawn(record, "design") < DESIGN_SHARE for record in labelled.records])
    if not labelled.grouped:
        return own
    part, stands = labelled.part_of, labelled.stands
    chosen = np.zeros(int(part.max()) + 1, bool)
    chosen[part[stands]] = own[stands]
    found: Mask = chosen[part]
    return found


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


def choose_score(
    candidates: Sequence[Evidence], of: Mask, only: str | None = None, parts: ArrayLike | None = None
) -> Choice:
    """Return the best score under any kernel on some images, cross-validated; with `only`, the best kernel for that.

    In each fold the score that is best on the others is measured on the fold; the figures are the means. Among equals
    the first wins, in the order of `SCORES`. Readings with equal numbers in `parts` (N,) are in one fold.
    """
    pairs = [(one, c) for one in candidates for c in columns_there(one) if only is None or c == only]
    part = np.arange(len(of)) if parts is None else np.unique(np.asarray(parts), return_inverse=True)[1]
    fold = (np.random.default_rng(0).permutation(int(part.max()) + 1) % FOLDS)[part]
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


def compare_counts(several: Sequence[Evidence], score: str, of: Mask, parts: ArrayLike | None = None) -> SampleCounts:
    """Return AURC for each K and the smallest K that is at most one standard error behind the best.

    The rule is that of Breiman et al. ("Classification and Regression Trees", 1984), with the error of the paired
    difference: every K is measured on the same images. Readings with equal numbers in `parts` (N,) are drawn together.
    """
    own = None if parts is None else np.asarray(parts)[of]
    vectors = [(one.gated(score)[of], one.wrong[of]) for one in several]
    areas = [float(Ladder.of(*pair).aurc()[0]) for pair in vectors]
    best = int(np.argmin(np.round(areas, 9)))
    draws: list[list[Vector]] = [[] for _ in several]
    for weights in resampled(int(of.sum()), 0, _RESAMPLES, own):
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
    errors: int = 0  # parts that certify, with an accepted image that is wrong
    count: int = 0  # accepted parts, or truly defective ones for escapes
    bound: float | None = None  # upper bound of the rate; null where nothing is promised
    coverage: float = 0.0  # share of the certifying images that is accepted, [0, 1]
    overkill: tuple[int, int] | None = None  # good parts accepted as defective, of all good ones that certify
    escapes: tuple[int, int] | None = None  # defective parts accepted as good, of all defective ones that certify
    needed: int | None = None  # new labelled parts that it would take, where nothing is promised; null if none would do

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
    being wrong, and that is kept only where it accepts more on the design part. Parts with several images, which may
    have several answers, share one limit.
    """
    trial = _Trial(labelled, one, score, design, kind, target, confidence)
    groups: list[Answers] = [None]
    if per_answer and labelled.good is not None and not labelled.grouped:
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


@dataclass(frozen=True, eq=False)
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
        scale = float((rest & self._stands).sum() / max(1, (design & self._stands).sum()))
        confidence = 1 - (1 - self.confidence) / len(groups)
        results = []
        for answers in groups:
            inside = _inside(self.one, answers)
            grid, seen, begin = self._sequence(inside, scale, confidence)
            if foresee:
                tried = [Step(s.threshold, round(s.errors * scale), round(s.count * scale)) for s in seen]
            else:
                tried = self._steps(rest, inside, grid)
            results.append(GroupResult(answers, certify(tried[begin:], self.target, confidence)))
        return self._count(design if foresee else rest, tuple(results))

    def _sequence(self, inside: Mask, scale: float, confidence: float) -> tuple[Vector, list[Step], int]:
        """Return the thresholds in order, what the design part counts up to each, and where testing begins."""
        grid = np.unique(self._values[self.design & inside & np.isfinite(self._values)])
        seen = self._steps(self.design, inside, grid)
        return grid, seen, _start(seen, scale, confidence) if self.kind == "risk" else 0

    def _count(self, counted: Mask, results: tuple[GroupResult, ...]) -> Promise:
        """Return what was counted within all limits; how many labels it would take is not known here."""
        bare = Promise(self.kind, self.target, self.confidence, results)
        accepted = bare.accepts(self.one, self.score) & counted
        failed = self._any(self._errors & accepted)
        base = accepted if self.kind == "risk" else self.labelled.bad & counted
        stands = self._stands & counted
        good = self.labelled.known & ~self.labelled.bad & stands
        bad = self.labelled.known & self.labelled.bad & stands
        passed = self.one.says(self.labelled.good)
        bounds = [result.certified.bound for result in results if result.certified.bound is not None]
        named = self.labelled.good is not None
        return replace(
            bare,
            errors=int(failed.sum()),
            count=int((self._any(base & stands) | failed).sum()),
            # The whole is no worse than the worst of its groups; all escapes are in the good answer's.
            bound=max(bounds) if bounds and accepted.any() else None,
            coverage=float(accepted.sum() / max(1, counted.sum())),
            overkill=(int((accepted & good & ~passed).sum()), int(good.sum())) if named and good.any() else None,
            escapes=(int((accepted & bad & passed).sum()), int(bad.sum())) if named and bad.any() else None,
        )

    @cached_property
    def _values(self) -> Vector:
        """Return (N,): the score, infinite for what a gate would never accept."""
        return self.one.gated(self.score)

    @cached_property
    def _stands(self) -> Mask:
        return self.labelled.stands

    @cached_property
    def _part(self) -> NDArray[np.int64]:
        return self.labelled.part_of

    @cached_property
    def _errors(self) -> Mask:
        """Return (N,): what a promise of this kind counts, if it is accepted."""
        return self.one.wrong if self.kind == "risk" else self.labelled.bad & self.one.says(self.labelled.good)

    def _any(self, images: Mask) -> Mask:
        """Return (P,): the parts of which one of these images is."""
        found = np.zeros(int(self._part.max()) + 1, bool)
        found[self._part[images]] = True
        return found

    def _least(self, images: Mask, values: Vector) -> Vector:
        """Return (P,): the least of the values of each part's images; infinite where it has none of these images."""
        found = np.full(int(self._part.max()) + 1, np.inf)
        np.minimum.at(found, self._part[images], values[images])
        return found

    def _steps(self, images: Mask, inside: Mask, grid: Vector) -> list[Step]:
        """Return what is counted up to each threshold, in parts; see the head of this file.

        Counts are of accepted parts, or of all bad parts for escapes.
        """
        failing = self._least(images & inside & self._errors, self._values)
        if self.kind == "escapes":
            begun = self._least(images & self._stands & self.labelled.bad, np.full(len(self._values), -np.inf))
        else:
            begun = self._least(images & self._stands & inside, self._values)
        counts = np.searchsorted(np.sort(np.minimum(begun, failing)), grid, side="right")
        errors = np.searchsorted(np.sort(failing), grid, side="right")
        return [Step(float(t), int(e), int(n)) for t, e, n in zip(grid, errors, counts, strict=True)]

    def needed(self) -> int | None:
        """Return about how many new labelled parts a promise would take; null where none would do.

        Those that are there have been looked at, so they may choose and the new ones certify. It goes by the threshold
        that was tested and failed. Where it would be far more than an errorless gate takes, the readings are wrong
        about as often as the target allows, and no number means anything.
        """
        everything, rest = np.ones(len(self._values), bool), ~self.design
        scale = float((rest & self._stands).sum() / max(1, (self.design & self._stands).sum()))
        grid, _, begin = self._sequence(everything, scale, self.confidence)
        tested = self._steps(rest, everything, grid[begin : begin + 1])
        known = int((rest & self._stands).sum())
        if not tested or not tested[0].count:  # nothing to choose by, or nothing that certifies: go by all there is
            levels = np.unique(self._values[np.isfinite(self._values)])
            tested, known = self._steps(everything, everything, levels[-1:]), int(self._stands.sum())
        for step in tested:
            wanted = _images_at(step.errors / step.count, self.target, self.confidence) if step.count else None
            if wanted is not None:
                return math.ceil(wanted / (step.count / known))
        return None


def _start(seen: Sequence[Step], scale: float, confidence: float) -> int:
    """Return the threshold to begin with: where the bound would be lowest, going by the design part.

    The narrowest accepts too few images to certify anything. Half an error more than seen keeps a lucky stretch short.
    """
    if not seen:
        return 0
    foreseen = [(round((s.errors + 0.5) * scale), max(1, round((s.count + 1) * scale))) for s in seen]
    return int(np.argmin([upper_bound(min(errors, count), count, confidence) for errors, count in foreseen]))


def _images_at(rate: float, target: float, confidence: float) -> int | None:
    """Return how many accepted parts certify `target` where a share `rate` of them is wrong; null for too many."""
    least = images_needed(target, confidence)
    low, high = 0, least
    while upper_bound(round(rate * high), high, confidence) > target:
        low, high = high, 2 * high
        if rate >= target or high > 2 * _FAR * least:
            return None
    while high - low > 1 + high // 1000:
        middle = (low + high) // 2
        if upper_bound(round(rate * middle), middle, confidence) > target:
            low = middle
        else:
            high = middle
    return high if high <= _FAR * least else None
