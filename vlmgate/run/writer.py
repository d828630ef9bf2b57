"""Write what was read, and score it, while the model reads on.

Knows journals, scorers and one thread; knows nothing of models, pictures or limits. Batches are written in the order in
which they come, each whole and forced to the disk before the next is taken, so that a machine that dies loses the batch
with the model and the one that is being written, and no more. After a failure nothing more is written.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field

from vlmgate.data import Duplicate, Entry, Reading, Reason, Scores, content_of
from vlmgate.scores.score import Said, Scored, Scorer
from vlmgate.store.journal import Journal
from vlmgate.store.spill import Shelf

log = logging.getLogger(__name__)


def _scored_as_text(scored: Scored) -> str:
    scores, reason = scored
    return json.dumps([reason, *astuple(scores)])


def _scored_of_text(text: str) -> Scored:
    reason, *scores = json.loads(text)
    return Scores(*scores), None if reason is None else Reason(reason)


@dataclass(slots=True)
class Recorder:
    """A thread that journals batches and scores their readings; `close` it, and it has done all that it was given.

    `scorer` is None where scoring has to wait for the end: a kernel with a model of its own would take the time of the
    one that captions. `scored` holds what was scored, less what hangs on novelty.
    """

    journal: Journal
    scorer: Scorer | None
    scored: Shelf[Scored] = field(default_factory=lambda: Shelf(_scored_as_text, _scored_of_text))  # by content
    writing: float = 0.0  # seconds that the thread spent
    scoring: float = 0.0
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _task: Callable[[], None] | None = None
    _error: BaseException | None = None
    _told: bool = False  # the error was raised
    _closed: bool = False
    _thread: threading.Thread | None = None

    def submit(
        self,
        entries: Sequence[Entry],
        ended: Sequence[tuple[str, frozenset[int]]] = (),
        seconds: float | None = None,
    ) -> None:
        """Hand over a batch once the one before is on the disk; raises what went wrong with that one.

        `ended` are files that were opened to their end, with the pages that they have; `seconds` is the wall time of
        each reading.
        """
        self.drain()
        with self._changed:
            self._task = lambda: self._record(entries, ended, seconds)
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="vlmgate-recorder", daemon=True)
            self._thread.start()

    def drain(self) -> None:
        """Wait until all that was handed over is on the disk; raises what went wrong with it."""
        with self._changed:
            self._changed.wait_for(lambda: self._task is None)
            if self._error is not None:
                self._told = True
                raise self._error

    def close(self) -> None:
        """Finish what was handed over, and stop; raises what went wrong with it, unless that was raised before."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._closed = False  # a folder that is watched is read in rounds
        if self._error is not None and not self._told:
            self._told = True
            raise self._error

    # --- in the thread ---

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._task is not None or self._closed)
                task = self._task
            if task is None:
                return
            error: BaseException | None = None
            try:
                task()
            except BaseException as caught:
                error = caught
            with self._changed:
                self._task, self._error = None, error
                self._changed.notify_all()
            if error is not None:
                return

    def _record(
        self, entries: Sequence[Entry], ended: Sequence[tuple[str, frozenset[int]]], seconds: float | None
    ) -> None:
        begun = time.perf_counter()
        entries = [self._once(entry) for entry in entries]
        for name, pages in ended:
            self.journal.end(name, pages)
        if entries:
            self.journal.append(entries, seconds)
        written = time.perf_counter()
        self.writing += written - begun
        if self.scorer is not None:
            for entry in entries:
                if isinstance(entry, Reading):
                    said = Said(entry.captions, entry.answers, entry.views)
                    self.scored[content_of(entry.image)] = self.scorer.score(said)
            self.scoring += time.perf_counter() - written

    def _once(self, entry: Entry) -> Entry:
        """Return what two workers of a cluster have read at the same time as a copy of what is there."""
        if isinstance(entry, Reading) and content_of(entry.image) in self.journal.readings:
            return Duplicate(entry.image)
        return entry
