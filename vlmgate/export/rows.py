"""The rows of a result, a batch at a time, as often as they are asked for; and what a writer of them is.

Call `StoredRows` for the rows; a format is a subclass of `Writer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from vlmgate.data import Route
from vlmgate.export import output
from vlmgate.export.targets import Options
from vlmgate.store.result import table_at

if TYPE_CHECKING:
    import pyarrow as pa

StoredRow = Mapping[str, Any]  # column → str, int, float, a list of those, or None
KEY = ("file_name", "page", "sha256")  # what a row is found by when a sheet comes back
FACTS = ("page", "sha256", "route", "reason", "decided_by", "answer", "vendi_score", "agreement", "novelty")
FACTS_WITH_CLAIMS = (*FACTS, "answer_probability", "support", "verdict_share", "contradiction")
_AT_ONCE = 1024  # rows
_BUFFER = 1 << 20  # bytes of a column that are read from the file at once; without it, a column of a row group is


@dataclass(slots=True)
class StoredRows:
    """The rows of a Parquet file, in its order, as often as asked for; a column that it does not hold is null.

    What cannot be read raises `StoreError`, at whichever row.
    """

    path: Path
    columns: Sequence[str]
    route: Route | None = None  # only these
    passed: int = 0  # rows since they were last asked for

    def __iter__(self) -> Iterator[StoredRow]:
        self.passed, unknown = 0, dict.fromkeys(self.columns)
        for batch in self._batches(self.columns):
            names = batch.schema.names
            for values in zip(*(_values(column) for column in batch.columns), strict=True):
                self.passed += 1
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
        with table_at(self.path) as stored:
            return stored.schema_arrow

    def _batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield batches with those of the columns that the file holds; whatever a damaged file raises is one line."""
        import pyarrow.compute as pc

        with table_at(self.path, buffer_size=_BUFFER) as stored:
            held = set(stored.schema_arrow.names)
            wanted = [name for name in dict.fromkeys((*columns, "file_name", "route")) if name in held]
            for group in range(stored.num_row_groups):  # all at once, each would keep its buffers to the end
                for batch in stored.iter_batches(_AT_ONCE, [group], wanted, use_threads=False):
                    yield batch if self.route is None else batch.filter(pc.equal(batch["route"], self.route.value))


def _values(column: pa.Array) -> list[Any]:
    import pyarrow as pa

    if pa.types.is_string(column.type):
        return list(column.to_numpy(zero_copy_only=False).tolist())  # four times as fast as to_pylist
    return list(column.to_pylist())


class Writer:
    """Writes rows in one format, in the order in which they come unless the format's docstring says otherwise."""

    usual: ClassVar[tuple[str, ...]]  # the columns that are written unless others are asked for
    looks_at: ClassVar[tuple[str, ...]] = ()  # columns that are read besides, whether they are written or not
    fill_in: ClassVar[bool] = False  # it is a sheet in which a person may fill in the columns `FILL_IN`
    binary: ClassVar[bool] = False  # nothing that a terminal could show
    suffix: ClassVar[str] = ""  # without -o, it goes to a file named as the result with this suffix; "" = to stdout

    def __init__(
        self, columns: Sequence[str], provenance: Mapping[str, Any] | None = None, options: Options | None = None
    ) -> None:
        self.columns, self.provenance, self.options = columns, provenance or {}, options or Options()

    @staticmethod
    def check_installed() -> None:
        """Raise `UsageError` where a package that it needs is not installed."""

    @staticmethod
    def places(out: Path) -> tuple[Path, ...]:
        """Return all that is written for this `-o`."""
        return (out,)

    def write(self, rows: StoredRows, file: BinaryIO) -> list[str]:
        """Write all rows; return what the user should know of them, a line each."""
        raise NotImplementedError

    def save(self, rows: StoredRows, out: Path | None) -> tuple[list[Path], list[str]]:
        """Write all rows to a file, or to stdout for None; return what was written, and notes as `write` does."""
        with output.standard_output(binary=self.binary) if out is None else output.file_at(out) as file:
            notes = self.write(rows, file)
        return [] if out is None else [out], notes
