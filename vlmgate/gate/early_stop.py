"""Decide, from the first few samples of an image, whether the rest could still change where it goes.

`check_gate` refuses gates that cannot be foreseen, `Foresight.settled` judges one image, `looks` says when to ask.
Samples 1 to k of an image are the first k of the K that it would have, so a decision on k of them can be compared with
the decision on all.

What is certain after k samples:

- A caption or answer that is no reading bars the image, whatever follows; so does a limit on novelty or on the quality
  of the picture, which no sample changes.
- The logarithm of the Vendi score is the entropy S of the kernel over its size. Whatever the other K - k captions are,
  with p = k / K it ends within [p S_k, h(p) + p S_k + (1 - p) ln(K - k)], h being the binary entropy (concavity of the
  von Neumann entropy, and its bound for mixtures: Nielsen & Chuang, "Quantum Computation and Quantum Information",
  theorem 11.10). That seldom decides, so the other captions are also played through, 400 times (`simulate`): one of
  the plays may end on the other side. Where the probability of captions is known, those not seen get what is left.
- Shares of answers: of the other K - k, a number follows the beta-binomial law that k answers leave of Jeffreys' prior
  (Beta(1/2, 1/2)); the other decision must be less likely than `CHANCE_OF_ERROR` where the image would be accepted,
  than `CHANCE` where not.

The limit must also be kept, or broken, by the k samples themselves, so that what is stored of an image decides as it
was decided. One play in 400, and the looks, were chosen on 5,280 renders of the built-in model (seeds 51 and 61 to 67,
at a Vendi score of 2). There, 3 of 420 looks that were so sure of accepting turned, and 8 of 3,440 that were as sure of
a person; but where 1 to 2 % of the plays end otherwise it is 2 % and 7 %, for an urn takes what is rare for common.
Other captions turn more often, or less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmgate.config import SamplingConfig
from vlmgate.data import Caption, Content, Quality, Reading, Reason, Record, Route, Scores, content_of
from vlmgate.errors import GateError
from vlmgate.gate.rules import Candidate, Gate, Limit, decide, safe_limit
from vlmgate.gate.simulate import LEAST_UNSEEN, entropy, seldom_ends
from vlmgate.scores.diversity import Matrix
from vlmgate.scores.novelty import Reference
from vlmgate.scores.score import Samples, Scorer

CHANCE = 0.01  # by its answers: of being accepted after all, below which an image is left to a person
CHANCE_OF_ERROR = 0.001  # of going to a person after all, below which it is accepted; the dearer mistake
_OF_ANSWERS = ("answer_share", "abstain_rate", "unparsable_rate")
_OF_CAPTIONS = ("vendi_score", "agreement", "doubt")
_FIXED = ("novelty", *Quality.__dataclass_fields__)  # no sample changes them
PREDICTED = frozenset((*_OF_ANSWERS, *_OF_CAPTIONS, *_FIXED))


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
        own = sum(caption.num_tokens for caption in (*reading.captions, *(reading.answers or ())))
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
        candidate = Candidate.of("", scores, reason, quality, novelty)
        now = decide([candidate], self.gate)[0].route
        limits = sorted(self._limits(scores), key=lambda limit: limit.column in _OF_CAPTIONS)  # which take the longest
        foreseen = (self._foreseen(limit, candidate, said) for limit in limits)
        if now is Route.HUMAN_REVIEW:
            return any(one is False for one in foreseen)
        return (said.answers is None or self._answer_stays(said)) and all(foreseen)

    def _limits(self, scores: Scores) -> list[Limit]:
        """Return the limits that concern an image with this answer, that on the score among them."""
        own = [] if self.gate.threshold is None else [safe_limit(self.gate.score, self.gate.threshold)]
        return [*own, *(limit for limit in self.gate.limits if limit.answer in (None, scores.answer))]

    def _foreseen(self, limit: Limit, candidate: Candidate, said: Samples) -> bool | None:
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

    def _answer_stays(self, said: Samples) -> bool:
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
