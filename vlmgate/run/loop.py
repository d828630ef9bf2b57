"""Run the line over a folder: images → captions → scores → gate → result. Start with `scan`.

What one step does is elsewhere: `plan` checks and finds, `resume` and `watch` say what is to be read, `reader` (or
`ray.crew`) turns files into batches, `writer` journals and scores them, `outcome` decides and writes the result. Here
is their order, and what happens when a run is stopped.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress

from vlmgate.captioner import load_captioner
from vlmgate.config import ScanConfig
from vlmgate.data import Entry, Source
from vlmgate.errors import FatalError, VlmgateError, one_line
from vlmgate.run.batches import Batch
from vlmgate.run.control import Interrupted, Progress, Signals, Unbreakable
from vlmgate.run.outcome import Results, ScanResult
from vlmgate.run.plan import Plan, prepare
from vlmgate.run.ray.crew import Crew, hired
from vlmgate.run.ray.worker import Setup
from vlmgate.run.reader import Load, Models
from vlmgate.run.resume import Earlier, gone_but_read, in_turns, with_turned
from vlmgate.run.watch import Round, Watch
from vlmgate.run.writer import Clock, Recorder
from vlmgate.scores.diversity import AT_ONCE

log = logging.getLogger(__name__)


def scan(
    config: ScanConfig,
    progress: Progress,
    *,
    load: Load = load_captioner,
    only: Collection[str] | None = None,
    look: Callable[[Sequence[Entry]], object] | None = None,
) -> ScanResult:
    """Read every image of a folder that has not been read yet, decide all of them, write the result.

    Everything that can be checked is checked before a model is loaded. Raises `UsageError` for what the user can put
    right. What ends the run later (a signal, a dead model, a full disk) is in the result, which is written in any case
    where the disk allows. `only` names the files of the folder that count, by file_name; without it all do. `look` is
    given what was read, batch by batch; an error that it raises ends nothing.
    """
    progress = Unbreakable(progress)
    with prepare(config, progress, only) as plan:
        return Run(plan, progress, load, look).run()


class Run:
    """One run of `scan`, from the journal as it was found to the result."""

    def __init__(
        self,
        plan: Plan,
        progress: Progress,
        load: Load,
        look: Callable[[Sequence[Entry]], object] | None = None,
    ) -> None:
        self.look = look
        self.plan, self.config, self.journal, self.progress = plan, plan.config, plan.journal, progress
        self.signals, self.clock, self.recorder = Signals(), Clock(), Recorder(plan.journal, plan.scorer)
        self.earlier = Earlier(plan, progress.message)
        self.models = Models(plan, progress, load, self.signals, self.clock, self.recorder)
        self.results = Results(plan, progress, self.models, self.signals, self.clock, self.recorder)
        self.walk = plan.walk
        self.gone: list[str] = []  # read before, and not in the folder now
        self.watch: Watch | None = None

    def run(self) -> ScanResult:
        """Read, and write the result whatever ends that."""
        interrupted: int | None = None
        error: VlmgateError | None = None
        with self.signals.installed():
            try:
                self._read_all()
            except Interrupted as stop:
                interrupted = stop.signum
                log.warning("stopped by %s", stop)
            except KeyboardInterrupt:  # where our handler could not be installed
                interrupted = signal.SIGINT
            except Exception as unexpected:
                if not self.models.introduced and not self.journal.readings:  # nothing is to be saved
                    raise
                log.error("the run ends here", exc_info=unexpected)
                told = f"internal error ({one_line(unexpected)}). The traceback is in {self.plan.outputs.log}; "
                fatal = FatalError(told + "the same command resumes.")
                error = unexpected if isinstance(unexpected, VlmgateError) else fatal
            interrupted = self.signals.hold() or interrupted
            with suppress(Exception):  # only where a signal came just before it was closed; what lacks is read again
                self.recorder.close()
            self.progress.stop()
            return self._finish(interrupted, error)

    def _read_all(self) -> None:
        """Read round after round; without --watch there is one."""
        self.models.make_ready()
        self.earlier.look_back(self.models.reference)
        for one in self._rounds():
            self._read_round(one)

    def _read_round(self, one: Round) -> None:
        """Read what has to be read of the files that a round brings."""
        self.walk, self.gone = with_turned(one.walk, self.journal)
        pending = self.earlier.pending(one.news, self.gone)
        total, done = len(self.walk.sources), len(self.walk.sources) - len(pending) - one.waiting
        if done and pending and self.watch is None:
            self.progress.message(f"Resuming: {done:,} of {total:,} files have been read before.")
        with self._readers(pending) as readers:  # this process, or the workers of a cluster
            self.progress.start(total, done)
            for sources in in_turns(pending, self.journal, self.config.folder):
                self._take(readers.read(sources))

    def _take(self, batches: Generator[Batch]) -> None:
        """Journal batches as they come; the recorder scores one while the next is read."""
        self.signals.heed()
        try:
            with closing(batches):
                for batch in batches:
                    if batch.model is not None:
                        self.models.meet(batch.model)
                    with self.signals.held(), self.clock.running("waiting"):
                        self.recorder.submit(batch.entries, batch.ended, batch.seconds_each)
                    if self.look is not None:
                        with suppress(Exception):
                            self.look(batch.entries)
                    self.clock.add(batch)
                    self.progress.advance(len(batch.finished))
                    self.signals.heed()
                    del batch  # what it holds would stay in memory while the next is waited for
        finally:
            with self.signals.held(), self.clock.running("waiting"):
                self.recorder.close()

    def _rounds(self) -> Iterator[Round]:
        """Yield what there is to read: once, or with --watch as files settle, and publish the result between."""
        if self.config.watch is None:
            yield Round(self.walk, self.walk.sources, 0)
            return
        self.watch = Watch(
            self.config.watch,
            self.plan.look,
            self.progress.message,
            kept=gone_but_read(self.walk, self.journal, self.config.folder),
            limit=16 * self.config.sampling.batch,
        )
        self.progress.message(f"Watching {self.config.folder}; Ctrl-C ends it and writes the result.")
        fresh = False  # something has been read since the result was published
        for one in self.watch.rounds():
            self.walk, fresh = one.walk, fresh or bool(one.news)
            if one.news:
                yield one
                self.progress.stop()
            if self.watch.publishing_is_due():
                self.watch.recheck()
                if self.earlier.forget_replaced(self.walk, self.watch) or fresh:
                    self.results.publish(self.walk, self.gone)
                fresh = False

    @contextmanager
    def _readers(self, pending: Sequence[Source]) -> Iterator[Models | Crew]:
        """Yield who reads files: this process, or the workers of a cluster, which is joined where there is work."""
        config, models = self.config, self.models
        if config.cluster is None or not (pending or models.lacks_reference):
            models.have_reference(models.look)
            yield models
        else:
            checkpoint, named = self.plan.checkpoint, config.model.model
            setup = Setup(config.model, config.sampling, config.images, config.folder, checkpoint, named)
            tell, held = self.progress.message, self.signals.held
            with hired(config.cluster, setup, models.load, self.journal.readings, tell, held) as crew:
                models.have_reference(crew.look)
                yield crew
        if not models.introduced:
            models.show(None)
            self.progress.message(
                "Every image has been read before, so no model was loaded. --restart reads them again."
                if self.walk.sources
                else "There is nothing to read in this share of the folder."
            )

    def _finish(self, interrupted: int | None, error: VlmgateError | None) -> ScanResult:
        if self.journal.readings and (
            self.config.kernel not in AT_ONCE or len(self.walk.sources) > 5_000
        ):  # takes a while
            self.progress.message(f"Comparing the captions with {self.config.kernel} …")
        self.earlier.look_back(self.models.reference)  # it may have ended before that
        if self.watch is not None:
            self.walk = self.watch.everything()
        self.earlier.forget_replaced(self.walk, self.watch)
        return self.results.finish(self.walk, self.gone, interrupted, error, watched=self.watch is not None)
