"""Tables that people filled in, read back.

`read_sheet` returns the verdicts of a sheet that `export` or the review page wrote. `read_rows` yields the rows of any
table of labels: CSV, TSV, JSON lines, Parquet, a workbook, or Label Studio's JSON export. Files may be anything and
come from anybody: whatever is wrong with one, or too large in it, is one line of a `UsageError`.
"""

from __future__ import annotations

import codecs
import csv
import json
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from vlmgate.data import VERDICTS
from vlmgate.errors import LabelError, UsageError
from vlmgate.export.text_formats import undefused
from vlmgate.store.result import opened

TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".xlsx", ".json")
MOST_ROWS = 5_000_000
MOST_COLUMNS = 256  # of a workbook, which may say that it has 16,384
BLANK_ROWS = 10_000  # of a workbook, after which nothing is expected: formatting a column makes a million of them
UNPACKED_BYTES = 500_000_000  # of a workbook, which is a zip
_FIELD_LIMIT = 1 << 30  # characters of one cell; the csv module's own limit is 131,072

Cells = dict[str, Any]  # column → value
Numbered = Iterator[tuple[int, Cells]]  # rows, numbered as the program shows them that the table is opened with


# --- verdicts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Filled:
    """A row in which somebody gave a verdict."""

    file_name: str  # a spreadsheet may have changed it (a number, a date); `sha256` and `page` say which image it is
    page: int  # counted from 1
    sha256: str | None
    verdict: str  # one of `VERDICTS`
    reading: str | None = None  # what would have been right
    note: str | None = None
    at: str | None = None  # ISO time, UTC; of the review page alone


def read_sheet(path: Path, *, each: bool = False) -> list[Filled]:
    """Return the rows with a verdict of a sheet that `export` wrote, or of the review page's verdicts.csv.

    A .xlsx file is a workbook. Text is UTF-8, separated by commas, semicolons or tabs, whichever the header holds:
    Excel writes back what its country uses. Raises `UsageError` that names the first row that cannot be used; with
    `each`, a row without a verdict is one of these.
    """
    header: list[str] = []
    try:
        rows = list(_reader(path)(path, header))
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read ({error}); save it as CSV in UTF-8 or as .xlsx.") from error
    except LabelError:
        raise
    except Exception as error:  # a damaged workbook raises nearly anything
        raise UsageError(f"{path}: is no workbook that can be read ({error}); save it again as .xlsx.") from error
    lacking = [name for name in ("file_name", "verdict") if name not in header]
    if lacking:
        raise UsageError(f"{path}: has no column {' and no column '.join(lacking)}; export with these columns.")
    texts = ((number, {name: _text(value) for name, value in row.items()}) for number, row in rows)
    return [filled for number, row in texts if (filled := _filled(path, number, row, each)) is not None]


def _filled(path: Path, number: int, row: Mapping[str, str], each: bool) -> Filled | None:
    verdict = row.get("verdict", "").strip().casefold()
    if not verdict and not each:
        return None
    if verdict not in VERDICTS:
        raise UsageError(f"{path}, row {number}: the verdict '{verdict}' is none of {', '.join(VERDICTS)}.")
    page = row.get("page", "").strip() or "1"
    if not page.isascii() or not page.isdigit() or int(page) < 1:
        raise UsageError(f"{path}, row {number}: page is '{page}', and must be a number from 1.")
    name = undefused(row.get("file_name", ""))
    if not name:
        raise UsageError(f"{path}, row {number}: has a verdict and no file_name.")
    sha256 = row.get("sha256", "").strip().lower() or None
    reading, note, at = (undefused(row.get(key, "")) or None for key in ("reading", "note", "at"))
    return Filled(name, int(page), sha256, verdict, reading, note, at)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


# --- any table --------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> Numbered:
    """Yield a table's rows by column name; raises `LabelError` for what is no table, or is too large."""
    kind = path.suffix.lower()
    try:
        for done, row in enumerate(_reader(path)(path, [])):
            if done >= MOST_ROWS:
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


def _reader(path: Path) -> Any:
    """Return the function that reads this kind of table; it is given the path, and a list to put the header in."""
    readers = {".jsonl": _json_lines, ".parquet": _parquet, ".xlsx": _workbook, ".json": _label_studio}
    return readers.get(path.suffix.lower(), _separated)


def _encoding(path: Path) -> str:
    """Return UTF-16 where a file begins with its mark, as Excel's "Unicode Text" does; else UTF-8, marked or not."""
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _separated(path: Path, header: list[str]) -> Numbered:
    csv.field_size_limit(_FIELD_LIMIT)
    with path.open(encoding=_encoding(path), newline="") as file:
        first = file.readline()
        file.seek(0)
        mark = "\t" if path.suffix.lower() == ".tsv" else max("\t;,", key=first.count)  # tabs where nothing is found
        lines = csv.reader(file, delimiter=mark)
        header += [name.strip() for name in next(lines, [])]
        empty = dict.fromkeys(header)
        for number, line in enumerate(lines, start=2):
            if line:
                yield number, empty | dict(zip(header, line, strict=False))


def _json_lines(path: Path, header: list[str]) -> Numbered:
    number = count(1)
    with path.open(encoding=_encoding(path)) as file:
        for line in file:
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("a line is no object")
                yield next(number), row


def _parquet(path: Path, header: list[str]) -> Numbered:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = count(1)
    with opened(path) as file:
        table = pq.ParquetFile(file)
        flat = [column.name for column in table.schema_arrow if not pa.types.is_nested(column.type)]  # no pixels
        for batch in table.iter_batches(columns=flat):
            yield from zip(number, batch.to_pylist(), strict=False)


# --- workbooks --------------------------------------------------------------------------------------------------------


def _workbook(path: Path, header: list[str]) -> Numbered:
    with warnings.catch_warnings():  # not around a yield, for it would hold outside, too
        warnings.simplefilter("ignore")  # they are about styles and extensions; no value depends on these
        rows = list(islice(_sheet(path, header), MOST_ROWS + 1))
    yield from rows


def _sheet(path: Path, header: list[str]) -> Numbered:
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
            yield from _written_rows(path, book.worksheets[0], header)
        finally:
            book.close()


def _written_rows(path: Path, sheet: Any, header: list[str]) -> Numbered:
    """Yield the rows that hold anything. A sheet's own size is not believed: a kilobyte may claim any."""
    sheet.reset_dimensions()
    lines = sheet.iter_rows(max_col=MOST_COLUMNS, values_only=True)
    header += ["" if cell is None else str(cell).strip() for cell in next(lines, ())]
    blank = 0
    for done, line in enumerate(lines):
        if done >= MOST_ROWS:  # counted with the blank ones, for a row may say that it is the millionth
            raise LabelError(f"{path}: has more than {MOST_ROWS:,} rows; split it.")
        blank = blank + 1 if line.count(None) == len(line) else 0
        if blank >= BLANK_ROWS:
            return
        if not blank:
            yield done + 2, {name: cell for name, cell in zip(header, line, strict=False) if name}


# --- Label Studio -----------------------------------------------------------------------------------------------------


def _label_studio(path: Path, header: list[str]) -> Numbered:
    """Yield what was annotated in Label Studio: its JSON export of the tasks that `vlmgate export` wrote."""
    tasks = json.loads(path.read_text(encoding=_encoding(path)))
    if not isinstance(tasks, list):
        raise _NoExportError(path, "it holds no list of tasks")
    for number, task in enumerate(tasks, start=1):
        data = task.get("data") if isinstance(task, dict) else None
        if not isinstance(data, dict) or not isinstance(data.get("file_name"), str):
            raise _NoExportError(path, f"task {number} has no data with a file_name")
        try:
            annotated = _annotated(task)
        except ValueError as error:
            raise _NoExportError(path, f"task {number}: {error}") from error
        yield number, {name: data.get(name) for name in ("file_name", "page", "sha256")} | annotated


class _NoExportError(LabelError):
    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: is no JSON export of Label Studio ({why}); give other labels as CSV or JSON lines.")


def _annotated(task: Cells) -> Cells:
    """Return verdict and reading of the last annotation that was not cancelled; raises `ValueError` for odd types."""
    row: Cells = {"verdict": None}
    done = [one for one in _objects(task, "annotations") if not one.get("was_cancelled")]
    for result in _objects(done[-1], "result") if done else ():
        name = result.get("from_name")  # a relation has none, and other results do not matter
        if name in ("verdict", "answer"):
            value = result.get("value")
            if not isinstance(value, dict):
                raise ValueError("a result has no value")
            chosen = value.get("choices") or value.get("text") or ()
            first = chosen if isinstance(chosen, str) else next(iter(chosen if isinstance(chosen, list) else ()), None)
            if first is not None and not isinstance(first, str):
                raise ValueError(f"its {name} is no text")
            if first:
                row["verdict" if name == "verdict" else "reading"] = first
    return row


def _objects(holder: Cells, name: str) -> Sequence[Cells]:
    found = holder.get(name) or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"'{name}' is no list of objects")
    return found
