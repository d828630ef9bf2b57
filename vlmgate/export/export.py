"""From a result and a format to a file, a folder or stdout. Call `export`."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from vlmgate.data import Record, Route
from vlmgate.errors import UsageError
from vlmgate.export import output
from vlmgate.export.rows import StoredRows, Writer
from vlmgate.export.targets import FILL_IN, Only, Options, Target
from vlmgate.export.text_formats import PlainWriter
from vlmgate.report.terminal import notices
from vlmgate.store.result import read_provenance

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
    columns = _choose(writer, options.columns, StoredRows(result, ()).names())
    read = tuple(name for name in dict.fromkeys((*columns, *writer.looks_at)) if name not in FILL_IN)
    rows = StoredRows(result, read, _ROUTES[options.only])
    for place in () if out is None else writer.places(out):
        output.check(place, result, overwrite=options.overwrite)
    written, notes = writer(columns, provenance, options).save(rows, out)
    return Exported(rows.passed, tuple(written), (*notes, *notices(provenance)))


def _choose(writer: type[Writer], wanted: str | None, held: Collection[str]) -> tuple[str, ...]:
    """Return the columns that were asked for by name, or those that this format usually gets.

    `held` are those of the result. Raises `UsageError` for a column that there is not, or not in this format.
    """
    if wanted is None:
        return writer.usual
    names = [name.strip() for name in wanted.split(",")]
    known = [*dict.fromkeys((*Record.__dataclass_fields__, *held)), *(FILL_IN if writer.fill_in else ())]
    for name in names:
        if name not in known:
            raise UsageError(f"--columns: there is no column '{name}'{_near(name, known)}")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"--columns: '{twice[0]}' stands there twice; once is enough.")
    return tuple(names)


def _near(name: str, known: Sequence[str]) -> str:
    if name in FILL_IN:
        return " in this format; csv, excel-csv, tsv and xlsx have it, for a person to fill in."
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(known)}."


def print_csv(records: Iterable[Record]) -> None:
    """Write rows with all that was said to stdout as `--to csv` does."""
    columns = PlainWriter.usual
    rows = ({name: getattr(record, name, None) for name in columns} for record in records)
    with output.standard_output(binary=False) as file:
        PlainWriter(columns).write(rows, file)
