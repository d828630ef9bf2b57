"""What a run left behind: its rows, how they were made, and where its time went.

`ScanResult` is what `scan` returns, `provenance` what the Parquet file says of the run, `Clock` adds up its seconds.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from vlmgate.captioner import Captioner, Timed
from vlmgate.data import Content, Reading, Record, Times
from vlmgate.errors import VlmgateError
from vlmgate.gate.rules import Gate
from vlmgate.gate.run_gate import drift_of
from vlmgate.images import Walk, folders_of
from vlmgate.run.batches import Batch
from vlmgate.run.plan import Plan
from vlmgate.run.writer import Recorder
from vlmgate.scores.novelty import Reference, told_of_reference
from vlmgate.store.result import Outputs
from vlmgate.store.rows import completed
from vlmgate.version import __version__


@dataclass(frozen=True, slots=True)
class Whole(Collection[Record]):
    """The rows with all that was said and seen, as they are in the file; each is made when its turn comes."""

    decided: tuple[Record, ...]
    readings: Mapping[Content, Reading]

    def __iter__(self) -> Iterator[Record]:
        return completed(self.decided, self.readings)

    def __len__(self) -> int:
        return len(self.decided)

    def __contains__(self, record: object) -> bool:
        return any(one == record for one in self)


@dataclass(frozen=True)
class ScanResult:
    """What a run left behind."""

    decided: tuple[Record, ...]  # the rows, less captions, answers and features, which fill a memory
    readings: Mapping[Content, Reading]  # where those are
    provenance: dict[str, Any]
    gate: Gate
    outputs: Outputs
    interrupted: int | None  # signal number
    error: VlmgateError | None  # what ended the run before its time; the result is written all the same

    @property
    def whole(self) -> Whole:
        """Return the rows as they are in the file, one at a time."""
        return Whole(self.decided, self.readings)

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """Return the rows as they are in the file, all in memory."""
        return tuple(self.whole)


@dataclass(slots=True)
class Clock:
    """Adds up the seconds of one run by what it was busy with.

    What goes on behind the model counts only as far as it was waited for; its own seconds are listed apart.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    images: int = 0  # that a model was shown
    before: Times = field(default_factory=Times)  # what the captioner had spent when this run was given it

    def begin(self, captioner: Captioner) -> None:
        """Count what this captioner spends from now on."""
        self.before = captioner.times if isinstance(captioner, Timed) else Times()

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

    def told(self, captioner: Captioner | None, recorder: Recorder, batch_size: int) -> dict[str, Any] | None:
        """Return where the time went so far; None where no model was asked, here.

        In seconds of wall time, but for `images`, `images_per_second` and `batch`. `seconds` go from the first file to
        the last caption, less `loading` the model: the sum of `reading` (waiting for images), `captioning` and
        `waiting_for_journal`. `vision_and_prefill` and `decoding` are parts of `captioning`, where the captioner tells.
        `scoring` and `writing` go on beside all that.
        """
        if captioner is None or not self.images:
            return None
        loading, reading, captioning, waiting = (
            self.seconds.get(name, 0.0) for name in ("loading", "reading", "captioning", "waiting")
        )
        whole = reading + captioning + waiting
        told: dict[str, Any] = {"images": self.images, "seconds": whole, "images_per_second": self.images / whole}
        told |= {"loading": loading, "reading": reading, "captioning": captioning}
        if isinstance(captioner, Timed):
            spent, before = captioner.times, self.before
            told["vision_and_prefill"] = spent.vision_and_prefill - before.vision_and_prefill
            told["decoding"] = spent.decoding - before.decoding
        told |= {"scoring": recorder.scoring, "writing": recorder.writing, "waiting_for_journal": waiting}
        told["batch"] = batch_size
        return {key: round(value, 4) for key, value in told.items()}


def provenance(
    plan: Plan,
    records: Sequence[Record],
    walk: Walk,
    gone: Sequence[str],
    reference: Reference | None,
    started: datetime,
    spent: Mapping[str, Any] | None,
    complete: bool,
) -> dict[str, Any]:
    """Return what a result says of how it was made.

    `gone` are files that were read before and are not there now; `spent` is where the time went.
    """
    config, journal, gate = plan.config, plan.journal, plan.gate
    repeated = {"entries": len(config.files), "repeated": len(walk.repeated)} if config.files is not None else None
    return {
        "vlmgate_version": __version__,
        "run_id": journal.run_id,
        "complete": complete,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "folder": config.folder.resolve().as_posix().encode("utf-8", "backslashreplace").decode(),
        "listed": repeated and repeated | {"folders": folders_of(walk)},
        "images": len(records),
        "ignored": len(walk.ignored),
        "ignored_first": list(walk.ignored[:5]),
        "gone": len(gone),
        "gone_first": list(gone[:5]),
        "model": journal.model,
        "sampling": asdict(config.sampling),
        "image_config": asdict(config.images),
        "kernel": config.kernel,
        "reference": told_of_reference(reference, config.reference, calibrated=gate.reference is not None),
        "gate": gate.gate.told(),
        "adaptive": _saving(plan, records),
        "promise": dict(gate.file.promise) if gate.file else None,
        "gate_edited": gate.file.edited if gate.file else None,
        "drift": drift_of(gate, records, journal.readings),
        "time": spent,
        "fingerprint": journal.fingerprint,
        "shard": plan.listing and plan.listing.told(config.gate, reference.note if reference else None),
    }


def _saving(plan: Plan, records: Sequence[Record]) -> dict[str, Any] | None:
    """Return what the provenance says of samples that were not drawn; None where all were to be."""
    if plan.config.sampling.first_samples is None:
        return None
    from vlmgate.gate.early_stop import saving_of

    return saving_of(records, plan.journal.readings, plan.config.sampling)
