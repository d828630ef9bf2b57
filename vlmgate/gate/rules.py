"""Gates and limits: which values are accepted, where an image goes, and why.

`make_gate` makes a gate from options, `decide` and `decide_rows` apply it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from vlmgate.data import Decision, Quality, Reason, Record, Route, Scores, columns_of
from vlmgate.errors import GateError

Side = Literal["<=", ">="]


@dataclass(frozen=True, slots=True)
class Column:
    """What may be limited: which values are worse, and where they lie."""

    higher_is_worse: bool | None  # None = neither end is good
    low: float
    high: float | None  # None = K
    either_side: bool = False  # a limit from the better side means something, too


COLUMNS: dict[str, Column] = {
    "vendi_score": Column(True, 1, None),
    "agreement": Column(False, 0, 1),
    "mean_dissimilarity": Column(True, 0, 1),
    "mean_logprob": Column(False, -math.inf, 0),
    "semantic_entropy": Column(True, 0, math.inf),
    "predictive_entropy": Column(True, 0, math.inf),
    "cocoa": Column(True, 0, math.inf),
    "support": Column(False, 0, 1),
    "verdict_share": Column(False, 0, 1),
    "contradiction": Column(True, 0, 0.5),
    "view_contrast": Column(True, 0, 1),
    "answer_share": Column(False, 0, 1),
    "answer_probability": Column(False, 0, 1),
    "answer_entropy": Column(True, 0, math.inf),
    "abstain_rate": Column(True, 0, 1),
    "unparsable_rate": Column(True, 0, 1),
    "doubt": Column(True, 1, math.inf),
    "novelty": Column(True, 0, math.inf),
    "sharpness": Column(False, 0, math.inf, either_side=True),
    "exposure": Column(None, 0, 1, either_side=True),
    "contrast": Column(False, 0, 0.5, either_side=True),
    "noise": Column(True, 0, math.inf, either_side=True),
    "clipped_dark": Column(True, 0, 1, either_side=True),
    "clipped_bright": Column(True, 0, 1, either_side=True),
    "flat_rows": Column(True, 0, 1, either_side=True),
}
QUALITY = frozenset(field.name for field in fields(Quality))  # of the picture, whatever the model says
# What images can be ordered by, the worst first.
HIGHER_IS_WORSE: dict[str, bool] = {
    name: column.higher_is_worse for name, column in COLUMNS.items() if column.higher_is_worse is not None
}
# Nobody's measurement, but it means something for any model: all captions say the same; see `unanimous`.
UNCALIBRATED_VENDI_SCORE = 1.25
# Nobody's measurement either: three answers in four. Without it one "ok" and seven times "unsure" would be a majority.
UNCALIBRATED_ANSWER = 0.75
PROBABILITY = "answer_probability"
ANSWER_COLUMNS = ("answer_share", "answer_probability", "answer_entropy", "abstain_rate", "unparsable_rate")


@dataclass(frozen=True, slots=True)
class Limit:
    """What one column must keep to; an image beyond it, or without a value, is not accepted."""

    column: str
    side: Side
    value: float  # the limit itself is still accepted
    default: bool = False  # nobody chose this limit
    by_model: bool = False  # it was measured for the model, by who made that
    answer: str | None = None  # it concerns images with this answer only
    instead: str | None = None  # column to be compared where this one is null

    def describe(self) -> str:
        """Return the rule in a few words, e.g. "abstain_rate ≤ 0.25"."""
        sign = "≤" if self.side == "<=" else "≥"
        origin = " (uncalibrated default)" if self.default else " (the model's own)" if self.by_model else ""
        where = "" if self.answer is None else f" where the answer is '{self.answer}'"
        if self.is_none:
            return f"any {self.column}"
        if math.isinf(self.value):
            return f"nothing{where}{origin}"
        column = self.column if self.instead is None else f"{self.column} (or {self.instead})"
        return f"{column} {sign} {self.value:.6g}{where}{origin}"

    @property
    def is_none(self) -> bool:
        """Say whether it keeps nothing back: "novelty <= inf"."""
        return self.value == (math.inf if self.side == "<=" else -math.inf)

    def holds(self, value: float) -> bool:
        """Say whether a value keeps to it."""
        return value <= self.value if self.side == "<=" else value >= self.value


NO_CONTRADICTION = Limit("contradiction", "<=", 0.0, default=True)


@dataclass(frozen=True, slots=True)
class Gate:
    """How images are split: by limits, or by limits and what a reviewer can look at besides.

    One of `threshold` and the two budgets is set, or none where `limits` has one on `score`; else raises `GateError`.
    """

    score: str = "vendi_score"
    threshold: float | None = None  # in the score's own units; the limit itself is still accepted
    budget_share: float | None = None  # share of all images, [0, 1]
    budget_count: int | None = None  # images
    default: bool = False  # nobody chose this threshold
    by_model: bool = False  # it was measured for the model, by who made that
    limits: tuple[Limit, ...] = ()
    origin: str | None = None  # the gate file it comes from, and its date

    def __post_init__(self) -> None:
        rules = sum(rule is not None for rule in (self.threshold, self.budget_share, self.budget_count))
        limited = any(limit.column == self.score for limit in self.limits)
        if rules > 1 or (rules == 0 and not limited):
            raise GateError("a gate needs exactly one limit on its score: a threshold or a review budget.")

    @property
    def own(self) -> Limit | None:
        """Return the threshold as a limit."""
        if self.threshold is None:
            return None
        instead = "answer_share" if self.default and self.score == PROBABILITY else None
        return Limit(self.score, _safe_side(self.score), self.threshold, self.default, self.by_model, instead=instead)

    def compares(self, column: str) -> bool:
        """Say whether a decision may depend on a column."""
        return column in (self.score, *(limit.column for limit in self.limits))

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Gate:
        """Return the gate that a result's provenance holds; see `told`."""
        known = {field.name for field in fields(cls)}
        values = {key: value for key, value in stored.items() if key in known}
        return cls(**values | {"limits": tuple(_read_limit(limit) for limit in stored.get("limits", ()))})

    def told(self) -> dict[str, Any]:
        """Return what a result's provenance holds of it; JSON has no infinity, so a limit of `never` is null."""
        limits = (asdict(one) for one in self.limits if not one.is_none)
        told = tuple(one | {"value": one["value"] if math.isfinite(one["value"]) else None} for one in limits)
        return asdict(self) | {"limits": told}

    def describe(self) -> str:
        """Return the rule in a few words, e.g. "vendi_score ≤ 1.8 and abstain_rate ≤ 0.25"."""
        usual = set() if self.origin is None else {limit.column for limit in self.limits if limit.column in QUALITY}
        parts = [limit.describe() for limit in (self.own, *self.limits) if limit and limit.column not in usual]
        parts += [f"{' and '.join(sorted(usual)) if len(usual) < 3 else 'the picture'} as calibrated"] * bool(usual)
        if self.budget_share is not None or self.budget_count is not None:
            many = f"{self.budget_count:,}" if self.budget_share is None else f"{self.budget_share * 100:.6g}% of"
            parts = [f"the {many} images most uncertain by {self.score} go to a person", *parts]
        rule = " and ".join(parts)
        return rule if self.origin is None else f"{rule} ({self.origin})"


def _read_limit(stored: Mapping[str, Any]) -> Limit:
    """Return a limit as provenance holds it; one without a value is of `never`."""
    nothing = -math.inf if stored["side"] == "<=" else math.inf
    return Limit(**dict(stored) | {"value": nothing if stored["value"] is None else stored["value"]})


def make_gate(
    *,
    num_samples: int,
    score: str | None = None,
    threshold: float | None = None,
    review_budget: str | None = None,
    limits: Sequence[str] = (),
    answered: bool = False,
    kernel: str = "findings",
    own: Sequence[str] = (),
) -> Gate:
    """Return the gate that the options ask for; raises `GateError` where they contradict each other or mean nothing.

    `review_budget` is a share ("10%") or a number of images ("200"); `limits` are rules such as "novelty <= 1". Where a
    question was `answered`, the score is the probability of the answer, unless the user names another, and without a
    limit on it or on `answer_share` either must be `UNCALIBRATED_ANSWER`. Else it is the Vendi score. Without a limit
    on that its limit is that of `own`, what was measured for the model, or `UNCALIBRATED_VENDI_SCORE`; both hold for
    the kernels findings, kappa and words alone. The other limits of `own` hold beside every split, each unless `limits`
    has one on its column; "novelty <= inf" is none at all.
    """
    if score not in (None, *HIGHER_IS_WORSE):
        raise GateError(f"unknown score '{score}'; choose one of {', '.join(HIGHER_IS_WORSE)}.")
    if threshold is not None and review_budget is not None:
        raise GateError("--threshold and --review-budget exclude each other; give one of them.")
    rules = tuple(parse_limit(text, num_samples) for text in limits)
    measured = [replace(parse_limit(text, num_samples), by_model=True) for text in own]
    main = next((limit for limit in measured if limit.column == "vendi_score"), None)
    given = {rule.column for rule in rules}
    others = tuple(limit for limit in measured if limit is not main and limit.column not in given)
    rules = (*others, *(rule for rule in rules if not rule.is_none))
    on_answers = [rule.column for rule in rules if rule.column in (PROBABILITY, "answer_share")]
    chosen = score
    score = score or (on_answers[0] if on_answers and answered else PROBABILITY if answered else "vendi_score")
    # Neither a budget nor their entropy does instead: seven times "unsure" and one "ok" agree well enough.
    limited = bool(on_answers) or (score in (PROBABILITY, "answer_share") and threshold is not None)
    by_default = answered and not limited
    answers = (Limit(PROBABILITY, ">=", UNCALIBRATED_ANSWER, default=True, instead="answer_share"),) * by_default
    if review_budget is not None:
        share, count = parse_share_or_count(review_budget, "--review-budget")
        return Gate(score=score, budget_share=share, budget_count=count, limits=(*rules, *answers))
    if threshold is not None:
        if answered and chosen is None and not 0 <= threshold <= 1:
            raise GateError(f"--threshold is {threshold}: with --choices it is of {score}; add --score vendi_score.")
        return Gate(score, _checked(score, threshold, num_samples, "--threshold"), limits=(*rules, *answers))
    if any(rule.column == score for rule in rules):
        return Gate(score=score, limits=(*rules, *answers))
    if by_default and chosen in (None, PROBABILITY):
        return Gate(PROBABILITY, UNCALIBRATED_ANSWER, default=True, limits=rules)
    if score != "vendi_score":
        raise GateError(f"--score {score} has no default limit; give --threshold, --review-budget or --limit.")
    if kernel not in ("findings", "kappa", "words"):
        raise GateError(f"--kernel {kernel} has no default limit; give --threshold, --review-budget or --limit.")
    rules = (*rules, *answers)
    if main is not None:
        return Gate(threshold=main.value, by_model=True, limits=rules)
    threshold = min(UNCALIBRATED_VENDI_SCORE, float(num_samples)) if kernel == "words" else unanimous(num_samples)
    return Gate(threshold=threshold, default=True, limits=rules)


def unanimous(num_samples: int) -> float:
    """Return a Vendi score under `findings` that K captions keep to only where all say the same, 1.25 at most.

    A single caption that says something else is at most half like the others. The eigenvalues of that kernel over K are
    1/2 ± sqrt(1/4 - 3/4 (K - 1) / K²), so eight captions come to 1.35 or more, sixteen to 1.20.
    """
    root = math.sqrt(0.25 - 0.75 * (num_samples - 1) / num_samples**2)
    entropy = -sum(value * math.log(value) for value in (0.5 + root, 0.5 - root))
    return min(UNCALIBRATED_VENDI_SCORE, math.floor(1000 * math.exp(entropy) - 1) / 1000)


def parse_share_or_count(text: str, option: str) -> tuple[float | None, int | None]:
    """Read "10%" as (0.1, None) and "200" as (None, 200)."""
    match = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,12})?)\s*(%?)\s*", text, re.ASCII)
    if match and match[2] and float(match[1]) <= 100:
        return float(match[1]) / 100, None
    if match and not match[2] and "." not in match[1]:
        return None, int(match[1])
    raise GateError(f"{option} is '{text}'; give a share such as 10% or a number of images such as 200.")


def never(column: str, answer: str) -> Limit:
    """Return the limit that keeps images with this answer from being accepted at all."""
    return safe_limit(column, -math.inf if HIGHER_IS_WORSE[column] else math.inf, answer)


def safe_limit(column: str, value: float, answer: str | None = None) -> Limit:
    """Return the limit that accepts from the safe end of a column up to a value."""
    return Limit(column, _safe_side(column), value, answer=answer)


def parse_limit(text: str, num_samples: int) -> Limit:
    """Read "abstain_rate <= 0.25"; raises `GateError` for anything else, and for a limit from the wrong side."""
    number = r"[+-]?(?:\d{1,12}(?:\.\d{0,12})?|\.\d{1,12}|inf)"
    match = re.fullmatch(rf"\s*(\w+)\s*(<=|>=|≤|≥)\s*({number})\s*", text, re.ASCII)
    if match is None:
        raise GateError(f"--limit is '{text}'; give a column, <= or >=, and a number, such as 'abstain_rate <= 0.25'.")
    column, side = match[1], "<=" if match[2] in ("<=", "≤") else ">="
    if column not in COLUMNS:
        raise GateError(f"--limit '{text}': unknown column '{column}'; choose one of {', '.join(COLUMNS)}.")
    if not COLUMNS[column].either_side and side != _safe_side(column):
        worse = "higher" if HIGHER_IS_WORSE[column] else "lower"
        raise GateError(f"--limit '{text}' would accept the worst: of {column}, {worse} is worse; turn the sign round.")
    value = _checked(column, float(match[3]), num_samples, f"--limit '{text}'")
    return Limit(column, "<=" if side == "<=" else ">=", value)


def _safe_side(column: str) -> Side:
    return "<=" if HIGHER_IS_WORSE[column] else ">="


def _checked(name: str, value: float, num_samples: int, option: str) -> float:
    low, high = COLUMNS[name].low, COLUMNS[name].high
    high = float(num_samples) if high is None else high
    no_limit = value == high and option != "--threshold"  # "novelty <= inf"
    if not (math.isfinite(value) or no_limit) or not low <= value <= high:
        said = f"{option} is {value}" if option == "--threshold" else option
        raise GateError(f"{said}: {name} lies between {low:g} and {high:g} with this many samples.")
    return value


# --- decisions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row before its decision; `reason` is set where no score can save it."""

    record: Record  # with all figures that a gate may look at; its route is not chosen yet
    reason: Reason | None

    @classmethod
    def of(
        cls,
        name: str,
        scores: Scores | None,
        reason: Reason | None,
        quality: Quality | None = None,
        novelty: float | None = None,
    ) -> Candidate:
        """Return one of figures that are in no row yet."""
        figures = columns_of(scores) | columns_of(quality)
        return cls(Record(file_name=name, page=1, seed=0, novelty=novelty, **figures), reason)

    @property
    def key(self) -> tuple[str, int]:
        """Return (sha256, page), or the name of what was not read; equal keys share a decision and break ties."""
        row = self.record
        read = row.sha256 is not None and (row.num_samples is not None or row.captions is not None)
        return (str(row.sha256) if read else row.file_name, row.page)

    def value(self, column: str) -> float | None:
        """Return what it has in a column; None where that cannot be compared."""
        found: float | None = getattr(self.record, column, None)
        return found if found is not None and math.isfinite(found) else None

    def compared(self, limit: Limit) -> tuple[str, float | None]:
        """Return the column that a limit is compared with, and its value; None where that cannot be compared."""
        value = self.value(limit.column)
        if value is None and limit.instead is not None and (other := self.value(limit.instead)) is not None:
            return limit.instead, other
        return limit.column, value


def _score_of(candidate: Candidate, gate: Gate) -> float | None:
    """Return what orders a candidate; shares of answers stand in for their probabilities where nobody set a limit."""
    if gate.own is not None:
        return candidate.compared(gate.own)[1]
    value = candidate.value(gate.score)
    budget = gate.budget_share is not None or gate.budget_count is not None
    return candidate.value("answer_share") if value is None and budget and gate.score == PROBABILITY else value


def decide_rows(candidates: Sequence[Candidate], gate: Gate) -> list[Record]:
    """Return the rows of the candidates, each with where it goes and why."""
    return [
        replace(
            candidate.record,
            route=decision.route,
            reason=decision.reason,
            decided_by=decision.column,
            threshold=decision.threshold,
        )
        for candidate, decision in zip(candidates, decide(candidates, gate), strict=True)
    ]


def decide(candidates: Sequence[Candidate], gate: Gate) -> list[Decision]:
    """Return a decision for each candidate, in order. Only finite values within every limit are auto-accepted."""
    barred = [_barred(candidate, gate) for candidate in candidates]
    if gate.budget_share is not None or gate.budget_count is not None:
        return _by_budget(candidates, barred, gate)
    return [b or _by_threshold(c, gate) for c, b in zip(candidates, barred, strict=True)]


def _barred(candidate: Candidate, gate: Gate) -> Decision | None:
    """Return the decision on what goes to a person whatever its score, and on what has none; None for all others."""
    barred = bars(candidate, gate.limits, gate.score)
    if barred is None and _score_of(candidate, gate) is None:
        return Decision(Route.HUMAN_REVIEW, Reason.NO_SCORE, None, gate.score)
    return barred


def bars(candidate: Candidate, limits: Sequence[Limit], score: str | None = None) -> Decision | None:
    """Return the decision on what no score can save and on what is beyond a limit; None for all others.

    Captions that contradict each other are beyond a limit under every gate, unless a limit on `contradiction` allows
    for them. Where two choices were named equally often, the likelier is an answer for gates that go by its probability
    alone.
    """
    tie = candidate.reason is Reason.NO_ANSWER and candidate.record.answer is not None
    if candidate.reason is not None and not (tie and breaks_ties(limits, score)):
        return Decision(Route.HUMAN_REVIEW, candidate.reason, None)
    if not any(limit.column == "contradiction" for limit in limits):
        limits = (NO_CONTRADICTION, *limits)
    for limit in sorted(limits, key=lambda limit: limit.column != "contradiction"):
        if limit.is_none or limit.answer not in (None, candidate.record.answer):
            continue
        column, value = candidate.compared(limit)
        if value is None and limit is not NO_CONTRADICTION:  # a result of before has no such column
            return Decision(Route.HUMAN_REVIEW, Reason.NO_SCORE, None, column)
        if value is not None and not limit.holds(value):
            why = Reason.CONTRADICTED if column == "contradiction" else Reason.BEYOND_LIMIT
            return Decision(Route.HUMAN_REVIEW, why, limit.value, column)
    return None


def breaks_ties(limits: Sequence[Limit], score: str | None = None) -> bool:
    """Say whether all that a gate accepts keeps to a limit on the probability of its answer."""
    return score == PROBABILITY or any(limit.column == PROBABILITY and limit.answer is None for limit in limits)


def _by_threshold(candidate: Candidate, gate: Gate) -> Decision:
    limit = gate.own or next(limit for limit in gate.limits if limit.column == gate.score)  # which hold already
    column, value = candidate.compared(limit)
    if value is not None and limit.holds(value):
        return Decision(Route.AUTO_ACCEPT, Reason.AGREED, limit.value, column)
    return Decision(Route.HUMAN_REVIEW, Reason.DISAGREED, limit.value, column)


def _by_budget(candidates: Sequence[Candidate], barred: Sequence[Decision | None], gate: Gate) -> list[Decision]:
    """Fill the budget: first what must be seen whatever its score (even beyond the budget), then the most uncertain.

    Of equals, those with less likely answers come first, then those with less likely captions, unknown before all.
    Exact duplicates go the same way, so the last of the budget may bring its copies along.
    """
    budget = gate.budget_count or 0
    if gate.budget_share is not None:
        budget = math.ceil(round(gate.budget_share * len(candidates), 9))
    read = sum(candidate.reason is not Reason.NOT_READ for candidate in candidates)  # the others' turn comes later
    free = [candidate for candidate, decision in zip(candidates, barred, strict=True) if decision is None]
    sign = 1 if HIGHER_IS_WORSE[gate.score] else -1

    def rank(free: Candidate) -> tuple[float, float, float, tuple[str, int]]:
        likely = (free.value(column) for column in (PROBABILITY, "mean_logprob"))
        answer, captions = (-math.inf if value is None else value for value in likely)
        return -sign * (_score_of(free, gate) or 0.0), answer, captions, free.key  # what is free has a score

    ranked = sorted(map(rank, free))
    chosen = ranked[: max(0, budget - (read - len(free)))]
    routed = {key for *_, key in chosen}
    limit = -sign * chosen[-1][0] if chosen else None
    uncertain = Decision(Route.HUMAN_REVIEW, Reason.MOST_UNCERTAIN, limit, gate.score)
    certain = Decision(Route.AUTO_ACCEPT, Reason.LEAST_UNCERTAIN, limit, gate.score)
    return [b or (uncertain if c.key in routed else certain) for c, b in zip(candidates, barred, strict=True)]
