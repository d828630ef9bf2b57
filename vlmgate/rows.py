"""From what the journal holds to the rows of the result.

Knows entries, scores and decisions; knows nothing of models, of files on disk, or of how anything is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlmgate.degenerate import degenerate
from vlmgate.diversity import score_captions
from vlmgate.gate import Candidate, Gate, decide
from vlmgate.images import Walk
from vlmgate.journal import Entry, Failure, Journal, content_of, key_of
from vlmgate.records import Decision, Reading, Reason, Record, Scores, Unreadable


@dataclass(frozen=True, slots=True)
class Row:
    """One row before its decision; `entry` is None for an image whose turn never came."""

    file_name: str
    page: int
    entry: Entry | None
    reading: Reading | None  # its own, or that of the file whose bytes it shares
    scores: Scores | None
    reason: Reason | None  # why no score can save it
    duplicate_of: str | None
    seconds: float | None


def build_rows(walk: Walk, journal: Journal) -> list[Row]:
    """Return a row for every page of every image and every folder that could not be listed, by name and page."""
    found: dict[tuple[str, int], Entry | None] = {(u.file_name, u.page): u for u in walk.unreadable}
    for source in walk.sources:
        pages = {key_of(entry)[1]: entry for entry in journal.entries_of(source.file_name)}
        for page in _expected_pages(pages, journal):
            found[source.file_name, page] = pages.get(page)
    readings = journal.readings
    failures = {content_of(e.image): e for e in journal.entries.values() if isinstance(e, Failure)}
    scored: dict[tuple[str, int], tuple[Scores | None, Reason | None]] = {}
    first: dict[tuple[str, int], str] = {}
    rows = []
    for (file_name, page), entry in sorted(found.items(), key=lambda item: item[0]):
        if entry is None or isinstance(entry, Unreadable):
            reason = Reason.NOT_READ if entry is None else Reason.UNREADABLE
            rows.append(Row(file_name, page, entry, None, None, reason, None, None))
            continue
        content = content_of(entry.image)
        original = first.setdefault(content, file_name)
        twin = None if original == file_name else original
        reading = readings.get(content)
        if reading is None:
            failure = failures.get(content)
            failed = replace(failure, image=entry.image) if failure else None
            reason = Reason.MODEL_FAILED if failure else Reason.NOT_READ
            rows.append(Row(file_name, page, failed, None, None, reason, twin, None))
            continue
        if content not in scored:
            reason_or_none = degenerate(reading.captions, journal.fingerprint["prompt"])
            scored[content] = (None if reason_or_none else score_captions(reading.captions), reason_or_none)
        seconds = journal.seconds.get((file_name, page))
        rows.append(Row(file_name, page, entry, reading, *scored[content], twin, seconds))
    return rows


def _expected_pages(pages: dict[int, Entry], journal: Journal) -> Sequence[int]:
    """Return the pages that this file must have rows for: all known, and with `pages all` all it is said to have."""
    told = [e.image.num_pages for e in pages.values() if not isinstance(e, Unreadable)]
    every = range(1, max(told) + 1) if told and journal.fingerprint["pages"] == "all" else ()
    return sorted({*pages, *every} or {1})


def decide_rows(rows: Sequence[Row], gate: Gate, seed: int) -> list[Record]:
    """Return the rows of the result, each with its route."""
    decisions = decide([Candidate(_decision_key(row), row.scores, row.reason) for row in rows], gate)
    return [_record(row, decision, seed) for row, decision in zip(rows, decisions, strict=True)]


def _decision_key(row: Row) -> tuple[str, int]:
    return content_of(row.reading.image) if row.reading else (row.file_name, row.page)


def _record(row: Row, decision: Decision, seed: int) -> Record:
    image = None if row.entry is None or isinstance(row.entry, Unreadable) else row.entry.image
    captions = row.reading.captions if row.reading else None
    scores = row.scores or Scores(None, None, None, None, None)
    error = row.entry.reason if isinstance(row.entry, Unreadable) else None
    return Record(
        file_name=row.file_name,
        page=row.page,
        num_pages=image.num_pages if image else None,
        sha256=image.sha256 if image else None,
        width=image.width if image else None,
        height=image.height if image else None,
        mode=image.mode if image else None,
        conversion=image.conversion if image else None,
        captions=tuple(c.text for c in captions) if captions else None,
        caption_finishes=tuple(c.finish for c in captions) if captions else None,
        caption_logprobs=tuple(c.mean_logprob for c in captions) if captions else None,
        caption=captions[scores.medoid].text if captions and scores.medoid is not None else None,
        vendi_score=scores.vendi_score,
        agreement=scores.agreement,
        mean_dissimilarity=scores.mean_dissimilarity,
        mean_logprob=scores.mean_logprob,
        route=decision.route,
        reason=decision.reason,
        threshold=decision.threshold,
        seed=seed,
        error=row.entry.error if isinstance(row.entry, Failure) else error,
        duplicate_of=row.duplicate_of,
        seconds=row.seconds,
    )
