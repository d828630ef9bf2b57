"""Run the line over a folder: images → captions → scores → routes → rows.

Knows the order of work, what to do again after a stop, and what to do when a model fails; knows nothing of how an image
is decoded, how a caption is made, or how anything is shown.
"""

from __future__ import annotations

import logging
import shutil
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import vlmgate
from vlmgate.asking import ask
from vlmgate.captioner import Captioner, load_captioner
from vlmgate.captioner.fingerprint import model_fingerprint
from vlmgate.captioner.trial import trial_picture
from vlmgate.cluster.crew import hired
from vlmgate.cluster.taking import check_alike, described, last_failure, take
from vlmgate.cluster.worker import Batch, Setup
from vlmgate.config import ClusterConfig, ModelConfig, SamplingConfig, ScanConfig, fingerprint
from vlmgate.errors import FatalError, ModelError, NoImagesError, OutputError, VlmgateError, one_line
from vlmgate.gate import Gate
from vlmgate.images import Walk, find_images, read_ahead
from vlmgate.journal import Duplicate, Entry, Failure, Journal, content_of, is_journal
from vlmgate.kernels import WORDS, Kernel, check_kernel, load_kernel
from vlmgate.logfile import logging_to
from vlmgate.novelty import Reference
from vlmgate.progress import Progress, Unbreakable
from vlmgate.records import ModelInfo, Picture, Reading, Reason, Record, Source, Unreadable
from vlmgate.reference import ReferenceFolder, checkpoint_reference
from vlmgate.rows import build_rows, decide_rows
from vlmgate.shards import Listing, now, share_of
from vlmgate.signals import Interrupted, Signals
from vlmgate.store import Outputs, write_result
from vlmgate.tonight import Tonight, check_same, drift_of, gate_of

log = logging.getLogger(__name__)

MAX_FAILURES_IN_A_ROW = 16  # then a picture that must be readable tells whether it is the model or the images
_MODEL_KEYS = ("revision", "architecture", "num_parameters", "dtype", "device_kind", "image_processor")


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What a run left behind."""

    records: tuple[Record, ...]
    provenance: dict[str, Any]
    gate: Gate
    outputs: Outputs
    interrupted: int | None  # signal number
    error: VlmgateError | None  # what ended the run before its time; the result is written all the same


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
    outputs.check()
    if outputs.journal.exists() and not is_journal(outputs.journal):
        raise OutputError(f"{outputs.journal}: is no journal of vlmgate; move it away or give another -o.")
    with _locked(outputs), logging_to(outputs.log):
        progress.message(f"Looking for images in {config.folder} …")
        begun = now()
        walk = find_images(config.folder)
        walk = replace(walk, ignored=tuple(name for name in walk.ignored if Path(name).name not in outputs.names()))
        if only is not None:
            walk = replace(walk, sources=tuple(source for source in walk.sources if source.file_name in only))
        if not walk.sources and not walk.unreadable:
            raise NoImagesError(_no_images(config.folder, walk))
        listing = None
        if config.shard is not None:
            listing = Listing.of(walk, config.shard, begun)
            walk = share_of(walk, config.shard)
            progress.message(listing.describe())
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
        self.checkpoint = checkpoint
        self.listing = listing  # of the whole folder, of which `walk` is a share
        self.config, self.tonight, self.outputs, self.walk = config, tonight, outputs, walk
        self.gate = tonight.gate
        self.journal, self.progress, self.load = journal, progress, load
        self.kernel, self.folder = kernel, folder
        self.reference = None if folder else tonight.reference or checkpoint_reference(config.model)
        self.signals = Signals()
        self.started = datetime.now(UTC)
        self.captioner: Captioner | None = None
        self.introduced = False  # a model has been loaded, here or elsewhere
        self.gone: list[str] = []  # read before, and not in the folder now
        self.good: Picture | None = None  # one that the model has read in this run
        self.failures_in_a_row = 0
        self.last_failure = ""

    def run(self) -> ScanResult:
        interrupted: int | None = None
        error: VlmgateError | None = None
        with self.signals.installed():
            try:
                self._read_what_is_missing()
            except Interrupted as stop:
                interrupted = stop.signum
                log.warning("stopped by %s", stop)
            except KeyboardInterrupt:  # where our handler could not be installed
                interrupted = signal.SIGINT
            except Exception as unexpected:
                if not self.introduced and not self.journal.readings:  # nothing is to be saved
                    raise
                log.error("the run ends here", exc_info=unexpected)
                error = (
                    unexpected
                    if isinstance(unexpected, VlmgateError)
                    else FatalError(
                        f"internal error ({one_line(unexpected)}). The traceback is in {self.outputs.log}; "
                        "the same command resumes."
                    )
                )
            interrupted = self.signals.hold() or interrupted
            self.progress.stop()
            return self._finish(interrupted, error)

    # --- reading ---

    def _read_what_is_missing(self) -> None:
        pending = self._pending()
        done = len(self.walk.sources) - len(pending)
        if self.journal.dropped:
            self.progress.message(
                f"{self.journal.dropped} journal lines were torn or damaged; what they held is read again."
            )
        if self.gone:
            self.progress.message(
                f"{len(self.gone):,} files that were read before are not in the folder any more, first: {self.gone[0]}"
            )
        if pending:
            _check_space(self.outputs, len(pending), self.config.sampling)
        if done and pending:
            self.progress.message(f"Resuming: {done:,} of {len(self.walk.sources):,} files have been read before.")
        if self.folder is not None:
            self.reference = self.folder.load()
        if self.config.cluster is None:
            if self.folder is not None and self.reference is None:
                self.reference = self._read_reference(self.folder)
            self.progress.start(len(self.walk.sources), done)
            self._read(pending)
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
            self.progress.message(f"Loading {self.config.model.model} …")  # minutes, if it has to be downloaded first
            self.captioner = self.load(self.config.model, self.config.sampling)
            self._introduce(self.captioner.info)
        return self.captioner

    def _introduce(self, info: ModelInfo) -> None:
        """Hold what a model says of itself against the journal, and tell of it; raises `ResumeError` for another."""
        log.info("model %s", asdict(info))
        with self.signals.held():
            self.journal.check_model(described(info), _MODEL_KEYS)
        self.progress.header(info, self.gate, self.config)
        self.introduced = True

    def _read_reference(self, folder: ReferenceFolder) -> Reference:
        """Read the reference before the images: where it cannot be had, no night is spent in vain."""
        captioner = self._loaded()
        self.progress.message(f"Reading the reference in {folder.folder} ({len(folder.sources):,} files) …")
        return folder.read(captioner, self.config.images, self.config.sampling.batch_size)

    def _pending(self) -> list[Source]:
        """Return the files that have to be opened, and forget what the journal says of those that were replaced.

        A file is done when all its pages have a reading and its size and times have not changed. What could not be
        read, by us or by the model, is tried again. Opening a file whose bytes were read before costs no model.
        """
        names = {source.file_name for source in self.walk.sources}
        self.gone = sorted(name for name in self.journal.file_names() if name not in names)
        pending = []
        for source in self.walk.sources:
            entries = self.journal.entries_of(source.file_name)
            if not self._is_unchanged(source, entries):
                self.journal.forget(source.file_name)
                pending.append(source)
            elif not self._is_done(entries):
                pending.append(source)
        return pending

    def _is_unchanged(self, source: Source, entries: Sequence[Entry]) -> bool:
        try:
            stat = source.path.stat()
        except OSError:
            return False
        now = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        images = [entry.image for entry in entries if not isinstance(entry, Unreadable)]
        return all((image.size_bytes, image.mtime_ns, image.ctime_ns) == now for image in images)

    def _is_done(self, entries: Sequence[Entry]) -> bool:
        images = [e.image for e in entries if isinstance(e, Reading | Duplicate)]
        if not images or any(content_of(image) not in self.journal.readings for image in images):
            return False
        return len(entries) == len(images) == (images[0].num_pages if self.config.images.pages == "all" else 1)

    def _read(self, pending: Sequence[Source]) -> None:
        """Read files in their order; every batch is journalled whole before the next one begins."""
        seen = set(self.journal.readings)
        batch: list[Picture] = []
        aside: list[Entry] = []  # needs no model
        finished = 0  # files whose last page is in the batch or aside
        pages: set[int] = set()  # of the file in hand
        with closing(read_ahead(pending, self.config.images)) as opened:
            for one in opened:
                page = one.result
                if isinstance(page, Unreadable):
                    log.warning("unreadable: %s page %d: %s", page.file_name, page.page, page.reason)
                    aside.append(page)
                elif content_of(page.file) in seen:
                    aside.append(Duplicate(page.file))
                else:
                    seen.add(content_of(page.file))
                    batch.append(page)
                pages.add(page.page if isinstance(page, Unreadable) else page.file.page)
                if one.last:
                    finished += 1
                    self.journal.forget(one.source.file_name, keep=pages)  # pages that the file no longer has
                    pages = set()
                if len(batch) == self.config.sampling.batch_size or len(aside) >= 256:
                    full = batch if len(batch) == self.config.sampling.batch_size else []
                    self._commit(full, aside)  # batches are always full ones, so a resumed run makes the same
                    batch, aside = ([] if full else batch), []
                    self.progress.advance(finished)
                    finished = 0
        self._commit(batch, aside)
        self.progress.advance(finished)

    def _commit(self, batch: Sequence[Picture], aside: Sequence[Entry]) -> None:
        begun = time.perf_counter()
        entries = self._ask(batch, self._loaded()) if batch else []
        each = round((time.perf_counter() - begun) / max(1, len(batch)), 4)
        if entries or aside:
            with self.signals.held():
                self.journal.append([*entries, *aside], each)
        if self.failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            self._check_that_the_model_lives()

    def _ask(self, pictures: Sequence[Picture], captioner: Captioner) -> list[Entry]:
        """Return a reading or a failure for each picture, and count how many failed since one could be read."""
        entries = ask(pictures, captioner, self.config.sampling)
        for picture, entry in zip(pictures, entries, strict=True):
            if isinstance(entry, Failure):
                self.failures_in_a_row += 1
                self.last_failure = entry.error
            else:
                self.failures_in_a_row = 0
                self.good = picture
        return [*entries]

    def _check_that_the_model_lives(self) -> None:
        """Let the model read what it can read; raise `ModelError` where it cannot, for then the rest would fail too."""
        probe = self.good or trial_picture()
        try:
            self._loaded().read([probe])
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

    def _meet(self, batch: Batch) -> None:
        """Hold a worker's model against the one that is known, before anything that it has read is kept."""
        if batch.info is not None:
            if not self.introduced:
                self._introduce(batch.info)
            check_alike(batch.info, self.journal.model, _MODEL_KEYS)

    # --- finishing ---

    def _finish(self, interrupted: int | None, error: VlmgateError | None) -> ScanResult:
        if self.config.kernel != WORDS and self.journal.readings:
            self.progress.message(f"Comparing the captions with {self.config.kernel} …")
        rows = build_rows(self.walk, self.journal, self.kernel, self.reference)
        records = decide_rows(rows, self.gate, self.config.sampling.seed)
        failed = any(row.reason is Reason.MODEL_FAILED for row in rows)
        if failed and error is None and not any(row.reading for row in rows):
            error = ModelError(f"the model failed on every image, last with: {self.last_failure}. See the log.")
        provenance = self._provenance(records, complete=not any(r.reason == Reason.NOT_READ for r in records))
        try:
            write_result(self.outputs.parquet, records, provenance)
        except FatalError as full:
            error = error or full
            log.error("%s", full, exc_info=full)
        log.info("finished: %d rows, interrupted=%s, error=%s", len(records), interrupted, error)
        return ScanResult(tuple(records), provenance, self.gate, self.outputs, interrupted, error)

    def _told_of_reference(self) -> dict[str, Any] | None:
        if self.reference is None:
            return None
        folder = "calibration set" if self.tonight.reference else "checkpoint"
        if self.folder:
            folder = self.folder.folder.resolve().as_posix()
        return {
            "folder": folder.encode("utf-8", "backslashreplace").decode(),
            "images": self.reference.count,
            "method": self.reference.method,
        }

    def _provenance(self, records: Sequence[Record], *, complete: bool) -> dict[str, Any]:
        return {
            "vlmgate_version": vlmgate.__version__,
            "run_id": self.journal.run_id,
            "complete": complete,
            "started": self.started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "folder": self.config.folder.resolve().as_posix().encode("utf-8", "backslashreplace").decode(),
            "images": len(records),
            "ignored": len(self.walk.ignored),
            "ignored_first": list(self.walk.ignored[:5]),
            "gone": len(self.gone),
            "gone_first": self.gone[:5],
            "model": self.journal.model,
            "sampling": asdict(self.config.sampling),
            "image_config": asdict(self.config.images),
            "kernel": self.config.kernel,
            "reference": self._told_of_reference(),
            "gate": asdict(self.gate),
            "promise": dict(self.tonight.file.promise) if self.tonight.file else None,
            "gate_edited": self.tonight.file.edited if self.tonight.file else None,
            "drift": drift_of(self.tonight, records),
            "fingerprint": self.journal.fingerprint,
            "shard": self.listing
            and self.listing.told(self.config.gate, self.reference.note if self.reference else None),
        }


def _no_images(folder: Path, walk: Walk) -> str:
    first = f", among them {walk.ignored[0]!r}" if walk.ignored else ""
    return f"{folder}: no image found ({len(walk.ignored)} other files{first}); name a folder that holds images."


def _check_space(outputs: Outputs, images: int, sampling: SamplingConfig) -> None:
    """Raise `OutputError` where the disk would fill up before the run ends."""
    tokens = sampling.max_new_tokens + (sampling.max_answer_tokens if sampling.question else 0)
    per_image = 8000 + sampling.num_samples * (400 + 8 * tokens)  # bytes, journal and result, generous
    needed = 20_000_000 + images * per_image
    free = shutil.disk_usage(outputs.parquet.parent).free
    if free < needed:
        megabytes = f"{free / 1e6:,.0f} MB free, about {needed / 1e6:,.0f} MB may be needed"
        raise OutputError(f"{outputs.parquet.parent}: {megabytes}; make room or give another -o.")


@contextmanager
def _locked(outputs: Outputs) -> Iterator[None]:
    """Hold the output for this run alone."""
    from filelock import FileLock, Timeout

    lock = FileLock(outputs.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(f"{outputs.parquet}: another scan is writing it; wait for it or give another -o.") from error
    try:
        yield
    finally:
        lock.release()
