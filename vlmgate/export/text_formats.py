"""CSV and TSV: for programs exactly as stored, for Excel so that nothing in them is run.

Knows cells, quotes and separators; knows nothing of where a row comes from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, ClassVar

from vlmgate.export.cells import (
    CELL_CHARACTERS,
    begins_formula,
    check_sheet,
    defused,
    fitted,
    text_of,
    visible,
)
from vlmgate.export.rows import Row, Rows
from vlmgate.export.writers import count

_AT_ONCE = 512  # lines


@dataclass(slots=True)
class PlainWriter:
    """Writes UTF-8 without a byte order mark, LF, every text as it is; null is an empty cell, an empty text `""`."""

    columns: Sequence[str]
    separator: str = ","
    binary: ClassVar[bool] = False
    formulas: int = 0  # cells that a spreadsheet would run
    _quoted: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # What a cell is quoted for; the csv module would leave a lone carriage return bare beside LF.
        self._quoted = re.compile(f'[{self.separator}"\r\n\0]|^\\s|\\s$|^$')

    def write(self, rows: Rows, file: BinaryIO) -> list[str]:
        """Write all rows."""
        for lines in _grouped(self._lines(rows)):
            file.write("".join(lines).encode())
        if not self.formulas:
            return []
        cells = count(self.formulas, "cell")
        return [f"{cells} would be run by a spreadsheet as a formula; to open this in one, use --to excel-csv or xlsx."]

    def _lines(self, rows: Rows) -> Iterator[str]:
        yield self.separator.join(map(self._cell, self.columns)) + "\n"
        for row in rows:
            line = self.separator.join([self._cell(row.get(name)) for name in self.columns])
            yield (line or '""') + "\n"  # an empty line would be no row

    def _cell(self, value: Any) -> str:
        if value is None:
            return ""
        text = text_of(value)
        if isinstance(value, int | float):
            return text
        self.formulas += begins_formula(text)
        return '"' + text.replace('"', '""') + '"' if self._quoted.search(text) else text


@dataclass(slots=True)
class ExcelWriter:
    """Writes UTF-8 with a byte order mark, CRLF, a ' before what Excel would run, a mark where it would cut.

    Raises `UsageError` where there are more rows than a sheet has.
    """

    columns: Sequence[str]
    binary: ClassVar[bool] = False
    cut: int = 0

    def write(self, rows: Rows, file: BinaryIO) -> list[str]:
        """Write all rows."""
        check_sheet(len(rows))
        file.write(b"\xef\xbb\xbf")
        for lines in _grouped(self._lines(rows)):
            file.write("".join(lines).encode())
        return [f"{count(self.cut, 'cell')} cut at Excel's {CELL_CHARACTERS:,} characters."] if self.cut else []

    def _lines(self, rows: Rows) -> Iterator[str]:
        yield ",".join(map(self._cell, self.columns)) + "\r\n"
        for row in rows:
            yield self._line(row)

    def _line(self, row: Row) -> str:
        return ",".join([self._cell(row.get(name)) for name in self.columns]) + "\r\n"

    def _cell(self, value: Any) -> str:
        if value is None:
            return ""
        text = text_of(value)
        if isinstance(value, int | float):
            return text
        text, cut = fitted(defused(visible(text)))
        self.cut += cut
        return '"' + text.replace('"', '""') + '"'


def _grouped(lines: Iterator[str]) -> Iterator[list[str]]:
    group: list[str] = []
    for line in lines:
        group.append(line)
        if len(group) == _AT_ONCE:
            yield group
            group = []
    yield group
