"""What a writer is.

Knows the shape of writers; each format is a module of its own.
"""

from __future__ import annotations

from typing import BinaryIO, ClassVar, Protocol

from vlmgate.export.rows import Rows


class Writer(Protocol):
    """Writes rows in one format, in the order in which they come unless the format's docstring says otherwise."""

    binary: ClassVar[bool]  # nothing that a terminal could show

    def write(self, rows: Rows, file: BinaryIO) -> list[str]:
        """Write all rows; return what the user should know of them, a line each."""
        ...


def count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
