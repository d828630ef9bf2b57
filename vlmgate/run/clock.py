"""Where the time of a run went.

Knows clocks; knows nothing of what is done while they run. What goes on beside the model counts where it was waited
for; its own seconds are told apart.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vlmgate.captioner import Captioner, Timed
from vlmgate.data import Times
from vlmgate.run.writer import Recorder


@dataclass(slots=True)
class Clock:
    """Adds up the seconds of one run by what it was busy with."""

    batch: int  # images that are handed over at once
    seconds: dict[str, float] = field(default_factory=dict)
    images: int = 0  # that a model was shown
    before: Times = field(default_factory=Times)  # what the captioner had spent when this run was given it

    def begin(self, captioner: Captioner) -> None:
        """Count what this captioner spends from now on."""
        self.before = captioner.times if isinstance(captioner, Timed) else Times()

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Count the time of the block under a name; where blocks are nested, the inner one's does not count twice."""
        before, begun = sum(self.seconds.values()), time.perf_counter()
        try:
            yield
        finally:
            inner = sum(self.seconds.values()) - before
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun - inner

    def told(self, captioner: Captioner | None, recorder: Recorder) -> dict[str, Any] | None:
        """Return where the time went so far; None where no model was asked.

        In seconds of wall time, but for `images`, `images_per_second` and `batch`. `seconds` go from the first file to
        the last caption, less `loading` the model: the sum of `reading` (waiting for images), `captioning` and
        `waiting_for_journal`. `vision_and_prefill` and `decoding` are parts of `captioning`, where the captioner tells.
        `scoring` and `writing` go on beside all that.
        """
        if captioner is None or not self.images:
            return None
        passed = self.seconds
        reading, captioning = passed.get("reading", 0.0), passed.get("captioning", 0.0)
        waited = passed.get("waiting", 0.0)
        whole = reading + captioning + waited
        told: dict[str, Any] = {"images": self.images, "seconds": whole, "images_per_second": self.images / whole}
        told |= {"loading": passed.get("loading", 0.0), "reading": reading, "captioning": captioning}
        if isinstance(captioner, Timed):
            spent, before = captioner.times, self.before
            told["vision_and_prefill"] = spent.vision_and_prefill - before.vision_and_prefill
            told["decoding"] = spent.decoding - before.decoding
        told |= {"scoring": recorder.scoring, "writing": recorder.writing, "waiting_for_journal": waited}
        told["batch"] = self.batch
        return {key: round(value, 4) for key, value in told.items()}
