"""Formats of lines: CSV and TSV for programs, CSV for Excel, JSON Lines; and a value as the text of a cell, and back.

What is done to a text so that a spreadsheet takes it for text can be undone. What a spreadsheet cannot hold is
shown as an escape.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from vlmgate.data import Record
from vlmgate.errors import UsageError, count
from vlmgate.export.rows import StoredRow, StoredRows, Writer

# As a person reads a sheet: which image, where it goes, what to fill in, what was said, how sure, how well taken.
SHEET = (
    *("file_name", "page", "route", "reason", "verdict", "caption", "captions", "answer", "answer_share"),
    *("answer_probability", "vendi_score", "agreement", "support", "verdict_share", "contradiction", "novelty"),
    *("decided_by", "threshold", "sharpness", "exposure", "noise", "width", "height", "conversion", "error"),
    *("duplicate_of", "sha256"),
)
BETWEEN = " | "  # entries of a list; a | or a \ within one is written \| and \\
CELL_CHARACTERS = 32_767  # of Excel, in UTF-16 units
SHEET_ROWS = 1_048_576  # of Excel, the header included

# Control characters, and those that XML has no room for; a carriage return would come back as a line feed.
_UNHOLDABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ufffe\uffff]")
# Blanks that a spreadsheet may strip before it looks whether a formula follows.
_BLANK = "[ \u00a0\u1680\u2000-\u200d\u202f\u205f\u2060\u3000\ufeff]*"
_BEGINS = "=+\\-@＝＋－＠'"  # a formula, in half or full width; ' so that undoing is exact
_TOKENS = re.compile(r"\\.| \| |[^\\ ]+| ", re.DOTALL)
# A cell ends at its quotes only where Excel looks for commas. Where it looks for semicolons or tabs, as it does in much
# of Europe, a cell falls apart at them, so what follows one inside a cell must not begin a formula either.
_DANGER = re.compile(f"^(?=[\t\n\r])|((?:^|[;\t\n\r]){_BLANK})(?=[{_BEGINS}])")
_FIRST = frozenset("=+-@\t\r")  # of what a spreadsheet runs in a plain CSV
_DEFUSED = re.compile(f"^'(?=[\t\n\r])|((?:^|[;\t\n\r]){_BLANK})'(?=[{_BEGINS}])")
_LINE_ENDS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


class PlainWriter(Writer):
    """Writes UTF-8 without a byte order mark, LF, every text as it is; null is an empty cell, an empty text `""`."""

    usual, fill_in = SHEET, True
    start: ClassVar[bytes] = b""
    separator: ClassVar[str] = ","
    end: ClassVar[str] = "\n"
    blank: ClassVar[str] = '""'  # in the place of an empty line, which would be no row
    quoted: ClassVar[re.Pattern[str]] = re.compile('[,"\r\n\0]|^\\s|\\s$|^$')  # csv leaves a lone CR bare beside LF
    counted = 0  # cells that a spreadsheet would run

    def write(self, rows: Iterable[StoredRow], file: BinaryIO) -> list[str]:
        """Write all rows."""
        file.write(self.start)
        values = ([row.get(name) for name in self.columns] for row in rows)
        for cells in chain([self.columns], values):
            line = self.separator.join(map(self._cell, cells))
            file.write(((line or self.blank) + self.end).encode())
        return self._notes()

    def _cell(self, value: Any) -> str:
        if value is None:
            return ""
        text = text_of(value)
        return text if isinstance(value, int | float) else self._text(text)

    def _text(self, text: str) -> str:
        self.counted += text[:1] in _FIRST
        return '"' + text.replace('"', '""') + '"' if self.quoted.search(text) else text

    def _notes(self) -> list[str]:
        run = f"{count(self.counted, 'cell')} would be run by a spreadsheet as a formula; to open this in one, "
        return [f"{run}use --to excel-csv or xlsx."] if self.counted else []


class TabWriter(PlainWriter):
    """Writes what `PlainWriter` does with tabs for commas."""

    separator = "\t"
    quoted = re.compile('[\t"\r\n\0]|^\\s|\\s$|^$')


class ExcelWriter(PlainWriter):
    """Writes UTF-8 with a byte order mark, CRLF, a ' before what Excel would run, a mark where it would cut.

    Raises `UsageError` where there are more rows than a sheet has.
    """

    start, end, blank = b"\xef\xbb\xbf", "\r\n", ""

    def save(self, rows: StoredRows, out: Path | None) -> tuple[list[Path], list[str]]:
        """Write as every writer does, if a sheet holds so many rows."""
        check_sheet(len(rows))
        return super().save(rows, out)

    def _text(self, text: str) -> str:
        text, cut = fitted(defused(visible(text)))
        self.counted += cut
        return '"' + text.replace('"', '""') + '"'

    def _notes(self) -> list[str]:
        return notes_on_cut(self.counted)


class JsonLinesWriter(Writer):
    """Writes an object a row, in UTF-8: every text as it is, lists as lists, null as null."""

    usual = tuple(name for name in Record.__dataclass_fields__ if name != "vision_features")

    def write(self, rows: Iterable[StoredRow], file: BinaryIO) -> list[str]:
        """Write all rows."""
        for row in rows:
            file.write(dumped({name: row.get(name) for name in self.columns}) + b"\n")
        return []


def dumped(value: Any) -> bytes:
    """Return JSON on one line, whatever a reader takes for the end of a line; numbers that JSON has not are null."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        text = json.dumps(_without_nan(value), ensure_ascii=False, default=_plain)
    return text.translate(_LINE_ENDS).encode()


def _plain(value: Any) -> Any:
    """Return what a column that somebody else added may hold, as JSON can: a date, a decimal, bytes."""
    return value.hex() if isinstance(value, bytes) else str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return {key: _without_nan(one) for key, one in value.items()} if isinstance(value, dict) else value


# --- cells ------------------------------------------------------------------------------------------------------------


def text_of(value: Any) -> str:
    """Return a value as text: null as nothing, a list as its entries side by side, a number so that it reads back."""
    if isinstance(value, list | tuple):
        return joined(value)
    return "" if value is None else str(value)


def joined(values: Sequence[Any]) -> str:
    """Return the entries of a list as one readable text that `split` takes apart again."""
    return BETWEEN.join(text_of(value).replace("\\", "\\\\").replace("|", "\\|") for value in values)


def split(text: str) -> list[str]:
    """Return the entries that were joined."""
    entries: list[list[str]] = [[]]
    for token in _TOKENS.findall(text):
        if token == BETWEEN:
            entries.append([])
        else:
            entries[-1].append(token[1:] if token[0] == "\\" else token)
    return ["".join(entry) for entry in entries]


def defused(text: str) -> str:
    """Return the text with a ' before whatever a spreadsheet would run as a formula; `undefused` takes it away."""
    return _DANGER.sub(r"\1'", text)


def undefused(text: str) -> str:
    """Return the text as it was before `defused`."""
    return _DEFUSED.sub(r"\1", text)


def visible(text: str) -> str:
    r"""Return the text with each character that no spreadsheet can hold as an escape that can be seen: \x00."""
    return _UNHOLDABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def fitted(text: str) -> tuple[str, bool]:
    """Return the text, cut where Excel would, with a mark that says so; and whether it was cut."""
    units = text.encode("utf-16-le", "surrogatepass") if 2 * len(text) > CELL_CHARACTERS else b""
    if len(units) <= 2 * CELL_CHARACTERS:
        return text, False
    mark = f" … [cut: {len(text):,} characters]"
    room = 2 * (CELL_CHARACTERS - len(mark))  # bytes
    return units[:room].decode("utf-16-le", "ignore") + mark, True  # without half a character


def check_sheet(rows: int) -> None:
    """Raise `UsageError` where a sheet of Excel does not hold so many rows."""
    if rows > SHEET_ROWS - 1:
        raise UsageError(
            f"{rows:,} rows, and a sheet of Excel holds {SHEET_ROWS - 1:,} and a header; "
            "use --only routed, or --to csv."
        )


def notes_on_cut(cells: int) -> list[str]:
    """Return what the user should know of cells that were cut."""
    return [f"{count(cells, 'cell')} cut at Excel's {CELL_CHARACTERS:,} characters."] if cells else []
