"""The result of a run: where it lies, its columns, and how it and every other file is written in one step.

Call `Outputs.check` before a run, `write_result` at its end, `read_result` for its rows. `write_file` and `new_file`
write any file: whoever reads sees the former one or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vlmgate.data import Reason, Record, Route
from vlmgate.errors import OutputError, StoreError, one_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vlmgate.gate.file import GateFile

SCHEMA_VERSION = 1
METADATA_KEY = b"vlmgate"
TRIES_FILE = ".vlmgate_tries.jsonl"  # next to labels, what was tried on them
_FEATURES = "vision_features"
_ROWS = 2048  # of a row group: so many are in memory at once


# --- files that appear in one step ------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_file(path: Path, before: Callable[[], object] | None = None) -> Iterator[BinaryIO]:
    """Give a file that takes the place of `path` when the block ends well; else `path` stays as it is.

    `before` runs once all is on the disk, just before the file takes its name; it may move a former file away. Raises
    `OSError`.
    """
    temporary = temporary_for(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            before()
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_file(path: Path, content: bytes, before: Callable[[], object] | None = None) -> None:
    """Write bytes in one step, as `new_file` does. Raises `OSError`."""
    with new_file(path, before) as file:
        file.write(content)


@contextlib.contextmanager
def locked(out: Path, lock: Path, taken: str) -> Iterator[None]:
    """Hold an output for this process alone; raises `OutputError`, where another process holds it with `taken`."""
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(f"{out}: {taken}") from error
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); give another -o.") from error
    try:
        yield
    finally:
        held.release()


def write_gate(path: Path, gate: GateFile, about: Sequence[str] = ()) -> None:
    """Write a gate file, with a comment on every part; a former one is kept as STEM.old. Raises `OutputError`."""
    from vlmgate.gate.file import text_of

    def keep_former() -> None:
        if path.exists():
            os.replace(path, path.with_name(f"{path.stem}.old{path.suffix}"))

    text = text_of(gate, about, path)
    try:
        write_file(path, text.encode("utf-8"), keep_former)
    except OSError as error:
        raise OutputError(f"{path}: cannot write the gate ({error.strerror}); give another -o.") from error


def check_folder(path: Path) -> None:
    """Raise `OutputError` where the folder that a file is to be written to is not there."""
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: no such folder; make it, or give another -o.")


def check_other(out: Path, source: Path) -> None:
    """Raise `OutputError` where an output would take the place of the result that it is made of, or has no folder."""
    if out.exists() and source.exists() and out.samefile(source):
        raise OutputError(f"{out}: is the result itself, which stays as it is; give another -o.")
    check_folder(out)


def check_result_place(out: Path, *, replace: bool = False) -> None:
    """Raise `OutputError` unless a result may be written there; with `replace`, whatever file is there now."""
    if out.suffix != ".parquet":
        raise OutputError(f"{out}: the output must end in .parquet; give another -o.")
    check_folder(out)
    if out.exists() and not replace:
        try:
            read_provenance(out)
        except StoreError as error:
            raise OutputError(f"{out}: exists and is no result of vlmgate; give another -o.") from error


def temporary_for(path: Path) -> Path:
    """Return a name in the same folder that no other writer has, even where all have the same process number."""
    return path.with_name(f".vlmgate.{os.getpid()}.{uuid.uuid4().hex[:12]}.tmp")


def unused(path: Path) -> Path:
    """Return the path, or the first `stem.N.suffix` in its folder that does not exist."""
    candidate, n = path, 1
    while candidate.exists():
        candidate, n = path.with_name(f"{path.stem}.{n}{path.suffix}"), n + 1
    return candidate


def sync_folder(folder: Path) -> None:
    """Force names to the disk, not only contents, where the system can. Raises `OSError`."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some network disks cannot
                raise
        finally:
            os.close(descriptor)


# --- where a run writes -----------------------------------------------------------------------------------------------


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
    def reference(self) -> Path:
        return self.parquet.with_suffix(".reference.npz")

    @property
    def lock(self) -> Path:
        return self.parquet.with_name(f".{self.parquet.stem}.lock")

    @property
    def all(self) -> tuple[Path, ...]:
        return self.parquet, self.journal, self.log, self.reference, self.lock

    def names(self) -> frozenset[str]:
        """Return the names of these files, which a scan of their own folder must not call ignored inputs.

        So it is with the record of what was tried on the labels in it.
        """
        return frozenset((*(path.name for path in self.all), TRIES_FILE))

    def check(self) -> None:
        """Raise `OutputError` unless a result can be written here without harm to somebody else's file."""
        longest = self.parquet.with_suffix(".journal.old.999.jsonl")  # the longest name that may be wanted
        try:
            for path in self.all:
                if path.exists() and not path.is_file():
                    raise OutputError(f"{path}: is in the way and no file; move it, or give another -o.")
            check_result_place(self.parquet, replace=self.journal.exists())
            probe = longest if not longest.exists() else longest.with_suffix(".tmp")
            probe.write_bytes(b"vlmgate")
            probe.unlink()
        except OSError as error:
            raise OutputError(f"{self.parquet}: cannot be written ({error.strerror}); give another -o.") from error


# --- Parquet ----------------------------------------------------------------------------------------------------------


def schema() -> pa.Schema:
    """Return the columns of a result: the fields of `Record`, in their order and by their types."""
    import pyarrow as pa

    # Features are kept as float16, which not every reader of Parquet knows.
    types = {"str": pa.string(), "int": pa.int32(), "float": pa.float64(), "bytes": pa.list_(pa.float32())}
    columns = []
    for column in fields(Record):
        wrapped, of, *_ = re.findall(r"tuple|str|int|float|bytes", str(column.type)) * 2
        kind = pa.list_(types[of]) if wrapped == "tuple" else types[wrapped]
        columns.append(pa.field(column.name, kind, nullable="None" in str(column.type)))
    seed = [column.name for column in columns].index("seed")
    return pa.schema(columns).set(seed, pa.field("seed", pa.int64(), nullable=False))


def write_result(
    path: Path, records: Iterable[Record], provenance: Mapping[str, Any], readings: int | None = None
) -> None:
    """Write the result in one step: readers see the former file or the new one, never a part.

    Where the rows can be taken but once, `readings` says how many of them have captions. What is there and would be
    missed is kept in its folder: the result of another run, or one with more readings, as `STEM.old.parquet`; a damaged
    file as `STEM.damaged.parquet`. Raises `StoreError`.
    """
    records = records if readings is not None else [*records]
    held = sum(record.captions is not None for record in records) if readings is None else readings
    try:
        with new_file(path, lambda: _put_aside(path, held, provenance)) as file:
            _write_table(file, records, provenance, held)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot write the result ({error.strerror}); make room and run the same command again, it resumes."
        ) from error
    except StoreError:  # of whoever has the rows
        raise
    except Exception as error:
        raise StoreError(
            f"{path}: cannot write the result ({one_line(error)}); the readings are in the journal."
        ) from error


def _write_table(file: BinaryIO, records: Iterable[Record], provenance: Mapping[str, Any], readings: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    note = json.dumps(dict(provenance) | {"schema_version": SCHEMA_VERSION, "readings": readings}, allow_nan=False)
    columns = schema().with_metadata({METADATA_KEY: note.encode("ascii")})
    rows = iter(records)
    with pq.ParquetWriter(file, columns, compression="zstd") as writer:
        while some := [*itertools.islice(rows, _ROWS)]:
            values = {f.name: [getattr(record, f.name) for record in some] for f in fields(Record)}
            packed = values[_FEATURES]
            values[_FEATURES] = [None if p is None else np.frombuffer(p, "<f2").astype(np.float32) for p in packed]
            writer.write_table(pa.table(values, schema=columns))


def _put_aside(path: Path, readings: int, provenance: Mapping[str, Any]) -> None:
    """Rename the file in the place of the result, where the new one does not hold all that it holds."""
    if not path.exists():
        return
    try:
        former = read_provenance(path)
    except StoreError:
        os.replace(path, unused(path.with_suffix(".damaged.parquet")))
    else:
        if former.get("run_id") != provenance.get("run_id") or readings < former.get("readings", 0):
            os.replace(path, unused(path.with_suffix(".old.parquet")))


def opened(path: Path) -> pa.NativeFile:
    """Open a file for Arrow to read; raises `OSError`, and `ValueError` for a name that no file can have.

    Never hand it a file object of Python: threads of Arrow that are still at it when a command ends then wait for an
    interpreter that is gone, and abort the process (measured: one `vlmgate show` in seven on busy cores).
    """
    import pyarrow as pa

    name = os.fsencode(path) if os.name == "posix" else os.fspath(path)  # as text, it would have to be UTF-8
    if "\0" in os.fspath(path):
        raise ValueError("embedded null byte")
    return pa.OSFile(name, "rb")


@contextlib.contextmanager
def table_at(path: Path, **how: Any) -> Iterator[pq.ParquetFile]:
    """Open a result for its rows; whatever a damaged file raises within the block is a `StoreError` of one line."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with opened(path) as file:
            yield pq.ParquetFile(file, **how)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({' '.join(str(error).split())}); scan again.") from error


def read_provenance(path: Path) -> dict[str, Any]:
    """Return what a result says of its making; raises `StoreError` for a file that is no result of vlmgate."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with opened(path) as file:
            metadata = pq.read_schema(file).metadata or {}
        provenance = json.loads(metadata[METADATA_KEY])
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such file; run `vlmgate scan` first, or name its Parquet file.") from error
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise StoreError(f"{path}: is no result of vlmgate; name a Parquet file that `vlmgate scan` wrote.") from error
    if not isinstance(provenance, dict) or provenance.get("schema_version") != SCHEMA_VERSION:
        raise StoreError(f"{path}: was written by another version of vlmgate; scan again, or use that version.")
    if any(not isinstance(provenance.get(key), kind) for key, kind in _PROVENANCE.items()):
        raise StoreError(f"{path}: what it says of its making is damaged; scan again, its journal holds the readings.")
    return provenance


# What every part of vlmgate takes for granted in the provenance of a result.
_PROVENANCE: dict[str, type] = {
    **dict.fromkeys(("sampling", "gate", "image_config", "fingerprint"), dict),
    **dict.fromkeys(("kernel", "folder"), str),
}


def read_table(path: Path) -> pa.Table:
    """Return a result as an Arrow table, all columns as they lie in the file; raises `StoreError`."""
    read_provenance(path)
    with table_at(path) as table:
        return table.read()


def _check_columns(path: Path, found: pa.Schema) -> None:
    """Raise `StoreError` unless the columns hold what `write_result` writes; those that are not there are null."""
    import pyarrow as pa

    for column in schema():
        index = found.get_field_index(column.name)
        if index < 0 and not column.nullable:
            raise StoreError(f"{path}: lacks the column {column.name}; scan again, its journal holds the readings.")
        null = index >= 0 and pa.types.is_null(found.field(index).type)
        if index >= 0 and not null and found.field(index).type != column.type:
            raise StoreError(
                f"{path}: the column {column.name} holds {found.field(index).type}, not {column.type}; it was changed "
                "by something else; scan again, its journal holds the readings."
            )


def read_result(path: Path, *, features: bool = True) -> tuple[list[Record], dict[str, Any]]:
    """Return the rows and the provenance of a result; raises `StoreError`.

    Columns that an older version did not write are null. Without `features`, which are most of a file, those are too.
    """
    provenance = read_provenance(path)
    names = [f.name for f in fields(Record) if f.name != _FEATURES]
    with table_at(path) as there:
        _check_columns(path, there.schema_arrow)
        held = set(there.schema_arrow.names)
        rows = there.read(columns=[name for name in names if name in held]).to_pylist()
        kept: list[bytes | None] = [None] * len(rows)
        if features and _FEATURES in held:
            column = there.read(columns=[_FEATURES])[_FEATURES]
            kept = [one.values.to_numpy().astype("<f2").tobytes() if one.is_valid else None for one in column]
    if provenance.get("images", len(rows)) != len(rows):
        raise StoreError(f"{path}: holds {len(rows):,} of its {provenance['images']:,} rows; scan again.")
    known = ({route.value for route in Route}, {reason.value for reason in Reason})
    if any(row["route"] not in known[0] or row["reason"] not in known[1] for row in rows):
        raise StoreError(f"{path}: holds a route or reason that vlmgate does not know; scan again.")
    for row, one in zip(rows, kept, strict=True):
        row |= {name: tuple(value) for name, value in row.items() if isinstance(value, list)}
        row[_FEATURES] = one
    return [Record(**row) for row in rows], provenance
