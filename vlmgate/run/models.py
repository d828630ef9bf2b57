"""The models that read: the one of this process, or those of a cluster's workers. Start with `Models.at_work`.

A model is loaded the first time that there is something for it to read. What it says of itself is checked against the
journal, and shown, before anything that it has read is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Protocol

from vlmgate.captioner import Captioner
from vlmgate.data import ModelInfo, Reading, Source
from vlmgate.images import Walk
from vlmgate.run.batches import Batch
from vlmgate.run.clock import Clock
from vlmgate.run.control import Progress, Signals
from vlmgate.run.plan import Plan
from vlmgate.run.ray.crew import hired
from vlmgate.run.ray.worker import Setup
from vlmgate.run.reader import Load, Reader
from vlmgate.run.writer import Recorder
from vlmgate.scores.reference import features_of

log = logging.getLogger(__name__)


class Readers(Protocol):
    """Whoever turns files into batches: this process, or the workers of a cluster."""

    def read(self, sources: Sequence[Source]) -> Generator[Batch]:
        """Yield batches until nothing of the files is still to come."""
        ...

    def look(self, sources: Sequence[Source]) -> tuple[list[bytes], Batch]:
        """Return the packed vision features of files, and a batch that describes the model."""
        ...


class Models:
    """Loads, checks and shows the models of one run; is itself the reader of this process."""

    def __init__(
        self, plan: Plan, progress: Progress, load: Load, signals: Signals, clock: Clock, recorder: Recorder
    ) -> None:
        self.plan, self.config, self.journal = plan, plan.config, plan.journal
        self.progress, self.load, self.signals, self.clock, self.recorder = progress, load, signals, clock, recorder
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
            self._have_reference(self)

    @contextmanager
    def at_work(self, pending: Sequence[Source], walk: Walk) -> Iterator[Readers]:
        """Yield who reads the pending files of the walk; where there are none, no cluster is joined."""
        config, cluster = self.config, self.config.cluster
        lacks_reference = self.plan.folder is not None and self.reference is None
        if cluster is None or not (pending or lacks_reference):
            self._have_reference(self)
            yield self
        else:
            setup = Setup(
                config.model, config.sampling, config.images, config.folder, self.plan.checkpoint, config.model.model
            )
            tell = self.progress.message
            with hired(cluster, setup, self.load, self.journal.readings, tell, self.signals.held) as crew:
                self._have_reference(crew)
                yield crew
        if not self.introduced:
            self.progress.header(None, self.plan.gate.gate, config)
            self.progress.message(
                "Every image has been read before, so no model was loaded. --restart reads them again."
                if walk.sources
                else "There is nothing to read in this share of the folder."
            )

    def read(self, sources: Sequence[Source]) -> Generator[Batch]:
        """Read files in this process."""
        return self.reader.read(sources, self.journal.seen())

    def look(self, sources: Sequence[Source]) -> tuple[list[bytes], Batch]:
        """Return the vision features of files, seen in this process."""
        found = features_of(sources, self._loaded(), self.config.images, self.config.sampling.batch)
        return found, Batch()

    def meet(self, info: ModelInfo) -> None:
        """Check a worker's model against the one that is known, before anything that it has read is kept."""
        if not self.introduced:
            self._introduce(info)
        self.plan.check_model(info)

    def _loaded(self) -> Captioner:
        """Return the captioner of this process."""
        if self.clock.captioner is None:
            server = self.config.model.endpoint
            asking = f"Asking {server.url} what it can do …" if server else f"Loading {self.config.model.model} …"
            self.progress.message(asking)  # minutes, if a model has to be downloaded first
            with self.clock.running("loading"):
                captioner = self.load(self.config.model, self.config.sampling)
            self._introduce(captioner.info)
            self.clock.begin(captioner)
            return captioner
        return self.clock.captioner

    def _introduce(self, info: ModelInfo) -> None:
        """Check what a model says of itself against the journal, and show it; raises `ResumeError` for another."""
        log.info("model %s", asdict(info))
        with self.signals.held():
            self.recorder.drain()
            self.plan.meet_model(info)
        self.progress.header(info, self.plan.gate.gate, self.config)
        if warning := (info.server or {}).get("warning"):
            self.progress.message(warning)
        self.introduced = True

    def _have_reference(self, readers: Readers) -> None:
        """Read the reference before the images: where it cannot be had, no night is spent in vain."""
        folder = self.plan.folder
        if folder is None or self.reference is not None:
            return
        self.progress.message(f"Reading the reference in {folder.folder} ({len(folder.sources):,} files) …")
        features, batch = readers.look(folder.sources)
        if batch.model is not None:
            self.meet(batch.model)
        self.reference = folder.fit(features)

    def _is_enough(self, reading: Reading) -> bool:
        """Say whether the samples of an image decide it."""
        return self.plan.foresight is None or self.plan.foresight.settled(reading, self.reference)
