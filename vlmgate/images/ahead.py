"""`read_ahead` decodes files in threads ahead of the model, in their order, within a budget of memory."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from queue import SimpleQueue

from vlmgate.config import ImageConfig
from vlmgate.data import Picture, Source, Unreadable
from vlmgate.images.formats import RefusedError, explain
from vlmgate.images.memory import GIGABYTE
from vlmgate.images.pages import budget_of, pages_of

_PATIENCE = 900.0  # seconds that one file may take when all before it are done
_MOST_WAITING = 512_000_000  # bytes of pictures that wait for the consumer; more would not make it faster
_LEAST_COST = 1 << 18  # bytes that even the smallest page counts for, which bounds the number of pages too


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """One result of one source; `last` is True on the source's final result, and every source has one."""

    source: Source
    result: Picture | Unreadable
    last: bool


def read_ahead(
    sources: Iterable[Source], config: ImageConfig, *, most_waiting: int = _MOST_WAITING
) -> Generator[Opened]:
    """Decode in threads ahead of the consumer; results come in the order of the sources, page by page.

    At most four sources per thread are begun. What is being decoded, at its peak, and what waits take the memory of
    `config.image_memory`; what waits takes `most_waiting` bytes, too. A page waits until there is room for it; a
    further page of the file in hand may come on top. `sources` is drawn from in the consumer's thread, so it may be a
    generator over anything.
    Closing the iterator stops the threads: each finishes the page it is decoding, nobody waits for it.
    """
    workers = config.workers or min(16, max(2, _usable_cores()))
    line = _Line(config, workers, budget_of(config), most_waiting)
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
    results: deque[tuple[Opened, int]] = field(default_factory=deque)  # with the bytes each counts for
    decoding: int = 0  # bytes that the page being decoded takes at its peak
    kept: int = 0  # bytes that it takes once it is decoded
    begun: bool = False  # a page was admitted, or none will be
    given_up: bool = False  # it took too long; what comes of it now is too late


class _Line:
    """Worker threads, what they wait for, and the bytes in flight; fields are changed under one condition.

    Pages are admitted in the order of the sources, so that the source the consumer waits for is never the one that
    finds the budget spent. Threads are daemons: one that hangs in a network read must not keep the program from ending.
    """

    def __init__(self, config: ImageConfig, max_workers: int, memory: int, most_waiting: int) -> None:
        self._config, self._max_workers = replace(config, image_memory=memory / GIGABYTE), max_workers
        self._memory, self._most_waiting = memory, most_waiting
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._to_do: SimpleQueue[_Job | None] = SimpleQueue()  # None = there is no more
        self.jobs: deque[_Job] = deque()  # in the order of the sources; the consumer takes results of the first
        self._decoding = 0  # bytes of the pages being decoded, each at its peak
        self._waiting = 0  # bytes of those that are decoded, or will be
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
        self._put_back(job)
        job.begun, job.given_up = True, True
        job.results.append((Opened(job.source, Unreadable(job.source.file_name, reason), True), 0))
        self._changed.notify_all()
        self._max_workers += 1
        self._start_thread()

    def release(self, cost: int, *, done: bool) -> None:
        with self._changed:
            self._waiting -= cost
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

    def _admit(self, job: _Job, peak: int, kept: int) -> None:
        """Wait until a page may be decoded that takes so many bytes meanwhile and so many afterwards.

        A large file that is read whole comes first, with nothing kept; the bytes of its page hold its own as well.
        """
        page = kept > 0
        peak, kept = max(peak, _LEAST_COST), max(kept, _LEAST_COST)
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._may_decode(job, peak, kept))
            if self._stopped:
                raise _Stopped
            if job.given_up:
                raise RefusedError("took too long")
            self._put_back(job)  # the file, before its page
            job.decoding, job.kept, job.begun = peak, kept, job.begun or page
            self._decoding += peak
            self._waiting += kept
            self._changed.notify_all()

    def _may_decode(self, job: _Job, peak: int, kept: int) -> bool:
        if job.given_up:
            return True
        if not all(other.begun for other in takewhile(lambda other: other is not job, self.jobs)):
            return False
        # A peak holds what is kept of its page as well, so this counts somewhat more than there will be.
        decoding, waiting = self._decoding - job.decoding, self._waiting - job.kept  # of all others
        fits = decoding + waiting + peak <= self._memory and waiting + kept <= self._most_waiting
        if fits or waiting == 0:
            return True
        return job is self.jobs[0] and not job.results  # the consumer waits for this very page

    def _put_back(self, job: _Job) -> None:
        """Take a page that is not being decoded any more out of the account."""
        self._decoding -= job.decoding
        self._waiting -= job.kept
        job.decoding = job.kept = 0

    def _deliver(self, job: _Job, result: Picture | Unreadable, last: bool) -> None:
        with self._changed:
            if self._stopped:
                raise _Stopped
            if job.given_up:
                return
            cost = 0 if isinstance(result, Unreadable) else job.kept  # the former holds no pixels
            self._put_back(job)
            self._waiting += cost
            job.results.append((Opened(job.source, result, last), cost))
            job.begun = job.begun or last
            self._changed.notify_all()
