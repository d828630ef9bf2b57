"""Run the line over a folder: images → captions → scores → routes → rows.

Knows the order of work, what to do again after a stop, and what to do when a model fails; knows nothing of how an image
is decoded, how a caption is made, or how anything is shown.
"""

from __future__ import annotations

import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import vlmgate
from vlmgate.captioner import Captioner, load_captioner
from vlmgate.captioner.fingerprint import model_fingerprint
from vlmgate.config import ModelConfig, SamplingConfig, ScanConfig, fingerprint
from vlmgate.errors import FatalError, ModelError, NoImagesError, OutputError, VlmgateError
from vlmgate.gate import Gate, make_gate
from vlmgate.images import Walk, find_images, read_ahead
from vlmgate.records import Caption, ModelInfo, Picture, Reading, Reason, Record, Source, Unreadable
from vlmgate.rows import build_rows, content_of, decide_rows
from vlmgate.store import Duplicate, Entry, Failure, Journal, Outputs, write_result

log = logging.getLogger(__name__)

MAX_FAILURES_IN_A_ROW = 16  # then it is the model or the device, not the images
_MODEL_KEYS = ("revision", "architecture", "num_parameters", "dtype", "device_kind", "image_processor")


class Progress(Protocol):
    """Told what happens, in the order in which it happens; `vlmgate.report` shows it to people."""

    def header(self, model: ModelInfo | None, gate: Gate, config: ScanConfig) -> None: ...
    def message(self, text: str) -> None: ...
    def start(self, total: int, done: int) -> None: ...
    def advance(self, images: int) -> None: ...
    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What a run left behind."""

    records: tuple[Record, ...]
    provenance: dict[str, Any]
    gate: Gate
    outputs: Outputs
    interrupted: int | None  # signal number
    error: VlmgateError | None  # what ended the run before its time; the result is written all the same


class Interrupted(BaseException):
    """Ctrl-C, SIGTERM or SIGHUP arrived; not an `Exception`, so that no per-image handler takes it for a failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class _Signals:
    """Turns the signals that end a run into `Interrupted`, but never while the journal is being written."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: int | None = None

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if self._held:
            self._waiting = self._waiting or signum
        else:
            raise Interrupted(signum)

    @contextmanager
    def installed(self) -> Iterator[None]:
        names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        former: dict[signal.Signals, Any] = {}
        try:
            for name in names:
                number = signal.Signals[name]
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup has said that this one does not matter
                    former[number] = signal.signal(number, self._handle)
        except ValueError:  # not the main thread: whoever started it handles signals
            pass
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let nothing interrupt the block; raise afterwards what arrived meanwhile."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            raise Interrupted(waiting)

    def hold(self) -> int | None:
        """Let nothing interrupt from here on; return what already waits."""
        self._held = True
        return self._waiting


def scan(
    config: ScanConfig,
    progress: Progress,
    *,
    load: Callable[[ModelConfig, SamplingConfig], Captioner] = load_captioner,
) -> ScanResult:
    """Read every image of a folder that has not been read yet, decide all of them, write the result.

    Everything that can be checked is checked before a model is loaded. Raises `UsageError` for what the user can put
    right. What ends the run later (a signal, a dead model, a full disk) is in the result, which is written in any case
    where the disk allows.
    """
    outputs = Outputs(config.out)
    gate = make_gate(
        num_samples=config.sampling.num_samples,
        score=config.score,
        threshold=config.threshold,
        review_budget=config.review_budget,
    )
    outputs.check()
    with _locked(outputs), _logging_to(outputs.log):
        walk = find_images(config.folder)
        walk = replace(walk, ignored=tuple(name for name in walk.ignored if Path(name).name not in outputs.names()))
        if not walk.sources and not walk.unreadable:
            raise NoImagesError(_no_images(config.folder, walk))
        _check_space(outputs, len(walk.sources), config.sampling)
        wanted = fingerprint(config, model_fingerprint(config.model))
        journal = Journal.open(outputs.journal, wanted, restart=config.restart)
        try:
            return _Run(config, gate, outputs, walk, journal, progress, load).run()
        finally:
            journal.close()


class _Run:
    """One run of `scan`, from the journal as it was found to the result."""

    def __init__(
        self,
        config: ScanConfig,
        gate: Gate,
        outputs: Outputs,
        walk: Walk,
        journal: Journal,
        progress: Progress,
        load: Callable[[ModelConfig, SamplingConfig], Captioner],
    ) -> None:
        self.config, self.gate, self.outputs, self.walk = config, gate, outputs, walk
        self.journal, self.progress, self.load = journal, progress, load
        self.signals = _Signals()
        self.started = datetime.now(UTC)
        self.loaded = False
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
                if not self.loaded:  # nothing was read, so nothing is to be saved
                    raise
                log.error("the run ends here", exc_info=unexpected)
                error = (
                    unexpected
                    if isinstance(unexpected, VlmgateError)
                    else FatalError(
                        f"internal error ({_one_line(unexpected)}). The traceback is in {self.outputs.log}; "
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
                f"{self.journal.dropped} journal lines were torn or damaged; these images are read again."
            )
        if not pending:
            self.progress.header(None, self.gate, self.config)
            self.progress.message("Every image has been read before; no model is needed. --restart reads them again.")
            return
        captioner = self._load_model()
        if done:
            self.progress.message(f"Resuming: {done:,} of {len(self.walk.sources):,} files have been read before.")
        self.progress.start(len(self.walk.sources), done)
        self._read(pending, captioner)

    def _load_model(self) -> Captioner:
        captioner = self.load(self.config.model, self.config.sampling)
        info = asdict(captioner.info)
        log.info("model %s", info)
        with self.signals.held():
            self.journal.check_model(info | {"device_kind": captioner.info.device.split(":")[0]}, _MODEL_KEYS)
        self.progress.header(captioner.info, self.gate, self.config)
        self.loaded = True
        return captioner

    def _pending(self) -> list[Source]:
        """Return the files that still have to be read, and forget what the journal says of them.

        A file is done when all its pages have a reading and its size and modification time have not changed. What could
        not be read, by us or by the model, is tried again.
        """
        read = {content_of(e.image) for e in self.journal.entries.values() if isinstance(e, Reading)}
        by_file: dict[str, list[Entry]] = {}
        for (file_name, _), entry in self.journal.entries.items():
            by_file.setdefault(file_name, []).append(entry)
        pending = [s for s in self.walk.sources if not self._is_done(s, by_file.get(s.file_name, []), read)]
        for source in pending:
            for entry in by_file.get(source.file_name, []):
                image = entry if isinstance(entry, Unreadable) else entry.image
                del self.journal.entries[image.file_name, image.page]
        return pending

    def _is_done(self, source: Source, entries: Sequence[Entry], read: set[tuple[str, int]]) -> bool:
        images = [e.image for e in entries if isinstance(e, Reading | Duplicate) and content_of(e.image) in read]
        if not images or len(images) != len(entries):
            return False
        if len(images) != (images[0].num_pages if self.config.images.pages == "all" else 1):
            return False
        try:
            stat = source.path.stat()
        except OSError:
            return False
        return all((image.size_bytes, image.mtime_ns) == (stat.st_size, stat.st_mtime_ns) for image in images)

    def _read(self, pending: Sequence[Source], captioner: Captioner) -> None:
        """Read files in their order; every batch is journalled whole before the next one begins."""
        seen = {content_of(e.image) for e in self.journal.entries.values() if isinstance(e, Reading)}
        batch: list[Picture] = []
        aside: list[Entry] = []  # needs no model
        finished = 0  # files whose last page is in the batch or aside
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
                finished += one.last
                if len(batch) == self.config.sampling.batch_size or len(aside) >= 256:
                    self._commit(batch, aside, captioner)
                    batch, aside = [], []
                    self.progress.advance(finished)
                    finished = 0
        self._commit(batch, aside, captioner)
        self.progress.advance(finished)

    def _commit(self, batch: Sequence[Picture], aside: Sequence[Entry], captioner: Captioner) -> None:
        begun = time.perf_counter()
        entries = self._ask(batch, captioner) if batch else []
        each = round((time.perf_counter() - begun) / max(1, len(batch)), 4)
        if entries or aside:
            with self.signals.held():
                self.journal.append([*entries, *aside], each)
        if self.failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise ModelError(
                f"the model failed on {self.failures_in_a_row} images in a row, last with: {self.last_failure}. "
                "See the log; the same command resumes."
            )

    def _ask(self, pictures: Sequence[Picture], captioner: Captioner) -> list[Entry]:
        """Return a reading or a failure for each picture; a batch that fails is halved to find the culprit."""
        try:
            answers = captioner.read(pictures)
            if len(answers) != len(pictures) or any(len(a) != self.config.sampling.num_samples for a in answers):
                raise ModelError("the captioner did not return K captions for every picture; this is a bug in vlmgate.")
        except Exception as error:
            log.warning("a batch of %d failed", len(pictures), exc_info=error)
            if len(pictures) > 1 and self.failures_in_a_row < MAX_FAILURES_IN_A_ROW:
                middle = len(pictures) // 2
                return self._ask(pictures[:middle], captioner) + self._ask(pictures[middle:], captioner)
            self.failures_in_a_row += len(pictures)
            self.last_failure = _one_line(error)
            return [Failure(picture.file, self.last_failure) for picture in pictures]
        self.failures_in_a_row = 0
        return [Reading(p.file, tuple(_clean(c) for c in a)) for p, a in zip(pictures, answers, strict=True)]

    # --- finishing ---

    def _finish(self, interrupted: int | None, error: VlmgateError | None) -> ScanResult:
        rows = build_rows(self.walk, self.journal)
        records = decide_rows(rows, self.gate, self.config.sampling.seed)
        tried = [row for row in rows if isinstance(row.entry, Reading | Failure)]
        if tried and error is None and not any(isinstance(row.entry, Reading) for row in tried):
            error = ModelError(f"the model failed on every image, last with: {self.last_failure}. See the log.")
        provenance = self._provenance(records, complete=not any(r.reason == Reason.NOT_READ for r in records))
        try:
            write_result(self.outputs.parquet, records, provenance)
        except FatalError as full:
            error = error or full
            log.error("%s", full, exc_info=full)
        log.info("finished: %d rows, interrupted=%s, error=%s", len(records), interrupted, error)
        return ScanResult(tuple(records), provenance, self.gate, self.outputs, interrupted, error)

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
            "model": self.journal.model,
            "sampling": asdict(self.config.sampling),
            "image_config": asdict(self.config.images),
            "kernel": "words",
            "gate": asdict(self.gate),
            "fingerprint": self.journal.fingerprint,
        }


def _clean(caption: Caption) -> Caption:
    """Return the caption with text that can be stored: UTF-8, and a finite log-probability or none."""
    logprob = caption.mean_logprob
    finite = logprob is not None and abs(logprob) < float("inf")
    text = caption.text.encode("utf-8", "replace").decode()
    return replace(caption, text=text, mean_logprob=logprob if finite else None)


def _one_line(error: BaseException, limit: int = 300) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text}"[:limit]


def _no_images(folder: Path, walk: Walk) -> str:
    first = f", among them {walk.ignored[0]!r}" if walk.ignored else ""
    return f"{folder}: no image found ({len(walk.ignored)} other files{first}); name a folder that holds images."


def _check_space(outputs: Outputs, images: int, sampling: SamplingConfig) -> None:
    """Raise `OutputError` where the disk would fill up before the run ends."""
    per_image = 2000 + sampling.num_samples * (200 + 8 * sampling.max_new_tokens)  # bytes, journal and result, generous
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


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Send everything that is logged, by us and by the libraries, to a file for the duration of a run."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    ours = logging.getLogger("vlmgate")
    former = ours.level
    ours.setLevel(logging.INFO)
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    except VlmgateError as error:
        log.error("%s", error, exc_info=error)
        raise
    except Exception:
        log.exception("internal error")
        raise
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        ours.setLevel(former)
        handler.close()
