"""Make one result of the results of all shards of a folder, as if one machine had scanned it.

Knows rows, provenance and what can be wrong with a set of parts; knows nothing of models or of how a result is shown.

Readings and scores are taken as they are, for they concern one image each. What concerns the folder as a whole is made
anew: which image is a copy of which, the routes (a review budget is shared by all), and whether the images look like
those that the gate was calibrated on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from vlmgate.config import OnDrift
from vlmgate.data import MODEL_KEYS, NO_READING, Content, Key, Reason, Record, content_of
from vlmgate.errors import (
    DriftError,
    GateError,
    NoImagesError,
    NoveltyError,
    PartsError,
    StoreError,
    VlmgateError,
    count,
)
from vlmgate.gate.drift import alarm_of, all_to_people
from vlmgate.gate.early_stop import joined
from vlmgate.gate.rules import Candidate, Gate, decide_rows
from vlmgate.gate.run_gate import RunGate, drift_of, from_file
from vlmgate.images import find_again
from vlmgate.run.outcome import promise_of, warnings_of
from vlmgate.run.shards import Listing, Seen, holds, names_of, place_of, seen
from vlmgate.store.result import read_provenance, read_result
from vlmgate.version import __version__

# What belongs to a file and its name; all other columns belong to its bytes, and copies share them.
_OF_THE_FILE = (
    *("file_name", "page", "num_pages", "sha256", "width", "height", "mode", "conversion"),
    *("seed", "duplicate_of", "seconds"),
)


@dataclass(frozen=True, slots=True)
class Part:
    """The result of one shard."""

    path: Path
    provenance: dict[str, Any]
    listing: Listing


@dataclass(frozen=True, slots=True)
class Merged:
    """What came of it, not written yet."""

    records: list[Record]
    provenance: dict[str, Any]
    notes: tuple[str, ...]  # what is lacking, one line each; empty where nothing is


def merge(
    paths: Sequence[Path], *, incomplete: bool = False, gate_file: Path | None = None, on_drift: OnDrift | None = None
) -> Merged:
    """Return one result of the parts, in whatever order they are given.

    Raises `PartsError` where they do not belong together, and, unless `incomplete`, where a shard is missing, was
    stopped before its end, or was made before files came that another has seen. With `incomplete` such images have
    rows that say that they were not read, where the folder can still be listed, and the result is marked.
    `gate_file` is where the parts' gate file lies now; without it, it is looked for where it lay. `on_drift` says
    what becomes of images that do not look like the calibrated ones; without it, what the parts say, "route" before
    "warn". Raises `StoreError` for damaged parts, `GateError` for another gate, and `DriftError` where `on_drift`
    is "stop".
    """
    parts = sorted((_part(path) for path in paths), key=lambda part: part.listing.shard.index)
    _check_together(parts)
    lacking = _Lacking.of(parts)
    if lacking.problems and not incomplete:
        more = len(lacking.problems) - 1
        raise PartsError(lacking.problems[0] + (f" (And {more} more like it.)" if more else ""))
    tonight = _tonight(parts[0], gate_file)
    rows = _rows(parts)
    unread = lacking.rows(parts, {row.file_name for row in rows})
    rows = _shared(sorted([*rows, *unread], key=lambda row: (row.file_name, row.page)))
    records = decide_rows([_candidate(row) for row in rows], tonight.gate)
    drift = drift_of(tonight, records)
    if on_drift is None:
        on_drift = "route" if any(part.provenance.get("on_drift") == "route" for part in parts) else "warn"
    if alarm := alarm_of(drift):
        if on_drift == "stop":
            raise DriftError(f"{alarm} No result was written; --on-drift warn or route writes it.")
        records = all_to_people(records) if on_drift == "route" else records
    told = _provenance(parts, lacking, tonight, records, drift) | {"on_drift": tonight.file and on_drift}
    return Merged(records, told, lacking.notes(len(unread)))


# --- do they belong together? -----------------------------------------------------------------------------------------


def _part(path: Path) -> Part:
    provenance = read_provenance(path)
    told = provenance.get("shard")
    if told is None:
        what = "is a merged result" if provenance.get("merged") else "is the result of a whole folder, not of a --shard"
        raise PartsError(f"{path}: {what}; name the results of `vlmgate scan --shard`.")
    try:
        return Part(path, provenance, Listing.read(told))
    except (ValueError, TypeError, KeyError, VlmgateError) as error:
        raise StoreError(f"{path}: what it says of its shard is damaged; run its command again.") from error


def _check_together(parts: Sequence[Part]) -> None:
    if not parts:
        raise PartsError("no part is given; name the results of `vlmgate scan --shard`.")
    first = parts[0]
    for before, part in pairwise(parts):
        if part.listing.shard.count != first.listing.shard.count:
            raise PartsError(
                f"{part.path}: is shard {part.listing.shard}, {first.path} is {first.listing.shard}; "
                "name the shards of one split."
            )
        if part.listing.shard == before.listing.shard:
            raise PartsError(f"{before.path} and {part.path} are both shard {part.listing.shard}; leave one out.")
    told = next((part for part in parts if part.provenance["model"]), first)  # a share without images needed none
    for part in parts:
        changed = _differences(_settings(first), _settings(part))
        changed += _differences(_model(told), _model(part)) if part.provenance["model"] else []
        if changed:
            raise PartsError(
                f"{part.path}: was made otherwise than {first.path}: {'; '.join(changed)}. Run it again with the same "
                "settings; where only limits differ, no model is needed."
            )


def _settings(part: Part) -> dict[str, Any]:
    """Return all that must be the same in every part."""
    told = part.provenance
    gate = {key: value for key, value in told["gate"].items() if key != "origin"}
    return {
        **{key: value for key, value in told["fingerprint"].items() if key != "shard"},
        "vlmgate": told.get("vlmgate_version"),
        "kernel": told["kernel"],
        "limits": gate,
        "gate_edited": told.get("gate_edited"),
    }


def _model(part: Part) -> dict[str, Any]:
    model = part.provenance["model"]
    told = {f"model.{key}": model.get(key) for key in ("model", *MODEL_KEYS)}
    told["model.structured_answers"] = (model.get("server") or {}).get("structured_answers")
    kind = str(model.get("device")).split(":")[0]
    reference = part.provenance.get("reference") or {}
    novelty = {key: reference.get(key) for key in ("folder", "images", "method")}
    return told | {"model.device": kind, "reference": novelty, "reference.made_of": part.listing.reference}


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    keys = [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
    return [
        f"other {key}"
        if isinstance(here.get(key), dict) or isinstance(there.get(key), dict) or key == "reference.made_of"
        else f"{key} is {here.get(key)!r}, there {there.get(key)!r}"
        for key in keys
    ]


# --- is anything missing? ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Lacking:
    """What a set of parts does not hold."""

    latest: Listing  # the freshest look at the whole folder
    missing: tuple[int, ...]  # shards without a part
    outdated: tuple[Part, ...]  # made before files came or went
    stopped: tuple[Part, ...]  # before their end

    @classmethod
    def of(cls, parts: Sequence[Part]) -> _Lacking:
        there = {part.listing.shard.index for part in parts}
        listings = [part.listing for part in parts]
        return cls(
            latest=max(listings, key=lambda one: one.ended),
            missing=tuple(i for i in range(1, listings[0].shard.count + 1) if i not in there),
            outdated=_outdated(parts, listings),
            stopped=tuple(p for p in parts if not p.provenance.get("complete")),
        )

    @property
    def problems(self) -> list[str]:
        found = []
        if self.missing:
            images = self._missing_images()
            which = ", ".join(map(str, self.missing[:5])) + (", …" if len(self.missing) > 5 else "")
            found.append(
                f"{len(self.missing)} of {self.latest.shard.count} shards are missing: {which} "
                f"({count(images, 'image')}); run and name them, or say --incomplete."
            )
        found += [
            f"{p.path}: was stopped before its end; its command goes on where it stopped, or say --incomplete."
            for p in self.stopped
        ]
        found += [
            f"{p.path}: files came or went after shard {p.listing.shard} had looked; run its command again, only what "
            "is new is read, or say --incomplete."
            for p in self.outdated
        ]
        return found

    def _missing_images(self) -> int:
        return sum(self.latest.seen[i - 1][0] for i in self.missing)

    def rows(self, parts: Sequence[Part], there: set[str]) -> list[Record]:
        """Return a row for each image of such a shard that is in the folder now and that no part holds."""
        wanted = {*self.missing, *(part.listing.shard.index for part in self.outdated)}
        if not wanted:
            return []
        try:
            names = names_of(find_again(parts[0].provenance))
        except NoImagesError:
            return []
        count, seed = self.latest.shard.count, parts[0].provenance["sampling"].get("seed", 0)
        lacking = (name for name in names if place_of(name, count) in wanted and name not in there)
        return [Record(file_name=name, page=1, seed=seed) for name in lacking]

    def notes(self, found: int) -> tuple[str, ...]:
        told = [problem.replace(", or say --incomplete", "") for problem in self.problems]
        unnamed = self._missing_images() - found
        if unnamed > 0:
            told.append(f"{unnamed:,} images of missing shards have no row, for the folder cannot be listed as it was.")
        return tuple(told)


def _outdated(parts: Sequence[Part], listings: Sequence[Listing]) -> tuple[Part, ...]:
    """Return the parts since which files came or went; where only clocks could tell, the folder is asked, once."""
    certain = [any(part.listing.is_outdated_by(one) for one in listings) for part in parts]
    doubtful = [any(part.listing.is_doubtful_beside(one) for one in listings) for part in parts]
    now: Sequence[Seen] | None = None
    if any(maybe and not sure for maybe, sure in zip(doubtful, certain, strict=True)):
        with suppress(NoImagesError):
            now = seen(names_of(find_again(parts[0].provenance)), listings[0].shard.count)
    others = [now is None or now[one.shard.index - 1] != one.own for one in listings]
    told = zip(parts, certain, doubtful, others, strict=True)
    return tuple(part for part, sure, maybe, other in told if sure or (maybe and other))


# --- rows -------------------------------------------------------------------------------------------------------------


def _rows(parts: Iterable[Part]) -> list[Record]:
    """Return the rows of all parts; raises `StoreError` for rows that the shard cannot have made."""
    rows: dict[Key, Record] = {}
    for part in parts:
        shard = part.listing.shard
        for row in read_result(part.path)[0]:
            key = (row.file_name, row.page)
            if not holds(shard, row.file_name) or key in rows:
                raise StoreError(
                    f"{part.path}: holds a row that is not of shard {shard} or is there twice ({row.file_name}, page "
                    f"{row.page}); it was changed by something else, run its command again."
                )
            rows[key] = row
    return list(rows.values())


def _shared(rows: Sequence[Record]) -> list[Record]:
    """Return the rows, by name and page, with one reading for all copies of an image: that of the first.

    Two machines may read the same bytes differently; where one of them got no answer to rely on, that one counts.
    """
    names: dict[Content, str] = {}
    readings: dict[Content, Record] = {}
    for row in rows:
        if row.sha256 is not None:
            names.setdefault(content_of(row), row.file_name)
    for row in sorted(rows, key=lambda one: Reason(one.reason) not in NO_READING):
        if row.sha256 is not None and row.captions is not None:
            readings.setdefault(content_of(row), row)
    return [_as_copy(row, names, readings) for row in rows]


def _as_copy(row: Record, names: Mapping[Content, str], readings: Mapping[Content, Record]) -> Record:
    if row.sha256 is None:
        return row
    content = content_of(row)
    first = names[content]
    reading = readings.get(content, row)
    its = {field.name: getattr(reading, field.name) for field in fields(Record) if field.name not in _OF_THE_FILE}
    return replace(row, **its, duplicate_of=None if first == row.file_name else first)


def _candidate(row: Record) -> Candidate:
    """Return what the gate looks at, as it was when the row was decided the first time."""
    reason = Reason(row.reason)
    unscored = reason is Reason.NO_SCORE and row.decided_by is None  # whatever the limits are
    return Candidate(row, reason if unscored or reason in NO_READING else None)


# --- provenance -------------------------------------------------------------------------------------------------------


def _limits_of(gate: Gate) -> Gate:
    """Return what a gate file says: the model's own limits are in the parts alone."""
    limits = tuple(limit for limit in gate.limits if not (limit.by_model or limit.is_none))
    return replace(gate, origin=None, limits=limits)


def _tonight(part: Part, gate_file: Path | None) -> RunGate:
    """Return the gate of the parts, with what its file says besides where it came from one."""
    gate = Gate.of(part.provenance["gate"])
    if part.provenance.get("gate_edited") is None:  # no file
        if gate_file is not None:
            raise GateError("--gate: the parts were not made with a gate; `vlmgate rescore` decides anew by limits.")
        return RunGate(gate)
    path = gate_file or Path(part.listing.gate_file or "gate.toml")
    try:
        tonight = from_file(path)
    except (GateError, NoveltyError) as error:
        raise GateError(
            f"the parts were made with a gate that cannot be read: {error} --gate says where it is."
        ) from error
    if _limits_of(tonight.gate) != _limits_of(gate):
        raise GateError(f"{path}: is not the gate that the parts were made with; --gate says where that is.")
    return replace(tonight, gate=gate)


def _provenance(
    parts: Sequence[Part],
    lacking: _Lacking,
    tonight: RunGate,
    records: Sequence[Record],
    drift: Mapping[str, Any] | None,
) -> dict[str, Any]:
    runs = [part.provenance for part in parts]
    latest = next(part for part in parts if part.listing is lacking.latest).provenance
    model = next((run for run in runs if run["model"]), runs[0])
    gone = sorted(name for run in runs for name in run["gone_first"])
    read = all(record.reason != Reason.NOT_READ for record in records)
    together = {
        # Of the parts alone, so that the same ones merged again take the place of the former result.
        "run_id": hashlib.sha256(json.dumps([run["run_id"] for run in runs]).encode()).hexdigest()[:32],
        "complete": read and not lacking.problems,
        "started": min(run["started"] for run in runs),
        "finished": max(run["finished"] for run in runs),
        "images": len(records),
        "gone": sum(run["gone"] for run in runs),
        "gone_first": gone[:5],
        "model": model["model"],
        "warnings": warnings_of(model["model"], drift),
        "reference": model["reference"],
        "adaptive": joined([run["adaptive"] for run in runs if run.get("adaptive")]),
        "promise": promise_of(tonight, drift),
        "drift": drift,
        "time": None,  # of each part, it stands there
        "fingerprint": {key: value for key, value in latest["fingerprint"].items() if key != "shard"},
        "shard": None,
        "merged": {
            "vlmgate_version": __version__,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "shards": lacking.latest.shard.count,
            "missing": list(lacking.missing),
            "outdated": [part.listing.shard.index for part in lacking.outdated],
            "parts": [_told(part) for part in parts],
        },
    }
    return latest | together


def _told(part: Part) -> dict[str, Any]:
    run = part.provenance
    told = {key: run.get(key) for key in ("run_id", "complete", "images", "started", "finished", "time")}
    name = part.path.name.encode("utf-8", "backslashreplace").decode()
    return {"name": name, "shard": str(part.listing.shard)} | told
