"""From a result and a target to a file, a folder or stdout.

Knows which writer serves which target, and which options go with it; knows nothing of formats.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmgate.data import Route
from vlmgate.errors import UsageError
from vlmgate.export import output, xlsx
from vlmgate.export.annotation_formats import IMAGE_ROOT, LabelStudioWriter
from vlmgate.export.coco import CocoWriter
from vlmgate.export.columns import choose, to_read
from vlmgate.export.imagefolder import ImageFolderWriter
from vlmgate.export.json_lines import JsonLinesWriter
from vlmgate.export.pictures import Pictures
from vlmgate.export.rows import Counted, RecordRows, StoredRows
from vlmgate.export.targets import Only, Options, Target
from vlmgate.export.text_formats import ExcelWriter, PlainWriter
from vlmgate.export.writers import Writer
from vlmgate.export.xlsx import XlsxWriter
from vlmgate.store.result import read_provenance

if TYPE_CHECKING:
    from vlmgate.data import Record

_ROUTES = {Only.ROUTED: Route.HUMAN_REVIEW, Only.ACCEPTED: Route.AUTO_ACCEPT}
_IN_A_FILE = {Target.XLSX: ".xlsx", Target.IMAGEFOLDER: ".imagefolder"}  # go there unless told otherwise


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and what the user should know of it."""

    rows: int
    written: tuple[Path, ...]  # none = stdout
    notes: tuple[str, ...]


def place_of(result: Path, target: Target, out: Path | None) -> Path | None:
    """Return where an export goes: None = stdout."""
    if out is None:
        return result.with_suffix(_IN_A_FILE[target]) if target in _IN_A_FILE else None
    return None if out == Path("-") else out


def export(result: Path, target: Target, out: Path | None = None, options: Options | None = None) -> Exported:
    """Write a result for a target; raises `UsageError` before anything is written, `StoreError` where it cannot be.

    `out` is a file, a folder for imagefolder; None is stdout.
    """
    options = options or Options()
    options.check(target)
    if target is Target.XLSX:
        xlsx.check_installed()
    provenance = read_provenance(result)
    columns = choose(target, options.columns, StoredRows(result, ()).names())
    route = None if options.only is None else _ROUTES[options.only]
    stored = StoredRows(result, to_read(target, columns), route)
    rows = Counted(stored)
    for place in () if out is None else (out, config_of(out)) if target is Target.LABEL_STUDIO else (out,):
        output.check(place, result, overwrite=options.overwrite)
    if target is Target.IMAGEFOLDER:
        if out is None:
            raise UsageError("--to imagefolder makes a folder; give -o FOLDER.")
        pictures = Pictures.of(options.images, provenance)
        with output.folder_at(out) as folder:
            notes = ImageFolderWriter(columns, stored.schema(), pictures, options.link).write(rows, folder)
        return Exported(rows.passed, (out,), tuple(notes))
    writer = _writer(target, columns, provenance, options)
    return _to_file(writer, rows, out)


def config_of(tasks: Path) -> Path:
    """Return where the labelling configuration of a file of tasks goes."""
    return tasks.with_suffix(".config.xml")


def _to_file(writer: Writer, rows: Counted, out: Path | None) -> Exported:
    if out is None:
        with output.standard_output(binary=writer.binary) as file:
            notes = writer.write(rows, file)
        return Exported(rows.passed, (), tuple(notes))
    written = [out]
    with output.file_at(out) as file:
        notes = writer.write(rows, file)
    if isinstance(writer, LabelStudioWriter) and out.is_file():
        written.append(config_of(out))
        with output.file_at(written[-1]) as file:
            file.write(writer.config().encode())
    return Exported(rows.passed, tuple(written), tuple(notes))


def _writer(target: Target, columns: Sequence[str], provenance: Mapping[str, Any], options: Options) -> Writer:
    match target:
        case Target.CSV:
            return PlainWriter(columns)
        case Target.TSV:
            return PlainWriter(columns, "\t")
        case Target.EXCEL_CSV:
            return ExcelWriter(columns)
        case Target.JSONL:
            return JsonLinesWriter(columns)
        case Target.LABEL_STUDIO:
            root = IMAGE_ROOT if options.image_root is None else options.image_root
            return LabelStudioWriter(columns, provenance, root)
        case Target.COCO:
            return CocoWriter(columns, provenance)
        case _:
            pictures = Pictures.of(options.images, provenance) if options.thumbnails else None
            return XlsxWriter(columns, pictures)


def print_csv(records: Collection[Record]) -> None:
    """Write rows with all that was said to stdout as `--to csv` does."""
    with output.standard_output(binary=False) as file:
        PlainWriter(choose(Target.CSV, None, ())).write(RecordRows(records), file)
