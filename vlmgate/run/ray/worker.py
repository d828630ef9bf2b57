"""One process that opens files and asks the model about them, on whichever machine of a cluster it runs.

What goes wrong with its machine or its model is a `Trouble`, a value, for the one who hands out files to act upon.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from vlmgate.captioner import Captioner
from vlmgate.captioner.location import model_fingerprint
from vlmgate.captioner.streams import trial_picture
from vlmgate.config import ImageConfig, ModelConfig, SamplingConfig
from vlmgate.data import Content, ModelInfo, Source
from vlmgate.errors import ModelError, VlmgateError, one_line
from vlmgate.run.batches import Batch
from vlmgate.run.reader import Load, Reader
from vlmgate.scores.reference import features_of
from vlmgate.version import __version__

log = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """What a worker hands back: a batch, or why there is none."""

    batch: Batch = field(default_factory=Batch)
    trouble: Trouble | None = None  # then nothing else comes
    wants_model: bool = False  # there is something for a model to read, and none is loaded; nothing else comes
    log: tuple[str, ...] = ()  # lines for the log of the run


class Worker:
    """Reads jobs, two at a time: while the model reads one, the files of the next are decoded."""

    def __init__(self, setup: Setup, load: Load, known: Iterable[Content] = ()) -> None:
        self.setup, self._load = setup, load
        self.place = f"{socket.gethostname()}, process {os.getpid()}"
        self._captioner: Captioner | None = None
        self._loading = threading.Lock()
        self._reader = Reader(setup.sampling, setup.images, self._there, alone=False)
        self._seen = set(known)  # contents that have a reading, or that this worker is about to read
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

    def load(self) -> Delivery:
        """Load the model and let it read a test image; apart from `read`, so that no file is blamed for its failure."""
        try:
            captioner = self._loaded()
        except _TroubleError as error:
            return Delivery(trouble=error.trouble, log=self._lines.take())
        return Delivery(Batch(model=self._info(captioner)), log=self._lines.take())

    def _info(self, captioner: Captioner) -> ModelInfo:
        return replace(captioner.info, model=self.setup.named)

    def read(self, job: Job, known: Sequence[Content]) -> Generator[Delivery]:
        """Read the files of a job; `known` are contents that got a reading, anywhere, since the last job."""
        self._seen.update(known)
        try:
            for batch in self._reader.read(job.sources, self._seen):
                info = self._info(self._captioner) if self._captioner else None
                yield Delivery(replace(batch, model=info), log=self._lines.take())
        except _NoModelYetError:
            yield Delivery(wants_model=True, log=self._lines.take())
        except ModelError as error:
            yield Delivery(trouble=Trouble("dead", str(error)), log=self._lines.take())

    def _there(self) -> Captioner:
        if self._captioner is None:
            raise _NoModelYetError
        return self._captioner

    def _loaded(self) -> Captioner:
        with self._loading:
            if self._captioner is None:
                try:
                    captioner = self._load(self.setup.model, self.setup.sampling)
                    captioner.read([trial_picture()])
                except Exception as error:
                    log.warning("the model cannot be used", exc_info=error)
                    ours = isinstance(error, VlmgateError)
                    text = str(error) if ours else f"the model reads nothing: {one_line(error)}"
                    raise _TroubleError("model", text) from error
                self._captioner = captioner
            return self._captioner

    def look(self, sources: Sequence[Source]) -> tuple[list[bytes], Delivery]:
        """Return the packed vision features of files, and what there is to know of the model, or of trouble."""
        try:
            captioner = self._loaded()
            found = features_of(sources, captioner, self.setup.images, self.setup.sampling.batch)
        except _TroubleError as error:
            return [], Delivery(trouble=error.trouble, log=self._lines.take())
        return found, Delivery(Batch(model=self._info(captioner)), log=self._lines.take())


class _NoModelYetError(Exception):
    """There is a picture to read, and no model is loaded."""


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
