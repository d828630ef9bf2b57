"""From what the journal holds to the rows of the result.

Knows entries, scores and decisions; knows nothing of models, of files on disk, or of how anything is shown.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from vlmgate.data import (
    Caption,
    Content,
    Failure,
    Found,
    ImageFile,
    Read,
    Reading,
    Reason,
    Record,
    Route,
    Scores,
    Unreadable,
    content_of,
)
from vlmgate.errors import LostReadingError
from vlmgate.gate.rules import Candidate, Gate, decide
from vlmgate.images import Walk
from vlmgate.scores.kernels import Kernel
from vlmgate.scores.novelty import Reference
from vlmgate.scores.score import NOTHING, Said, Scored, Scorer, columns_of, with_doubt
from vlmgate.store.journal import Journal
from vlmgate.store.spill import Shelf

_AT_ONCE = 512  # readings that are in memory together


@dataclass(frozen=True, slots=True)
class Row:
    """One row before its decision."""

    record: Record  # with figures, but with neither route nor what `completed` adds
    reason: Reason | None  # why no score can save it


def build_rows(
    walk: Walk,
    journal: Journal,
    kernel: Kernel | None = None,
    reference: Reference | None = None,
    scored_before: Mapping[Content, Scored] | None = None,
) -> list[Row]:
    """Return a row for every page of every image and every folder that could not be listed, by name and page.

    `scored_before` are scores of some of the readings, under the same kernel, less what hangs on novelty. Captions,
    answers and features are left in the journal: of a night's images they would fill the memory.
    """
    build = _Building(journal, kernel, reference, scored_before or {})
    slots = ((name, page, found) for name, pages in _by_name(walk, journal) for page, found in pages)
    rows: list[Row] = []
    while some := [*itertools.islice(slots, _AT_ONCE)]:
        rows += build.rows(some)
    return rows


Slot = tuple[str, int, Found | None]  # file_name, page, and what was found there; None for one whose turn never came


def _by_name(walk: Walk, journal: Journal) -> Iterator[tuple[str, list[tuple[int, Found | None]]]]:
    """Return the pages of every file and folder, in order.

    What the walk could not read has no other row, whatever was read under its name before.
    """
    unreadable: dict[str, dict[int, Found | None]] = {}
    for one in walk.unreadable:
        unreadable.setdefault(one.file_name, {})[one.page] = one
    names = heapq.merge((source.file_name for source in walk.sources), sorted(unreadable))
    for name, _ in itertools.groupby(names):
        pages = unreadable.get(name)
        if pages is None:
            known = journal.pages_of(name)
            pages = {page: known.get(page) for page in _expected_pages(known, journal)}
        yield name, sorted(pages.items(), key=lambda item: item[0])


def _expected_pages(pages: Mapping[int, Found], journal: Journal) -> Sequence[int]:
    """Return the pages that this file must have rows for: all known, and with `pages all` all it is said to have."""
    told = [found.image.num_pages for found in pages.values() if not isinstance(found, Unreadable)]
    every = range(1, max(told) + 1) if told and journal.fingerprint["pages"] == "all" else ()
    return sorted({*pages, *every} or {1})


class _Building:
    """Makes rows of what was found, some at a time."""

    def __init__(
        self,
        journal: Journal,
        kernel: Kernel | None,
        reference: Reference | None,
        scored_before: Mapping[Content, Scored],
    ) -> None:
        self.journal, self.reference, self.before = journal, reference, scored_before
        self.seed = int(journal.fingerprint.get("seed", 0))
        self.scorer = Scorer(journal.fingerprint["prompt"], journal.fingerprint.get("choices", ()), kernel)
        self.failures = journal.failures()
        self.first: Shelf[str] = Shelf(str, str)  # content → the name under which these bytes came first

    def rows(self, slots: Sequence[Slot]) -> list[Row]:
        images = [found.image for _, _, found in slots if isinstance(found, Read | Failure)]
        readings = _readings({content_of(image) for image in images}, self.journal)
        strange = self._novelties(readings)
        scored = self._scored(readings, strange)
        return [self._row(slot, readings, strange, scored) for slot in slots]

    def _row(
        self,
        slot: Slot,
        readings: Mapping[Content, Reading],
        strange: Mapping[Content, float],
        scored: Mapping[Content, Scored],
    ) -> Row:
        name, page, found = slot
        if found is None or isinstance(found, Unreadable):
            bare = _record(name, page, None, self.seed, error=found.reason if found else None)
            return Row(bare, Reason.NOT_READ if found is None else Reason.UNREADABLE)
        content = content_of(found.image)
        original = self.first.setdefault(content, name)
        twin = None if original == name else original
        reading = readings.get(content)
        if reading is None:
            failure = self.failures.get(content)
            image, error = (found.image, failure.error) if failure else (None, None)
            bare = _record(name, page, image, self.seed, error=error, duplicate_of=twin)
            return Row(bare, Reason.MODEL_FAILED if failure else Reason.NOT_READ)
        scores, why = scored[content]
        seconds = found.seconds if isinstance(found, Read) else None
        record = _record(
            name,
            page,
            found.image,
            self.seed,
            reading=reading,
            scores=scores,
            novelty=strange.get(content),
            duplicate_of=twin,
            seconds=seconds,
        )
        return Row(record, why)

    def _scored(self, readings: Mapping[Content, Reading], strange: Mapping[Content, float]) -> dict[Content, Scored]:
        said = {content: Said(r.captions, r.answers, r.views) for content, r in readings.items()}
        known = {content: before for content in said if (before := self.before.get(content)) is not None}
        self.scorer.prepare(one for content, one in said.items() if content not in known)
        found = {content: known.get(content) or self.scorer.score(one) for content, one in said.items()}
        most = self.journal.fingerprint.get("num_samples")
        return {
            content: (with_doubt(scores, strange.get(content), most or len(said[content].captions)), reason)
            for content, (scores, reason) in found.items()
        }

    def _novelties(self, readings: Mapping[Content, Reading]) -> dict[Content, float]:
        """Return the novelty of what has features as long as the reference's; of all others nothing is known."""
        if self.reference is None:
            return {}
        values = self.reference.novelty_of([reading.features for reading in readings.values()])
        return {content: round(float(v), 6) for content, v in zip(readings, values, strict=True) if math.isfinite(v)}


def _readings(contents: Iterable[Content], journal: Journal) -> dict[Content, Reading]:
    found = ((content, journal.readings.get(content)) for content in sorted(contents))
    return {content: reading for content, reading in found if reading is not None}


def decide_rows(rows: Sequence[Row], gate: Gate) -> list[Record]:
    """Return the rows of the result, each with its route; what `completed` adds is null."""
    decisions = decide([Candidate.of(row.record, row.reason) for row in rows], gate)
    return [
        replace(
            row.record,
            route=decision.route,
            reason=decision.reason,
            decided_by=decision.column,
            threshold=decision.threshold,
        )
        for row, decision in zip(rows, decisions, strict=True)
    ]


def completed(
    records: Iterable[Record], readings: Mapping[Content, Reading], *, whole: bool = False
) -> Iterator[Record]:
    """Return decided rows with all that was said and seen, one by one.

    A row whose reading cannot be had any more is one that was not read; where the rows must be as they were decided,
    `whole`, that raises `LostReadingError`.
    """
    for record in records:
        if record.num_samples is None or record.sha256 is None:
            yield record
            continue
        reading = readings.get((record.sha256, record.page))
        if reading is None and whole:
            raise LostReadingError(f"{record.file_name}: its reading is lost; the same command reads it again.")
        if reading is None:
            yield _record(record.file_name, record.page, None, record.seed)
            continue
        yield replace(
            record,
            captions=_texts(reading.captions),
            caption_finishes=_finishes(reading.captions),
            caption_logprobs=_logprobs(reading.captions),
            caption_views=reading.views,
            answers=_texts(reading.answers),
            answer_finishes=_finishes(reading.answers),
            answer_logprobs=_logprobs(reading.answers),
            vision_features=reading.features,
        )


def _record(
    file_name: str,
    page: int,
    image: ImageFile | None,
    seed: int,
    *,
    reading: Reading | None = None,
    scores: Scores = NOTHING,
    novelty: float | None = None,
    error: str | None = None,
    duplicate_of: str | None = None,
    seconds: float | None = None,
) -> Record:
    """Return a row before its decision, which until then is the safe one."""
    captions = reading.captions if reading else None
    quality = reading.quality if reading else None
    return Record(
        file_name=file_name,
        page=page,
        num_pages=image.num_pages if image else None,
        sha256=image.sha256 if image else None,
        width=image.width if image else None,
        height=image.height if image else None,
        mode=image.mode if image else None,
        conversion=image.conversion if image else None,
        captions=None,
        caption_finishes=None,
        caption_logprobs=None,
        num_samples=len(captions) if captions else None,
        caption_views=None,
        caption=captions[scores.medoid].text if captions and scores.medoid is not None else None,
        answers=None,
        answer_finishes=None,
        answer_logprobs=None,
        **columns_of(scores),
        novelty=novelty,
        sharpness=quality.sharpness if quality else None,
        exposure=quality.exposure if quality else None,
        contrast=quality.contrast if quality else None,
        noise=quality.noise if quality else None,
        clipped_dark=quality.clipped_dark if quality else None,
        clipped_bright=quality.clipped_bright if quality else None,
        route=Route.HUMAN_REVIEW,
        reason=Reason.NOT_READ,
        decided_by=None,
        threshold=None,
        seed=seed,
        error=error,
        duplicate_of=duplicate_of,
        seconds=seconds,
        vision_features=None,
    )


def _texts(said: Sequence[Caption] | None) -> tuple[str, ...] | None:
    return tuple(caption.text for caption in said) if said else None


def _finishes(said: Sequence[Caption] | None) -> tuple[str, ...] | None:
    return tuple(caption.finish for caption in said) if said else None


def _logprobs(said: Sequence[Caption] | None) -> tuple[float | None, ...] | None:
    return tuple(caption.mean_logprob for caption in said) if said else None
