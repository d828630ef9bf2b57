"""Hand files out to workers, take what comes back, and do again what a worker that died had in hand.

A job is some files. It is out until its last page is back, and no longer: what a dead worker had not handed back is
read again by another, and what it had is not. A job near which workers keep dying is narrowed down to the file, which
is given up. Start with `hired`.

Plain actors, not a data pipeline on top of them: whoever journals has to know which files are out with which worker at
the moment when that worker dies, and has to tell the others what has been read.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlmgate.captioner.location import Local, locate
from vlmgate.config import ClusterConfig
from vlmgate.data import Content, Reading, Source, Unreadable, content_of
from vlmgate.errors import FatalError, ModelError, UsageError, shorten
from vlmgate.run.batches import Batch
from vlmgate.run.ray.connection import Room, joined
from vlmgate.run.ray.worker import Delivery, Job, Setup, Trouble, Worker
from vlmgate.run.reader import Load

log = logging.getLogger(__name__)

_AHEAD = 2  # jobs with a worker: one that the model reads, one that is decoded meanwhile
_MOST_BATCHES = 4  # batches' worth of files in a job: enough to put pictures with prompts of one length together
_LEAST_JOBS = 4  # for each worker; of fewer files the jobs are smaller, so that no worker waits for another
_NARROWED = 2  # workers that died of a job before its files go one by one
_GIVEN_UP = 3  # workers that died of a file before it is called unreadable
_MOST_DEATHS = 5  # one after the other; a file that is given up costs a lone worker four
_PATIENCE = 60.0  # seconds without any worker, before that is told
_TRIES = 3  # workers that may die of the reference


@dataclass(slots=True, eq=False)
class _Member:
    """A worker as seen from here."""

    actor: Any
    place: str
    told: int  # of the contents that have a reading, so many
    loaded: bool = False  # the model
    jobs: dict[Any, _Out] = field(default_factory=dict)  # by the stream that its batches come on


@dataclass(slots=True, eq=False)
class _Out:
    """A job that a worker has, and what of it is not back yet."""

    job: Job
    open: dict[str, Source]


@contextmanager
def hired(
    config: ClusterConfig,
    setup: Setup,
    load: Load,
    known: Collection[Content],
    tell: Callable[[str], None],
    held: Callable[[], AbstractContextManager[None]],
) -> Iterator[Crew]:
    """Join the cluster and yield a crew; raises `UsageError` where it has no room for a worker.

    `held` lets no signal interrupt what it encloses. What is raised in the midst of a call of Ray's is turned into a
    `SystemError` by it, or lost.
    """
    try:
        with joined(config.address, tell) as (ray, room):
            crew = Crew(ray, room, config, setup, load, known, tell, held)
            try:
                yield crew
            finally:
                crew.dismiss()
    except SystemError as error:
        if isinstance(error.__cause__, BaseException) and not isinstance(error.__cause__, Exception):
            raise error.__cause__ from None  # the signal came in another call than those that are enclosed
        raise


class Crew:
    """Workers on the machines of a cluster."""

    def __init__(
        self,
        ray: Any,
        room: Room,
        config: ClusterConfig,
        setup: Setup,
        load: Load,
        known: Collection[Content],
        tell: Callable[[str], None],
        held: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._ray, self._tell, self._held = ray, tell, held
        self._gpus = _gpus_each(room, config, setup)
        self._needs = f"1 CPU and {self._gpus:g} GPUs" if self._gpus else "1 CPU"  # each worker
        fits = room.workers(self._gpus)
        if fits == 0:
            raise UsageError(
                f"--ray {config.address}: no machine has the {self._needs} that a worker needs ({room.describe()}); "
                "see --gpus-per-worker."
            )
        if config.workers > fits:
            tell(f"The cluster has room for {fits:,} of {config.workers:,} workers; the others join when it has more.")
        self._wanted = config.workers or fits
        if self._gpus == 0 and setup.model.device == "auto":
            setup = replace(setup, model=replace(setup.model, device="cpu"))
        if setup.images.workers == 0:  # several workers share a machine
            setup = replace(setup, images=replace(setup.images, workers=4 if self._gpus else 2))
        self._setup = setup = _from_anywhere(setup)
        self._contents = list(known)  # that have a reading
        self._gift = ray.put((setup, load, tuple(self._contents)))
        self._given = len(self._contents)
        self._coming: dict[Any, Any] = {}  # the promise of a worker to be there → its actor
        self._members: list[_Member] = []
        self._loading: dict[Any, _Member] = {}  # the promise of a loaded model → its worker
        self._deaths = 0  # since a batch came back
        self._last: Trouble | None = None
        self._lonely_since = time.monotonic()

    def _wait(self, promises: Sequence[Any]) -> list[Any]:
        """Return those that are there, after a second at most."""
        with self._held():
            ready, _ = self._ray.wait(promises, timeout=1.0)
        return list(ready)

    def _get(self, promise: Any) -> Any:
        """Return what is there; raises what Ray raises."""
        with self._held():
            return self._ray.get(promise)

    # --- hiring ---

    def _hire(self, number: int) -> None:
        actor_class = self._ray.remote(_Actor)
        for _ in range(number):
            actor = actor_class.options(num_cpus=1, num_gpus=self._gpus, max_concurrency=_AHEAD, max_restarts=0).remote(
                [self._gift]
            )
            self._coming[actor.check.remote()] = actor

    def _welcome(self, promise: Any) -> None:
        actor = self._coming.pop(promise)
        try:
            place, trouble = self._get(promise)
        except self._ray.exceptions.RayError as error:
            self._count_death(Trouble("dead", f"a worker did not come up ({_short(error)})"))
            self._hire(1)
            return
        if trouble is not None:
            self._refuse(actor, place, trouble)
        else:
            log.info("worker on %s", place)
            self._members.append(_Member(actor, place, self._given))

    def _refuse(self, actor: Any, place: str, trouble: Trouble) -> None:
        """Do without a worker that will never be able to read here."""
        self._last = trouble
        self._ray.kill(actor)
        if not self._members and not self._coming:
            error = ModelError if trouble.kind == "model" else UsageError
            raise error(trouble.text if trouble.kind == "model" else f"{place}: {trouble.text}.")
        self._tell(f"A worker is left out, {place}: {trouble.text}")

    def _lose(self, member: _Member, trouble: Trouble) -> list[Job]:
        """Let a worker go that has died or must not go on; return what it had of jobs."""
        self._members.remove(member)
        self._loading = {promise: one for promise, one in self._loading.items() if one is not member}
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(member.actor)
        unfinished = [Job(tuple(out.open.values()), out.job.tries) for out in member.jobs.values() if out.open]
        member.jobs.clear()
        if trouble.kind == "dead":
            log.warning("worker on %s died: %s", member.place, trouble.text)
            self._count_death(trouble)
            self._hire(1)
            return [replace(job, tries=job.tries + 1) for job in unfinished]
        self._refuse(member.actor, member.place, trouble)
        return unfinished

    def _count_death(self, trouble: Trouble) -> None:
        self._deaths += 1
        self._last = trouble
        if self._deaths > max(_MOST_DEATHS, 3 * self._wanted):
            raise FatalError(
                f"{self._deaths} workers died one after the other, the last with: {trouble.text}. See the log; the "
                "same command resumes."
            )

    def dismiss(self) -> None:
        """Let every worker go, whatever it does."""
        actors = [member.actor for member in self._members] + list(self._coming.values())
        self._members, self._coming = [], {}
        for actor in actors:
            with suppress(Exception):  # the cluster may be gone, too
                self._ray.kill(actor)

    # --- reading ---

    def read(self, sources: Sequence[Source]) -> Generator[Batch]:
        """Yield batches in the order in which they come back; every file is finished in exactly one of them.

        Raises `ModelError` where no worker can load the model, `UsageError` where no machine is as it must be, and
        `FatalError` where workers do nothing but die.
        """
        batch, files = self._setup.sampling.batch, _absolute(sources)
        size = batch * max(1, min(_MOST_BATCHES, len(files) // (batch * self._wanted * _LEAST_JOBS)))
        jobs = deque(Job(files[i : i + size]) for i in range(0, len(files), size))
        self._wanted = min(self._wanted, len(jobs))
        self._hire(self._wanted - len(self._members) - len(self._coming))
        while jobs or any(member.jobs for member in self._members):
            self._hand_out(jobs)
            streams = {stream: member for member in self._members for stream in member.jobs}
            ready = self._wait([*streams, *self._coming, *self._loading])
            self._complain_of_waiting()
            for one in ready:
                if one in self._coming:
                    self._welcome(one)
                elif one in self._loading:
                    yield from self._load_of(self._loading.pop(one), one)
                elif one in streams and one in streams[one].jobs:  # else its worker was lost a moment ago
                    yield from self._receive(streams[one], one, jobs)

    def _hand_out(self, jobs: deque[Job]) -> None:
        """Give each worker what it may have; a job that workers died of is out alone, so that no other is blamed."""
        for _ in range(_AHEAD):
            for member in self._members:
                suspect = any(out.job.tries for out in member.jobs.values())
                full = len(member.jobs) >= (_AHEAD if member.loaded else 1) or member in self._loading.values()
                if not jobs or suspect or full or (jobs[0].tries and member.jobs):
                    continue
                job = jobs.popleft()
                news = self._contents[member.told :]
                member.told = len(self._contents)
                stream = member.actor.read.options(num_returns="streaming").remote(job, news)
                member.jobs[stream] = _Out(job, {source.file_name: source for source in job.sources})

    def _receive(self, member: _Member, stream: Any, jobs: deque[Job]) -> Generator[Batch]:
        """Take the next batch of a stream, or its end, or the news that its worker is gone."""
        out = member.jobs[stream]
        try:
            with self._held():
                delivery: Delivery = self._ray.get(next(stream))
        except StopIteration:
            if out.open:  # never seen; a file without a row would be worse than a stop
                raise FatalError("a worker left files out; this is a bug in vlmgate.") from None
            del member.jobs[stream]
            return
        except self._ray.exceptions.RayTaskError as error:
            raise FatalError(f"a worker raised what it must not: {_short(error)}. See the log.") from error
        except self._ray.exceptions.RayError as error:
            again = self._lose(member, Trouble("dead", _short(error)))
        else:
            self._write(member, delivery)
            if delivery.wants_model:
                if member.loaded:  # never seen; it would go round for ever
                    raise FatalError("a worker has lost its model; this is a bug in vlmgate.")
                del member.jobs[stream]
                jobs.appendleft(Job(tuple(out.open.values()), out.job.tries))
                self._loading[member.actor.load.remote()] = member
                return
            if delivery.trouble is None:
                batch = delivery.batch
                self._deaths = 0
                self._contents += [content_of(e.image) for e in batch.entries if isinstance(e, Reading)]
                for name in batch.finished:
                    del out.open[name]
                yield batch
                return
            again = self._lose(member, delivery.trouble)
        jobs.extendleft(part for job in reversed(again) for part in reversed(_narrowed(job)))
        given_up = [job for job in jobs if job.tries >= _GIVEN_UP and len(job.sources) == 1]
        for job in given_up:
            jobs.remove(job)
            yield _given_up(job)

    def _load_of(self, member: _Member, promise: Any) -> Generator[Batch]:
        """Take the news of a model that was to be loaded; a worker without jobs has taken none along."""
        try:
            delivery: Delivery = self._get(promise)
        except self._ray.exceptions.RayTaskError as error:
            raise FatalError(f"a worker raised what it must not: {_short(error)}. See the log.") from error
        except self._ray.exceptions.RayError as error:
            self._lose(member, Trouble("dead", f"while it loaded the model, {_short(error)}"))
            return
        self._write(member, delivery)
        if delivery.trouble is not None:
            self._lose(member, delivery.trouble)
        else:
            member.loaded = True
            log.info("model loaded on %s", member.place)
            yield delivery.batch

    def _write(self, member: _Member, delivery: Delivery) -> None:
        for line in delivery.log:
            log.warning("%s: %s", member.place, line)

    def _complain_of_waiting(self) -> None:
        now = time.monotonic()
        if self._members:
            self._lonely_since = now
        elif now - self._lonely_since > _PATIENCE:
            self._lonely_since = now
            self._tell(f"No worker is there yet; each waits for {self._needs} to become free in the cluster.")

    def look(self, sources: Sequence[Source]) -> tuple[list[bytes], Batch]:
        """Return the packed vision features of files, read by one worker, and a batch that describes its model."""
        while True:
            if not self._members:
                self._hire(1 - len(self._coming))
                ready = self._wait(list(self._coming))
                self._complain_of_waiting()
                for promise in ready:
                    self._welcome(promise)
                continue
            member = self._members[0]
            looking = member.actor.look.remote(_absolute(sources))
            while not self._wait([looking]):
                pass
            try:
                found, delivery = self._get(looking)
            except self._ray.exceptions.RayTaskError as error:
                raise FatalError(f"a worker raised what it must not: {_short(error)}. See the log.") from error
            except self._ray.exceptions.RayError as error:
                trouble: Trouble | None = Trouble("dead", _short(error))
                if self._deaths >= _TRIES:
                    raise FatalError(f"{_TRIES} workers died of the reference: {_short(error)}.") from error
            else:
                trouble = delivery.trouble
                self._write(member, delivery)
            if trouble is None:
                self._deaths, member.loaded = 0, True
                return found, delivery.batch
            self._lose(member, trouble)


class _Actor(Worker):
    """A worker whose arguments lie in the cluster's store, once for all."""

    def __init__(self, gift: Sequence[Any]) -> None:
        import ray

        setup, load, known = ray.get(gift[0])
        super().__init__(setup, load, known)


def _gpus_each(room: Room, config: ClusterConfig, setup: Setup) -> float:
    """Return how many GPUs a worker gets: what was asked for, else one where the cluster has any."""
    if config.gpus_per_worker is not None:
        return config.gpus_per_worker
    return 1.0 if room.gpus and setup.model.device != "cpu" else 0.0


def _from_anywhere(setup: Setup) -> Setup:
    """Return what a worker has to know, whichever folder it is started in."""
    place = locate(setup.model)
    model = setup.model
    if isinstance(place, Local) and not place.builtin:
        model = replace(model, model=os.path.abspath(place.folder))  # noqa: PTH100 - links stay as they are
    return replace(setup, model=model, folder=Path(os.path.abspath(setup.folder)))  # noqa: PTH100


def _absolute(sources: Sequence[Source]) -> tuple[Source, ...]:
    return tuple(Source(source.file_name, os.path.abspath(source.path)) for source in sources)  # noqa: PTH100


def _narrowed(job: Job) -> list[Job]:
    """Return the job, or one for each of its files where it has cost too many workers."""
    if job.tries < _NARROWED or len(job.sources) == 1:
        return [job]
    return [Job((source,), tries=1) for source in job.sources]


def _given_up(job: Job) -> Batch:
    (source,) = job.sources
    reason = f"the process that read it died, {job.tries} times"
    log.warning("given up: %s: %s", source.file_name, reason)
    name = source.file_name
    return Batch(entries=(Unreadable(name, reason),), ended=((name, frozenset({1})),), finished=(name,))


def _short(error: BaseException, limit: int = 200) -> str:
    """Return the last line of what Ray says, which names the cause; the rest goes to the log."""
    log.info("%s: %s", type(error).__name__, error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shorten(lines[-1] if lines else type(error).__name__, limit)
