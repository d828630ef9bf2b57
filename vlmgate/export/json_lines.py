"""JSON Lines: an object a row, lists as lists, null as null.

Knows JSON; knows nothing of where a row comes from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

from vlmgate.export.rows import Rows

_LINE_ENDS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


@dataclass(frozen=True, slots=True)
class JsonLinesWriter:
    """Writes every text as it is, in UTF-8."""

    columns: Sequence[str]
    binary: ClassVar[bool] = False

    def write(self, rows: Rows, file: BinaryIO) -> list[str]:
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
