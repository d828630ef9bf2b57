"""Run the line over a folder: images → captions → scores → gate → result. Start with `scan`.

What one step does is elsewhere: `plan` checks and finds, `reader` (or `ray.crew`) turns files into batches, `writer`
journals and scores them, `store.rows` decides. Here is their order, and what happens when a run is stopped.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Protocol

from vlmgate.captioner import Captioner, load_captioner
from vlmgate.config import ModelConfig, SamplingConfig, ScanConfig
from vlmgate.data import Failure, ModelInfo, Reading, Reason, Record, Route, Source
from vlmgate.errors import FatalError, LostReadingError, ModelError, VlmgateError, one_line
from vlmgate.gate.early_stop import Foresight
from vlmgate.gate.rules import Candidate, decide_rows
from vlmgate.run.batches import Batch
from vlmgate.run.control import Interrupted, Progress, Signals, Unbreakable
from vlmgate.run.outcome import Clock, ScanResult, provenance
from vlmgate.run.plan import Plan, prepare
from vlmgate.run.ray.crew import hired
from vlmgate.run.ray.worker import Setup
from vlmgate.run.reader import Reader
from vlmgate.run.resume import (
    forget_changed,
    forget_replaced,
    gone_but_read,
    in_turns,
    noted,
    still_to_read,
    with_turned,
)
from vlmgate.run.watch import Watch
from vlmgate.run.writer import Recorder
from vlmgate.scores.diversity import FINDINGS, WORDS
from vlmgate.scores.novelty import Reference, checkpoint_reference
from vlmgate.scores.reference import ReferenceFolder, features_of
from vlmgate.store.result import write_result
from vlmgate.store.rows import build_rows, completed, scorer_of

log = logging.getLogger(__name__)

Load = Callable[[ModelConfig, SamplingConfig], Captioner]


def scan(
    config: ScanConfig, progress: Progress, *, load: Load = load_captioner, only: Collection[str] | None = None
) -> ScanResult:
    """Read every image of a folder that has not been read yet, decide all of them, write the result.

    Everything that can be checked is checked before a model is loaded. Raises `UsageError` for what the user can put
    right. What ends the run later (a signal, a dead model, a full disk) is in the result, which is written in any case
    where the disk allows. `only` names the files of the folder that count, by file_name; without it all do.
    """
    progress = Unbreakable(progress)
    with prepare(config, progress, only) as plan:
        return Run(plan, progress, load).run()


class Readers(Protocol):
    """Whoever turns files into batches: this process, or the workers of a cluster."""

    def read(self, sources: Sequence[Source]) -> Generator[Batch]:
        """Yield batches until nothing of the files is still to come."""
        ...

    def look(self, sources: Sequence[Source]) -> tuple[list[bytes], Batch]:
        """Return the packed vision features of files, and a batch that describes the model."""
        ...


class Run:
    """One run of `scan`, from the journal as it was found to the result."""

    def __init__(self, plan: Plan, progress: Progress, load: Load) -> None:
        config, journal = plan.config, plan.journal
        self.plan, self.config, self.journal, self.gate = plan, config, journal, plan.gate.gate
        self.progress, self.load, self.walk = progress, load, plan.walk
        self.reference = None if plan.folder else plan.gate.reference or checkpoint_reference(config.model)
        self.signals, self.clock, self.started = Signals(), Clock(), datetime.now(UTC)
        self.captioner: Captioner | None = None
        self.introduced = False  # a model has been loaded, here or elsewhere
        self.looked_back = self.compared = False  # see `_look_back` and `_forget_replaced`
        self.gone: list[str] = []  # read before, and not in the folder now
        self.last_failure = ""
        early = scorer_of(journal, plan.kernel)
        self.writer = Recorder(journal, early if config.kernel in (FINDINGS, WORDS) else None)
        self.watch: Watch | None = None
        stops_early = config.sampling.first_samples is not None
        self.foresight = Foresight(self.gate, early, config.sampling) if stops_early else None
        enough = self._is_enough if stops_early else None
        self.reader = Reader(config.sampling, config.images, self._loaded, enough=enough)

    def run(self) -> ScanResult:
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
                if not self.introduced and not self.journal.readings:  # nothing is to be saved
                    raise
                log.error("the run ends here", exc_info=unexpected)
                told = f"internal error ({one_line(unexpected)}). The traceback is in {self.plan.outputs.log}; "
                fatal = FatalError(told + "the same command resumes.")
                error = unexpected if isinstance(unexpected, VlmgateError) else fatal
            interrupted = self.signals.hold() or interrupted
            with suppress(Exception):  # only where a signal came just before it was closed; what lacks is read again
                self.writer.close()
            self.progress.stop()
            return self._finish(interrupted, error)

    # --- reading ---

    def _read_all(self) -> None:
        """Read round after round; without --watch there is one."""
        folder = self.plan.folder
        if self.config.watch is not None:
            self._loaded()  # or a shift might go by before it is known that it does not load; likewise the reference
        if folder is not None and (self.config.watch is not None or self.foresight is not None):
            self.reference = folder.load() or self._fit(folder, self)
        self._look_back()
        if self.config.watch is None:
            self._read_round(self.walk.sources)
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
                self._read_round(one.news, one.waiting)
                self.progress.stop()
            if self.watch.publishing_is_due():
                self.watch.recheck()
                if self._forget_replaced() or fresh:
                    self._publish()
                fresh = False

    def _read_round(self, sources: Sequence[Source], waiting: int = 0) -> None:
        """Read what has to be read of some files; `waiting` files of the walk come in later rounds."""
        self.walk, self.gone = with_turned(self.walk, self.journal)
        pending = still_to_read(sources, self.journal, all_pages=self.config.images.pages == "all")
        self.compared = self.watch is None
        done = len(self.walk.sources) - len(pending) - waiting
        for text in noted(self.journal, self.gone):
            self.progress.message(text)
        if pending:
            self.plan.check_space(len(pending))
        if done and pending and self.watch is None:
            self.progress.message(f"Resuming: {done:,} of {len(self.walk.sources):,} files have been read before.")
        folder = self.plan.folder
        if folder is not None and self.reference is None:
            self.reference = folder.load()
        lacks_reference = folder is not None and self.reference is None
        if pending or lacks_reference:
            with self._readers() as readers:
                if folder is not None and self.reference is None:
                    self.reference = self._fit(folder, readers)
                self.progress.start(len(self.walk.sources), done)
                for some in in_turns(pending, self.journal, self.config.folder):
                    self._take_all(readers.read(some))
        else:
            self.progress.start(len(self.walk.sources), done)
        if not self.introduced:
            self.progress.header(None, self.gate, self.config)
            self.progress.message(
                "Every image has been read before, so no model was loaded. --restart reads them again."
                if self.walk.sources
                else "There is nothing to read in this share of the folder."
            )

    def _take_all(self, batches: Generator[Batch]) -> None:
        """Journal batches as they come; the writer scores one while the next is read."""
        self.signals.heed()
        try:
            with closing(batches):
                for batch in batches:
                    self._take(batch)
                    del batch  # what it holds would stay in memory while the next is waited for
        finally:
            with self.signals.held(), self.clock.running("waiting"):
                self.writer.close()

    def _take(self, batch: Batch) -> None:
        if batch.model is not None:
            self._meet(batch.model)
        with self.signals.held(), self.clock.running("waiting"):
            self.writer.submit(batch.entries, batch.ended, round(batch.seconds / max(1, batch.images), 4))
        self.clock.add(batch)
        self.progress.advance(len(batch.finished))
        failures = [entry.error for entry in batch.entries if isinstance(entry, Failure)]
        self.last_failure = failures[-1] if failures else self.last_failure
        self.signals.heed()

    # --- who reads ---

    @contextmanager
    def _readers(self) -> Iterator[Readers]:
        """Yield who reads: this process, or the workers of a cluster."""
        config, cluster = self.config, self.config.cluster
        if cluster is None:
            yield self
            return
        setup = Setup(
            config.model, config.sampling, config.images, config.folder, self.plan.checkpoint, config.model.model
        )
        tell = self.progress.message
        with hired(cluster, setup, self.load, self.journal.readings, tell, self.signals.held) as crew:
            yield crew

    def read(self, sources: Sequence[Source]) -> Generator[Batch]:
        """Read files in this process."""
        return self.reader.read(sources, self.journal.seen())

    def look(self, sources: Sequence[Source]) -> tuple[list[bytes], Batch]:
        """Return the vision features of files, seen in this process."""
        found = features_of(sources, self._loaded(), self.config.images, self.config.sampling.batch)
        return found, Batch()

    def _fit(self, folder: ReferenceFolder, readers: Readers) -> Reference:
        """Read the reference before the images: where it cannot be had, no night is spent in vain."""
        self.progress.message(f"Reading the reference in {folder.folder} ({len(folder.sources):,} files) …")
        features, batch = readers.look(folder.sources)
        if batch.model is not None:
            self._meet(batch.model)
        return folder.fit(features)

    def _loaded(self) -> Captioner:
        """Return the captioner, loaded the first time that there is something for it to read."""
        if self.captioner is None:
            server = self.config.model.endpoint
            asking = f"Asking {server.url} what it can do …" if server else f"Loading {self.config.model.model} …"
            self.progress.message(asking)  # minutes, if a model has to be downloaded first
            with self.clock.running("loading"):
                captioner = self.load(self.config.model, self.config.sampling)
            self._introduce(captioner.info)
            self.captioner = captioner
            self.clock.begin(captioner)
        return self.captioner

    def _meet(self, info: ModelInfo) -> None:
        """Check a worker's model against the one that is known, before anything that it has read is kept."""
        if not self.introduced:
            self._introduce(info)
        self.plan.check_model(info)

    def _introduce(self, info: ModelInfo) -> None:
        """Check what a model says of itself against the journal, and show it; raises `ResumeError` for another."""
        log.info("model %s", asdict(info))
        with self.signals.held():
            self.writer.drain()
            self.plan.meet_model(info)
        self.progress.header(info, self.gate, self.config)
        if warning := (info.server or {}).get("warning"):
            self.progress.message(warning)
        self.introduced = True

    # --- what was read before ---

    def _is_enough(self, reading: Reading) -> bool:
        """Say whether the samples of an image decide it."""
        return self.foresight is None or self.foresight.settled(reading, self.reference)

    def _look_back(self) -> None:
        """Forget, in memory and once a run, readings that were enough for another gate and are not for this one."""
        if self.foresight is None or self.looked_back:
            return
        if self.journal.readings:
            self.progress.message("Looking whether what was read before is enough for these limits …")
        for content in (open_ := self.foresight.open_among(self.journal.readings, self.reference)):
            self.journal.readings.forget(content)
        if open_:
            self.progress.message(f"{len(open_):,} images need more samples for this limit, and are read again.")
        self.looked_back = True

    def _forget_replaced(self) -> bool:
        """Forget, in memory, what was read of files that are others by now; say whether there were any."""
        if self.watch is None:
            return not self.compared and bool(forget_replaced(self.walk.sources, self.journal, gone_too=True))
        changed = forget_changed(self.watch.in_doubt, self.journal)
        replaced = forget_replaced(self.walk.sources, self.journal, gone_too=False)
        self.watch.hand_out_again(replaced)
        return changed or bool(replaced)

    # --- the result ---

    def _publish(self) -> None:
        """Write the result so far; a budget is filled from all images, so nothing is decided before the end."""
        if self.gate.threshold is None and (self.gate.budget_share, self.gate.budget_count) != (None, None):
            return
        try:
            with self.signals.held():
                records = decide_rows(self._rows(), self.gate)
                self._write(records, self._provenance(records, complete=False))
        except FatalError as error:  # a reader may hold the file; the journal holds the readings
            self.progress.message(f"Not published this time: {error}")
        else:
            routed = sum(record.route == Route.HUMAN_REVIEW for record in records)
            told = f"Published {self.plan.outputs.parquet}: {len(records):,} rows, {routed:,} for people."
            self.progress.message(told)

    def _rows(self) -> list[Candidate]:
        return build_rows(self.walk, self.journal, self.plan.kernel, self.reference, self.writer.scored)

    def _write(self, records: Sequence[Record], provenance: Mapping[str, Any]) -> None:
        read, readings = sum(record.num_samples is not None for record in records), self.journal.readings
        write_result(self.plan.outputs.parquet, completed(records, readings, whole=True), provenance, read)

    def _finish(self, interrupted: int | None, error: VlmgateError | None) -> ScanResult:
        if self.journal.readings and (
            self.config.kernel not in (FINDINGS, WORDS) or len(self.walk.sources) > 5_000
        ):  # takes a while
            self.progress.message(f"Comparing the captions with {self.config.kernel} …")
        self._look_back()  # it may have ended before that
        if self.watch is not None:
            self.walk = self.watch.everything()
        self._forget_replaced()
        with self.clock.running("scoring"):
            records = decide_rows(self._rows(), self.gate)
        failed = any(record.reason == Reason.MODEL_FAILED for record in records)
        if failed and error is None and all(record.num_samples is None for record in records):
            error = ModelError(f"the model failed on every image, last with: {self.last_failure}. See the log.")
        complete = not any(r.reason == Reason.NOT_READ for r in records)
        provenance = self._provenance(records, complete=complete)
        try:
            with self.clock.running("writing"):
                self._write(records, provenance)
        except LostReadingError:  # from now on it is known to be lost, and nothing is decided on it
            return self._finish(interrupted, error)
        except FatalError as full:
            error = error or full
            log.error("%s", full, exc_info=full)
        interrupted = None if self.watch is not None and complete else interrupted  # that is how watching ends
        log.info("finished: %d rows, interrupted=%s, error=%s", len(records), interrupted, error)
        return ScanResult(
            tuple(records), self.journal.readings, provenance, self.gate, self.plan.outputs, interrupted, error
        )

    def _provenance(self, records: Sequence[Record], *, complete: bool) -> dict[str, Any]:
        time = self.clock.told(self.captioner, self.writer, self.reader.batch_size)
        return provenance(self.plan, records, self.walk, self.gone, self.reference, self.started, time, complete)
