"""Adds up where the time of a run went. Call `Clock`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vlmgate.captioner import Captioner, Timed
from vlmgate.data import Times
from vlmgate.run.batches import Batch
from vlmgate.run.writer import Recorder


@dataclass(slots=True)
class Clock:
    """Adds up the seconds of one run by what it was busy with.

    What goes on behind the model counts only as far as it was waited for; its own seconds are listed apart.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    images: int = 0  # that a model was shown
    captioner: Captioner | None = None  # of this process
    before: Times = field(default_factory=Times)  # what the captioner had spent when this run was given it

    def begin(self, captioner: Captioner) -> None:
        """Count what this captioner spends from now on."""
        self.captioner, self.before = captioner, captioner.times if isinstance(captioner, Timed) else Times()

    def add(self, batch: Batch) -> None:
        """Count a batch."""
        self.images += batch.images
        for name, seconds in (("reading", batch.waited), ("captioning", batch.seconds)):
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Count the time of the block under a name."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun

    def told(self, recorder: Recorder, batch_size: int) -> dict[str, Any] | None:
        """Return where the time went so far; None where no model was asked, here.

        In seconds of wall time, but for `images`, `images_per_second` and `batch`. `seconds` go from the first file to
        the last caption, less `loading` the model: the sum of `reading` (waiting for images), `captioning` and
        `waiting_for_journal`. `vision_and_prefill` and `decoding` are parts of `captioning`, where the captioner tells.
        `scoring` and `writing` go on beside all that.
        """
        if self.captioner is None or not self.images:
            return None
        loading, reading, captioning, waiting = (
            self.seconds.get(name, 0.0) for name in ("loading", "reading", "captioning", "waiting")
        )
        whole = reading + captioning + waiting
        told: dict[str, Any] = {"images": self.images, "seconds": whole, "images_per_second": self.images / whole}
        told |= {"loading": loading, "reading": reading, "captioning": captioning}
        if isinstance(self.captioner, Timed):
            spent, before = self.captioner.times, self.before
            told["vision_and_prefill"] = spent.vision_and_prefill - before.vision_and_prefill
            told["decoding"] = spent.decoding - before.decoding
        told |= {"scoring": recorder.scoring, "writing": recorder.writing, "waiting_for_journal": waiting}
        told["batch"] = batch_size
        return {key: round(value, 4) for key, value in told.items()}
