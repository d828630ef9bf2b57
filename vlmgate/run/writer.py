"""Write what was read, and score it, while the model reads on; `Clock` adds up where the time goes.

Make a `Recorder`, `submit` images as they become whole, `drain` before the journal is used for something else, `close`
at the end. Images are written in the order in which they come. What becomes whole within half a second shares one
forced write: a machine that dies loses what the model is at and that half second, a process that dies less. After a
failure nothing more is written.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, field
from typing import Any

from vlmgate.captioner import Captioner, Timed
from vlmgate.data import Content, Duplicate, Entry, Failure, Reading, Reason, Scores, Times, content_of
from vlmgate.run.batches import Batch
from vlmgate.scores.score import Scored, Scorer
from vlmgate.store.index import Table
from vlmgate.store.journal import Journal

log = logging.getLogger(__name__)

FORCE_EVERY = 0.5  # seconds


def _scored_as_text(scored: Scored) -> str:
    scores, reason = scored
    return json.dumps([reason, *astuple(scores)])


def _scored_of_text(text: str) -> Scored:
    reason, *scores = json.loads(text)
    return Scores(*scores), None if reason is None else Reason(reason)


@dataclass(slots=True)
class Recorder:
    """A thread that journals images and scores their readings; once it is closed, it has done all that it was given.

    `scorer` is None where scoring has to wait for the end: a kernel that runs a model would take the time of the one
    that captions. `scored` holds what was scored, less what depends on novelty.
    """

    journal: Journal
    scorer: Scorer | None
    scored: Table[Content, Scored] = field(init=False)
    writing: float = 0.0  # seconds that the thread spent
    scoring: float = 0.0
    last_failure: str = ""  # what the model said of the last image that it failed on
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _task: Callable[[], None] | None = None
    _due: float | None = None  # when what was written must be forced, by the monotonic clock; None = all is forced
    _forced: float = -math.inf  # when that was done last
    _hurry: bool = False  # somebody waits for it
    _error: BaseException | None = None
    _raised: bool = False  # the error was raised
    _closed: bool = False
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        self.scored = Table(self.journal.index, "scored", 3, _scored_as_text, _scored_of_text)

    def submit(
        self,
        entries: Sequence[Entry],
        ended: Sequence[tuple[str, frozenset[int]]] = (),
        seconds: float | None = None,
    ) -> None:
        """Hand over what came of one or more images; waits for what was handed over before to be written and scored.

        Raises what went wrong with that. `ended` are files that were opened to their end, with the pages that they
        have; `seconds` is the wall time of each reading.
        """
        self._wait(lambda: self._task is None)
        self.last_failure = next((e.error for e in reversed(entries) if isinstance(e, Failure)), self.last_failure)
        with self._changed:
            self._task = lambda: self._record(entries, ended, seconds)
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="vlmgate-recorder", daemon=True)
            self._thread.start()

    def drain(self) -> None:
        """Wait until all that was handed over is on the disk; raises what went wrong with it."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
        self._wait(lambda: self._task is None and self._due is None)

    def close(self) -> None:
        """Finish what was handed over, and stop; raises what went wrong with it, unless that was raised before."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._closed = False  # a folder that is watched is read in rounds
        if self._error is not None and not self._raised:
            self._raised = True
            raise self._error

    def _wait(self, ready: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: ready() or self._error is not None)
            if self._error is not None:
                self._raised = True
                raise self._error

    # --- in the thread ---

    def _work(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            self._error = error
            with suppress(Exception):  # what was written before it is to last
                self._force(now=True)
        with self._changed:
            self._task = None
            self._changed.notify_all()

    def _turn(self) -> bool:
        """Do what there is to do, once there is something; return False when it was closed and nothing is left."""
        with self._changed:
            left = None if self._due is None else max(0.0, self._due - time.monotonic())
            self._changed.wait_for(lambda: self._task is not None or self._hurry or self._closed, left)
            task, last, hurry = self._task, self._closed and self._task is None, self._hurry
        if task is not None:
            task()
        self._force(now=last or hurry)
        with self._changed:
            if task is not None:  # else one may have come meanwhile
                self._task = None
            self._hurry = self._hurry and not hurry
            self._changed.notify_all()
        return not last

    def _record(
        self, entries: Sequence[Entry], ended: Sequence[tuple[str, frozenset[int]]], seconds: float | None
    ) -> None:
        begun = time.perf_counter()
        entries = [self._once(entry) for entry in entries]
        for name, pages in ended:
            self.journal.end(name, pages)
        if entries:
            self.journal.append(entries, seconds, force=False)
            self._due = self._due or max(time.monotonic(), self._forced + FORCE_EVERY)
        self.writing += time.perf_counter() - begun
        for entry in entries:
            self._force()
            if self.scorer is not None and isinstance(entry, Reading):
                begun = time.perf_counter()
                self.scored[content_of(entry.image)] = self.scorer.score(entry)
                self.scoring += time.perf_counter() - begun

    def _once(self, entry: Entry) -> Entry:
        """Return a second reading of the same bytes, by another worker at the same time, as a copy of the first."""
        if isinstance(entry, Reading) and content_of(entry.image) in self.journal.readings:
            return Duplicate(entry.image)
        return entry

    def _force(self, *, now: bool = False) -> None:
        """Force what was written to the disk, if it is time."""
        if self._due is None or not (now or time.monotonic() >= self._due):
            return
        begun = time.perf_counter()
        self.journal.force()
        self.writing += time.perf_counter() - begun
        self._due, self._forced = None, time.monotonic()


@dataclass(slots=True)
class Clock:
    """Adds up the seconds of one run by what it was busy with.

    What goes on behind the model counts only as far as it was waited for; its own seconds are listed apart.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    images: int = 0  # that a model was shown
    captioner: Captioner | None = None  # of this process
    before: Times = field(default_factory=Times)  # what the captioner had spent when this run was given it

    def begin(self, captioner: Captioner) -> None:
        """Count what this captioner spends from now on."""
        self.captioner, self.before = captioner, captioner.times if isinstance(captioner, Timed) else Times()

    def add(self, batch: Batch) -> None:
        """Count a batch."""
        self.images += batch.images
        for name, seconds in (("reading", batch.waited), ("captioning", batch.seconds)):
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Count the time of the block under a name."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun

    def told(self, recorder: Recorder, batch_size: int) -> dict[str, Any] | None:
        """Return where the time went so far; None where no model was asked, here.

        In seconds of wall time, but for `images`, `images_per_second` and `batch`. `seconds` go from the first file to
        the last caption, less `loading` the model: the sum of `reading` (waiting for images), `captioning` and
        `waiting_for_journal`. `vision_and_prefill` and `decoding` are parts of `captioning`, where the captioner tells.
        `scoring` and `writing` go on beside all that.
        """
        if self.captioner is None or not self.images:
            return None
        loading, reading, captioning, waiting = (
            self.seconds.get(name, 0.0) for name in ("loading", "reading", "captioning", "waiting")
        )
        whole = reading + captioning + waiting
        told: dict[str, Any] = {"images": self.images, "seconds": whole, "images_per_second": self.images / whole}
        told |= {"loading": loading, "reading": reading, "captioning": captioning}
        if isinstance(self.captioner, Timed):
            spent, before = self.captioner.times, self.before
            told["vision_and_prefill"] = spent.vision_and_prefill - before.vision_and_prefill
            told["decoding"] = spent.decoding - before.decoding
        told |= {"scoring": recorder.scoring, "writing": recorder.writing, "waiting_for_journal": waiting}
        told["batch"] = batch_size
        return {key: round(value, 4) for key, value in told.items()}
