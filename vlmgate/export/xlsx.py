"""A workbook for people: one sheet of rows, frozen header, filters, a verdict to choose, thumbnails on request.

Every text is written as a string, so that none is a formula, a link or a number.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

from vlmgate.data import VERDICTS
from vlmgate.errors import StoreError, UsageError, count
from vlmgate.export.imagefolder import Pictures
from vlmgate.export.rows import KEY, StoredRow, StoredRows, Writer
from vlmgate.export.text_formats import SHEET, check_sheet, fitted, notes_on_cut, text_of, visible
from vlmgate.report.terminal import notices

_WIDTHS = {  # characters; others by what they hold
    **{"file_name": 36, "caption": 48, "captions": 60, "answers": 40, "reading": 30, "note": 40, "sha256": 16},
    **{"route": 14, "reason": 16, "verdict": 12, "decided_by": 16, "conversion": 24, "error": 30, "duplicate_of": 24},
}
_THUMBNAIL = 96  # pixels, the longer side


class XlsxWriter(Writer):
    """Writes row by row in constant memory; thumbnails alone stay in memory until the end.

    Raises `UsageError` where there are more rows than a sheet has.
    """

    usual, fill_in, looks_at = SHEET, True, KEY
    binary, suffix = True, ".xlsx"
    pictures: Pictures | None = None  # None = no thumbnails
    cut = 0

    @staticmethod
    def check_installed() -> None:
        """Raise `UsageError` where there is nothing to write a workbook with."""
        try:
            import xlsxwriter  # noqa: F401 - whether it is there
        except ImportError as error:
            raise UsageError(
                "--to xlsx needs XlsxWriter: pip install 'vlmgate[xlsx]'; --to excel-csv needs nothing."
            ) from error

    def save(self, rows: StoredRows, out: Path | None) -> tuple[list[Path], list[str]]:
        """Write as every writer does, after the images were found."""
        if self.options.thumbnails:
            self.pictures = Pictures.of(self.options.images, self.provenance)
        return super().save(rows, out)

    def write(self, rows: StoredRows, file: BinaryIO) -> list[str]:
        """Write all rows."""
        import xlsxwriter
        from xlsxwriter.exceptions import FileCreateError, FileSizeError

        check_sheet(total := len(rows))
        with tempfile.TemporaryDirectory() as scratch:
            plain_text = {"strings_to_numbers": False, "strings_to_formulas": False, "strings_to_urls": False}
            sink = _Sink(file)
            book = xlsxwriter.Workbook(sink, {"constant_memory": True, "tmpdir": scratch, **plain_text})
            sheet = book.add_worksheet("vlmgate")
            self._lay_out(book, sheet, total)
            for number, row in enumerate(rows, 1):
                self._row(sheet, number, row)
            if about := notices(self.provenance):  # behind the rows, for whoever opens the workbook alone
                notes = book.add_worksheet("notes")
                notes.set_column(0, 0, 120, book.add_format({"text_wrap": True}))
                for number, text in enumerate(about):
                    notes.write_string(number, 0, text)
            try:
                book.close()
            except FileSizeError as error:
                raise StoreError("the workbook would be larger than 4 GB; use --only routed, or --to csv.") from error
            except FileCreateError as error:  # wraps what the disk or the pipe said
                raise (error.args[0] if isinstance(error.args[0], OSError) else OSError(str(error))) from error
        if sink.error:
            raise sink.error
        return self._notes()

    def _lay_out(self, book: Any, sheet: Any, total: int) -> None:
        """Write the header and set all that concerns whole columns, which has to come before the rows."""
        shown = (["thumbnail"] if self.pictures else []) + list(self.columns)
        bold = book.add_format({"bold": True, "bottom": 1, "bg_color": "#EEEEEE"})
        to_fill_in = book.add_format({"bg_color": "#FFF8DC"})
        for column, name in enumerate(shown):
            width = 14 if name == "thumbnail" else _WIDTHS.get(name, max(10, min(len(name) + 3, 24)))
            sheet.set_column(column, column, width, to_fill_in if name == "verdict" else None)
            sheet.write_string(0, column, visible(name), bold)
            if name == "verdict" and total:
                allowed = {"validate": "list", "source": list(VERDICTS), "error_title": "verdict"}
                allowed["error_message"] = f"One of: {', '.join(VERDICTS)}; or nothing."
                sheet.data_validation(1, column, total, column, allowed)
        sheet.freeze_panes(1, 2 if self.pictures else 1)
        sheet.autofilter(0, 0, total, len(shown) - 1)

    def _row(self, sheet: Any, number: int, row: StoredRow) -> None:
        if self.pictures:
            self._thumbnail(sheet, number, self.pictures, row)
        for column, name in enumerate(self.columns, 1 if self.pictures else 0):
            value = row.get(name)
            if isinstance(value, int | float):
                sheet.write_number(number, column, value)
            elif value is not None:
                text, cut = fitted(visible(text_of(value)))
                self.cut += cut
                if sheet.write_string(number, column, text) != 0:
                    raise StoreError(f"row {number}: a cell of {len(text):,} characters was refused; use --to csv.")

    def _thumbnail(self, sheet: Any, number: int, pictures: Pictures, row: StoredRow) -> None:
        sheet.set_row_pixels(number, _THUMBNAIL + 4)
        picture = pictures.opened(row)
        if picture is None:
            return
        picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=80)
        place = {"image_data": data, "x_offset": 2, "y_offset": 2, "object_position": 1, "decorative": True}
        sheet.insert_image(number, 0, "thumbnail.jpg", place)

    def _notes(self) -> list[str]:
        notes = notes_on_cut(self.cut)
        if self.pictures and (gone := self.pictures.missing):
            lacking = f"{count(len(gone), 'image')} without a thumbnail (gone, changed since the scan, or unreadable)"
            notes.append(f"{lacking}, first: {gone[0]}")
        return notes


class _Sink:
    """Takes bytes and keeps the first error to itself; a ZipFile that met one would complain again when collected."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            if self.error is None:
                self._file.write(data)
        except OSError as error:
            self.error = error
        return len(data)

    def flush(self) -> None:
        """Whoever opened the file flushes it."""
