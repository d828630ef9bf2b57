"""One process that opens files and asks the model about them, on whichever machine it runs.

Knows files, pictures and a captioner; knows nothing of Ray, of journals or of other workers. What goes wrong with its
machine or its model is a `Trouble`, a value, for the one who hands out files to act upon.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from vlmgate.captioner import Captioner
from vlmgate.captioner.location import model_fingerprint
from vlmgate.captioner.pictures import trial_picture
from vlmgate.config import ImageConfig, ModelConfig, SamplingConfig
from vlmgate.data import Content, Entry, Failure, ModelInfo, Picture, Source, Unreadable, content_of
from vlmgate.errors import VlmgateError, one_line
from vlmgate.images import read_ahead
from vlmgate.run.ask import ask, set_aside
from vlmgate.scores.reference import features_of
from vlmgate.version import __version__

log = logging.getLogger(__name__)

Load = Callable[[ModelConfig, SamplingConfig], Captioner]

_ASIDE = 256  # entries that needed no model are handed back at the latest when there are so many
_LINES = 100  # of the log, that wait to be handed back


@dataclass(frozen=True, slots=True)
class Setup:
    """All that a worker has to know, and what it must find on its machine."""

    model: ModelConfig
    sampling: SamplingConfig
    images: ImageConfig
    folder: Path
    checkpoint: dict[str, str]  # what identifies the weights where the run was started
    named: str  # how the user called the model; `model` may hold its path
    version: str = __version__


@dataclass(frozen=True, slots=True)
class Job:
    """Files to read in one go; `tries` counts the workers that have died of it, or near it."""

    sources: tuple[Source, ...]
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a worker cannot go on: its machine is not as it must be, its model does not load, or has stopped working."""

    kind: Literal["machine", "model", "dead"]
    text: str  # one line


@dataclass(frozen=True, slots=True)
class Batch:
    """What came of some pages of a job: as many as the model reads at once."""

    entries: tuple[Entry, ...] = ()
    seconds: float = 0.0  # of the model, for each reading
    finished: tuple[tuple[str, frozenset[int]], ...] = ()  # files whose last page is in, with all their pages
    info: ModelInfo | None = None  # of the model, once it is loaded
    trouble: Trouble | None = None  # then nothing else comes
    wants_model: bool = False  # there is something for a model to read, and none is loaded; nothing else comes
    log: tuple[str, ...] = ()  # lines for the log of the run


class Worker:
    """Reads jobs, two at a time: while the model reads one, the files of the next are decoded."""

    def __init__(self, setup: Setup, load: Load, known: Iterable[Content] = ()) -> None:
        self.setup, self._load = setup, load
        self.place = f"{socket.gethostname()}, process {os.getpid()}"
        self._captioner: Captioner | None = None
        self._model = threading.Lock()  # held while the model reads
        self._seen = set(known)  # contents that have a reading, or that this worker is about to read
        self._good: Picture | None = None
        self._lines = _Lines.listening()

    def check(self) -> tuple[str, Trouble | None]:
        """Return where this worker is, and what its machine lacks."""
        return self.place, self._lacks()

    def _lacks(self) -> Trouble | None:
        setup = self.setup
        if __version__ != setup.version:
            text = f"has vlmgate {__version__}, not {setup.version}; install the same version on every machine"
            return Trouble("machine", text)
        if not setup.folder.exists():
            return Trouble("machine", f"does not see {setup.folder}; every machine needs it under the same path")
        try:
            checkpoint = model_fingerprint(setup.model)
        except VlmgateError as error:
            return Trouble("machine", str(error))
        if checkpoint != setup.checkpoint:
            text = f"has other files of the model {setup.model.model}; copy the same checkpoint to every machine"
            return Trouble("machine", text)
        return None

    def load(self) -> Batch:
        """Load the model and let it read a test image; apart from `read`, so that no file is blamed for its failure."""
        try:
            with self._model:
                captioner = self._loaded()
        except _TroubleError as error:
            return Batch(trouble=error.trouble, log=self._lines.take())
        return Batch(info=self._info(captioner), log=self._lines.take())

    def _info(self, captioner: Captioner) -> ModelInfo:
        return replace(captioner.info, model=self.setup.named)

    def read(self, job: Job, known: Sequence[Content]) -> Generator[Batch]:
        """Read the files of a job; `known` are contents that got a reading, anywhere, since the last job."""
        self._seen.update(known)
        waiting = _Waiting()
        try:
            with closing(read_ahead(job.sources, self.setup.images)) as opened:
                for one in opened:
                    self._take(one.result, waiting)
                    if one.last:
                        waiting.finish(one.source.file_name)
                    if waiting.pictures and self._captioner is None:
                        self._seen.difference_update(content_of(picture.file) for picture in waiting.pictures)
                        yield Batch(wants_model=True, log=self._lines.take())
                        return
                    if len(waiting.pictures) == self.setup.sampling.batch or len(waiting.aside) >= _ASIDE:
                        yield self._batch(waiting)
                        waiting = waiting.next()
            yield self._batch(waiting)
        except _TroubleError as error:
            yield Batch(trouble=error.trouble, log=self._lines.take())

    def _take(self, page: Picture | Unreadable, waiting: _Waiting) -> None:
        waiting.pages.add(page.page if isinstance(page, Unreadable) else page.file.page)
        aside = set_aside(page, self._seen)
        if aside is not None:
            waiting.aside.append(aside)
        elif isinstance(page, Picture):
            waiting.pictures.append(page)

    def _batch(self, waiting: _Waiting) -> Batch:
        entries: list[Entry] = []
        seconds = 0.0
        if waiting.pictures:
            with self._model:
                captioner = self._loaded()
                begun = time.perf_counter()
                entries += ask(waiting.pictures, captioner, self.setup.sampling)
                seconds = round((time.perf_counter() - begun) / len(waiting.pictures), 4)
                self._check(entries, waiting.pictures, captioner)
        info = self._info(self._captioner) if self._captioner else None
        return Batch((*entries, *waiting.aside), seconds, tuple(waiting.finished), info, log=self._lines.take())

    def _check(self, entries: Sequence[Entry], pictures: Sequence[Picture], captioner: Captioner) -> None:
        """Where an image failed, let the model read what it can read; where it cannot, its failures say nothing.

        A device that has broken down fails on everything: another worker then reads the same images.
        """
        failed = [entry for entry in entries if isinstance(entry, Failure)]
        good = next((p for p, e in zip(pictures, entries, strict=True) if not isinstance(e, Failure)), None)
        self._good = good or self._good
        if not failed or (good is not None and not isinstance(entries[-1], Failure)):
            return
        try:
            captioner.read([self._good or trial_picture()])
        except Exception as error:
            log.warning("the model reads nothing any more", exc_info=error)
            raise _TroubleError("dead", f"the model failed on a test image, too: {failed[-1].error}") from error

    def _loaded(self) -> Captioner:
        if self._captioner is None:
            try:
                captioner = self._load(self.setup.model, self.setup.sampling)
                captioner.read([trial_picture()])
            except Exception as error:
                log.warning("the model cannot be used", exc_info=error)
                text = str(error) if isinstance(error, VlmgateError) else f"the model reads nothing: {one_line(error)}"
                raise _TroubleError("model", text) from error
            self._captioner = captioner
        return self._captioner

    def look(self, sources: Sequence[Source]) -> tuple[list[bytes], Batch]:
        """Return the packed vision features of files, and a batch that tells of model and trouble."""
        try:
            with self._model:
                captioner = self._loaded()
                found = features_of(sources, captioner, self.setup.images, self.setup.sampling.batch)
        except _TroubleError as error:
            return [], Batch(trouble=error.trouble, log=self._lines.take())
        return found, Batch(info=self._info(captioner), log=self._lines.take())


@dataclass(slots=True)
class _Waiting:
    """Pages that were opened and not handed back yet."""

    pictures: list[Picture] = field(default_factory=list)
    aside: list[Entry] = field(default_factory=list)  # needs no model
    finished: list[tuple[str, frozenset[int]]] = field(default_factory=list)
    pages: set[int] = field(default_factory=set)  # of the file in hand

    def finish(self, file_name: str) -> None:
        self.finished.append((file_name, frozenset(self.pages)))
        self.pages = set()

    def next(self) -> _Waiting:
        return _Waiting(pages=self.pages)


class _TroubleError(Exception):
    """Carries a `Trouble` to where it is handed back."""

    def __init__(self, kind: Literal["machine", "model", "dead"], text: str) -> None:
        super().__init__(text)
        self.trouble = Trouble(kind, text)


class _Lines(logging.Handler):
    """Keeps what is logged as a warning until it is handed back with a batch."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: deque[str] = deque(maxlen=_LINES)
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    @classmethod
    def listening(cls) -> _Lines:
        lines = cls()
        logging.getLogger().addHandler(lines)
        return lines

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append(self.format(record))

    def take(self) -> tuple[str, ...]:
        return tuple(self._kept.popleft() for _ in range(len(self._kept)))
