"""From what the journal holds to the rows of the result.

Knows entries, scores and decisions; knows nothing of models, of files on disk, or of how anything is shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vlmgate.gate import Candidate, Gate, decide
from vlmgate.images import Walk
from vlmgate.journal import Content, Entry, Failure, Journal, content_of, key_of
from vlmgate.kernels import Kernel
from vlmgate.novelty import Reference
from vlmgate.records import Caption, Decision, Reading, Reason, Record, Scores, Unreadable
from vlmgate.scoring import NOTHING, Said, Scorer, columns_of, with_doubt


@dataclass(frozen=True, slots=True)
class Row:
    """One row before its decision; `entry` is None for an image whose turn never came."""

    file_name: str
    page: int
    entry: Entry | None
    reading: Reading | None  # its own, or that of the file whose bytes it shares
    scores: Scores | None
    novelty: float | None
    reason: Reason | None  # why no score can save it
    duplicate_of: str | None
    seconds: float | None


def build_rows(
    walk: Walk,
    journal: Journal,
    kernel: Kernel | None = None,
    reference: Reference | None = None,
    scored_before: Mapping[Content, tuple[Scores, Reason | None]] | None = None,
) -> list[Row]:
    """Return a row for every page of every image and every folder that could not be listed, by name and page.

    `scored_before` are scores of some of the readings, under the same kernel, less what hangs on novelty.
    """
    found: dict[tuple[str, int], Entry | None] = {(u.file_name, u.page): u for u in walk.unreadable}
    for source in walk.sources:
        pages = {key_of(entry)[1]: entry for entry in journal.entries_of(source.file_name)}
        for page in _expected_pages(pages, journal):
            found[source.file_name, page] = pages.get(page)
    readings = _wanted(found, journal)
    failures = {content_of(e.image): e for e in journal.entries.values() if isinstance(e, Failure)}
    strange = _novelties(readings, reference)
    scored = _scored(readings, journal, kernel, strange, scored_before or {})
    first: dict[tuple[str, int], str] = {}
    rows = []
    for (file_name, page), entry in sorted(found.items(), key=lambda item: item[0]):
        if entry is None or isinstance(entry, Unreadable):
            reason = Reason.NOT_READ if entry is None else Reason.UNREADABLE
            rows.append(Row(file_name, page, entry, None, None, None, reason, None, None))
            continue
        content = content_of(entry.image)
        original = first.setdefault(content, file_name)
        twin = None if original == file_name else original
        if content not in readings:
            failure = failures.get(content)
            failed = replace(failure, image=entry.image) if failure else None
            reason = Reason.MODEL_FAILED if failure else Reason.NOT_READ
            rows.append(Row(file_name, page, failed, None, None, None, reason, twin, None))
            continue
        scores, why = scored[content]
        seconds = journal.seconds.get((file_name, page))
        rows.append(Row(file_name, page, entry, readings[content], scores, strange.get(content), why, twin, seconds))
    return rows


def _expected_pages(pages: dict[int, Entry], journal: Journal) -> Sequence[int]:
    """Return the pages that this file must have rows for: all known, and with `pages all` all it is said to have."""
    told = [e.image.num_pages for e in pages.values() if not isinstance(e, Unreadable)]
    every = range(1, max(told) + 1) if told and journal.fingerprint["pages"] == "all" else ()
    return sorted({*pages, *every} or {1})


def _wanted(found: Mapping[tuple[str, int], Entry | None], journal: Journal) -> dict[Content, Reading]:
    """Return the readings of what was found; the journal may hold others, of files that are gone."""
    contents = [content_of(e.image) for e in found.values() if e is not None and not isinstance(e, Unreadable)]
    return {content: journal.readings[content] for content in contents if content in journal.readings}


def _scored(
    readings: Mapping[Content, Reading],
    journal: Journal,
    kernel: Kernel | None,
    strange: Mapping[Content, float],
    before: Mapping[Content, tuple[Scores, Reason | None]],
) -> dict[Content, tuple[Scores, Reason | None]]:
    scorer = Scorer(journal.fingerprint["prompt"], journal.fingerprint.get("choices", ()), kernel)
    said = {content: Said(r.captions, r.answers, r.views) for content, r in readings.items() if content not in before}
    scorer.prepare(said.values())
    found = {content: before.get(content) or scorer.score(said[content]) for content in readings}
    return {
        content: (
            with_doubt(
                scores, strange.get(content), journal.fingerprint.get("num_samples") or len(readings[content].captions)
            ),
            reason,
        )
        for content, (scores, reason) in found.items()
    }


def _novelties(readings: Mapping[Content, Reading], reference: Reference | None) -> dict[Content, float]:
    """Return the novelty of what has features as long as the reference's; of all others nothing is known."""
    if reference is None:
        return {}
    values = reference.novelty_of([reading.features for reading in readings.values()])
    return {content: round(float(v), 6) for content, v in zip(readings, values, strict=True) if math.isfinite(v)}


def decide_rows(rows: Sequence[Row], gate: Gate, seed: int) -> list[Record]:
    """Return the rows of the result, each with its route."""
    decisions = decide([_candidate(row) for row in rows], gate)
    return [_record(row, decision, seed) for row, decision in zip(rows, decisions, strict=True)]


def _candidate(row: Row) -> Candidate:
    key = content_of(row.reading.image) if row.reading else (row.file_name, row.page)
    return Candidate(key, row.scores, row.reason, row.reading.quality if row.reading else None, row.novelty)


def _record(row: Row, decision: Decision, seed: int) -> Record:
    image = None if row.entry is None or isinstance(row.entry, Unreadable) else row.entry.image
    reading = row.reading
    captions = reading.captions if reading else None
    answers = reading.answers if reading else None
    quality = reading.quality if reading else None
    scores = row.scores or NOTHING
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
        captions=_texts(captions),
        caption_finishes=_finishes(captions),
        caption_logprobs=_logprobs(captions),
        num_samples=len(captions) if captions else None,
        caption_views=reading.views if reading else None,
        caption=captions[scores.medoid].text if captions and scores.medoid is not None else None,
        answers=_texts(answers),
        answer_finishes=_finishes(answers),
        answer_logprobs=_logprobs(answers),
        **columns_of(scores),
        novelty=row.novelty,
        sharpness=quality.sharpness if quality else None,
        exposure=quality.exposure if quality else None,
        contrast=quality.contrast if quality else None,
        noise=quality.noise if quality else None,
        clipped_dark=quality.clipped_dark if quality else None,
        clipped_bright=quality.clipped_bright if quality else None,
        route=decision.route,
        reason=decision.reason,
        decided_by=decision.column,
        threshold=decision.threshold,
        seed=seed,
        error=row.entry.error if isinstance(row.entry, Failure) else error,
        duplicate_of=row.duplicate_of,
        seconds=row.seconds,
        vision_features=reading.features if reading else None,
    )


def _texts(said: Sequence[Caption] | None) -> tuple[str, ...] | None:
    return tuple(caption.text for caption in said) if said else None


def _finishes(said: Sequence[Caption] | None) -> tuple[str, ...] | None:
    return tuple(caption.finish for caption in said) if said else None


def _logprobs(said: Sequence[Caption] | None) -> tuple[float | None, ...] | None:
    return tuple(caption.mean_logprob for caption in said) if said else None
