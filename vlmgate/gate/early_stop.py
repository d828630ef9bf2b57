"""Decide, from the first few samples of an image, whether the rest could still change where it goes.

`check_gate` refuses gates that cannot be foreseen, `Foresight.settled` judges one image, `looks` says when to ask.
Samples 1 to k of an image are the first k of the K that it would have, so both decisions can be compared.

What is certain after k samples:

- A caption or answer that is no reading bars the image; so does a limit on novelty or on the quality of the picture.
- The logarithm of the Vendi score is the entropy S of the kernel over its size. Whatever the other K - k captions are,
  with p = k / K it ends within [p S_k, h(p) + p S_k + (1 - p) ln(K - k)], h being the binary entropy (concavity of the
  von Neumann entropy, and its bound for mixtures: Nielsen & Chuang, "Quantum Computation and Quantum Information",
  theorem 11.10). That seldom decides, so the other captions are also played through, 400 times (`seldom_ends`): one
  of the plays may end on the other side.
- Of answers that were scored no sample changes anything.
- The probability of the answer only grows with what is drawn, by that of all texts not seen yet at most.
- Shares of answers: of the other K - k, a number follows the beta-binomial law that k answers leave of Jeffreys' prior
  (Beta(1/2, 1/2)); the other decision must be less likely than `CHANCE_OF_ERROR` where the image would be accepted,
  than `CHANCE` where not.

The k samples themselves must keep or break the limit too, so that what is stored of an image decides as it was decided.
One play in 400, and the looks, were chosen on 5,280 renders of the built-in model (seeds 51 and 61 to 67, at a Vendi
score of 2): 3 of 420 looks that were so sure of accepting turned, and 8 of 3,440 that were as sure of a person. Where 1
to 2 % of the plays end otherwise it is 2 % and 7 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmgate.config import SamplingConfig
from vlmgate.data import Caption, Content, Quality, Reading, Reason, Record, Route, Scores, content_of
from vlmgate.errors import GateError
from vlmgate.gate.rules import ANSWER_COLUMNS, Candidate, Gate, Limit, decide
from vlmgate.scores.answer_probability import is_scored, unseen
from vlmgate.scores.diversity import Matrix
from vlmgate.scores.novelty import Reference
from vlmgate.scores.score import Samples, Scorer

CHANCE = 0.01  # by its answers: of being accepted after all, below which an image is left to a person
CHANCE_OF_ERROR = 0.001  # of going to a person after all, below which it is accepted; the dearer mistake
_OF_ANSWERS = ("answer_share", "abstain_rate", "unparsable_rate")
_PROBABILITY = "answer_probability"
_OF_CAPTIONS = ("vendi_score", "agreement", "doubt")
_FIXED = ("novelty", *Quality.__dataclass_fields__)  # no sample changes them
PREDICTED = frozenset((*_OF_ANSWERS, _PROBABILITY, *_OF_CAPTIONS, *_FIXED))


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


def saving_of(
    records: Iterable[Record], readings: Mapping[Content, Reading], sampling: SamplingConfig
) -> dict[str, Any]:
    """Return how many samples and tokens were drawn; what K would have taken is estimated from those of each image."""
    wanted, most = {content_of(record) for record in records}, sampling.num_samples
    drawn, tokens, whole = list[int](), 0, 0.0
    for reading in (reading for content, reading in readings.items() if content in wanted):
        answers = () if is_scored(reading.answers) else reading.answers or ()
        own = sum(caption.num_tokens for caption in (*reading.captions, *answers))
        drawn.append(len(reading.captions))
        tokens += own
        whole += own * most / drawn[-1]
    return {
        "first": sampling.first_samples,
        "most": most,
        "images": len(drawn),
        "stopped_early": sum(number < most for number in drawn),
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


def looks(first: int, most: int) -> tuple[int, ...]:
    """Return after how many samples to look, and at last K: from the first in steps of K / 8.

    A look after every sample saves few tokens more, and every look has the model begin anew.
    """
    return (*range(first, most, max(1, most // 8)), most)


@dataclass(frozen=True, slots=True)
class Foresight:
    """Says of one image at a time whether its decision is certain."""

    gate: Gate  # see `check_gate`
    scorer: Scorer
    sampling: SamplingConfig

    @property
    def most(self) -> int:
        """Return K."""
        return self.sampling.num_samples

    def settled(self, reading: Reading, reference: Reference | None) -> bool:
        """Tell whether the decision on what was said so far is, as good as certainly, that on K samples."""
        if len(reading.captions) >= self.most:
            return True
        far = math.nan if reference is None else float(reference.novelty_of([reading.features])[0])
        return self.is_certain(reading, reading.quality, round(far, 6) if math.isfinite(far) else None)

    def open_among(self, readings: Mapping[Content, Reading], reference: Reference | None) -> list[Content]:
        """Return of which readings the decision is not certain: they were enough for another gate."""
        return [content for content, reading in readings.items() if not self.settled(reading, reference)]

    def is_certain(self, said: Samples, quality: Quality | None, novelty: float | None) -> bool:
        """Tell the same of what was said, how well the picture was taken, and how novel it is."""
        scores, reason = self.scorer.score(said, novelty, self.most)
        if reason not in (None, Reason.NO_ANSWER, Reason.NO_SCORE):
            return True
        if reason is Reason.NO_ANSWER and is_scored(said.answers):
            return True
        candidate = Candidate.of("", scores, reason, quality, novelty)
        now = decide([candidate], self.gate)[0].route
        limits = sorted(self._limits(scores), key=lambda limit: limit.column in _OF_CAPTIONS)  # which take the longest
        foreseen = (self._foreseen(limit, candidate, said) for limit in limits)
        if now is Route.HUMAN_REVIEW:
            return any(one is False for one in foreseen)
        return (said.answers is None or self._answer_stays(said)) and all(foreseen)

    def _limits(self, scores: Scores) -> list[Limit]:
        """Return the limits that concern an image with this answer, that on the score among them."""
        return [one for one in (self.gate.own, *self.gate.limits) if one and one.answer in (None, scores.answer)]

    def _foreseen(self, limit: Limit, candidate: Candidate, said: Samples) -> bool | None:
        """Tell whether a limit is sure to be kept (True) or broken (False) by K samples; None where it is open."""
        value = candidate.value(limit.column)
        fixed = limit.column in (*_FIXED, *(ANSWER_COLUMNS if is_scored(said.answers) else ()))
        if value is None:
            return False if fixed else None
        kept = limit.holds(value)
        if fixed:
            return kept
        if limit.answer is not None and not self._answer_stays(said):
            return None
        if limit.column == _PROBABILITY:
            sure = self._answer_stays(said) if kept else self._stays_unlikely(limit, said)
        elif limit.column in _OF_ANSWERS:
            sure = self._share_is_sure(limit, value, len(said.captions), kept)
        else:
            sure = self._vendi_is_sure(limit, candidate, said, kept)
        return kept if sure else None

    def _vendi_is_sure(self, limit: Limit, candidate: Candidate, said: Samples, kept: bool) -> bool:
        """Tell whether the Vendi score of K captions will be on the same side as that of those at hand."""
        most = limit.value
        if limit.column == "agreement":
            most = 1 + (1 - limit.value) * (self.most - 1)
        elif limit.column == "doubt":
            novelty = candidate.record.novelty or 0.0
            most -= self.most if novelty > 1 else 0
        if most < 1:  # of which the Vendi score is never less
            return not kept
        bound = math.log(most)
        kernel = self.scorer.kernel([caption.text for caption in said.captions])
        low, high = entropy_between(kernel, self.most)
        if high <= bound if kept else low > bound:
            return True
        return seldom_ends(kernel, self.most, bound, above=kept, unseen=self._unseen(said.captions))

    def _unseen(self, captions: Sequence[Caption]) -> float:
        """Return the probability of all captions that are not among these; 1 where it is unknown.

        A log-probability is at temperature 1 with nothing cut off, so it says how captions are drawn only there. Texts
        that are equal count once, for they may be the same tokens. Captions more probable together than can be have
        log-probabilities of something else.
        """
        if (self.sampling.temperature, self.sampling.top_p, self.sampling.top_k) != (1, 1, 0):
            return 1.0
        seen: dict[str, float] = {}
        for one in captions:
            if one.mean_logprob is not None and one.num_tokens > 0 and one.finish == "stop":
                probability = math.exp(one.mean_logprob * one.num_tokens)
                seen[one.text] = max(probability, seen.get(one.text, 0.0))
        left = 1 - sum(seen.values())
        return 1.0 if left < -LEAST_UNSEEN else max(LEAST_UNSEEN, left)

    def _share_is_sure(self, limit: Limit, value: float, drawn: int, kept: bool) -> bool:
        """Tell whether a share of K answers will be on the same side as that of those at hand."""
        count, left = round(value * drawn), self.most - drawn
        chance = sum(
            probability
            for more, probability in enumerate(beta_binomial(left, count + 0.5, drawn - count + 0.5))
            if limit.holds((count + more) / self.most) != kept
        )
        return chance < (CHANCE_OF_ERROR if kept else CHANCE)

    def _stays_unlikely(self, limit: Limit, said: Samples) -> bool:
        """Tell whether no choice can become as probable as the limit asks.

        What is drawn adds the probabilities of texts not seen yet, to one choice or another.
        """
        found = self.scorer.probabilities(said)
        left = max(LEAST_UNSEEN, unseen(said.answers or ()))
        return not limit.holds(min(1.0, max(found.values(), default=0.0) + left))

    def _answer_stays(self, said: Samples) -> bool:
        """Tell whether the answer that leads cannot be caught up with."""
        if is_scored(said.answers):
            return True
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


def entropy_between(kernel: Matrix, most: int) -> tuple[float, float]:
    """Return the least and the greatest entropy that `most` captions can have whose first k have this kernel."""
    k = len(kernel)
    share, known = k / most, float(entropy(kernel))
    mixed = -share * math.log(share) - (1 - share) * math.log(1 - share)
    return share * known, mixed + share * known + (1 - share) * math.log(most - k)


def beta_binomial(trials: int, a: float, b: float) -> list[float]:
    """Return the probabilities of 0 … `trials` successes where the rate has the law Beta(a, b)."""

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    return [
        math.comb(trials, n) * math.exp(log_beta(n + a, trials - n + b) - log_beta(a, b)) for n in range(trials + 1)
    ]


# --- what could still come --------------------------------------------------------------------------------------------

# The next caption is drawn from an urn: after k captions with D readings (all captions with the same words are one) it
# is reading r with a chance of n_r - d, and a new one with a chance of a + d D, both over k + a (Pitman & Yor, "The
# two-parameter Poisson-Dirichlet distribution", Ann. Probab. 25, 1997). Each play draws its own urn from a few, by the
# chance that each gives to the counts at hand (Pitman, "Exchangeable and partially exchangeable random partitions",
# Probab. Theory Relat. Fields 102, 1995). Where the engine knows how probable its captions are, a new reading is at
# most as likely as all captions not seen yet; that matters for models of few words only.
#
# In the space of the kernel a new reading lies half way between two captions drawn from those at hand, but for a part
# that is like nothing else: as much as the readings at hand differ from the one most like them, and as readings do in
# general.
#
# `URNS` and `SIMILARITIES` were fitted to 3,300 renders of the built-in model (seeds 51 and 61 to 64); two urns that
# those do not need have little weight: for wordy models, of which every caption is new, and for those that always say
# the same. The dice fall alike in every run, so that an image is always decided alike.
Counts = NDArray[np.int64]

PLAYS = 400
SELDOM = 1  # of the plays, at most
STAGES = (0, 25, 50, 100, 200, PLAYS)  # where it is not seldom, the first plays mostly tell
URNS = ((1.0, 0.6, 0.28), (3.0, 0.3, 0.60), (30.0, 0.9, 0.10), (0.3, 0.0, 0.02))  # a, d, weight
SIMILARITIES = (0.61, 0.67, 0.80, 0.87, 0.92, 0.94)  # of a new reading to the one most like it; as good as two at hand
LEAST_UNSEEN = 0.01  # for log-probabilities are rounded, and half precision adds to that
_TINY = 1e-9  # nats


def entropy(kernels: Matrix) -> Matrix:
    """Return the von Neumann entropy in nats, the logarithm of the Vendi score, of (..., n, n) kernels."""
    return _entropy(kernels / kernels.shape[-1])


def _entropy(states: Matrix) -> Matrix:
    values = np.linalg.eigvalsh(states).clip(1e-15)
    found: Matrix = -(values * np.log(values)).sum(-1)
    return found


def seldom_ends(kernel: Matrix, most: int, bound: float, *, above: bool, unseen: float = 1.0) -> bool:
    """Tell whether at most one of 400 plays of `most` captions ends above a bound in nats, or else not above.

    `kernel` is that of the k captions at hand, (k, k). `unseen` is the probability of all captions that are not among
    them together, in [0, 1]; 1 = unknown.
    """
    ended = 0
    for first, last in pairwise(STAGES):
        over = entropies(kernel, most, unseen, first, last) > bound + _TINY
        ended += int((over if above else ~over).sum())
        if ended > SELDOM:
            return False
    return True


def entropies(kernel: Matrix, most: int, unseen: float = 1.0, first: int = 0, last: int = PLAYS) -> Matrix:
    """Return the entropy in nats that `most` captions end with in each of some plays, (last - first,).

    The other parameters are those of `seldom_ends`.
    """
    labels = (kernel > 1 - _TINY).argmax(1)  # (k,), the first that has the same words
    at_hand, found = np.unique(labels, return_counts=True)  # (D,)
    counts = found.astype(np.int64)
    dice = _dice(most - len(kernel))[first:last]
    drawn = _drawn(counts, dice, unseen)  # (plays, D + new)
    mutual = kernel[np.ix_(at_hand, at_hand)]
    among = _among(mutual, counts, dice[:, 1 : drawn.shape[1] - len(counts) + 1, 1:])
    roots = np.sqrt(drawn / most)
    return _entropy(among * roots[:, :, None] * roots[:, None, :])


@lru_cache(maxsize=32)
def _dice(left: int) -> Matrix:
    """Return what falls in each play, (plays, 1 + left, 4) in [0, 1): for the urn, and for each caption to come."""
    return np.random.default_rng(0).random((PLAYS, 1 + left, 4))


def _drawn(counts: Counts, dice: Matrix, unseen: float) -> Matrix:
    """Return how many captions there are of each reading in the end, those at hand first, then the new ones."""
    k, distinct, left = int(counts.sum()), len(counts), dice.shape[1] - 1
    chosen = np.searchsorted(_urns_given(tuple(counts.tolist())), dice[:, 0, 0], side="right")
    strength, discount = np.array(URNS)[chosen, :2].T
    plays = np.arange(len(dice))
    drawn = np.zeros((len(dice), distinct + left))
    drawn[:, :distinct] = counts
    weights = np.zeros_like(drawn)  # n_r - d
    weights[:, :distinct] = counts - discount[:, None]
    readings = np.full(len(dice), distinct)
    for i in range(left):
        die = dice[:, 1 + i, 0]
        new = np.minimum((strength + discount * readings) / (k + i + strength), unseen)
        is_new = die < new
        heights = weights.cumsum(1)
        height = (die - new) / (1 - new) * heights[:, -1]
        which = np.where(is_new, readings, np.minimum((heights <= height[:, None]).sum(1), readings - 1))
        drawn[plays, which] += 1
        weights[plays, which] += np.where(is_new, 1 - discount, 1)
        readings = readings + is_new
    return drawn[:, : int(readings.max())]


@lru_cache(maxsize=4096)
def _urns_given(counts: tuple[int, ...]) -> Matrix:
    """Return the probabilities of the urns given the counts, added up but for the last, (urns - 1,)."""
    k, found = sum(counts), []
    for strength, discount, weight in URNS:
        likelihood = math.log(weight) + math.lgamma(strength + 1) - math.lgamma(strength + k)
        likelihood += sum(math.log(strength + discount * i) for i in range(1, len(counts)))
        found.append(likelihood + sum(math.lgamma(n - discount) - math.lgamma(1 - discount) for n in counts))
    shares = np.exp(np.array(found) - max(found))
    cumulated: Matrix = np.cumsum(shares / shares.sum())[:-1]
    return cumulated


def _among(mutual: Matrix, counts: Counts, dice: Matrix) -> Matrix:
    """Return the kernels of D readings at hand, of which `mutual` is known, and of some new ones, (plays, n, n)."""
    distinct, new = len(counts), dice.shape[1]
    shares = np.cumsum(counts / counts.sum())[:-1]
    one, other = (np.searchsorted(shares, dice[:, :, side], side="right") for side in (0, 1))  # (plays, new)
    length = np.sqrt(2 + 2 * mutual[one, other])
    alike = _similarities(mutual, dice[:, :, 2]) / length
    made_of = np.zeros((len(dice), distinct + new, distinct))  # of the readings at hand
    made_of[:, np.arange(distinct), np.arange(distinct)] = 1
    plays, rows = np.arange(len(dice))[:, None], distinct + np.arange(new)
    made_of[plays, rows, one] += alike
    made_of[plays, rows, other] += alike
    kernels: Matrix = made_of @ mutual @ made_of.transpose(0, 2, 1)
    everyone = np.arange(distinct + new)
    kernels[:, everyone, everyone] = 1  # what is left of a new reading is its own
    return kernels


def _similarities(mutual: Matrix, dice: Matrix) -> Matrix:
    """Return how much of a new reading lies in those at hand, drawn from what they share themselves and usually do."""
    distinct, typical = len(mutual), np.array(SIMILARITIES)
    if distinct < 2:
        alike: Matrix = typical[(dice * len(SIMILARITIES)).astype(int)]
        return alike
    nearest = (mutual - 2 * np.eye(distinct)).max(1)  # (D,)
    own = dice * (distinct + 2)  # the last two stand for what is usual
    usual = ((own - distinct).clip(0) / 2 * len(SIMILARITIES)).astype(int)
    found: Matrix = np.where(own < distinct, nearest[own.astype(int).clip(max=distinct - 1)], typical[usual])
    return found
