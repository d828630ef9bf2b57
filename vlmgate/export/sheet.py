"""A sheet that a person filled in, read back: which image, which verdict.

Knows CSV, TSV and workbooks; knows nothing of what a verdict is used for. What a row means is decided by `sha256` and
`page`, for a spreadsheet may change a name (a number, a date, a control character); the name helps where they are none.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmgate.data import VERDICTS
from vlmgate.errors import UsageError
from vlmgate.export.cells import undefused

_FIELD_LIMIT = 1 << 30  # characters of one cell; the csv module's own limit is 131,072


@dataclass(frozen=True, slots=True)
class Filled:
    """A row in which somebody gave a verdict."""

    file_name: str
    page: int  # counted from 1
    sha256: str | None
    verdict: str  # one of `VERDICTS`
    reading: str | None = None  # what would have been right
    note: str | None = None


def read_sheet(path: Path) -> list[Filled]:
    """Return the rows with a verdict of a sheet that `export` wrote, or of the review page's verdicts.csv.

    A .xlsx file is a workbook; anything else is text in UTF-8, separated by commas, semicolons or tabs, whichever the
    header holds, since Excel writes back what its country uses. Raises `UsageError` that names the first row that
    cannot be used.
    """
    try:
        rows = list(_workbook(path) if path.suffix.lower() == ".xlsx" else _text(path))
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read ({error}); save it as CSV in UTF-8 or as .xlsx.") from error
    return [filled for number, row in rows if (filled := _filled(path, number, row)) is not None]


def _filled(path: Path, number: int, row: Mapping[str, str]) -> Filled | None:
    verdict = row.get("verdict", "").strip().casefold()
    if not verdict:
        return None
    if verdict not in VERDICTS:
        raise UsageError(f"{path}, row {number}: the verdict '{verdict}' is none of {', '.join(VERDICTS)}.")
    page = row.get("page", "").strip() or "1"
    if not page.isascii() or not page.isdigit() or int(page) < 1:
        raise UsageError(f"{path}, row {number}: page is '{page}', and must be a number from 1.")
    name, sha256 = undefused(row["file_name"]), row.get("sha256", "").strip().lower() or None
    if not name:
        raise UsageError(f"{path}, row {number}: has a verdict and no file_name.")
    return Filled(name, int(page), sha256, verdict, _or_none(row.get("reading")), _or_none(row.get("note")))


def _or_none(text: str | None) -> str | None:
    return undefused(text) if text else None


def _text(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    text = path.read_bytes().decode("utf-8-sig")
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    before = csv.field_size_limit(_FIELD_LIMIT)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    finally:
        csv.field_size_limit(before)
    yield from _rows(path, lines)


def _workbook(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        import openpyxl
    except ImportError as error:
        raise UsageError(
            f"{path}: a workbook is read with openpyxl: pip install 'vlmgate[xlsx]'; or save it as CSV in UTF-8."
        ) from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        lines = [[_cell(value) for value in row] for row in book.worksheets[0].iter_rows(values_only=True)]
        book.close()
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged workbook raises nearly anything
        raise UsageError(f"{path}: is no workbook that can be read ({error}); save it again as .xlsx.") from error
    yield from _rows(path, lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _rows(path: Path, lines: Sequence[Sequence[str]]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row under the names of the header, with its number as a spreadsheet counts."""
    header = [name.strip() for name in lines[0]] if lines else []
    lacking = [name for name in ("file_name", "verdict") if name not in header]
    if lacking:
        raise UsageError(f"{path}: has no column {' and no column '.join(lacking)}; export with these columns.")
    for number, cells in enumerate(lines[1:], 2):
        yield number, dict(zip(header, cells, strict=False)) | {name: "" for name in header[len(cells) :]}
