"""Decide one row of a result by a gate file, without its run. Call `judge`.

Whatever is not known of a row counts against it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from numbers import Real
from typing import Any, cast

from vlmgate.captioner.location import OWN_NOVELTY
from vlmgate.data import NO_READING, Caption, Decision, Finish, Reason, Record
from vlmgate.gate.file import GateFile
from vlmgate.gate.rules import COLUMNS, Candidate, breaks_ties, decide
from vlmgate.gate.run_gate import with_novelty
from vlmgate.scores.answers import degenerate_answers, parse, tally
from vlmgate.scores.novelty import Reference, pack
from vlmgate.scores.refusals import degenerate
from vlmgate.scores.score import doubt

_REASONS = frozenset(Reason)  # which are texts


def judge(row: Record | Mapping[str, Any], gate: GateFile, reference: Reference | None = None) -> Decision:
    """Return where a row goes by a gate, and why.

    From a `reference` its novelty is measured anew; the greater of that and the row's own counts, as under `scan`.
    """
    values = {f.name: getattr(row, f.name) for f in fields(Record)} if isinstance(row, Record) else row
    figures: dict[str, Any] = {column: _number(values, column) for column in COLUMNS}
    figures["answer"] = None if _missing(values.get("answer")) else str(values["answer"])
    found = Record(file_name="", page=1, seed=0, **figures)
    features = _features(values.get("vision_features"))
    if reference is not None and features:
        measured, most = float(reference.novelty_of([features])[0]), int(gate.sampling["num_samples"])
        novelty = _finite(max(measured, found.novelty or 0.0) if math.isfinite(measured) else measured)
        found = replace(found, novelty=novelty, doubt=doubt(found.vendi_score, novelty, most))
    rule = with_novelty(gate.gate, OWN_NOVELTY if found.novelty is not None else ())
    return decide([Candidate(found, _no_reading(values, found, gate))], rule)[0]


def _no_reading(row: Mapping[str, Any], scores: Record, gate: GateFile) -> Reason | None:
    """Return why a row is no reading; None for one that scores may judge."""
    reason, samples = row.get("reason"), gate.sampling["num_samples"]
    if reason in NO_READING:
        return Reason(reason)
    if not _missing(reason) and reason not in _REASONS:  # of another program, or a slip
        return Reason.NO_SCORE
    if not _missing(row.get("error")):
        return Reason.UNREADABLE
    # The score is null where captions are no reading, and 1 at least but for rounding.
    if scores.vendi_score is None or scores.vendi_score < 0.99 or _number(row, "num_samples") not in (None, samples):
        return Reason.NO_SCORE
    captions = _sampled(row.get("captions"), row.get("caption_finishes"))
    if captions is not None and len(captions) != samples:  # scores of other K mean something else
        return Reason.NO_SCORE
    answers = _sampled(row.get("answers"), row.get("answer_finishes"))
    found = None if captions is None else degenerate(captions, str(gate.sampling["prompt"]))
    found = found or (None if answers is None else degenerate_answers(answers, gate.sampling["choices"]))
    lacks_answer = gate.sampling["question"] is not None and (scores.answer is None or _is_tie(answers, scores, gate))
    return found or (Reason.NO_ANSWER if lacks_answer else None)


def _is_tie(answers: Sequence[Caption] | None, scores: Record, gate: GateFile) -> bool:
    """Say whether two choices may have been named equally often, which is an answer for some gates alone."""
    if None in (scores.answer_probability, scores.answer_share):  # of before ties were broken; or scored
        return False
    if breaks_ties(gate.gate.limits, gate.gate.score):
        return False
    if answers is None:
        return scores.answer_share is None or scores.answer_share <= 0.5
    choices = tuple(gate.sampling["choices"] or ())
    return tally([parse(answer.text, choices) for answer in answers]).answer is None


def _sampled(texts: Any, finishes: Any) -> tuple[Caption, ...] | None:
    """Return what was sampled, as far as a row holds it."""
    if _missing(texts):
        return None
    ends: Sequence[Any] = ["stop"] * len(texts) if _missing(finishes) else list(finishes)
    return tuple(Caption(str(text), cast(Finish, end), None, 0) for text, end in zip(texts, ends, strict=True))


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value: Any = row.get(name)
    return None if _missing(value) else _finite(float(value))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _missing(value: Any) -> bool:
    """Say whether a cell is empty: None, or what data frames put there."""
    if isinstance(value, Real):
        return math.isnan(value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")  # of pandas


def _features(value: Any) -> bytes | None:
    if _missing(value):
        return None
    return value if isinstance(value, bytes) else pack(tuple(float(one) for one in value))
