"""Why an image is on the page, in a sentence that needs no knowledge of scores.

Knows reasons, columns and limits; knows nothing of pages.
"""

from __future__ import annotations

from collections.abc import Callable

from vlmgate.data import Reason, Record
from vlmgate.errors import plain
from vlmgate.gate.reasons import REASON_WORDS

# Column → what its value says; {k} = number of readings or answers, {v} = the value, {c} = value × number.
# True = a share, told in per cent.
_STATEMENTS: dict[str, tuple[str, bool]] = {
    "vendi_score": ("The model read this {k} times and gave about {v} different readings", False),
    "agreement": ("The model's {k} readings agree by {v}", True),
    "mean_dissimilarity": ("Any two of the model's {k} readings differ by {v} on average", True),
    "mean_logprob": ("The model's own words had a mean log-probability of {v}", False),
    "semantic_entropy": ("The model's {k} readings mean different things (semantic entropy {v})", False),
    "predictive_entropy": ("The model was not sure of its own words (predictive entropy {v})", False),
    "cocoa": ("Doubt about single words times difference between the {k} readings comes to {v} (cocoa)", False),
    "view_contrast": ("A little noise in the picture changes the reading by {v}", True),
    "answer_share": ("{v} of the model's answers, {c} of {k}, name the same choice", True),
    "answer_entropy": ("The model's {k} answers are divided (answer entropy {v})", False),
    "abstain_rate": ("The model was unsure in {v} of its answers, {c} of {k}", True),
    "unparsable_rate": ("{v} of the model's answers, {c} of {k}, could not be understood", True),
    "doubt": ("Differing readings and a strange image come to a doubt of {v}", False),
    "novelty": ("The distance of this image from what the model is meant for (novelty) is {v}", False),
    "sharpness": ("The sharpness of the picture is {v}", False),
    "exposure": ("The mean brightness of the picture is {v}", True),
    "contrast": ("The contrast of the picture is {v}", False),
    "noise": ("The noise in the picture is {v} grey levels", False),
    "clipped_dark": ("{v} of the picture is black", True),
    "clipped_bright": ("{v} of the picture is white", True),
}
_OF_ANSWERS = ("answer_share", "answer_entropy", "abstain_rate", "unparsable_rate")
_ANSWER_REASONS = (Reason.EMPTY_ANSWER, Reason.ANSWER_CUT_OFF, Reason.NO_ANSWER)


def sentence(record: Record, score: str, *, audit: bool = False) -> str:
    """Return why an image is looked at; `score` is the gate's, which decided where no other column is named."""
    reason = Reason(record.reason)
    said = _of_reason(record, reason, record.decided_by or score)
    return ("Accepted without a person, and drawn at random for this audit. " if audit else "") + said


def _of_reason(record: Record, reason: Reason, column: str) -> str:
    if words := REASON_WORDS[reason].page:
        number = len((record.answers if reason in _ANSWER_REASONS else record.captions) or ())
        error = f": {plain(record.error)}" if record.error else ""
        return words.format(k=number) + error + "."
    value: float | None = getattr(record, column)
    if reason is Reason.NO_SCORE or value is None:
        return f"There is no {column} for this image, and a limit asks for it."
    limit = record.threshold
    statement, share = _STATEMENTS[column]
    told, limited = apart(value, limit, share=share)
    number = len((record.answers if column in _OF_ANSWERS else record.captions) or ())
    statement = statement.format(k=number, v=told, c=round(value * number) if share else None)
    if reason is Reason.MOST_UNCERTAIN:
        return f"{statement}; it is among the most uncertain images, which fill the review budget."
    if reason is Reason.LEAST_UNCERTAIN or limit is None:
        return f"{statement}; the images that fill the review budget are more uncertain."
    verb = "are" if column == "vendi_score" else "is"
    return (
        f"{statement}; {'up to' if _is_upper(record, column, value, limit) else 'at least'} {limited} {verb} accepted."
    )


def _is_upper(record: Record, column: str, value: float, limit: float) -> bool:
    """Say whether the limit is the most that is accepted."""
    accepted = record.reason == Reason.AGREED
    if value == limit:
        from vlmgate.gate.rules import HIGHER_IS_WORSE

        return HIGHER_IS_WORSE.get(column, True)
    return (value < limit) == accepted


def apart(value: float, limit: float | None, *, share: bool) -> tuple[str, str]:
    """Return both in as few digits as tell them apart, at least two."""
    write: Callable[[float, int], str] = _per_cent if share else _significant
    for digits in range(2, 8):
        told = write(value, digits), "" if limit is None else write(limit, digits)
        if limit is None or value == limit or told[0] != told[1]:
            break
    return told


def _significant(value: float, digits: int) -> str:
    return (
        f"{value:,.{max(0, digits - 1)}f}"
        if 1 <= abs(value) < 10
        else f"{value:.{digits}g}"
        if abs(value) < 1e4
        else f"{value:,.0f}"
    )


def _per_cent(value: float, digits: int) -> str:
    return f"{value * 100:.{digits - 2}f}%"
