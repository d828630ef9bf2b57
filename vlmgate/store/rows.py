"""From what the journal holds to the rows of the result.

Call `build_rows`, then `decide_rows` of the gate, then `completed` while the rows are written.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlmgate.data import (
    Caption,
    Content,
    Failure,
    Found,
    Read,
    Reading,
    Reason,
    Record,
    Scores,
    Unreadable,
    columns_of,
    content_of,
)
from vlmgate.errors import LostReadingError
from vlmgate.gate.rules import Candidate
from vlmgate.images import Walk, is_of_a_system
from vlmgate.scores.diversity import Kernel
from vlmgate.scores.novelty import Reference
from vlmgate.scores.score import Scored, Scorer, with_doubt
from vlmgate.store.index import Table
from vlmgate.store.journal import Journal

_AT_ONCE = 512  # readings that are in memory together
_OF_IMAGE = ("num_pages", "sha256", "width", "height", "mode", "conversion")


def build_rows(
    walk: Walk,
    journal: Journal,
    kernel: Kernel | None = None,
    reference: Reference | None = None,
    scored_before: Mapping[Content, Scored] | None = None,
) -> list[Candidate]:
    """Return an undecided row for every page and for every folder that could not be listed, by name and page.

    `scored_before` are scores of some of the readings, under the same kernel, less what depends on novelty. Captions,
    answers and features are left in the journal: of a night's images they would fill the memory.
    """
    build = _Building(journal, kernel, reference, scored_before or {})
    build.put_originals_first(walk)
    slots = ((name, page, found) for name, pages in _by_name(walk, journal) for page, found in pages)
    rows: list[Candidate] = []
    while some := [*itertools.islice(slots, _AT_ONCE)]:
        rows += build.rows(some)
    return rows


def scorer_of(journal: Journal, kernel: Kernel | None) -> Scorer:
    """Return what scores the readings of a journal; without a kernel, by `findings`."""
    asked = journal.fingerprint
    return Scorer(asked["prompt"], asked.get("choices", ()), kernel, asked.get("terms"))


_Figures = tuple[Scores, Reason | None, float | None]  # scores, why they can save nothing, novelty
Slot = tuple[str, int, Found | None]  # file_name, page, and what was found there; None for one whose turn never came


def _by_name(walk: Walk, journal: Journal) -> Iterator[tuple[str, list[tuple[int, Found | None]]]]:
    """Return the pages of every file and folder, in order; what the walk could not read has no other row."""
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
    counts = [found.image.num_pages for found in pages.values() if not isinstance(found, Unreadable)]
    every = range(1, max(counts) + 1) if counts and journal.fingerprint["pages"] == "all" else ()
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
        self.scorer = scorer_of(journal, kernel)
        self.failures = journal.failures()
        self.first: Table[Content, str] = Table(journal.index, "first", 3, str, str)  # the name that had it first

    def put_originals_first(self, walk: Walk) -> None:
        """Let no image count as the copy of one in a snapshot or a bin, whose name may come first."""
        if not any(is_of_a_system(source.file_name) for source in walk.sources):
            return
        for source in walk.sources:
            if not is_of_a_system(source.file_name):
                for found in self.journal.entries_of(source.file_name):
                    if isinstance(found, Read | Failure):
                        self.first.setdefault(content_of(found.image), source.file_name)

    def rows(self, slots: Sequence[Slot]) -> list[Candidate]:
        contents = {content_of(found.image) for *_, found in slots if isinstance(found, Read | Failure)}
        held = ((content, self.journal.readings.get(content)) for content in sorted(contents))
        readings = {content: reading for content, reading in held if reading is not None}
        figures = self._figures(readings)
        return [self._row(slot, readings, figures) for slot in slots]

    def _row(self, slot: Slot, readings: Mapping[Content, Reading], figures: Mapping[Content, _Figures]) -> Candidate:
        name, page, found = slot
        columns: dict[str, Any] = {"file_name": name, "page": page, "seed": self.seed}
        if found is None:
            return Candidate(Record(**columns), Reason.NOT_READ)
        if isinstance(found, Unreadable):
            return Candidate(Record(**columns, error=found.reason), Reason.UNREADABLE)
        content = content_of(found.image)
        original = self.first.setdefault(content, name)
        columns["duplicate_of"] = None if original == name else original
        reading, failure = readings.get(content), self.failures.get(content)
        if reading is None and failure is None:
            return Candidate(Record(**columns), Reason.NOT_READ)
        columns |= {column: getattr(found.image, column) for column in _OF_IMAGE}
        if reading is None:
            columns["error"] = failure.error if failure else None
            return Candidate(Record(**columns), Reason.MODEL_FAILED)
        scores, why, columns["novelty"] = figures[content]
        columns |= columns_of(scores) | columns_of(reading.quality)
        columns["num_samples"] = len(reading.captions) or None
        columns["caption"] = None if scores.medoid is None else reading.captions[scores.medoid].text
        columns["seconds"] = found.seconds if isinstance(found, Read) else None
        return Candidate(Record(**columns), why)

    def _figures(self, readings: Mapping[Content, Reading]) -> dict[Content, _Figures]:
        known = {content: before for content in readings if (before := self.before.get(content)) is not None}
        self.scorer.prepare(reading for content, reading in readings.items() if content not in known)
        features = [reading.features for reading in readings.values()]
        strange = [math.nan] * len(features) if self.reference is None else self.reference.novelty_of(features)
        found: dict[Content, _Figures] = {}
        for (content, reading), far in zip(readings.items(), strange, strict=True):
            scores, reason = known.get(content) or self.scorer.score(reading)
            most = self.journal.fingerprint.get("num_samples") or len(reading.captions)
            novelty = round(float(far), 6) if math.isfinite(far) else None  # unknown without features of this length
            found[content] = with_doubt(scores, novelty, most), reason, novelty
        return found


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
        reading = readings.get(content_of(record))
        if reading is None and whole:
            raise LostReadingError(f"{record.file_name}: its reading is lost; the same command reads it again.")
        if reading is None:
            yield Record(file_name=record.file_name, page=record.page, seed=record.seed)
            continue
        said = _said("caption", reading.captions) | _said("answer", reading.answers)
        yield replace(record, **said, caption_views=reading.views, vision_features=reading.features)


def _said(what: str, said: Sequence[Caption] | None) -> dict[str, Any]:
    """Return the columns that hold captions or answers: their texts, and what is known of each."""
    if not said:
        return {}
    return {
        f"{what}s": tuple(one.text for one in said),
        f"{what}_finishes": tuple(one.finish for one in said),
        f"{what}_logprobs": tuple(one.mean_logprob for one in said),
        f"{what}_tokens": tuple(one.num_tokens or None for one in said),
    }
