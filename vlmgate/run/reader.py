"""Read files with one model: open them, gather full batches, ask the model, and check that it still works.

A run on this machine has one `Reader`; a cluster has one in each worker. Start with `Reader.read`. `Models` loads the
model of a run the first time that there is something for it to read. What a model says of itself is checked against the
journal, and shown, before anything that it has read is kept.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, MutableSet, Sequence
from contextlib import closing
from dataclasses import asdict, replace

from vlmgate.captioner import Captioner, DrawsInRounds, KnowsItsBatch, Prepares, ReadsEach, ServerDiedError
from vlmgate.captioner.streams import trial_picture
from vlmgate.config import ImageConfig, ModelConfig, SamplingConfig
from vlmgate.data import Caption, Content, Failure, ModelInfo, Picture, Reading, Sampled, Source, content_of
from vlmgate.errors import EndpointError, ModelError, one_line
from vlmgate.gate.early_stop import looks
from vlmgate.run.batches import Batch, BatchMaker, ModelWanted
from vlmgate.run.control import Progress, Signals
from vlmgate.run.plan import Plan
from vlmgate.run.writer import Clock, Recorder
from vlmgate.scores.answer_probability import is_scored
from vlmgate.scores.novelty import pack
from vlmgate.scores.reference import features_of

log = logging.getLogger(__name__)

MAX_FAILURES_IN_A_ROW = 16  # then a picture that must be readable tells whether it is the model or the images

_INCOMPLETE = "the captioner did not return K captions for every picture; this is a bug in vlmgate."

Load = Callable[[ModelConfig, SamplingConfig], Captioner]
Enough = Callable[[Reading], bool]  # says whether the samples drawn so far decide an image


class Reader:
    """Turns files into batches of entries, with one captioner."""

    def __init__(
        self,
        sampling: SamplingConfig,
        images: ImageConfig,
        loaded: Callable[[], Captioner],
        *,
        enough: Enough | None = None,
        alone: bool = True,
    ) -> None:
        """Load nothing yet.

        `loaded` returns the captioner; it is called when there is a picture to read. `enough` ends the sampling of an
        image early. `alone` says that no other process could read what this one fails on: then a model is in doubt
        after `MAX_FAILURES_IN_A_ROW` failures, else after one, and before the failure is handed over.
        """
        self._sampling, self._images, self._loaded, self._enough = sampling, images, loaded, enough
        self._alone = alone
        self._asking = threading.Lock()  # a worker of a cluster reads two jobs at a time
        self._good: Picture | None = None  # one that the model has read
        self._failures, self._last_failure = 0, ""
        self.batch_size = sampling.at_once  # images
        self.deaths: Mapping[Content, int] = {}  # how often a model server died while it had these

    def read(self, sources: Iterable[Source], seen: MutableSet[Content]) -> Generator[Batch]:
        """Yield batches until nothing of the files is still to come; `seen` are contents that need no reading.

        Raises `EndpointError` where a model server is gone, and `ModelError` where the model reads nothing any more.
        """
        maker = BatchMaker(sources, self._images, self.batch_size, seen)
        with closing(maker):
            batches, begun = iter(maker), time.perf_counter()
            while (batch := next(batches, None)) is not None:
                if isinstance(batch, ModelWanted):
                    self._provide(maker)
                else:
                    for part in self._asked(replace(batch, waited=time.perf_counter() - begun)):
                        yield part
                        if self._alone:  # else it was checked before it was handed over, and another job may be reading
                            self._check_model()
                del batch  # or its pictures would stay in memory while the next is waited for
                begun = time.perf_counter()

    def _provide(self, maker: BatchMaker) -> None:
        """Give the captioner to whoever makes batches, with as many images at once as suit it."""
        captioner = self._loaded()
        if isinstance(captioner, KnowsItsBatch) and self._sampling.batch_size is None:
            self.batch_size = captioner.at_once
        maker.provide(captioner, self.batch_size)

    def _asked(self, batch: Batch) -> Generator[Batch]:
        """Yield the batch with a reading or a failure in the place of each picture, in parts if they come singly."""
        captioner = self._loaded() if batch.pictures else None
        if isinstance(captioner, ReadsEach):
            begun = time.perf_counter()
            deaths = [self.deaths.get(content_of(picture.file), 0) for picture in batch.pictures]
            for picture, outcome in captioner.read_each(batch.pictures, deaths):
                entry = self._entry(picture, outcome)
                read = not isinstance(outcome, ServerDiedError)  # else the captioner waits until the server is back
                if read:
                    self._count(picture, entry)
                seconds = time.perf_counter() - begun
                yield Batch(entries=(entry,), images=int(read), seconds=seconds, waited=batch.waited)
                batch, begun = replace(batch, waited=0.0), time.perf_counter()
        elif captioner is not None:
            with self._asking:
                begun = time.perf_counter()
                entries = ask(batch.pictures, captioner, self._sampling, batch.prepared, self._enough)
                seconds, images = time.perf_counter() - begun, len(batch.pictures)
                for picture, entry in zip(batch.pictures, entries, strict=True):
                    self._count(picture, entry)
                if not self._alone:
                    self._check_model(after=1)
            batch = replace(batch, entries=(*entries, *batch.entries), images=images, seconds=seconds)
        yield replace(batch, pictures=(), prepared=None)

    def _entry(self, picture: Picture, outcome: Sampled | Exception) -> Reading | Failure:
        if isinstance(outcome, Sampled) and _is_complete(outcome, self._sampling):
            return _reading(picture, outcome)
        error = outcome if isinstance(outcome, Exception) else ModelError(_INCOMPLETE)
        log.warning("%s failed", picture.file.file_name, exc_info=error)
        died = error.deaths if isinstance(error, ServerDiedError) else 0
        return Failure(picture.file, one_line(error), died)

    def _count(self, picture: Picture, entry: Reading | Failure) -> None:
        """Count how many failed since one could be read."""
        if isinstance(entry, Failure):
            self._failures += 1
            self._last_failure = entry.error
        else:
            self._failures, self._good = 0, picture

    def _check_model(self, after: int = MAX_FAILURES_IN_A_ROW) -> None:
        """Let the model read what it can read, where it failed on as many images in a row as `after`.

        Raises `ModelError` where it cannot, for then the rest would fail too.
        """
        if self._failures < after:
            return
        try:
            self._loaded().read([self._good or trial_picture()])
        except EndpointError:
            raise
        except Exception as error:
            log.warning("the model reads nothing any more", exc_info=error)
            raise ModelError(
                f"the model failed on {self._failures} images in a row and on a test image, last with: "
                f"{self._last_failure}. See the log; the same command resumes."
            ) from error
        log.warning("%d images in a row failed, but the model reads others; going on", self._failures)
        self._failures = 0


def ask(
    pictures: Sequence[Picture],
    captioner: Captioner,
    sampling: SamplingConfig,
    prepared: object = None,
    enough: Enough | None = None,
) -> list[Reading | Failure]:
    """Return a reading or a failure for each picture, in order; a batch that fails is halved to find the culprit.

    `prepared` is what the captioner made of the pictures ahead. With `first_samples`, `enough` says whether the samples
    drawn so far decide an image. Raises `EndpointError` where a model server is gone: then no image is to blame, and
    the next would fare no better.
    """
    try:
        sampled = _sampled(pictures, captioner, sampling, prepared, enough)
        if len(sampled) != len(pictures) or not all(_is_complete(one, sampling) for one in sampled):
            raise ModelError(_INCOMPLETE)
        return [_reading(picture, one) for picture, one in zip(pictures, sampled, strict=True)]
    except EndpointError:
        raise
    except Exception as error:
        log.warning("a batch of %d failed", len(pictures), exc_info=error)
        if len(pictures) == 1:
            return [Failure(pictures[0].file, one_line(error))]
        middle = len(pictures) // 2
        halves = pictures[:middle], pictures[middle:]
        return [entry for half in halves for entry in ask(half, captioner, sampling, None, enough)]


def _sampled(
    pictures: Sequence[Picture],
    captioner: Captioner,
    sampling: SamplingConfig,
    prepared: object,
    enough: Enough | None,
) -> list[Sampled]:
    first = sampling.first_samples
    if first is not None and enough is not None and isinstance(captioner, DrawsInRounds):

        def decides(picture: Picture, sampled: Sampled) -> bool:
            return enough(_reading(picture, sampled))

        return captioner.read_in_rounds(pictures, looks(first, sampling.num_samples), decides, prepared)
    if prepared is not None and isinstance(captioner, Prepares):
        return captioner.read_prepared(pictures, prepared)
    return captioner.read(pictures)


def _is_complete(sampled: Sampled, sampling: SamplingConfig) -> bool:
    """Say whether there are K captions, or as many as were enough, and answers just where a question was asked.

    Drawn answers are as many as captions.
    """
    most = sampling.num_samples
    samples = len(sampled.captions)
    answers = None if sampled.answers is None else len(sampled.answers)
    if is_scored(sampled.answers):  # as many as there are ways to answer
        answers = samples
    views = samples if sampled.views is None else len(sampled.views)
    asked = samples if sampling.question else None
    return (sampling.first_samples or most) <= samples <= most and views == samples and answers == asked


def _reading(picture: Picture, sampled: Sampled) -> Reading:
    """Return what is kept of a picture: text that can be stored, features that are numbers."""
    return Reading(
        picture.file,
        captions=tuple(_storable(caption) for caption in sampled.captions),
        answers=None if sampled.answers is None else tuple(_storable(answer) for answer in sampled.answers),
        features=pack(sampled.features),
        views=sampled.views,
        quality=picture.quality,
    )


def _storable(caption: Caption) -> Caption:
    """Return the caption with text that can be stored: UTF-8, and a finite log-probability or none."""
    logprob = caption.mean_logprob
    finite = logprob is not None and abs(logprob) < float("inf")
    text = caption.text.encode("utf-8", "replace").decode()
    return replace(caption, text=text, mean_logprob=logprob if finite else None)


# --- the models of a run ---


class Models:
    """Loads, checks and shows the models of one run; is itself the reader of this process."""

    def __init__(
        self, plan: Plan, progress: Progress, load: Load, signals: Signals, clock: Clock, recorder: Recorder
    ) -> None:
        self.plan, self.config, self.journal = plan, plan.config, plan.journal
        self.progress, self.load, self.signals, self.clock, self.recorder = progress, load, signals, clock, recorder
        self.captioner: Captioner | None = None  # of this process
        self.introduced = False  # a model has been loaded, here or elsewhere
        self.reference = plan.reference
        enough = None if plan.foresight is None else self._is_enough
        self.reader = Reader(self.config.sampling, self.config.images, self._loaded, enough=enough)

    def make_ready(self) -> None:
        """Do at once what must not fail later: a shift might go by before it is known that the model does not load."""
        watches = self.config.watch is not None
        if watches:
            self._loaded()
        if watches or self.plan.foresight is not None:
            self.have_reference(self.look)

    @property
    def lacks_reference(self) -> bool:
        """Say whether novelty cannot be measured before some images of --reference were looked at."""
        return self.plan.folder is not None and self.reference is None

    def have_reference(self, look: Callable[[Sequence[Source]], tuple[list[bytes], Batch]]) -> None:
        """Read the reference before the images: where it cannot be had, no night is spent in vain."""
        if (folder := self.plan.folder) is None or not self.lacks_reference:
            return
        self.progress.message(f"Reading the reference in {folder.folder} ({len(folder.sources):,} files) …")
        features, batch = look(folder.sources)
        if batch.model is not None:
            self.meet(batch.model)
        self.reference = self.plan.gate.reference(folder.fit(features))

    def read(self, sources: Sequence[Source]) -> Generator[Batch]:
        """Yield batches of files that are read in this process, until nothing of them is still to come."""
        failures = self.journal.failures()
        self.reader.deaths = {content: failure.deaths for content, failure in failures.items() if failure.deaths}
        return self.reader.read(sources, self.journal.seen())

    def look(self, sources: Sequence[Source]) -> tuple[list[bytes], Batch]:
        """Return the packed vision features of files, seen in this process, and an empty batch."""
        found = features_of(sources, self._loaded(), self.config.images, self.config.sampling.batch)
        return found, Batch()

    def show(self, info: ModelInfo | None) -> None:
        """Show which model reads, how often and by which rule; None where none does."""
        self.progress.header(info, self.plan.gate.gate, self.config)

    def meet(self, info: ModelInfo) -> None:
        """Check a worker's model against the one that is known, before anything that it has read is kept."""
        if not self.introduced:
            self._introduce(info)
        self.plan.check_model(info)

    def _loaded(self) -> Captioner:
        """Return the captioner of this process."""
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
        """Check what a model says of itself against the journal, and show it; raises `ResumeError` for another."""
        log.info("model %s", asdict(info))
        with self.signals.held():
            self.recorder.drain()
            self.plan.meet_model(info)
        self.show(info)
        for warning in info.warnings:
            self.progress.message(warning)
        self.introduced = True

    def _is_enough(self, reading: Reading) -> bool:
        """Say whether the samples of an image decide it."""
        return self.plan.foresight is None or self.plan.foresight.settled(reading, self.reference)
