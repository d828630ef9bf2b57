"""Scan, calibrate and judge from Python: the same as the command line, and nothing printed.

Call `scan` or `calibrate`, then `Gate.load(...).decide(row)`. Options have the names of the command line with "_" for
"-"; those of a gate are the gate's unless given. What goes wrong is raised as one of `vlmgate.errors`. Whatever ends a
run early (a signal, a dead model), what was read is in its journal and result, and the same call goes on. Heavy imports
stay inside the functions.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from vlmgate.api.options import CalibrateOptions, ScanOptions
from vlmgate.config import ScanConfig
from vlmgate.config.calibrate import CALIBRATE, calibrate_configs
from vlmgate.config.options import Opt, unknown
from vlmgate.config.scan import SCAN, given_of, scan_config
from vlmgate.data import Decision, ModelInfo, Record, Route
from vlmgate.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from vlmgate.gate.file import GateFile
    from vlmgate.gate.rules import Gate as Rule
    from vlmgate.run.outcome import ScanResult as Run
    from vlmgate.scores.novelty import Reference

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Progressed:
    """What a callback is told: how far a run is, or one line of what it does."""

    done: int  # files
    total: int  # files; 0 = not known yet
    message: str | None = None  # None = it got further


Callback = Callable[[Progressed], object]


@dataclass(frozen=True)
class ScanResult:
    """What a scan left behind: a row for every page of every image."""

    rows: tuple[Record, ...]
    path: Path  # the Parquet file
    provenance: Mapping[str, Any]  # how it was made

    @property
    def complete(self) -> bool:
        """Say whether every image had its turn."""
        return bool(self.provenance["complete"])

    @property
    def accepted(self) -> tuple[Record, ...]:
        """Return the rows whose reading is taken for true."""
        return tuple(row for row in self.rows if row.route == Route.AUTO_ACCEPT)

    @property
    def routed(self) -> tuple[Record, ...]:
        """Return the rows that a person has to look at, the worst first; what could not be read is among them."""
        from vlmgate.gate.rules import Gate as Rule
        from vlmgate.report.summary import routed_worst_first

        return tuple(routed_worst_first(self.rows, Rule.of(self.provenance["gate"])))

    @cached_property
    def counts(self) -> Mapping[str, Any]:
        """Return the figures of the summary, as `vlmgate scan --format json` prints them under "summary"."""
        from vlmgate.report.summary import summarise

        return summarise(self.rows)

    @property
    def table(self) -> pa.Table:
        """Return the rows as the Parquet file holds them; raises `StoreError` where that is gone."""
        from vlmgate.store.result import read_table

        return read_table(self.path)


@dataclass(frozen=True)
class Calibration:
    """What a calibration found and wrote."""

    gate: Gate | None  # None where the labels cannot support what was asked; `why_none` says what it would take
    why_none: str | None
    readings: Path  # Parquet file with the labelled readings; `calibrate` takes it in the place of the images
    page: Path | None  # the calibration page; None where none was asked for
    figures: Mapping[str, Any]  # all that was found, as `vlmgate calibrate --format json` prints it


@dataclass(frozen=True)
class Gate:
    """A gate that `calibrate` wrote, to judge rows by.

    It holds for readings of the model, prompt and sampling that it was calibrated for (`reads`); `scan(gate=…)` sees to
    that, `decide` cannot.
    """

    path: Path
    file: GateFile

    @classmethod
    def load(cls, path: StrPath) -> Self:
        """Read a gate file; raises `GateError` for one that is missing, damaged, or of another version."""
        from vlmgate.gate.file import read_gate

        return cls(Path(path), read_gate(Path(path)))

    @property
    def rule(self) -> str:
        """Return what is accepted, in a few words: "answer_share ≥ 0.9 and novelty ≤ 1 (gate.toml, 2026-11-20)"."""
        return self.file.gate.describe()

    @property
    def promise(self) -> Mapping[str, Any]:
        """Return what is promised of it (target, target_risk, confidence, …); empty where nothing is."""
        return self.file.promise

    @property
    def reads(self) -> Mapping[str, Any]:
        """Return the options that a scan must have for the gate to hold."""
        return self.file.options

    @cached_property
    def _reference(self) -> Reference | None:
        """Return what novelty is measured from, where that is the gate's own matter; raises `GateError`."""
        from vlmgate.gate.file import feature_file
        from vlmgate.scores.novelty import Reference

        path = feature_file(self.file, self.path) if self.file.measures_novelty else None
        return None if path is None else Reference.load(path)

    def decide(self, row: Record | Mapping[str, Any]) -> Decision:
        """Say where one row of a result goes, and why; `route`, `reason`, `threshold`, `column`.

        `row` has the columns of a result, as a `Record` or as a mapping, such as a row of a data frame. What the gate
        compares and the row lacks (or holds as null or NaN) routes it to a person, and so does whatever says that it is
        no reading: a `reason` such as unreadable or cut_off, captions or answers that are degenerate, no `vendi_score`,
        no `answer` where the gate asks a question. Novelty is measured anew where the row has `vision_features` and the
        gate a reference of its own, and the greater of that and the row's `novelty` counts; else it is the row's.
        """
        from vlmgate.gate.one_row import judge

        return judge(row, self.file, self._reference)


def scan(
    source: StrPath | Iterable[StrPath],
    *,
    out: StrPath | None = None,
    progress: Callback | None = None,
    **options: Unpack[ScanOptions],
) -> ScanResult:
    """Read every image K times and split them into accepted and routed, as `vlmgate scan` does.

    `source` is a folder, an image, or several files, whose relative paths begin at the working folder. The result is
    written to `out` (the name of what is read + ".parquet", in the working folder), with a log and a journal beside it;
    the same call resumes. `progress` is called in the middle of the run, with a `Progressed`; an error that it raises
    ends the telling and not the run. Raises `UsageError` (2) before anything is read, `FatalError` (1) where the run
    could not go on; its result is written all the same. `DriftError` (5) is for `on_drift="stop"`: nothing is written.
    So it is for Ctrl-C and SIGTERM, which take effect then; with `watch=True` they end the watching, and nothing
    else where everything that had come was read.
    """
    from vlmgate.run.loop import scan as run

    _check_names(options, SCAN, "scan")
    named = Path(source) if isinstance(source, str | os.PathLike) else tuple(Path(one) for one in source)
    gate = options.get("gate")
    given: Any = options if gate is None else {**Gate.load(gate).reads, **given_of(options)}
    done = run(scan_config(named, None if out is None else Path(out), given), _Teller(progress))
    _raise_what_ended(done)
    return ScanResult(done.records, done.outputs.parquet, done.provenance)


def calibrate(
    source: StrPath,
    *,
    out: StrPath = "gate.toml",
    progress: Callback | None = None,
    **options: Unpack[CalibrateOptions],
) -> Calibration:
    """Choose a gate from labelled images, or from a result and `labels`, as `vlmgate calibrate` does.

    The gate is written to `out`, the readings beside it; `source`, `progress` and what is raised are as for `scan`.
    `LabelError` says what is wrong with labels. Labels that are sound but too few for the promise raise nothing: the
    gate is None, nothing is written in its place, and `why_none` says what it would take.
    """
    import json

    from vlmgate.calibration.run import Stopped
    from vlmgate.calibration.run import calibrate as run
    from vlmgate.calibration.text import study_json

    _check_names(options, CALIBRATE, "calibrate")
    settings, reading, costs, question = calibrate_configs(Path(source), Path(out), options)
    done = run(settings, reading, costs, _Teller(progress), question=question)
    if isinstance(done, Stopped):
        _raise_what_ended(done.result)
        raise UsageError("the run was stopped; the same call goes on where it was.")
    told = study_json(done.found, done.labels, done.seconds, done.written, 0 if done.gate else 2)
    gate = None if done.gate is None else Gate.load(done.gate)
    return Calibration(gate, None if gate else done.why_none, done.result, done.page, json.loads(told))


def _check_names(options: Mapping[str, Any], known: Mapping[str, Opt], function: str) -> None:
    """Raise `TypeError` for a keyword that does not exist, as any function does."""
    for name in options:
        if name not in known:
            raise TypeError(f"{function}() got an unexpected keyword argument '{name}'; {unknown(name, known)}")


def _raise_what_ended(run: Run) -> None:
    """Raise what ended a run before its time; a signal is delivered again, to whoever handles it in this program."""
    if run.interrupted is not None:
        signal.raise_signal(run.interrupted)
    if run.error is not None:
        raise run.error


class _Teller:
    """Passes on to a callback what a run tells of itself."""

    def __init__(self, callback: Callback | None) -> None:
        self._callback = callback
        self._done = self._total = 0

    def _tell(self, message: str | None = None) -> None:
        if self._callback is not None:
            self._callback(Progressed(self._done, self._total, message))

    def header(self, model: ModelInfo | None, gate: Rule, config: ScanConfig) -> None:
        if model is not None:
            self._tell(f"{model.model} reads on {model.device} in {model.dtype}")

    def message(self, text: str) -> None:
        self._tell(text)

    def start(self, total: int, done: int) -> None:
        self._total, self._done = total, done
        self._tell()

    def advance(self, images: int) -> None:
        self._done += images
        if images:
            self._tell()

    def stop(self) -> None: ...
