"""A value as the text of a cell, and back.

Knows strings and numbers; knows nothing of files. What is done to a text so that a spreadsheet takes it for text can be
undone, but for what a spreadsheet cannot hold: that is shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from vlmgate.errors import UsageError

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
_FIRST = frozenset("=+-@\t\r")
_DEFUSED = re.compile(f"^'(?=[\t\n\r])|((?:^|[;\t\n\r]){_BLANK})'(?=[{_BEGINS}])")


def text_of(value: Any) -> str:
    """Return a value as text: null as nothing, a list as its entries side by side, a number so that it reads back."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return joined(value)
    return str(value)


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
    if 2 * len(text) <= CELL_CHARACTERS or _units(text) <= CELL_CHARACTERS:
        return text, False
    mark = f" … [cut: {len(text):,} characters]"
    room, end = CELL_CHARACTERS - len(mark), 0
    for character in text:
        room -= 2 if character > "\uffff" else 1
        if room < 0:
            break
        end += 1
    return text[:end] + mark, True


def _units(text: str) -> int:
    return len(text) + sum(character > "\uffff" for character in text)


def begins_formula(text: str) -> bool:
    """Say whether a spreadsheet would take the text for a formula."""
    return text[:1] in _FIRST and text != ""


def check_sheet(rows: int) -> None:
    """Raise `UsageError` where a sheet of Excel does not hold so many rows."""
    if rows > SHEET_ROWS - 1:
        raise UsageError(
            f"{rows:,} rows, and a sheet of Excel holds {SHEET_ROWS - 1:,} and a header; "
            "use --only routed, or --to csv."
        )
