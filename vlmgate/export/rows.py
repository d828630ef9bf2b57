"""The rows of a result, a batch at a time, as often as they are asked for.

Knows Parquet and records; knows nothing of what becomes of the rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vlmgate.data import Record, Route
from vlmgate.errors import StoreError
from vlmgate.store.result import opened

if TYPE_CHECKING:
    import pyarrow as pa

Row = Mapping[str, Any]  # column → str, int, float, a list of those, or None
_AT_ONCE = 1024  # rows
_BUFFER = 1 << 20  # bytes of a column that are read from the file at once; without it, a column of a row group is


class Rows(Protocol):
    """Rows that can be gone through several times; `len` is their number."""

    def __iter__(self) -> Iterator[Row]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class StoredRows:
    """The rows of a Parquet file, in its order; a column that it does not hold is null.

    What cannot be read raises `StoreError`, at whichever row.
    """

    path: Path
    columns: Sequence[str]
    route: Route | None = None  # only these

    def __iter__(self) -> Iterator[Row]:
        unknown = dict.fromkeys(self.columns)
        for batch in self._batches(self.columns):
            names = batch.schema.names
            for values in zip(*(_values(column) for column in batch.columns), strict=True):
                yield unknown | dict(zip(names, values, strict=True))

    def __len__(self) -> int:
        return sum(batch.num_rows for batch in self._batches(("file_name",)))

    def names(self) -> list[str]:
        """Return the columns that the file holds."""
        return list(self._held().names)

    def schema(self) -> pa.Schema:
        """Return the columns with their types; what the file does not hold is text."""
        import pyarrow as pa

        held = self._held()
        types = {name: held.field(name).type for name in held.names}
        return pa.schema([(name, types.get(name, pa.string())) for name in self.columns])

    def _held(self) -> pa.Schema:
        import pyarrow.parquet as pq

        with opened(self.path) as file:
            return pq.read_schema(file)

    def _batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield batches with those of the columns that the file holds, and the route where it decides."""
        return _converted(self.path, self._read(columns))

    def _read(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        with opened(self.path) as file:
            stored = pq.ParquetFile(file, buffer_size=_BUFFER)
            held = set(stored.schema_arrow.names)
            wanted = [name for name in dict.fromkeys((*columns, "file_name", "route")) if name in held]
            for group in range(stored.num_row_groups):  # all at once, each would keep its buffers to the end
                for batch in stored.iter_batches(_AT_ONCE, [group], wanted, use_threads=False):
                    yield batch if self.route is None else batch.filter(pc.equal(batch["route"], self.route.value))


def _converted(path: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Pass batches on; whatever a damaged file raises becomes one line."""
    import pyarrow as pa

    try:
        yield from batches
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({' '.join(str(error).split())}); scan again.") from error


def _values(column: pa.Array) -> list[Any]:
    import pyarrow as pa

    if pa.types.is_string(column.type):
        return list(column.to_numpy(zero_copy_only=False).tolist())  # four times as fast as to_pylist
    return list(column.to_pylist())


@dataclass(frozen=True, slots=True)
class RecordRows:
    """Rows that do not lie in a file yet."""

    records: Collection[Record]

    def __iter__(self) -> Iterator[Row]:
        names = [name for name in Record.__dataclass_fields__ if name != "vision_features"]
        for record in self.records:
            yield {name: getattr(record, name) for name in names}

    def __len__(self) -> int:
        return len(self.records)


@dataclass(slots=True)
class Counted:
    """Rows that are counted while they go by."""

    rows: Rows
    passed: int = 0

    def __iter__(self) -> Iterator[Row]:
        self.passed = 0
        for row in self.rows:
            self.passed += 1
            yield row

    def __len__(self) -> int:
        return len(self.rows)
