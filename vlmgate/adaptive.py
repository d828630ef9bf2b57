"""Tell, from the first few samples of an image, whether the rest could still change where it goes.

Knows scores, limits and chances; knows nothing of how samples are drawn. Samples 1 to k of an image are the first k of
the K that it would have, so a decision on k of them can be held against the decision on all.

What is certain after k samples:

- A caption or answer that is no reading bars the image, whatever follows; so does a limit on novelty or on the quality
  of the picture, which no sample changes.
- The logarithm of the Vendi score is the entropy S of the kernel over its size. Whatever the other K - k captions are,
  with p = k / K it ends within [p S_k, h(p) + p S_k + (1 - p) ln(K - k)], h being the binary entropy (concavity of the
  von Neumann entropy, and its bound for mixtures: Nielsen & Chuang, "Quantum Computation and Quantum Information",
  theorem 11.10). That seldom decides, so it is also predicted: S_K is near S_k + c (1/k - 1/K), where c, the bias of
  order 1/n, comes from leaving one caption out at a time (Quenouille, "Notes on bias in estimation", Biometrika 43,
  1956), and so does the variance (Tukey's jackknife; Efron & Stein, Ann. Stat. 9, 1981), which is cut by 1 - k / K
  since k of the K are known. Few captions that are alike know nothing of those that are not: every caption is given
  `PRIOR` more of its own. The other decision must be less likely than `CHANCE_OF_ERROR` where the image would be
  accepted, than `CHANCE` where not, taken as normal.
- Shares of answers: of the other K - k, a number follows the beta-binomial law that k answers leave of Jeffreys' prior
  (Beta(1/2, 1/2)); the other decision must be as unlikely.

The limit must also be kept, or broken, by the k samples themselves, so that what is stored of an image decides as it
was decided. `PRIOR` and the steps between looks were chosen on 911 images (samples and renders) of the built-in model.
Other captions have other tails than the normal law: there are images for which it errs more often.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from vlmgate.config import SamplingConfig
from vlmgate.diversity import Matrix
from vlmgate.entries import Content
from vlmgate.errors import GateError
from vlmgate.gate import Candidate, Gate, Limit, decide, safe_limit
from vlmgate.novelty import Reference
from vlmgate.records import Quality, Reading, Reason, Record, Route, Scores
from vlmgate.scoring import Said, Scorer

CHANCE = 0.01  # of being accepted after all, below which an image is left to a person
CHANCE_OF_ERROR = 0.001  # of going to a person after all, below which it is accepted; the dearer mistake
PRIOR = 0.5  # nats: what one caption may shift the entropy by, besides what those at hand show
_OF_ANSWERS = ("answer_share", "abstain_rate", "unparsable_rate")
_OF_CAPTIONS = ("vendi_score", "agreement", "doubt")
_FIXED = ("novelty", *Quality.__dataclass_fields__)  # no sample changes them
PREDICTED = frozenset((*_OF_ANSWERS, *_OF_CAPTIONS, *_FIXED))
_FAR, _FARTHER = (NormalDist().inv_cdf(1 - chance) for chance in (CHANCE, CHANCE_OF_ERROR))  # standard deviations


def check_gate(gate: Gate, kernel: str) -> None:
    """Raise `GateError` for a gate whose decisions cannot be foreseen image by image."""
    if gate.budget_share is not None or gate.budget_count is not None:
        raise GateError(
            "--samples and --review-budget exclude each other: whether an image is among the most uncertain is known "
            "only once all are read; give --threshold or --limit, or -k."
        )
    if kernel != "words":
        raise GateError(f"--samples compares captions while they are drawn; --kernel {kernel} cannot; give -k.")
    unknown = sorted({gate.score, *(limit.column for limit in gate.limits)} - PREDICTED)
    if unknown:
        raise GateError(f"--samples cannot foresee {unknown[0]}; limit {', '.join(_OF_CAPTIONS)}, or give -k.")


def saving(readings: Iterable[Reading], first: int, most: int) -> dict[str, Any]:
    """Return how many samples and tokens were drawn; what K would have taken is estimated from those of each image."""
    drawn, stopped, tokens, whole = [], 0, 0, 0.0
    for reading in readings:
        said = (*reading.captions, *(reading.answers or ()))
        own = sum(caption.num_tokens for caption in said)
        drawn.append(len(reading.captions))
        stopped += drawn[-1] < most
        tokens += own
        whole += own * most / drawn[-1]
    return {
        "first": first,
        "most": most,
        "images": len(drawn),
        "stopped_early": stopped,
        "mean_samples": round(sum(drawn) / len(drawn), 3) if drawn else None,
        "tokens": tokens,
        "tokens_of_all": round(whole),
    }


def joined(savings: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the saving of several runs with the same samples as one; None where there is none."""
    if not savings:
        return None
    images = sum(one["images"] for one in savings)
    drawn = sum(one["images"] * (one["mean_samples"] or 0.0) for one in savings)
    sums = {key: sum(one[key] for one in savings) for key in ("stopped_early", "tokens", "tokens_of_all")}
    mean = round(drawn / images, 3) if images else None
    return {"first": savings[0]["first"], "most": savings[0]["most"], "images": images, "mean_samples": mean} | sums


def told_of_saving(
    records: Iterable[Record], readings: Mapping[Content, Reading], sampling: SamplingConfig
) -> dict[str, Any] | None:
    """Return what the provenance says of samples that were not drawn; None where all were to be."""
    if sampling.first_samples is None:
        return None
    wanted = {(record.sha256, record.page) for record in records}
    kept = (reading for content, reading in readings.items() if content in wanted)
    return saving(kept, sampling.first_samples, sampling.num_samples)


def looks(first: int, most: int) -> tuple[int, ...]:
    """Return after how many samples to look, and at last K: from the first in steps of K / 8 to three quarters."""
    step = max(1, most // 8)
    return (*range(first, 3 * most // 4 + 1, step), most) if first <= 3 * most // 4 else (first, most)


@dataclass(frozen=True, slots=True)
class Foresight:
    """Says of one image at a time whether its decision is certain."""

    gate: Gate  # see `check_gate`
    scorer: Scorer
    most: int  # K

    def settled(self, reading: Reading, reference: Reference | None) -> bool:
        """Tell whether the decision on what was said so far is, as good as certainly, that on K samples."""
        if len(reading.captions) >= self.most:
            return True
        said = Said(reading.captions, reading.answers, reading.views)
        far = math.nan if reference is None else float(reference.novelty_of([reading.features])[0])
        return self.is_certain(said, reading.quality, round(far, 6) if math.isfinite(far) else None)

    def open_among(self, readings: Mapping[Content, Reading], reference: Reference | None) -> list[Content]:
        """Return of which readings the decision is not certain: they were enough for another gate."""
        return [content for content, reading in readings.items() if not self.settled(reading, reference)]

    def is_certain(self, said: Said, quality: Quality | None, novelty: float | None) -> bool:
        """Tell the same of what was said, how well the picture was taken, and how novel it is."""
        scores, reason = self.scorer.score(said, novelty, self.most)
        if reason not in (None, Reason.NO_ANSWER, Reason.NO_SCORE):
            return True
        candidate = Candidate(("", 1), scores, reason, quality, novelty)
        now = decide([candidate], self.gate)[0].route
        foreseen = [self._foreseen(limit, candidate, said) for limit in self._limits(scores)]
        if now is Route.HUMAN_REVIEW:
            return any(one is False for one in foreseen)
        return all(foreseen) and (said.answers is None or self._answer_stays(said))

    def _limits(self, scores: Scores) -> list[Limit]:
        """Return the limits that concern an image with this answer, that on the score among them."""
        own = [] if self.gate.threshold is None else [safe_limit(self.gate.score, self.gate.threshold)]
        return [*own, *(limit for limit in self.gate.limits if limit.answer in (None, scores.answer))]

    def _foreseen(self, limit: Limit, candidate: Candidate, said: Said) -> bool | None:
        """Tell whether a limit is sure to be kept (True) or broken (False) by K samples; None where it is open."""
        value = candidate.value(limit.column)
        if value is None:
            return False if limit.column in _FIXED else None
        kept = limit.holds(value)
        if limit.column in _FIXED:
            return kept
        if limit.answer is not None and not self._answer_stays(said):
            return None
        if limit.column in _OF_ANSWERS:
            sure = self._share_is_sure(limit, value, len(said.captions), kept)
        else:
            sure = self._vendi_is_sure(limit, candidate, said, kept)
        return kept if sure else None

    def _vendi_is_sure(self, limit: Limit, candidate: Candidate, said: Said, kept: bool) -> bool:
        """Tell whether the Vendi score of K captions will be on the same side as that of those at hand."""
        most = limit.value
        if limit.column == "agreement":
            most = 1 + (1 - limit.value) * (self.most - 1)
        elif limit.column == "doubt":
            novelty = candidate.novelty or 0.0
            most -= self.most if novelty > 1 else 0
        if most < 1:  # of which the Vendi score is never less
            return not kept
        bound = math.log(most)
        kernel = self.scorer.kernel([caption.text for caption in said.captions])
        low, high = entropy_between(kernel, self.most)
        mean, deviation = entropy_foreseen(kernel, self.most)
        if kept:
            return high <= bound or mean + _FARTHER * deviation <= bound
        return low > bound or mean - _FAR * deviation > bound

    def _share_is_sure(self, limit: Limit, value: float, drawn: int, kept: bool) -> bool:
        """Tell whether a share of K answers will be on the same side as that of those at hand."""
        count, left = round(value * drawn), self.most - drawn
        chance = sum(
            probability
            for more, probability in enumerate(beta_binomial(left, count + 0.5, drawn - count + 0.5))
            if limit.holds((count + more) / self.most) != kept
        )
        return chance < (CHANCE_OF_ERROR if kept else CHANCE)

    def _answer_stays(self, said: Said) -> bool:
        """Tell whether the answer that leads cannot be caught up with."""
        counted = self.scorer.counts(said)
        if not counted:
            return False
        first, *others = [*sorted(counted.values(), reverse=True), 0]
        left = self.most - len(said.captions)
        if first - others[0] > left:
            return True
        rival = max(others[0], 0)
        law = beta_binomial(left, rival + 0.5, first + 0.5)  # all that follow are one of the two: the worst that may be
        return sum(p for more, p in enumerate(law) if rival + more >= first + left - more) < CHANCE


def entropy(kernels: Matrix) -> Matrix:
    """Return the von Neumann entropy in nats, the logarithm of the Vendi score, of (..., n, n) kernels."""
    values = np.linalg.eigvalsh(kernels / kernels.shape[-1]).clip(1e-15)
    found: Matrix = -(values * np.log(values)).sum(-1)
    return found


def entropy_between(kernel: Matrix, most: int) -> tuple[float, float]:
    """Return the least and the greatest entropy that `most` captions can have whose first k have this kernel."""
    k = len(kernel)
    share, known = k / most, float(entropy(kernel))
    mixed = -share * math.log(share) - (1 - share) * math.log(1 - share)
    return share * known, mixed + share * known + (1 - share) * math.log(most - k)


def entropy_foreseen(kernel: Matrix, most: int) -> tuple[float, float]:
    """Return the mean and the standard deviation of the entropy of `most` captions whose first k have this kernel."""
    k = len(kernel)
    known = float(entropy(kernel))
    others = np.array([np.delete(np.arange(k), i) for i in range(k)])  # (k, k - 1)
    without = entropy(kernel[others[:, :, None], others[:, None, :]])  # (k,), one left out
    left = 1 / k - 1 / most
    bias = k * (k - 1) * (known - float(without.mean()))
    variance = (k - 1) / k * float(((without - without.mean()) ** 2).sum()) * (1 - k / most) + PRIOR**2 * left
    return known + bias * left, math.sqrt(variance)


def beta_binomial(trials: int, a: float, b: float) -> list[float]:
    """Return the probabilities of 0 … `trials` successes where the rate has the law Beta(a, b)."""

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    return [
        math.comb(trials, n) * math.exp(log_beta(n + a, trials - n + b) - log_beta(a, b)) for n in range(trials + 1)
    ]
