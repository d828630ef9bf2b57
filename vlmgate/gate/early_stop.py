"""Decide, from the first few samples of an image, whether the rest could still change where it goes.

`check_gate` refuses gates that cannot be foreseen, `Foresight.settled` judges one image, `looks` says when to ask.
Samples 1 to k of an image are the first k of the K that it would have, so both decisions can be compared.

It is certain that an image goes to a person once a sample is no reading, a limit on novelty or on the quality of the
picture is broken, or no continuation of K - k samples can bring a score back within its limit:

- counts of captions and answers only grow, which bounds shares and `contradiction`; of answers that were scored no
  sample changes anything;
- the logarithm of the Vendi score is the entropy S of the kernel over its size. Where captions are either alike or not,
  it is least if all that follow join the largest group. Else, with p = k / K, it is at least p S_k, for S is concave
  (Nielsen & Chuang, "Quantum Computation and Quantum Information", theorem 11.10).

It is certain that an image is accepted once the same bounds keep it within every limit. That seldom happens early: a
later caption may contradict. To accept after some samples that all say the same was tried. Of the built-in model's
decisions 6 % (four samples) to 0.6 % (12 of 16) were then others, each by accepting; so nothing but bounds decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmgate.config import SamplingConfig
from vlmgate.data import Content, Quality, Reading, Reason, Record, Route, Scores, content_of
from vlmgate.errors import GateError
from vlmgate.gate.rules import ANSWER_COLUMNS, COLUMNS, NO_CONTRADICTION, Candidate, Gate, Limit, decide
from vlmgate.scores.answer_probability import is_scored, unseen
from vlmgate.scores.diversity import AT_ONCE, Matrix, contradiction, vendi_score
from vlmgate.scores.novelty import Reference
from vlmgate.scores.score import Samples, Scorer

_OF_ANSWERS = ("answer_share", "abstain_rate", "unparsable_rate")
_PROBABILITY = "answer_probability"
_OF_CAPTIONS = ("vendi_score", "agreement", "doubt")
_FIXED = ("novelty", *Quality.__dataclass_fields__)  # no sample changes them
PREDICTED = frozenset((*_OF_ANSWERS, _PROBABILITY, *_OF_CAPTIONS, *_FIXED, "contradiction"))
# What more samples may still put right.
_OPEN = (None, Reason.NO_ANSWER, Reason.NO_SCORE, Reason.NO_CLAIM, Reason.UNKNOWN_LANGUAGE)
LEAST_UNSEEN = 0.01  # for log-probabilities are rounded, and half precision adds to that
_TINY = 1e-9


def check_gate(gate: Gate, kernel: str) -> None:
    """Raise `GateError` for a gate whose decisions cannot be foreseen image by image."""
    if gate.budget_share is not None or gate.budget_count is not None:
        raise GateError(
            "--samples and --review-budget exclude each other: whether an image is among the most uncertain is known "
            "only once all are read; give --threshold or --limit, or -k."
        )
    if kernel not in AT_ONCE:
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
    """Says of one image at a time whether its decision is certain; see the module."""

    gate: Gate  # see `check_gate`
    scorer: Scorer
    sampling: SamplingConfig

    @property
    def most(self) -> int:
        """Return K."""
        return self.sampling.num_samples

    def settled(self, reading: Reading, reference: Reference | None) -> bool:
        """Tell whether the decision on what was said so far is that on K samples."""
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
        if reason not in _OPEN:
            return True
        if reason is Reason.NO_ANSWER and is_scored(said.answers):
            return True
        candidate = Candidate.of("", scores, reason, quality, novelty)
        accepted = decide([candidate], self.gate)[0].route is Route.AUTO_ACCEPT
        foreseen = [self._foreseen(limit, candidate, said) for limit in self._limits(scores)]
        return all(foreseen) and reason is None if accepted else any(one is False for one in foreseen)

    def _limits(self, scores: Scores) -> list[Limit]:
        """Return the limits that concern an image with this answer, that on the score among them."""
        limits = [one for one in (self.gate.own, *self.gate.limits) if one and one.answer in (None, scores.answer)]
        return limits if any(one.column == "contradiction" for one in limits) else [*limits, NO_CONTRADICTION]

    def _foreseen(self, limit: Limit, candidate: Candidate, said: Samples) -> bool | None:
        """Tell whether a limit is sure to be kept (True) or broken (False) by K samples; None where it is open."""
        value = candidate.value(limit.column)
        fixed = limit.column in (*_FIXED, *(ANSWER_COLUMNS if is_scored(said.answers) else ()))
        if value is None:
            return False if fixed else None
        if fixed:
            return limit.holds(value)
        if (
            limit.answer is not None or (limit.column == _PROBABILITY and limit.holds(value))
        ) and not self._answer_stays(said):
            return None
        if limit.column == _PROBABILITY:  # it only grows as other texts that name the answer are drawn
            return True if limit.holds(value) else False if self._stays_unlikely(limit, said) else None
        if limit.column in _OF_CAPTIONS:
            return self._vendi_within(limit, candidate, said)
        drawn, left = len(said.captions), self.most - len(said.captions)
        high = COLUMNS[limit.column].high or 1.0
        if limit.column == "contradiction" and said.answers and not self._answer_stays(said):
            value, left = contradiction(self.scorer.claims(said.captions)), self.most  # all may dispute another
        count = round(value * drawn)
        ends = {limit.holds(count / self.most), limit.holds(min(high, (count + left) / self.most))}
        return ends.pop() if len(ends) == 1 else None

    def _vendi_within(self, limit: Limit, candidate: Candidate, said: Samples) -> bool | None:
        """Tell whether the Vendi score of K captions is sure to be within a limit, or beyond it."""
        most = limit.value
        if limit.column == "agreement":
            most = 1 + (1 - limit.value) * (self.most - 1)
        elif limit.column == "doubt":
            most -= self.most if (candidate.record.novelty or 0.0) > 1 else 0
        if most < 1:  # of which the Vendi score is never less
            return False
        low, high = entropy_between(self.scorer.kernel([caption.text for caption in said.captions]), self.most)
        return True if high <= math.log(most) else False if low > math.log(most) + _TINY else None

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
        counted = [*sorted(self.scorer.counts(said).values(), reverse=True), 0, 0]
        return counted[0] - counted[1] > self.most - len(said.captions)


def entropy_between(kernel: Matrix, most: int) -> tuple[float, float]:
    """Return the least and the greatest entropy, in nats, of `most` captions whose first k have this (k, k) kernel."""
    k = len(kernel)
    share, known = k / most, math.log(vendi_score(kernel))
    low = share * known
    if np.isin(kernel.round(9), (0.0, 1.0)).all():  # groups: the least comes of a single group that grows
        sizes = sorted(kernel.sum(axis=1)[np.unique(kernel.argmax(axis=1))] / most)
        shares = np.array([*sizes[:-1], sizes[-1] + 1 - share])
        low = float(-(shares * np.log(shares)).sum())
    if k == most:
        return known, known
    mixed = -share * math.log(share) - (1 - share) * math.log(1 - share)
    return low, mixed + share * known + (1 - share) * math.log(most - k)
