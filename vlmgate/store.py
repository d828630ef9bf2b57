"""The journal of a run, and the Parquet file that is built from it.

Knows files and rows; knows nothing of models or of how a decision is reached.

The journal `OUT.journal.jsonl` is the truth while a run lasts: a header line, then one line per image page, flushed to
the disk batch by batch. A line holds what the model said, not what was decided, so that another limit needs no model.
Killed at any moment, it is at worst one batch behind; what is torn at its end is dropped and read again.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vlmgate.errors import OutputError, ResumeError, StoreError
from vlmgate.records import Caption, ImageFile, Reading, Record, Unreadable

if TYPE_CHECKING:
    import pyarrow as pa

JOURNAL_VERSION = 1
SCHEMA_VERSION = 1
METADATA_KEY = b"vlmgate"

Key = tuple[str, int]  # (file_name, page)


@dataclass(frozen=True, slots=True)
class Outputs:
    """The files of one run; all lie in one folder, so that replacing them is atomic."""

    parquet: Path

    @property
    def journal(self) -> Path:
        return self.parquet.with_suffix(".journal.jsonl")

    @property
    def log(self) -> Path:
        return self.parquet.with_suffix(".log")

    @property
    def lock(self) -> Path:
        return self.parquet.with_name(f".{self.parquet.stem}.lock")

    def names(self) -> frozenset[str]:
        """Return the names of these files, which a scan of their own folder must not call ignored inputs."""
        return frozenset(path.name for path in (self.parquet, self.journal, self.log, self.lock))

    def check(self) -> None:
        """Raise `OutputError` unless a result can be written here without harm to somebody else's file."""
        if self.parquet.suffix != ".parquet":
            raise OutputError(f"{self.parquet}: the output must end in .parquet; give another -o.")
        if not self.parquet.parent.is_dir():
            raise OutputError(f"{self.parquet.parent}: no such folder; make it, or give another -o.")
        if self.parquet.is_dir():
            raise OutputError(f"{self.parquet}: is a folder; give another -o.")
        probe = self.parquet.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
        try:
            probe.write_bytes(b"vlmgate")
        except OSError as error:
            raise OutputError(
                f"{self.parquet.parent}: cannot write here ({error.strerror}); give another -o."
            ) from error
        finally:
            probe.unlink(missing_ok=True)
        if self.parquet.exists():
            try:
                read_provenance(self.parquet)
            except StoreError as error:
                raise OutputError(f"{self.parquet}: exists and is no result of vlmgate; give another -o.") from error


# --- journal ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that opened but that the model could not read, alone in a batch."""

    image: ImageFile
    error: str


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An image whose bytes equal those of one that was read before; it shares that reading."""

    image: ImageFile


Entry = Reading | Failure | Duplicate | Unreadable


@dataclass(slots=True)
class Journal:
    """What has been read so far; `entries` is what the file says, in memory.

    Open it with `Journal.open`, add a batch at a time with `append`, close it.
    """

    path: Path
    run_id: str
    fingerprint: dict[str, Any]
    model: dict[str, Any] | None = None  # ModelInfo as a dict, once a model has been loaded
    entries: dict[Key, Entry] = field(default_factory=dict)
    seconds: dict[Key, float] = field(default_factory=dict)
    dropped: int = 0  # lines that could not be used and are read again
    _file: BinaryIO | None = None

    @classmethod
    def open(cls, path: Path, fingerprint: Mapping[str, Any], *, restart: bool = False) -> Journal:
        """Open the journal of an earlier run with the same fingerprint, or begin one.

        Raises `ResumeError` where the journal was made with other settings, `OutputError` where the file is no journal.
        With `restart` an existing journal is kept under another name.
        """
        wanted: dict[str, Any] = json.loads(json.dumps(fingerprint))
        if restart and path.exists():
            os.replace(path, _unused(path.with_suffix(".old.jsonl")))
        try:
            raw = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise OutputError(f"{path}: cannot read the journal ({error.strerror}).") from error
        journal = cls(path=path, run_id=uuid.uuid4().hex, fingerprint=wanted)
        whole = raw[: raw.rfind(b"\n") + 1]  # a torn last line is not followed by a newline
        if whole:
            journal._load(whole.splitlines())
        elif raw and not b'{"vlmgate_journal"'.startswith(raw[:18]):
            raise OutputError(f"{path}: is not a journal of vlmgate; move it away or give another -o.")
        journal._start(len(whole))
        return journal

    def _load(self, lines: Sequence[bytes]) -> None:
        header = _parse(lines[0])
        if header is None or header.get("vlmgate_journal") != JOURNAL_VERSION:
            raise OutputError(f"{self.path}: is not a journal of this version; move it away or give another -o.")
        _check_fingerprint(self.path, header["fingerprint"], self.fingerprint)
        self.run_id = header["run_id"]
        batch: list[dict[str, Any]] = []
        for line in lines[1:]:
            entry = _parse(line)
            if entry is not None and "model" in entry:
                self.model = entry["model"]
            elif entry is None or "batch" not in entry:
                self.dropped += 1
            else:
                if entry["batch"][0] == 0:
                    self.dropped += len(batch)
                    batch = []
                batch.append(entry)
                if len(batch) == entry["batch"][1]:
                    self._take_up(batch)
                    batch = []
        self.dropped += len(batch)

    def _take_up(self, batch: Sequence[Mapping[str, Any]]) -> None:
        """Remember a batch whole or not at all, so that the images read again fall into the same batches as before."""
        try:
            entries = [_from_json(line) for line in batch]
        except (KeyError, TypeError, ValueError):
            self.dropped += len(batch)
            return
        for entry, seconds in entries:
            self._remember(entry, seconds)

    def _remember(self, entry: Entry, seconds: float | None) -> None:
        key = key_of(entry)
        self.entries[key] = entry
        if seconds is not None:
            self.seconds[key] = seconds

    def _start(self, length: int) -> None:
        try:
            self._file = self.path.open("r+b" if length else "wb")
            self._file.truncate(length)
            self._file.seek(length)
            if not length:
                self._write(
                    [{"vlmgate_journal": JOURNAL_VERSION, "run_id": self.run_id, "fingerprint": self.fingerprint}]
                )
        except OSError as error:
            raise OutputError(f"{self.path}: cannot write the journal ({error.strerror}); give another -o.") from error

    def check_model(self, model: Mapping[str, Any], keys: Iterable[str]) -> None:
        """Record what the loaded model says of itself; raise `ResumeError` where it is not the one that read before."""
        wanted: dict[str, Any] = json.loads(json.dumps(model))
        if self.model is not None:
            _check_fingerprint(self.path, {k: self.model.get(k) for k in keys}, {k: wanted.get(k) for k in keys})
        self.model = wanted
        self._write([{"model": wanted}])

    def append(self, entries: Sequence[Entry], seconds: float | None = None) -> None:
        """Add one batch and force it to the disk; `seconds` is the wall time of each of its readings."""
        lines = []
        for i, entry in enumerate(entries):
            took = seconds if isinstance(entry, Reading) else None
            lines.append(_to_json(entry, took) | {"batch": [i, len(entries)]})
        self._write(lines)
        for entry in entries:
            self._remember(entry, seconds if isinstance(entry, Reading) else None)

    def _write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        if self._file is None:
            raise StoreError(f"{self.path}: the journal is closed.")
        data = "".join(json.dumps(line, allow_nan=False, separators=(",", ":")) + "\n" for line in lines)
        try:
            self._file.write(data.encode("ascii"))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StoreError(
                f"{self.path}: cannot write ({error.strerror}); make room and run the same command again, it resumes."
            ) from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def key_of(entry: Entry) -> Key:
    image = entry if isinstance(entry, Unreadable) else entry.image
    return image.file_name, image.page


def _check_fingerprint(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [
        f"{k} ({then.get(k)!r} then, {now.get(k)!r} now)" for k in sorted({*then, *now}) if then.get(k) != now.get(k)
    ]
    if changed:
        raise ResumeError(
            f"{path}: was made with other settings: {'; '.join(changed)}. Use the same, another -o, or --restart."
        )


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _to_json(entry: Entry, seconds: float | None) -> dict[str, Any]:
    if isinstance(entry, Unreadable):
        return {"kind": "unreadable"} | asdict(entry)
    image = asdict(entry.image) | {"path": os.fsdecode(entry.image.path)}
    if isinstance(entry, Failure):
        return {"kind": "failure", "image": image, "error": entry.error}
    if isinstance(entry, Duplicate):
        return {"kind": "duplicate", "image": image}
    captions = [asdict(caption) for caption in entry.captions]
    return {"kind": "reading", "image": image, "captions": captions, "seconds": seconds}


def _from_json(line: Mapping[str, Any]) -> tuple[Entry, float | None]:
    kind = line["kind"]
    if kind == "unreadable":
        return Unreadable(line["file_name"], line["reason"], line["page"]), None
    image = ImageFile(**(line["image"] | {"path": Path(line["image"]["path"])}))
    if kind == "failure":
        return Failure(image, line["error"]), None
    if kind == "duplicate":
        return Duplicate(image), None
    return Reading(image, tuple(Caption(**caption) for caption in line["captions"])), line["seconds"]


def _unused(path: Path) -> Path:
    """Return the path, or the first `stem.N.suffix` beside it that does not exist."""
    candidate, n = path, 1
    while candidate.exists():
        candidate, n = path.with_name(f"{path.stem}.{n}{path.suffix}"), n + 1
    return candidate


# --- Parquet ----------------------------------------------------------------------------------------------------------


def schema() -> pa.Schema:
    """Return the columns of a result, in the order of `Record`; `file_name` is the key, as Hugging Face expects."""
    import pyarrow as pa

    types = {
        "page": pa.int32(),
        "num_pages": pa.int32(),
        "width": pa.int32(),
        "height": pa.int32(),
        "captions": pa.list_(pa.string()),
        "caption_finishes": pa.list_(pa.string()),
        "caption_logprobs": pa.list_(pa.float64()),
        "seed": pa.int64(),
    } | dict.fromkeys(
        ("vendi_score", "agreement", "mean_dissimilarity", "mean_logprob", "threshold", "seconds"), pa.float64()
    )
    required = {"file_name", "page", "route", "reason", "seed"}
    return pa.schema([pa.field(f.name, types.get(f.name, pa.string()), f.name not in required) for f in fields(Record)])


def write_result(path: Path, records: Sequence[Record], provenance: Mapping[str, Any]) -> None:
    """Write the result in one step: readers see the former file or the new one, never a part.

    A result of another run under the same name is kept as `STEM.old.parquet`. Raises `StoreError`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    note = json.dumps({"schema_version": SCHEMA_VERSION} | dict(provenance), allow_nan=False).encode("ascii")
    columns = {f.name: [_plain(getattr(record, f.name)) for record in records] for f in fields(Record)}
    table = pa.table(columns, schema=schema().with_metadata({METADATA_KEY: note}))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, temporary, compression="zstd")
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        if path.exists() and read_provenance(path).get("run_id") != provenance.get("run_id"):
            os.replace(path, _unused(path.with_suffix(".old.parquet")))
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot write the result ({error.strerror}); make room and run the same command again, it resumes."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def read_provenance(path: Path) -> dict[str, Any]:
    """Return what a result says of its making; raises `StoreError` for a file that is no result of vlmgate."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
        provenance = json.loads(metadata[METADATA_KEY])
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such file; run `vlmgate scan` first, or name its Parquet file.") from error
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise StoreError(f"{path}: is no result of vlmgate; name a Parquet file that `vlmgate scan` wrote.") from error
    if not isinstance(provenance, dict) or provenance.get("schema_version") != SCHEMA_VERSION:
        raise StoreError(f"{path}: was written by another version of vlmgate; scan again, or use that version.")
    return provenance


def read_result(path: Path) -> tuple[list[Record], dict[str, Any]]:
    """Return the rows and the provenance of a result; raises `StoreError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    provenance = read_provenance(path)
    try:
        rows = pq.read_table(path, columns=[f.name for f in fields(Record)]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path}: cannot be read ({error}); scan again.") from error
    lists = ("captions", "caption_finishes", "caption_logprobs")
    return [Record(**row | {k: None if row[k] is None else tuple(row[k]) for k in lists}) for row in rows], provenance
