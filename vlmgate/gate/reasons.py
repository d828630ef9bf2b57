"""What every reason for a decision is called: in a table, in a sentence, and on the review page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vlmgate.data import Reason, Record
from vlmgate.scores.answer_probability import is_known

UNREAD = frozenset((Reason.UNREADABLE, Reason.NOT_READ, Reason.MODEL_FAILED))  # the model has said nothing


_NO_PROBABILITY = (
    "answer_probability is unknown: it takes the log-probability and the tokens of each answer, which some servers do "
    "not give, and which older results keep only in their journal"
)


def no_probability(records: Sequence[Record]) -> str | None:
    """Return why no row knows how probable its answer is, as a sentence without its stop; None where one does."""
    answered = any(record.answer is not None for record in records)
    return _NO_PROBABILITY if answered and not any(map(is_known, records)) else None


class ReasonWords(NamedTuple):
    """One reason in words."""

    short: str  # in counts and tables
    why: str  # after "routed: " or "accepted: "
    page: str | None = None  # begins a sentence; {k} = number of readings or answers; None = the limit says it


REASON_WORDS = {
    Reason.UNREADABLE: ReasonWords(
        "unreadable", "the file could not be read as an image", "The file could not be read as an image"
    ),
    Reason.NOT_READ: ReasonWords(
        "not read yet",
        "the run ended before its turn; the same command goes on",
        "The scan ended before the turn of this image, so the model has not read it",
    ),
    Reason.MODEL_FAILED: ReasonWords(
        "model failed", "the model raised an error on it", "The model raised an error on this image"
    ),
    Reason.NON_FINITE: ReasonWords(
        "model overflowed",
        "the model's numbers overflowed",
        "The model's numbers overflowed while it read this image",
    ),
    Reason.EMPTY_CAPTION: ReasonWords(
        "empty caption", "at least one caption says nothing", "At least one of the model's {k} readings says nothing"
    ),
    Reason.REFUSED: ReasonWords(
        "refused",
        "at least one caption declines to answer",
        "At least one of the model's {k} readings declines to answer",
    ),
    Reason.CUT_OFF: ReasonWords(
        "caption cut off",
        "at least one caption was cut off at --max-new-tokens",
        "At least one of the model's {k} readings was cut off before its end",
    ),
    Reason.NO_CLAIM: ReasonWords(
        "says nothing of the condition",
        "no caption says anything of the part's condition; ask with --choices, or name its words with --terms",
        "None of the model's {k} readings says anything of the part's condition",
    ),
    Reason.UNKNOWN_LANGUAGE: ReasonWords(
        "language not known",
        "its captions are in a language without a word list; use --choices, --terms or --kernel nli:FOLDER",
        "The model's {k} readings are in a language that has no word list",
    ),
    Reason.EMPTY_ANSWER: ReasonWords(
        "empty answer", "at least one answer says nothing", "At least one of the model's {k} answers says nothing"
    ),
    Reason.ANSWER_CUT_OFF: ReasonWords(
        "answer cut off",
        "at least one answer was cut off at --max-answer-tokens",
        "At least one of the model's {k} answers was cut off before its end",
    ),
    Reason.NO_ANSWER: ReasonWords(
        "no answer",
        "no choice was named more often than every other",
        "No choice was named more often than every other in the model's {k} answers",
    ),
    Reason.DRIFTED: ReasonWords(
        "unlike the calibrated images",
        "the images of this run do not look like those that the gate was calibrated on",
        "The images of this scan do not look like those that the limits were calibrated on",
    ),
    Reason.NO_SCORE: ReasonWords("no score", "a column that has a limit cannot be computed"),
    Reason.CONTRADICTED: ReasonWords(
        "contradicted",
        "one reading asserts what another denies",
        "The model's {k} readings contradict each other",
    ),
    Reason.BEYOND_LIMIT: ReasonWords("beyond limit", "a column is beyond its limit"),
    Reason.DISAGREED: ReasonWords("disagreed", "the readings differ more than the limit allows"),
    Reason.MOST_UNCERTAIN: ReasonWords(
        "most uncertain", "it is among the most uncertain images, which fill the review budget"
    ),
    Reason.AGREED: ReasonWords("agreed", "the captions agree within the limit"),
    Reason.LEAST_UNCERTAIN: ReasonWords(
        "least uncertain", "it is not more uncertain than the images that fill the review budget"
    ),
}
