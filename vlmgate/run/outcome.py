"""What a run left behind: its rows, and how they were made.

`Results` decides and writes, `ScanResult` is what `scan` returns.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from vlmgate.data import Content, Reading, Reason, Record, Route
from vlmgate.errors import DriftError, FatalError, LostReadingError, ModelError, VlmgateError
from vlmgate.gate.drift import alarm_of, all_to_people, has_alarm
from vlmgate.gate.early_stop import saving_of
from vlmgate.gate.rules import Gate, decide_rows
from vlmgate.gate.run_gate import RunGate, drift_of
from vlmgate.images import Walk, folders_of
from vlmgate.run.control import Progress, Signals
from vlmgate.run.plan import Plan
from vlmgate.run.reader import Models
from vlmgate.run.writer import Clock, Recorder
from vlmgate.scores.novelty import told_of_reference
from vlmgate.store.result import Outputs, write_result
from vlmgate.store.rows import build_rows, completed
from vlmgate.version import __version__

log = logging.getLogger(__name__)


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
    def whole(self) -> Iterator[Record]:
        """Return the rows as they are in the file; each is made when its turn comes."""
        return completed(self.decided, self.readings)

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """Return the rows as they are in the file, all in memory."""
        return tuple(self.whole)


def warnings_of(model: Mapping[str, Any] | None, drift: Mapping[str, Any] | None, gate: str | None = None) -> list[str]:
    """Return what people have to know before they believe a result, a line each.

    The summary prints these lines, and they stand in the JSON and in the provenance, under `warnings`. `model` is what
    the model said of itself, `drift` how the images differ from those of the calibration, `gate` what is to be said of
    the gate.
    """
    alarm = alarm_of(drift)
    return [*(line for line in (alarm, gate) if line), *((model or {}).get("warnings") or ())]


def promise_of(gate: RunGate, drift: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what a gate file promises of a result; nothing where its images have drifted."""
    return None if gate.file is None or has_alarm(drift) else dict(gate.file.promise)


def _not_written(alarm: str) -> str:
    return (
        f"{alarm} No result was written, as --on-drift stop asks for; the readings are kept, and the same command with "
        "--on-drift warn or route writes it."
    )


class Results:
    """Decides what has been read so far, and writes it: with --watch now and then, and at the end."""

    def __init__(
        self, plan: Plan, progress: Progress, models: Models, signals: Signals, clock: Clock, recorder: Recorder
    ) -> None:
        self.plan, self.progress, self.models = plan, progress, models
        self.signals, self.clock, self.recorder = signals, clock, recorder
        self.started = datetime.now(UTC)

    def publish(self, walk: Walk, gone: Sequence[str]) -> None:
        """Write the result so far; a budget is filled from all images, so nothing is decided before the end."""
        gate, out = self.plan.gate.gate, self.plan.outputs.parquet
        if gate.threshold is None and (gate.budget_share, gate.budget_count) != (None, None):
            return
        try:
            with self.signals.held():
                records, drift = self._decided(walk)
                if drift is not None and self.plan.config.on_drift == "stop":
                    if alarm := alarm_of(drift):
                        raise DriftError(_not_written(alarm))
                    if not drift["columns"]:
                        return  # too few images as yet to tell
                self._write(records, self._provenance(records, walk, gone, drift, complete=False))
        except FatalError as error:  # a reader may hold the file; the journal holds the readings
            self.progress.message(f"Not published this time: {error}")
        else:
            routed = sum(record.route == Route.HUMAN_REVIEW for record in records)
            self.progress.message(f"Published {out}: {len(records):,} rows, {routed:,} for people.")

    def finish(
        self, walk: Walk, gone: Sequence[str], interrupted: int | None, error: VlmgateError | None, *, watched: bool
    ) -> ScanResult:
        """Write the result, and return it with the signal or the error that ended the run before its time, if any."""
        plan, readings = self.plan, self.plan.journal.readings
        with self.clock.running("scoring"):
            records, drift = self._decided(walk)
        failed = any(record.reason == Reason.MODEL_FAILED for record in records)
        if failed and error is None and all(record.num_samples is None for record in records):
            error = ModelError(
                f"the model failed on every image, last with: {self.recorder.last_failure}. See the log."
            )
        complete = not any(record.reason == Reason.NOT_READ for record in records)
        provenance = self._provenance(records, walk, gone, drift, complete=complete)
        alarm = alarm_of(drift)
        if alarm:
            log.warning("%s", alarm)
        try:
            if alarm and plan.config.on_drift == "stop":
                raise DriftError(_not_written(alarm) + self._set_aside())
            with self.clock.running("writing"):
                self._write(records, provenance)
        except LostReadingError:  # from now on it is known to be lost, and nothing is decided on it
            return self.finish(walk, gone, interrupted, error, watched=watched)
        except FatalError as full:
            error = error or full
            log.error("%s", full, exc_info=full)
        interrupted = None if watched and complete else interrupted  # that is how watching ends
        log.info("finished: %d rows, interrupted=%s, error=%s", len(records), interrupted, error)
        return ScanResult(tuple(records), readings, provenance, plan.gate.gate, plan.outputs, interrupted, error)

    def _set_aside(self) -> str:
        """Move an earlier result out of the way, so that nobody takes it for tonight's; return what to say of it."""
        former = self.plan.outputs.parquet
        if not former.exists():
            return ""
        aside = former.with_suffix(".before_drift.parquet")
        former.replace(aside)
        return f" An earlier result is now {aside.name}."

    def _decided(self, walk: Walk) -> tuple[list[Record], dict[str, Any] | None]:
        """Return the rows, and how the images differ from those of the calibration; None without a gate file."""
        plan = self.plan
        rows = build_rows(walk, plan.journal, plan.kernel, self.models.reference, self.recorder.scored)
        records = decide_rows(rows, plan.gate.gate)
        drift = drift_of(plan.gate, records, plan.journal.readings)
        return (all_to_people(records) if has_alarm(drift) and plan.config.on_drift == "route" else records), drift

    def _write(self, records: Sequence[Record], provenance: Mapping[str, Any]) -> None:
        read, readings = sum(record.num_samples is not None for record in records), self.plan.journal.readings
        write_result(self.plan.outputs.parquet, completed(records, readings, whole=True), provenance, read)

    def _provenance(
        self,
        records: Sequence[Record],
        walk: Walk,
        gone: Sequence[str],
        drift: Mapping[str, Any] | None,
        *,
        complete: bool,
    ) -> dict[str, Any]:
        """Return what a result says of how it was made; `gone` were read before and are not there now."""
        config, journal, gate = self.plan.config, self.plan.journal, self.plan.gate
        files, sampling, shard = config.files, config.sampling, self.plan.listing
        repeated = {"entries": len(files), "repeated": len(walk.repeated)} if files is not None else None
        saving = None if sampling.first_samples is None else saving_of(records, journal.readings, sampling)
        reference = self.models.reference
        return {
            "vlmgate_version": __version__,
            "run_id": journal.run_id,
            "complete": complete,
            "started": self.started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "folder": config.folder.resolve().as_posix().encode("utf-8", "backslashreplace").decode(),
            "listed": repeated and repeated | {"folders": folders_of(walk)},
            "images": len(records),
            "exclude": list(config.exclude),
            "excluded": dict(walk.excluded),
            "ignored": len(walk.ignored),
            "ignored_first": list(walk.ignored[:5]),
            "gone": len(gone),
            "gone_first": list(gone[:5]),
            "model": journal.model,
            "warnings": warnings_of(journal.model, drift, gate.warning),
            "sampling": asdict(sampling),
            "image_config": asdict(config.images),
            "kernel": config.kernel,
            "reference": told_of_reference(reference, config.reference, calibrated=gate.calibrated is not None),
            "gate": gate.gate.told(),
            "adaptive": saving,
            "promise": promise_of(gate, drift),
            "gate_edited": gate.file.edited if gate.file else None,
            "drift": drift,
            "on_drift": config.on_drift if gate.file else None,
            "time": self.clock.told(self.recorder, self.models.reader.batch_size),
            "fingerprint": journal.fingerprint,
            "shard": shard and shard.told(config.gate, reference.note if reference else None),
        }
