"""The gate of a run, from options or a gate file, and whether its promise holds for the images of the run.

`gate_of` makes the gate, `check_same` compares the run with the calibration, `drift_of` compares the images.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlmgate.captioner.location import OWN_NOVELTY, own_limits
from vlmgate.config import BUILTIN, SERVER, ScanConfig
from vlmgate.data import Content, Reading, Reason, Record, content_of
from vlmgate.errors import GateError, one_line
from vlmgate.gate.drift import Values, shifts
from vlmgate.gate.file import FOLDER, GateFile, differences, feature_file, read_gate
from vlmgate.gate.rules import ANSWER_COLUMNS, Gate, make_gate, parse_limit
from vlmgate.scores.novelty import Reference, checkpoint_reference

log = logging.getLogger(__name__)

_OF_SAMPLES = ("vendi_score", "answer_share", "answer_probability", "mean_logprob")
_IN_MEMORY = 2048  # images whose features are in memory together
_MOST_UNLIKE = 5  # images that are named, the most unlike first


@dataclass(frozen=True, slots=True)
class RunGate:
    """The gate of one run; `file` is None where it does not come from a file."""

    gate: Gate
    file: GateFile | None = None
    features: Reference | None = None  # of the images that the gate was calibrated on
    own: Reference | None = None  # the checkpoint's
    warning: str | None = None  # why it promises nothing, where it did

    @property
    def calibrated(self) -> Reference | None:
        """Return the reference of the gate's own images, where it measures novelty from that."""
        return self.features if self.file is not None and self.file.measures_novelty else None

    def reference(self, named: Reference | None = None) -> Reference | None:
        """Return what novelty is measured from: `named` (of --reference) or the gate's, and the checkpoint's as well.

        An image must be familiar to both: a few hundred labelled images, or a folder, make a weaker reference than
        all that a model was trained on.
        """
        first = named or self.calibrated
        return self.own if first is None else replace(first, also=self.own)


def gate_of(config: ScanConfig) -> RunGate:
    """Return the gate of a run; raises `GateError` where it means nothing, and for columns that cannot be filled."""
    if config.model.endpoint is not None and config.reference is not None:
        raise GateError("--reference compares vision features, which a model server does not show; leave it out.")
    reference = checkpoint_reference(config.model)
    own = own_limits(config.sampling, config.kernel) if config.model.model == BUILTIN else ()
    own = (*own, *OWN_NOVELTY) if reference is not None else own
    if config.gate is None:
        gate = make_gate(
            num_samples=config.sampling.num_samples,
            score=config.score,
            threshold=config.threshold,
            review_budget=config.review_budget,
            limits=config.limits,
            answered=config.sampling.question is not None,
            kernel=config.kernel,
            own=own,
        )
        _check_columns(gate, config, reference)
        return RunGate(gate, own=reference)
    others = {"threshold": config.threshold, "review-budget": config.review_budget, "limit": config.limits or None}
    for option, given in (others | {"reference": config.reference}).items():
        if given is not None:
            raise GateError(f"--gate and --{option} exclude each other: a gate's promise holds for its own limits.")
    found = from_file(config.gate)
    file = found.file
    assert file is not None
    if config.score not in (None, file.gate.score) or config.kernel != file.kernel:
        raise GateError(f"{config.gate}: goes by {file.gate.score} ({file.kernel}); leave out --score and --kernel.")
    _check_place(file, config)
    if found.calibrated is None:
        _check_columns(file.gate, config, reference)
    found = replace(found, gate=with_novelty(file.gate, own), own=reference)
    if reference is None or file.own_novelty or file.promise.get("target") != "risk":
        return found
    # What is left of the accepted images may be wrong more often; of the escapes, none is added.
    return replace(found, file=replace(file, promise={}), warning=_NOT_CALIBRATED_SO)


_NOT_CALIBRATED_SO = (
    "Nothing is promised of this result: the gate was calibrated without the model's own limit on novelty, which holds "
    "now. Calibrate again."
)


def with_novelty(gate: Gate, own: Sequence[str]) -> Gate:
    """Return the gate of a file with the model's own limit on novelty, unless it has one; "novelty <= inf" is none."""
    there = any(limit.column == "novelty" for limit in gate.limits)
    added = [parse_limit(text, 2) for text in own if text in OWN_NOVELTY and not there]
    limits = (*(limit for limit in gate.limits if not limit.is_none), *(replace(one, by_model=True) for one in added))
    return replace(gate, limits=limits)


def from_file(path: Path) -> RunGate:
    """Return what a gate file says, with the features that it was calibrated on; raises `GateError`."""
    file = read_gate(path)
    features = feature_file(file, path)
    return RunGate(file.gate, file, Reference.load(features) if features else None)


def check_same(gate: RunGate, config: ScanConfig, checkpoint: Mapping[str, str]) -> None:
    """Raise `GateError` where the run would read otherwise than what was calibrated."""
    if gate.file is not None:
        other = differences(gate.file, config.sampling, checkpoint, config.images.pages)
        if other:
            raise GateError(
                f"{config.gate}: was calibrated for something else: {'; '.join(other)}. Leave those options out, or "
                "calibrate again."
            )


def _check_place(file: GateFile, config: ScanConfig) -> None:
    """Raise `GateError` where a gate for a model here meets a server, or the other way round.

    A gate names its server, but only the user says where images are sent.
    """
    served, here = file.checkpoint.get("model") == SERVER, config.model.endpoint is None
    if served and here:
        where = file.data.get("endpoint", "a model server")
        raise GateError(
            f"{config.gate}: was calibrated on {file.model} at {where}; name a server of that model: --endpoint URL."
        )
    if file.checkpoint.get("model") == FOLDER and not Path(config.model.model).expanduser().is_dir():
        raise GateError(
            f"{config.gate}: its model {config.model.model} is neither here nor beside the gate, nor where it was when "
            "it was calibrated; name its folder: --model FOLDER."
        )
    if not served and not here:
        raise GateError(
            f"{config.gate}: is of {file.model}, which ran here; leave --endpoint out, or calibrate with it."
        )


def _check_columns(gate: Gate, config: ScanConfig, own: Reference | None) -> None:
    """Raise `GateError` where the gate compares a column that this run could not fill: nothing would be accepted."""
    for column in (gate.score, *(limit.column for limit in gate.limits if not limit.is_none)):
        if column in ANSWER_COLUMNS and config.sampling.question is None:
            raise GateError(f"{column} comes from answers, and none is asked for; add --question and --choices.")
        if column == "view_contrast" and config.sampling.views == 1:
            raise GateError("view_contrast compares views of an image, and there is one; add --views.")
        novel = column in ("novelty", "doubt")
        if novel and config.model.endpoint is not None:
            raise GateError(f"{column} needs vision features, which a model server does not show; choose another.")
        if novel and config.reference is None and own is None:
            helps = "calibrate again" if config.gate is not None else "add --reference"
            raise GateError(f"{column} needs a distance from a reference, and this model carries none; {helps}.")


# --- does the promise hold? -------------------------------------------------------------------------------------------


def drift_of(
    gate: RunGate, records: Sequence[Record], readings: Mapping[Content, Reading] | None = None
) -> dict[str, Any] | None:
    """Return how a run's images differ from those of the calibration; None without a gate file.

    `readings` hold the features where the rows do not. Copies count once; what was not read does not count.
    """
    if gate.file is None:
        return None
    try:
        return _drift(gate, gate.file, records, readings)
    except Exception as error:  # a figure less, and no reason to lose a night's result
        log.warning("whether these images look like the calibrated ones cannot be told", exc_info=error)
        unknown: dict[str, Any] = {"images": len(records), "calibrated_on": gate.file.data.get("images"), "columns": []}
        return unknown | {"alarm": True, "failed": one_line(error), "most_unlike": []}


def _drift(
    gate: RunGate, file: GateFile, records: Sequence[Record], readings: Mapping[Content, Reading] | None
) -> dict[str, Any]:
    read = [
        r for r in records if (r.captions or r.num_samples) and r.duplicate_of is None and r.reason != Reason.NOT_READ
    ]
    columns: dict[str, Values] = {name: [getattr(r, name) for r in read] for name in file.drift if name != "novelty"}
    if {r.num_samples for r in read} - {None, file.sampling["num_samples"]}:  # fewer come to other figures
        columns = {name: values for name, values in columns.items() if name not in _OF_SAMPLES}
    strange = _strangeness(read, gate.features, readings)
    if strange is not None:
        # What the reference was made of lies nearer to it than anything new, so it says nothing of novelty.
        own = set(gate.features.note.split()) if gate.features else set()
        columns["novelty"] = [float(v) for r, v in zip(read, strange, strict=True) if str(r.sha256)[:16] not in own]
    found = shifts(file.drift, columns)
    unlike = [] if strange is None else [int(i) for i in np.argsort(-np.nan_to_num(strange, nan=-1.0))[:_MOST_UNLIKE]]
    return {
        "images": len(read),
        "calibrated_on": file.data.get("images"),
        "alarm": any(shift.alarm for shift in found),
        "columns": [asdict(shift) for shift in found],
        "most_unlike": [] if strange is None else [[read[i].file_name, round(float(strange[i]), 3)] for i in unlike],
    }


def _strangeness(
    records: Sequence[Record], reference: Reference | None, readings: Mapping[Content, Reading] | None
) -> np.ndarray[Any, Any] | None:
    """Return (N,): distance from the calibration set, not a number where a row has no features; None without any."""
    if reference is None or not records:
        return None

    def features_of(record: Record) -> bytes | None:
        reading = readings.get(content_of(record)) if readings is not None else None
        return record.vision_features if reading is None else reading.features

    parts = (records[i : i + _IN_MEMORY] for i in range(0, len(records), _IN_MEMORY))
    found = np.concatenate([reference.novelty_of([features_of(record) for record in part]) for part in parts])
    return found if np.isfinite(found).any() else None
