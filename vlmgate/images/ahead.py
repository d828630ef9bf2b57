"""`read_ahead` decodes files in threads ahead of the model, in their order, within a budget of pixels."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from queue import SimpleQueue

from vlmgate.config import ImageConfig
from vlmgate.data import Picture, Source, Unreadable
from vlmgate.images.formats import RefusedError, explain
from vlmgate.images.pages import pages_of

_PATIENCE = 900.0  # seconds that one file may take when all before it are done
_PIXELS_AHEAD = 128_000_000  # pixels that wait for the consumer; about half a gigabyte
_LEAST_COST = 1 << 16  # pixels that even the smallest page counts for, which bounds the number of pages too


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """One result of one source; `last` is True on the source's final result, and every source has one."""

    source: Source
    result: Picture | Unreadable
    last: bool


def read_ahead(
    sources: Iterable[Source], config: ImageConfig, *, max_pixels_ahead: int = _PIXELS_AHEAD
) -> Generator[Opened]:
    """Decode in threads ahead of the consumer; results come in the order of the sources, page by page.

    At most four sources per thread are begun, and decoded pages of at most `max_pixels_ahead` pixels wait (a larger
    page waits alone; a further page of the file in hand may come on top). `sources` is drawn from in the consumer's
    thread, so it may be a generator over anything.
    Closing the iterator stops the threads: each finishes the page it is decoding, nobody waits for it.
    """
    workers = config.workers or min(16, max(2, _usable_cores()))
    line = _Line(config, workers, max_pixels_ahead)
    supply = iter(sources)
    try:
        while True:
            while len(line.jobs) < 4 * workers and (source := next(supply, None)) is not None:
                line.submit(source)
            if not line.jobs:
                return
            opened, cost = line.collect()
            yield opened
            line.release(cost, done=opened.last)
            del opened  # or the picture would stay in memory while the next is waited for
    finally:
        line.stop()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Stopped(BaseException):
    """The consumer has gone; no `except Exception` may take this for a broken image."""


@dataclass(slots=True, eq=False)
class _Job:
    """One source under way."""

    source: Source
    results: deque[tuple[Opened, int]] = field(default_factory=deque)  # with the pixels each counts for
    admitted: int = 0  # pixels of the page being decoded
    begun: bool = False  # a page was admitted, or none will be
    given_up: bool = False  # it took too long; what comes of it now is too late


class _Line:
    """Worker threads, what they wait for, and the pixels in flight; fields are changed under one condition.

    Pages are admitted in the order of the sources, so that the source the consumer waits for is never the one that
    finds the budget spent. Threads are daemons: one that hangs in a network read must not keep the program from ending.
    """

    def __init__(self, config: ImageConfig, max_workers: int, max_pixels: int) -> None:
        self._config, self._max_workers, self._max_pixels = config, max_workers, max_pixels
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._to_do: SimpleQueue[_Job | None] = SimpleQueue()  # None = there is no more
        self.jobs: deque[_Job] = deque()  # in the order of the sources; the consumer takes results of the first
        self._in_flight = 0  # pixels
        self._stopped = False

    # in the consumer's thread

    def submit(self, source: Source) -> None:
        job = _Job(source)
        with self._changed:
            self.jobs.append(job)
        self._to_do.put(job)
        if len(self._threads) < self._max_workers:
            self._start_thread()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"vlmgate-decode-{len(self._threads)}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def collect(self) -> tuple[Opened, int]:
        """Wait for the next result of the first job."""
        job = self.jobs[0]
        with self._changed:
            if not self._changed.wait_for(lambda: job.results, _PATIENCE):
                self._give_up(job)
            return job.results.popleft()

    def _give_up(self, job: _Job) -> None:
        """Go on without a file whose reading does not come to an end; its thread is left to it, and has a successor."""
        reason = f"gave no picture within {_PATIENCE / 60:.0f} minutes"
        self._in_flight -= job.admitted
        job.admitted, job.begun, job.given_up = 0, True, True
        job.results.append((Opened(job.source, Unreadable(job.source.file_name, reason), True), 0))
        self._changed.notify_all()
        self._max_workers += 1
        self._start_thread()

    def release(self, cost: int, *, done: bool) -> None:
        with self._changed:
            self._in_flight -= cost
            if done:
                self.jobs.popleft()
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for _ in self._threads:
            self._to_do.put(None)
        deadline = time.monotonic() + 0.5  # seconds; tidy if it can be had, prompt in any case
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    # in the workers' threads

    def _work(self) -> None:
        try:
            while (job := self._to_do.get()) and not self._stopped:
                try:
                    self._read(job)
                except Exception as error:  # not even telling of it went well: without an end the consumer would wait
                    self._deliver(job, Unreadable(job.source.file_name, explain(error)), True)
        except _Stopped:
            return

    def _read(self, job: _Job) -> None:
        try:
            with closing(pages_of(job.source, self._config, partial(self._admit, job))) as pages:
                for result, last in pages:
                    self._deliver(job, result, last)
        except _Stopped:
            raise
        except BaseException as error:  # whatever it was, the source must not be missing from the result
            self._deliver(job, Unreadable(job.source.file_name, explain(error)), True)

    def _admit(self, job: _Job, pixels: int) -> None:
        """Wait until a page may be decoded."""
        cost = max(pixels, _LEAST_COST)
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._may_decode(job, cost))
            if self._stopped:
                raise _Stopped
            if job.given_up:
                raise RefusedError("took too long")
            job.admitted, job.begun = cost, True
            self._in_flight += cost
            self._changed.notify_all()

    def _may_decode(self, job: _Job, cost: int) -> bool:
        if job.given_up:
            return True
        if not all(other.begun for other in takewhile(lambda other: other is not job, self.jobs)):
            return False
        fits = self._in_flight == 0 or self._in_flight + cost <= self._max_pixels
        return fits or (job is self.jobs[0] and not job.results)  # the consumer waits for this very page

    def _deliver(self, job: _Job, result: Picture | Unreadable, last: bool) -> None:
        with self._changed:
            if self._stopped:
                raise _Stopped
            if job.given_up:
                return
            cost, job.admitted = job.admitted, 0
            if isinstance(result, Unreadable):  # holds no pixels
                self._in_flight -= cost
                cost = 0
            job.results.append((Opened(job.source, result, last), cost))
            job.begun = job.begun or last
            self._changed.notify_all()
