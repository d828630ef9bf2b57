"""Judge one row of a result by a gate file, without the run that it came from.

Knows columns and what makes a reading none; knows nothing of files or of how a row was made. Whatever is not known of a
row counts against it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from numbers import Real
from typing import Any, cast

from vlmgate.data import UNSCORABLE, Caption, Decision, Finish, Quality, Reason, Record, Scores
from vlmgate.gate.file import GateFile
from vlmgate.gate.rules import Candidate, decide
from vlmgate.scores.novelty import Reference, pack
from vlmgate.scores.refusals import degenerate, degenerate_answers
from vlmgate.scores.score import doubt

_REASONS = frozenset(Reason)  # which are texts


def judge(row: Record | Mapping[str, Any], gate: GateFile, reference: Reference | None = None) -> Decision:
    """Return where a row goes by a gate, and why; `reference` takes the place of what its novelty was measured from."""
    told = {f.name: getattr(row, f.name) for f in fields(Record)} if isinstance(row, Record) else row
    novelty = _number(told, "novelty")
    scores = Scores(**{f.name: _score(told, f.name) for f in fields(Scores)})
    features = _features(told.get("vision_features"))
    if reference is not None and features:
        novelty = _finite(float(reference.novelty_of([features])[0]))
        scores = replace(scores, doubt=doubt(scores.vendi_score, novelty, int(gate.sampling["num_samples"])))
    quality = Quality(**{f.name: _number(told, f.name) for f in fields(Quality)})
    key = (str(told.get("sha256")), 1)
    return decide([Candidate(key, scores, _no_reading(told, scores, gate), quality, novelty)], gate.gate)[0]


def _no_reading(told: Mapping[str, Any], scores: Scores, gate: GateFile) -> Reason | None:
    """Return why a row is no reading; None for one that scores may judge."""
    reason = told.get("reason")
    if reason in UNSCORABLE:
        return Reason(reason)
    if not _missing(reason) and reason not in _REASONS:  # of another program, or a slip
        return Reason.NO_SCORE
    if not _missing(told.get("error")):
        return Reason.UNREADABLE
    number = _number(told, "num_samples")
    impossible = scores.vendi_score is not None and scores.vendi_score < 0.99  # it is 1 at least, but for rounding
    if impossible or (number is not None and number != gate.sampling["num_samples"]):
        return Reason.NO_SCORE
    if _missing(told.get("vendi_score")):  # null where captions are no reading, and where there are none
        return Reason.NO_SCORE
    captions = _said(told.get("captions"), told.get("caption_finishes"))
    if captions is not None and len(captions) != gate.sampling["num_samples"]:  # scores of other K mean something else
        return Reason.NO_SCORE
    found = None if captions is None else degenerate(captions, str(gate.sampling["prompt"]))
    answers = _said(told.get("answers"), told.get("answer_finishes"))
    found = found or (None if answers is None else degenerate_answers(answers))
    lacks_answer = gate.sampling["question"] is not None and scores.answer is None
    return found or (Reason.NO_ANSWER if lacks_answer else None)


def _said(texts: Any, finishes: Any) -> tuple[Caption, ...] | None:
    """Return what was sampled, as far as a row holds it."""
    if _missing(texts):
        return None
    ends: Sequence[Any] = ["stop"] * len(texts) if _missing(finishes) else list(finishes)
    return tuple(Caption(str(text), cast(Finish, end), None, 0) for text, end in zip(texts, ends, strict=True))


def _score(told: Mapping[str, Any], name: str) -> Any:
    if name == "answer":
        return None if _missing(told.get(name)) else str(told[name])
    return None if name == "medoid" else _number(told, name)


def _number(told: Mapping[str, Any], name: str) -> float | None:
    value: Any = told.get(name)
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
