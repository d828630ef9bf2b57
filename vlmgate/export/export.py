"""From a result and a format to a file, a folder or stdout. Call `export`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from vlmgate.data import Route
from vlmgate.export import output
from vlmgate.export.columns import choose, to_read
from vlmgate.export.rows import StoredRows, Writer
from vlmgate.export.targets import Only, Options, Target
from vlmgate.export.text_formats import PlainWriter
from vlmgate.store.result import read_provenance

if TYPE_CHECKING:
    from vlmgate.data import Record

_ROUTES = {None: None, Only.ROUTED: Route.HUMAN_REVIEW, Only.ACCEPTED: Route.AUTO_ACCEPT}


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and what the user should know of it."""

    rows: int
    written: tuple[Path, ...]  # none = stdout
    notes: tuple[str, ...]


def writer_of(target: Target) -> type[Writer]:
    """Return the class that writes a format."""
    module, _, name = target.writer.partition(".")
    writer: type[Writer] = getattr(import_module(f"vlmgate.export.{module}"), name)
    return writer


def place_of(result: Path, target: Target, out: Path | None) -> Path | None:
    """Return where an export goes: None = stdout."""
    if out is None:
        suffix = writer_of(target).suffix
        return result.with_suffix(suffix) if suffix else None
    return None if out == Path("-") else out


def export(result: Path, target: Target, out: Path | None = None, options: Options | None = None) -> Exported:
    """Write a result in a format; raises `UsageError` before anything is written, `StoreError` where it cannot be.

    `out` is a file, a folder for imagefolder; None is stdout.
    """
    options = options or Options()
    options.check(target)
    writer = writer_of(target)
    writer.check_installed()
    provenance = read_provenance(result)
    columns = choose(writer, options.columns, StoredRows(result, ()).names())
    rows = StoredRows(result, to_read(writer, columns), _ROUTES[options.only])
    for place in () if out is None else writer.places(out):
        output.check(place, result, overwrite=options.overwrite)
    written, notes = writer(columns, provenance, options).save(rows, out)
    return Exported(rows.passed, tuple(written), tuple(notes))


def print_csv(records: Collection[Record]) -> None:
    """Write rows with all that was said to stdout as `--to csv` does."""
    columns = PlainWriter.usual
    rows = ({name: getattr(record, name, None) for name in columns} for record in records)
    with output.standard_output(binary=False) as file:
        PlainWriter(columns).write(rows, file)
