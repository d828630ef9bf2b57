"""Score and decide a result anew from what is stored in it: no model reads, no image is opened.

Knows rows and provenance; knows nothing of files of images, of models that read them, or of how a result is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from vlmgate.data import Caption, Finish, Key, Quality, Reason, Record, Sampled, Scores, columns_of
from vlmgate.errors import StoreError, UsageError
from vlmgate.gate.drift import all_to_people, has_alarm
from vlmgate.gate.rules import ANSWER_COLUMNS, PROBABILITY, Candidate, Gate, decide_rows
from vlmgate.scores.answer_probability import is_known
from vlmgate.scores.diversity import Kernel
from vlmgate.scores.score import NOTHING, Scorer
from vlmgate.store.result import check_other, check_result_place
from vlmgate.version import __version__


@dataclass(frozen=True, slots=True)
class Rescored:
    """What came of it, not written yet."""

    records: list[Record]
    provenance: dict[str, Any]


def rescore(
    records: Sequence[Record],
    provenance: Mapping[str, Any],
    gate: Gate,
    kernel: Kernel,
    *,
    kernel_name: str,
    source: Path,
) -> Rescored:
    """Return the rows with scores under another kernel and routes by another gate, and a provenance that says so.

    Raises `StoreError` for rows that no scan has written.
    """
    sampling = provenance["sampling"]
    if sampling.get("first_samples") is not None:
        raise UsageError(
            f"{source}: holds as many samples of each image as its own limits needed; `vlmgate scan` with other limits "
            "draws what is missing."
        )
    for record in records:
        held = len(record.captions or ())
        if record.captions is not None and (held != sampling["num_samples"] or record.error is not None):
            what = f"{source}: {record.file_name} has {held} captions of {sampling['num_samples']}, or an error as well"
            raise StoreError(f"{what}; it was changed by something else, scan again.")
    scorer = Scorer(sampling["prompt"], sampling.get("choices", ()), kernel, sampling.get("terms"))
    said = {_key(r): said_of(r) for r in records if r.captions is not None}
    scorer.prepare(said.values())
    strange = {_key(r): r.novelty for r in records}
    scored = {key: scorer.score(one, strange[key]) for key, one in said.items()}
    unread: dict[Key, tuple[Scores, Reason | None]] = {
        _key(r): (NOTHING, Reason(r.reason)) for r in records if r.captions is None
    }
    told = scored | unread
    rows = decide_rows([_candidate(r, *told[_key(r)]) for r in records], gate)
    note = {
        "from": source.name,
        "vlmgate_version": __version__,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel_before": provenance["kernel"],
        "gate_before": provenance["gate"],
    }
    drift = provenance.get("drift")
    if has_alarm(drift) and provenance.get("on_drift") == "route":
        rows = all_to_people(rows)
    changed = {"kernel": kernel_name, "gate": gate.told(), "rescored": note, "promise": None}
    return Rescored(rows, dict(provenance) | changed | {"drift": drift if has_alarm(drift) else None})


def check_output(out: Path, source: Path) -> None:
    """Raise `OutputError` unless a result may be written there, which is not where it is taken from."""
    check_other(out, source)
    check_result_place(out)


def check_columns(records: Sequence[Record], gate: Gate) -> None:
    """Raise `UsageError` where the gate compares a column of the readings that is empty throughout."""
    answers = any(record.answers is not None for record in records)
    views = any(record.caption_views is not None for record in records)
    limits = [limit for limit in (gate.own, *gate.limits) if limit]
    replaced = {limit.column for limit in limits if limit.instead is not None and answers}  # another stands in
    for column in dict.fromkeys([gate.score, *(limit.column for limit in limits)]):
        if column in replaced:
            continue
        lacking = (
            (column in ANSWER_COLUMNS and not answers)
            or (
                column == "answer_share"
                and not any(r.answers and "scored" not in (r.answer_finishes or ()) for r in records)
            )
            or (column == PROBABILITY and not any(map(is_known, records)))
            or (column == "view_contrast" and not views)
            or (column == "doubt" and all(record.novelty is None for record in records))
            or (column in _STORED and all(getattr(record, column) is None for record in records))
        )
        if lacking and records:
            raise UsageError(f"{column}: this result holds nothing of it; scan again with what it needs.")


_STORED = ("novelty", *(field.name for field in fields(Quality)))  # taken as they are


def _key(record: Record) -> Key:
    """Return what a reading belongs to: (sha256, page), or the file itself where there is none."""
    return (record.sha256, record.page) if record.sha256 and record.captions else (f"\0{record.file_name}", record.page)


def said_of(record: Record) -> Sampled:
    """Return what was sampled, as a row holds it."""
    captions = _captions(record.captions, record.caption_finishes, record.caption_logprobs, record.caption_tokens)
    answers = _captions(record.answers, record.answer_finishes, record.answer_logprobs, record.answer_tokens)
    return Sampled(captions or (), answers, views=record.caption_views)


def _captions(
    texts: Sequence[str] | None,
    finishes: Sequence[str] | None,
    logprobs: Sequence[float | None] | None,
    tokens: Sequence[int | None] | None,
) -> tuple[Caption, ...] | None:
    if texts is None:
        return None
    told = zip(texts, finishes or (), logprobs or (), tokens or (None,) * len(texts), strict=True)
    return tuple(Caption(text, cast(Finish, finish), logprob, number or 0) for text, finish, logprob, number in told)


def _candidate(record: Record, scores: Scores, reason: Reason | None) -> Candidate:
    """Return a row with new scores, to be decided anew."""
    captions = record.captions
    caption = captions[scores.medoid] if captions and scores.medoid is not None else None
    return Candidate(replace(record, **columns_of(scores), caption=caption), reason)
