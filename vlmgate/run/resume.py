"""Which files a run still has to open, and which earlier readings count no more.

Ask `Earlier`, once a run; then call `in_turns`. The other functions say what came, went or changed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vlmgate.data import MOST_DEATHS, Content, Found, Source, Unreadable, content_of
from vlmgate.images import Walk, chosen, is_of_the_disk, turned_of
from vlmgate.run.plan import Plan
from vlmgate.run.watch import Watch
from vlmgate.scores.novelty import Reference
from vlmgate.store.journal import Journal

_PATIENCE = 600.0  # seconds that a folder which is away is waited for


class Earlier:
    """What the journal holds of earlier runs, and what of it counts no more, which is forgotten in memory alone."""

    def __init__(self, plan: Plan, tell: Callable[[str], None]) -> None:
        self.plan, self.journal, self.tell = plan, plan.journal, tell
        self._looked_back = False  # see `look_back`
        self._compared = False  # the files with what was read of them
        self._given_up: Collection[Content] = ()  # what a model server died of too often

    def pending(self, sources: Sequence[Source], missing: Sequence[str]) -> Sequence[Source]:
        """Return the files that have to be opened, and forget what the journal says of those that were replaced.

        A file is done when all its pages have a reading and its size and times have not changed. What could not be
        read, by us or by the model, is tried again. Opening a file whose bytes were read before costs no model.
        `missing` were read before and are not there now. Raises `OutputError` where there is no room for the readings.
        """
        failures = self.journal.failures()
        self._given_up = {content for content, one in failures.items() if one.deaths >= MOST_DEATHS}
        pending = chosen(sources, self._is_wanted)
        self._compared = True
        if self.journal.dropped:
            self.tell(f"{self.journal.dropped} journal lines were torn or damaged; what they held is read again.")
        if missing:
            first = f"first: {missing[0]}"
            where = "are not in the folder any more, or are left out by name"
            self.tell(f"{len(missing):,} files that were read before {where}, {first}")
        if pending:
            self.plan.check_space(len(pending))
        return pending

    def _is_wanted(self, source: Source) -> bool:
        entries = self.journal.entries_of(source.file_name)
        if _is_unchanged(source, entries):
            return not self._is_done(entries)
        self.journal.forget(source.file_name)
        return True

    def _is_done(self, entries: Sequence[Found]) -> bool:
        """Say whether all pages of a file have a reading, or killed a model server as often as they may."""
        images = [entry.image for entry in entries if not isinstance(entry, Unreadable)]
        held = [content_of(image) for image in images]
        if not images or any(one not in self.journal.readings and one not in self._given_up for one in held):
            return False
        all_pages = self.plan.config.images.pages == "all"
        return len(entries) == len(images) == (images[0].num_pages if all_pages else 1)

    def look_back(self, reference: Reference | None) -> None:
        """Forget, once a run, readings that were enough for another gate and are not for this one."""
        foresight, readings = self.plan.foresight, self.journal.readings
        if foresight is None or self._looked_back:
            return
        if readings:
            self.tell("Looking whether what was read before is enough for these limits …")
        for content in (open_ := foresight.open_among(readings, reference)):
            readings.forget(content)
        if open_:
            self.tell(f"{len(open_):,} images need more samples for this limit, and are read again.")
        self._looked_back = True

    def forget_replaced(self, walk: Walk, watch: Watch | None) -> bool:
        """Forget what was read of files that are others by now; say whether there were any.

        A folder that is watched keeps what was read of a file that is gone. There, a file that is still changing and
        could not be opened counts as another, for nothing says whether it is still the same.
        """

        def is_other(source: Source, found: Sequence[Found]) -> bool:
            return not _is_unchanged(source, found)

        def may_be_other(source: Source, found: Sequence[Found]) -> bool:
            return is_other(source, found) or any(isinstance(one, Unreadable) for one in found)

        def is_there_as_other(source: Source, found: Sequence[Found]) -> bool:
            return is_other(source, found) and os.path.lexists(source.where)

        if watch is None:
            return not self._compared and bool(self._forget(walk.sources, is_other))
        changed = self._forget(watch.in_doubt, may_be_other)
        replaced = self._forget(walk.sources, is_there_as_other)
        watch.hand_out_again(replaced)
        return bool(changed or replaced)

    def _forget(self, sources: Sequence[Source], holds: Callable[[Source, Sequence[Found]], bool]) -> list[str]:
        """Forget what was read of the files of which something is known and that `holds` of; return their names."""
        known = ((source, self.journal.entries_of(source.file_name)) for source in sources)
        names = [source.file_name for source, found in known if found and holds(source, found)]
        for name in names:
            self.journal.forget(name)
        return names


def gone(walk: Walk, journal: Journal) -> list[str]:
    """Return the names that were read before and are not there now, sorted."""
    missing, there = [], (source.file_name for source in walk.sources)
    name_there = next(there, None)
    for name in journal.file_names():  # both are in order, so neither has to be held
        while name_there is not None and name_there < name:
            name_there = next(there, None)
        if name != name_there:
            missing.append(name)
    return missing


def with_turned(walk: Walk, journal: Journal) -> tuple[Walk, list[str]]:
    """Return the walk with what was read before and is no image any more, and the names of what is not there."""
    missing = gone(walk, journal)
    turned = turned_of(walk, missing)
    there = {one.file_name for one in turned}
    return replace(walk, unreadable=(*walk.unreadable, *turned)), [name for name in missing if name not in there]


def gone_but_read(walk: Walk, journal: Journal, folder: Path) -> list[Source]:
    """Return the files that were read before and are not there now, as they were called; their rows stay."""
    return [
        Source(name, entry.image.path if not isinstance(entry, Unreadable) else folder / name)
        for name in gone(walk, journal)
        for entry in journal.entries_of(name)[:1]
    ]


def in_turns(
    pending: Sequence[Source], journal: Journal, folder: Path, *, patience: float = _PATIENCE
) -> Iterator[Sequence[Source]]:
    """Return the files, to be read; and then, up to twice, those that the disk failed on, once it has them again.

    `patience` is how many seconds a folder that is away is waited for.
    """
    if pending:
        yield pending
    for _ in range(2):
        lost = chosen(pending, lambda source: _was_lost(source, journal))
        end = time.monotonic() + patience
        while lost and not os.path.exists(folder) and time.monotonic() < end:  # noqa: PTH110 - which never raises
            time.sleep(min(1.0, patience))
        pending = chosen(lost, lambda source: os.path.exists(source.where))  # noqa: PTH110 - of many files
        if not pending:
            return
        yield pending


def _was_lost(source: Source, journal: Journal) -> bool:
    found = journal.entries_of(source.file_name)
    return any(isinstance(one, Unreadable) and is_of_the_disk(one.reason) for one in found)


def _is_unchanged(source: Source, entries: Sequence[Found]) -> bool:
    now = source.stamp()
    images = [entry.image for entry in entries if not isinstance(entry, Unreadable)]
    return now is not None and all(image.stamp == now for image in images)
