"""Read tables of labels, of whatever kind: rows by column name.

Knows CSV, JSON, Parquet, workbooks and Label Studio's export; knows nothing of what a column means. Tables are files of
strangers: whatever is wrong with one, or too large in it, is a `LabelError` of one line.
"""

from __future__ import annotations

import codecs
import csv
import json
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from vlmgate.errors import LabelError
from vlmgate.store.result import opened

TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".xlsx", ".json")
COUNTED_WITH_HEADER = (".csv", ".tsv", ".xlsx")  # the first row with a label is row 2
MOST_ROWS = 5_000_000
MOST_COLUMNS = 256  # of a workbook, which may say that it has 16,384
BLANK_ROWS = 10_000  # of a workbook, after which nothing is expected: a column that was formatted goes on for a million
UNPACKED_BYTES = 500_000_000  # of a workbook, which is a zip

Row = dict[str, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """Yield a table's rows by column name; raises `LabelError` for what is no table, or is too large."""
    readers = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".parquet": _parquet, ".xlsx": _xlsx, ".json": _studio}
    kind = path.suffix.lower()
    try:
        for number, row in enumerate(readers[kind](path)):
            if number >= MOST_ROWS:
                raise LabelError(f"{path}: has more than {MOST_ROWS:,} rows; split it.")
            yield row
    except LabelError:
        raise
    except OSError as error:
        raise LabelError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except Exception as error:
        if isinstance(error, UnicodeError) and kind in (".csv", ".tsv"):
            raise LabelError(f"{path}: is not UTF-8; save it as 'CSV UTF-8' in Excel.") from error
        if isinstance(error, UnicodeError) and kind in (".json", ".jsonl"):
            raise LabelError(f"{path}: is not UTF-8; save it as UTF-8.") from error
        detail = " ".join(str(error)[:400].split())[:120] or type(error).__name__
        raise LabelError(f"{path}: is no {kind[1:]} table that can be read ({detail}).") from error


def _encoding(path: Path) -> str:
    """Return UTF-16 where a file begins with its mark, as Excel's "Unicode Text" does; else UTF-8, marked or not."""
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(1 << 24)
    with path.open(encoding=_encoding(path), newline="") as file:
        first = file.readline()
        file.seek(0)
        mark = "\t" if path.suffix.lower() == ".tsv" else max("\t;,", key=first.count)  # tabs where nothing is found
        for row in csv.DictReader(file, delimiter=mark):
            row.pop(None, None)  # cells beyond the header
            yield row


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding=_encoding(path)) as file:
        for line in file:
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("a line is no object")
                yield row


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(path) as file:
        table = pq.ParquetFile(file)
        flat = [column.name for column in table.schema_arrow if not pa.types.is_nested(column.type)]  # no pixels
        for batch in table.iter_batches(columns=flat):
            yield from batch.to_pylist()


# --- Label Studio -----------------------------------------------------------------------------------------------------


def _studio(path: Path) -> Iterator[Row]:
    """Yield what was annotated in Label Studio: its JSON export of the tasks that `vlmgate export` wrote."""
    tasks = json.loads(path.read_text(encoding=_encoding(path)))
    if not isinstance(tasks, list):
        raise _NoExportError(path, "it holds no list of tasks")
    for number, task in enumerate(tasks, start=1):
        data = task.get("data") if isinstance(task, dict) else None
        if not isinstance(data, dict) or not isinstance(data.get("file_name"), str):
            raise _NoExportError(path, f"task {number} has no data with a file_name")
        try:
            said = _said(task)
        except _OddError as error:
            raise _NoExportError(path, f"task {number}: {error}") from error
        yield {"file_name": data["file_name"], "page": data.get("page"), "sha256": data.get("sha256"), **said}


class _NoExportError(LabelError):
    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: is no JSON export of Label Studio ({why}); give other labels as CSV or JSON lines.")


class _OddError(Exception):
    """Something in a task is of another type than Label Studio has there."""


def _said(task: Row) -> Row:
    """Return verdict and reading of the last annotation that was not cancelled."""
    row: Row = {"verdict": None}
    done = [one for one in _objects(task, "annotations") if not one.get("was_cancelled")]
    for result in _objects(done[-1], "result") if done else ():
        told = result.get("from_name")  # a relation has none, and other results are of no matter
        if told in ("verdict", "answer"):
            value = result.get("value")
            if not isinstance(value, dict):
                raise _OddError("a result has no value")
            chosen = value.get("choices") or value.get("text") or ()
            first = chosen if isinstance(chosen, str) else next(iter(chosen if isinstance(chosen, list) else ()), None)
            if first is not None and not isinstance(first, str):
                raise _OddError(f"its {told} is no text")
            if first:
                row["verdict" if told == "verdict" else "reading"] = first
    return row


def _objects(holder: Row, name: str) -> Sequence[Row]:
    found = holder.get(name) or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise _OddError(f"'{name}' is no list of objects")
    return found


# --- workbooks --------------------------------------------------------------------------------------------------------


def _xlsx(path: Path) -> Iterator[Row]:
    with warnings.catch_warnings():  # not around a yield, for it would hold outside, too
        warnings.simplefilter("ignore")  # they tell of styles and extensions; no value depends on these
        rows = list(islice(_sheet(path), MOST_ROWS + 1))
    yield from rows


def _sheet(path: Path) -> Iterator[Row]:
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise LabelError(f"{path}: needs openpyxl; pip install openpyxl, or save the sheet as CSV.") from error
    with path.open("rb") as file:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())  # no more than this is ever unpacked
        if unpacked > UNPACKED_BYTES:
            raise LabelError(
                f"{path}: unpacks to {unpacked / 1e6:,.0f} MB, and at most {UNPACKED_BYTES / 1e6:,.0f} MB are read; "
                "save the sheet alone as CSV."
            )
        book = load_workbook(file, read_only=True, data_only=True, keep_links=False)
        try:
            if not book.worksheets:
                raise LabelError(f"{path}: has no sheet with cells; save the labels as CSV.")
            yield from _filled(path, book.worksheets[0])
        finally:
            book.close()


def _filled(path: Path, sheet: Any) -> Iterator[Row]:
    """Yield the rows that hold anything. What a sheet says of its size is not believed: a kilobyte may say anything."""
    sheet.reset_dimensions()
    lines = sheet.iter_rows(max_col=MOST_COLUMNS, values_only=True)
    header = ["" if cell is None else str(cell).strip() for cell in next(lines, ())]
    blank = 0
    for number, line in enumerate(lines):
        if number >= MOST_ROWS:  # counted with the blank ones, for a row may say that it is the millionth
            raise LabelError(f"{path}: has more than {MOST_ROWS:,} rows; split it.")
        blank = blank + 1 if line.count(None) == len(line) else 0
        if blank >= BLANK_ROWS:
            return
        if not blank:
            yield {name: cell for name, cell in zip(header, line, strict=False) if name}
