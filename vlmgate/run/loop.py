"""Run the line over a folder: images → captions → scores → routes → rows.

Knows the order of work, what to do again after a stop, and what to do when a model fails; knows nothing of how an image
is decoded, how a caption is made, or how anything is shown.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from vlmgate.captioner import Captioner, KnowsItsBatch, load_captioner
from vlmgate.captioner.fingerprint import model_fingerprint
from vlmgate.captioner.trial import trial_picture
from vlmgate.config import ClusterConfig, ModelConfig, SamplingConfig, ScanConfig, fingerprint
from vlmgate.data import MODEL_KEYS, Entry, Failure, ModelInfo, Picture, Reading, Reason, Record, Route, Source
from vlmgate.errors import EndpointError, FatalError, LostReadingError, ModelError, OutputError, VlmgateError, one_line
from vlmgate.gate.early_stop import Foresight, check_gate, told_of_saving
from vlmgate.gate.of_run import Tonight, check_same, drift_of, gate_of
from vlmgate.images import Walk
from vlmgate.run.ask import ask
from vlmgate.run.batches import Batch, ModelWanted, Supply
from vlmgate.run.checks import check_space, least_side, locked
from vlmgate.run.clock import Clock
from vlmgate.run.find import find, look, told_of_list
from vlmgate.run.log import logging_to
from vlmgate.run.outcome import ScanResult
from vlmgate.run.progress import Progress, Unbreakable
from vlmgate.run.ray.crew import hired
from vlmgate.run.ray.taking import check_alike, described, last_failure, take
from vlmgate.run.ray.worker import Batch as Handed
from vlmgate.run.ray.worker import Setup
from vlmgate.run.resume import (
    forget_changed,
    forget_replaced,
    gone_but_read,
    in_turns,
    noted,
    still_to_read,
    with_turned,
)
from vlmgate.run.shards import Listing, now, share_of
from vlmgate.run.signals import Interrupted, Signals
from vlmgate.run.watch import Watch
from vlmgate.run.writer import Recorder
from vlmgate.scores.kernels import WORDS, Kernel, check_kernel, load_kernel
from vlmgate.scores.novelty import Reference
from vlmgate.scores.reference import ReferenceFolder, checkpoint_reference, told_of_reference
from vlmgate.scores.score import Scorer
from vlmgate.store.journal import Journal, is_journal
from vlmgate.store.result import Outputs, write_result
from vlmgate.store.rows import Row, build_rows, completed, decide_rows
from vlmgate.store.spill import SlotSet
from vlmgate.version import __version__

log = logging.getLogger(__name__)

MAX_FAILURES_IN_A_ROW = 16  # then a picture that must be readable tells whether it is the model or the images
_MODEL_KEYS = (*MODEL_KEYS, "device_kind")


def scan(
    config: ScanConfig,
    progress: Progress,
    *,
    load: Callable[[ModelConfig, SamplingConfig], Captioner] = load_captioner,
    only: Collection[str] | None = None,
) -> ScanResult:
    """Read every image of a folder that has not been read yet, decide all of them, write the result.

    Everything that can be checked is checked before a model is loaded. Raises `UsageError` for what the user can put
    right. What ends the run later (a signal, a dead model, a full disk) is in the result, which is written in any case
    where the disk allows. `only` names the files of the folder that count, by file_name; without it all do.
    """
    outputs = Outputs(config.out.resolve() if config.out.is_symlink() else config.out)
    progress = Unbreakable(progress)
    check_kernel(config.kernel)
    tonight = gate_of(config)
    if config.sampling.first_samples is not None:
        check_gate(tonight.gate, config.kernel)
    outputs.check()
    if outputs.journal.exists() and not is_journal(outputs.journal):
        raise OutputError(f"{outputs.journal}: is no journal of vlmgate; move it away or give another -o.")
    with locked(outputs), logging_to(outputs.log):
        begun = now()
        walk = find(config, outputs, progress, only)
        listing = None
        if config.shard is not None:
            listing = Listing.of(walk, config.shard, begun)
            walk = share_of(walk, config.shard)
            progress.message(listing.describe())
        config = replace(config, images=replace(config.images, least_side=least_side(config.model)))
        checkpoint = model_fingerprint(config.model)
        check_same(tonight, config, checkpoint)
        wanted = fingerprint(config, checkpoint)
        folder = ReferenceFolder(config.reference, outputs.reference, wanted) if config.reference else None
        kernel = load_kernel(config.kernel)
        journal = Journal.open(outputs.journal, wanted, restart=config.restart)
        try:
            return _Run(
                config, tonight, outputs, walk, journal, progress, load, kernel, folder, listing, checkpoint
            ).run()
        finally:
            journal.close()


class _Run:
    """One run of `scan`, from the journal as it was found to the result."""

    def __init__(
        self,
        config: ScanConfig,
        tonight: Tonight,
        outputs: Outputs,
        walk: Walk,
        journal: Journal,
        progress: Progress,
        load: Callable[[ModelConfig, SamplingConfig], Captioner],
        kernel: Kernel,
        folder: ReferenceFolder | None,
        listing: Listing | None,
        checkpoint: dict[str, str],
    ) -> None:
        self.checkpoint, self.listing = checkpoint, listing  # of the whole folder, of which `walk` is a share
        self.config, self.tonight, self.outputs, self.walk = config, tonight, outputs, walk
        self.journal, self.progress, self.load = journal, progress, load
        self.kernel, self.folder, self.gate = kernel, folder, tonight.gate
        self.reference = None if folder else tonight.reference or checkpoint_reference(config.model)
        self.signals = Signals()
        self.started = datetime.now(UTC)
        self.captioner: Captioner | None = None
        self.introduced = False  # a model has been loaded, here or elsewhere
        self.looked_back = self.compared = False  # see `_look_back` and `_forget_replaced`
        self.gone: list[str] = []  # read before, and not in the folder now
        self.good: Picture | None = None  # one that the model has read in this run
        self.failures_in_a_row, self.last_failure = 0, ""
        self.clock = Clock(config.sampling.at_once)
        early = Scorer(journal.fingerprint["prompt"], journal.fingerprint.get("choices", ()), kernel)
        self.recorder = Recorder(journal, early if config.kernel == WORDS else None)
        self.watch: Watch | None = None
        stops_early = config.sampling.first_samples is not None
        self.foresight = Foresight(self.gate, early, config.sampling) if stops_early else None

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
                told = f"internal error ({one_line(unexpected)}). The traceback is in {self.outputs.log}; "
                fatal = FatalError(told + "the same command resumes.")
                error = unexpected if isinstance(unexpected, VlmgateError) else fatal
            interrupted = self.signals.hold() or interrupted
            with suppress(Exception):  # only where a signal came just before it was closed; what lacks is read again
                self.recorder.close()
            self.progress.stop()
            return self._finish(interrupted, error)

    # --- reading ---

    def _read_all(self) -> None:
        if self.config.watch is not None:
            self._loaded()  # or a shift might go by before it is known that it does not load; likewise the reference
        if self.folder is not None and (self.config.watch is not None or self.foresight is not None):
            self.reference = self.folder.load() or self._read_reference(self.folder)
        self._look_back()
        if self.config.watch is None:
            return self._read_what_is_missing()
        self.watch = Watch(
            self.config.watch,
            lambda: look(self.config, self.outputs),
            self.progress.message,
            kept=gone_but_read(self.walk, self.journal, self.config.folder),
            limit=16 * self.config.sampling.batch,
        )
        self.progress.message(f"Watching {self.config.folder}; Ctrl-C ends it and writes the result.")
        fresh = False  # something has been read since the result was published
        for one in self.watch.rounds():
            self.walk, fresh = one.walk, fresh or bool(one.news)
            if one.news:
                self._read_what_is_missing(one.news, one.waiting)
                self.progress.stop()
            if self.watch.publishing_is_due():
                self.watch.recheck()
                if self._forget_replaced() or fresh:
                    self._publish()
                fresh = False

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
            self.progress.message(f"Published {self.outputs.parquet}: {len(records):,} rows, {routed:,} for people.")

    def _rows(self) -> list[Row]:
        return build_rows(self.walk, self.journal, self.kernel, self.reference, self.recorder.scored)

    def _write(self, records: Sequence[Record], provenance: Mapping[str, Any]) -> None:
        read, readings = sum(record.num_samples is not None for record in records), self.journal.readings
        write_result(self.outputs.parquet, completed(records, readings, whole=True), provenance, read)

    def _read_what_is_missing(self, sources: Sequence[Source] | None = None, waiting: int = 0) -> None:
        wanted = self.walk.sources if sources is None else sources
        self.walk, self.gone = with_turned(self.walk, self.journal)
        pending = still_to_read(wanted, self.journal, all_pages=self.config.images.pages == "all")
        self.compared = sources is None
        done = len(self.walk.sources) - len(pending) - waiting
        for text in noted(self.journal, self.gone):
            self.progress.message(text)
        if pending:
            check_space(self.outputs, len(pending), self.config.sampling)
        if done and pending and self.watch is None:
            self.progress.message(f"Resuming: {done:,} of {len(self.walk.sources):,} files have been read before.")
        if self.folder is not None and self.reference is None:
            self.reference = self.folder.load()
        if self.config.cluster is None:
            if self.folder is not None and self.reference is None:
                self.reference = self._read_reference(self.folder)
            self.progress.start(len(self.walk.sources), done)
            for some in in_turns(pending, self.journal, self.config.folder):
                self._read(some)
        elif pending or (self.folder is not None and self.reference is None):
            self._read_on_cluster(pending, done, self.config.cluster)
        if not self.introduced:
            self.progress.header(None, self.gate, self.config)
            self.progress.message(
                "Every image has been read before, so no model was loaded. --restart reads them again."
                if self.walk.sources
                else "There is nothing to read in this share of the folder."
            )

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

    def _introduce(self, info: ModelInfo) -> None:
        """Hold what a model says of itself against the journal, and tell of it; raises `ResumeError` for another."""
        log.info("model %s", asdict(info))
        with self.signals.held():
            self.recorder.drain()
            self.journal.check_model(described(info), _MODEL_KEYS)
        self.progress.header(info, self.gate, self.config)
        if warning := (info.server or {}).get("warning"):
            self.progress.message(warning)
        self.introduced = True

    def _read_reference(self, folder: ReferenceFolder) -> Reference:
        """Read the reference before the images: where it cannot be had, no night is spent in vain."""
        captioner = self._loaded()
        self.progress.message(f"Reading the reference in {folder.folder} ({len(folder.sources):,} files) …")
        return folder.read(captioner, self.config.images, self.config.sampling.batch)

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

    def _read(self, pending: Sequence[Source]) -> None:
        """Read files in their order; every batch is journalled whole before the next one's is begun."""
        supply = Supply(pending, self.config.images, self.config.sampling.at_once, SlotSet(self.journal.readings))
        try:
            with closing(supply):
                batches = iter(supply)
                while (batch := self._next(batches)) is not None:
                    if isinstance(batch, ModelWanted):
                        supply.provide(self._loaded(), self._batch_of(self._loaded()))
                    else:
                        self._commit(batch)
                    del batch  # or its pictures would stay in memory while the next is waited for
        finally:
            with self.signals.held(), self.clock.running("waiting"):
                self.recorder.close()

    def _batch_of(self, captioner: Captioner) -> int:
        """Return how many images to hand over at once: as many as suit the captioner, unless a person said."""
        if isinstance(captioner, KnowsItsBatch) and self.config.sampling.batch_size is None:
            self.clock.batch = captioner.at_once
        return self.clock.batch

    def _next(self, batches: Iterator[Batch | ModelWanted]) -> Batch | ModelWanted | None:
        self.signals.heed()
        with self.clock.running("reading"):
            return next(batches, None)

    def _commit(self, batch: Batch) -> None:
        with self.clock.running("captioning"):
            begun = time.perf_counter()
            entries = self._ask(batch) if batch.pictures else []
            each = round((time.perf_counter() - begun) / max(1, len(batch.pictures)), 4)
        self.clock.images += len(batch.pictures)
        with self.signals.held(), self.clock.running("waiting"):
            self.recorder.submit([*entries, *batch.aside], batch.ended, each)
        self.progress.advance(batch.finished)
        if self.failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            self._check_that_the_model_lives()

    def _ask(self, batch: Batch) -> list[Entry]:
        """Return a reading or a failure for each picture, and count how many failed since one could be read."""
        entries = ask(batch.pictures, self._loaded(), self.config.sampling, batch.prepared, self._enough())
        for picture, entry in zip(batch.pictures, entries, strict=True):
            if isinstance(entry, Failure):
                self.failures_in_a_row += 1
                self.last_failure = entry.error
            else:
                self.failures_in_a_row = 0
                self.good = picture
        return [*entries]

    def _enough(self) -> Callable[[Reading], bool] | None:
        """Return what says whether the samples of an image decide it; None where all are drawn in any case."""
        foresight = self.foresight
        return None if foresight is None else lambda reading: foresight.settled(reading, self.reference)

    def _check_that_the_model_lives(self) -> None:
        """Let the model read what it can read; raise `ModelError` where it cannot, for then the rest would fail too."""
        probe = self.good or trial_picture()
        try:
            self._loaded().read([probe])
        except EndpointError:
            raise
        except Exception as error:
            raise ModelError(
                f"the model failed on {self.failures_in_a_row} images in a row and on a test image, "
                f"last with: {self.last_failure}. See the log; the same command resumes."
            ) from error
        log.warning("%d images in a row failed, but the model reads others; going on", self.failures_in_a_row)
        self.failures_in_a_row = 0

    def _read_on_cluster(self, pending: Sequence[Source], done: int, cluster: ClusterConfig) -> None:
        """Let other processes read; every batch is journalled as it comes back."""
        config = self.config
        setup = Setup(config.model, config.sampling, config.images, config.folder, self.checkpoint, config.model.model)
        with hired(cluster, setup, self.load, self.journal.readings, self.progress.message, self.signals.held) as crew:
            if self.folder is not None and self.reference is None:
                self.progress.message(f"Reading the reference in {self.folder.folder} …")
                features, batch = crew.look(self.folder.sources)
                self._meet(batch)
                self.reference = self.folder.fit(features)
            self.progress.start(len(self.walk.sources), done)
            for batch in take(crew.read(pending), self.journal, self.signals, self.progress):
                self._meet(batch)
                self.last_failure = last_failure(batch) or self.last_failure

    def _meet(self, batch: Handed) -> None:
        """Hold a worker's model against the one that is known, before anything that it has read is kept."""
        if batch.info is not None:
            if not self.introduced:
                self._introduce(batch.info)
            check_alike(batch.info, self.journal.model, _MODEL_KEYS)

    def _finish(self, interrupted: int | None, error: VlmgateError | None) -> ScanResult:
        if self.journal.readings and (self.config.kernel != WORDS or len(self.walk.sources) > 5_000):  # takes a while
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
            tuple(records), self.journal.readings, provenance, self.gate, self.outputs, interrupted, error
        )

    def _provenance(self, records: Sequence[Record], *, complete: bool) -> dict[str, Any]:
        return {
            "vlmgate_version": __version__,
            "run_id": self.journal.run_id,
            "complete": complete,
            "started": self.started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "folder": self.config.folder.resolve().as_posix().encode("utf-8", "backslashreplace").decode(),
            "listed": told_of_list(self.config, self.walk),
            "images": len(records),
            "ignored": len(self.walk.ignored),
            "ignored_first": list(self.walk.ignored[:5]),
            "gone": len(self.gone),
            "gone_first": self.gone[:5],
            "model": self.journal.model,
            "sampling": asdict(self.config.sampling),
            "image_config": asdict(self.config.images),
            "kernel": self.config.kernel,
            "reference": told_of_reference(self.reference, self.folder, calibrated=self.tonight.reference is not None),
            "gate": self.gate.told(),
            "adaptive": told_of_saving(records, self.journal.readings, self.config.sampling),
            "promise": dict(self.tonight.file.promise) if self.tonight.file else None,
            "gate_edited": self.tonight.file.edited if self.tonight.file else None,
            "drift": drift_of(self.tonight, records, self.journal.readings),
            "time": self.clock.told(self.captioner, self.recorder),
            "fingerprint": self.journal.fingerprint,
            "shard": self.listing
            and self.listing.told(self.config.gate, self.reference.note if self.reference else None),
        }
