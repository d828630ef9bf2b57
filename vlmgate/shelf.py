"""Mappings and sets that lie in a file, so that a night of images takes no more memory than an hour of them.

Knows SQLite and the folder for temporary files; knows nothing of what is kept. A shelf belongs to one run: its file is
for nobody else to find, holds nothing that is not in the journal too, and is gone when the run ends. Where the folder
has little room, what is kept stays in memory after all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, MutableMapping, MutableSet
from typing import Generic, TypeVar

from vlmgate.errors import StoreError, one_line

V = TypeVar("V")
Slot = tuple[str, int]

CACHE = 512  # KiB that a shelf keeps in memory; what is beyond lies in the file
ROOM = 2**30  # bytes that must be free; a hundred thousand images take some 60 MB
_AT_ONCE = 1000  # slots


def _new_file() -> str | None:
    """Return a new, empty file that only this user can open; None where there is no room for one."""
    try:
        if shutil.disk_usage(tempfile.gettempdir()).free < ROOM:
            return None
        descriptor, file = tempfile.mkstemp(prefix="vlmgate-", suffix=".shelf")
        os.close(descriptor)
    except OSError:
        return None
    return file


def _put_away(db: sqlite3.Connection, file: str | None) -> None:
    db.close()
    if file is not None:
        with contextlib.suppress(OSError):
            os.unlink(file)  # noqa: PTH108


class Shelf(MutableMapping[Slot, V], Generic[V]):
    """A mapping from (name, number) to values that can be told as text, in the order of its keys.

    Threads may share it; what is written while it is iterated over may be met or not. Raises `StoreError` where the
    folder for temporary files has no room.
    """

    def __init__(self, encode: Callable[[V], str], decode: Callable[[str], V]) -> None:
        self._encode, self._decode = encode, decode
        self._lock = threading.RLock()
        file = _new_file()
        self._db = sqlite3.connect(file or ":memory:", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, _put_away, self._db, file)
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE}"):
            self._run(f"PRAGMA {setting}")
        self._run(
            "CREATE TABLE shelf (name TEXT, number INTEGER, value TEXT, PRIMARY KEY (name, number)) WITHOUT ROWID"
        )
        self._run("BEGIN EXCLUSIVE")  # never ended: nothing of it has to outlast the run
        if file and os.name == "posix":
            os.unlink(file)  # noqa: PTH108 - from here on nobody can open it, and nothing is left of it, come what may

    def _run(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[str, ...]]:
        try:
            with self._lock:
                return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(
                f"{tempfile.gettempdir()}: the folder for temporary files cannot be used ({one_line(error)}); make "
                "room, or name another in TMPDIR; the same command resumes."
            ) from error

    def __getitem__(self, slot: Slot) -> V:
        found = self._run("SELECT value FROM shelf WHERE name = ? AND number = ?", slot)
        if not found:
            raise KeyError(slot)
        return self._decode(found[0][0])

    def __contains__(self, slot: object) -> bool:
        return isinstance(slot, tuple) and bool(self._run("SELECT 1 FROM shelf WHERE name = ? AND number = ?", slot))

    def __setitem__(self, slot: Slot, value: V) -> None:
        self._run("INSERT OR REPLACE INTO shelf VALUES (?, ?, ?)", (*slot, self._encode(value)))

    def __delitem__(self, slot: Slot) -> None:
        if slot not in self:
            raise KeyError(slot)
        self._run("DELETE FROM shelf WHERE name = ? AND number = ?", slot)

    def __len__(self) -> int:
        return int(self._run("SELECT count(*) FROM shelf")[0][0])

    def __bool__(self) -> bool:
        return bool(self._run("SELECT 1 FROM shelf LIMIT 1"))

    def __iter__(self) -> Iterator[Slot]:
        some = self._run("SELECT name, number FROM shelf ORDER BY name, number LIMIT ?", (_AT_ONCE,))
        while some:
            slots = [(name, int(number)) for name, number in some]
            yield from slots
            some = self._run(
                "SELECT name, number FROM shelf WHERE (name, number) > (?, ?) ORDER BY name, number LIMIT ?",
                (*slots[-1], _AT_ONCE),
            )

    def names(self) -> Iterator[str]:
        """Return every name that there is something under, once and in order."""
        last = None
        for name, _ in self:
            if name != last:
                yield name
            last = name

    def under(self, name: str) -> dict[int, V]:
        """Return what there is under a name, by number and in order."""
        found = self._run("SELECT number, value FROM shelf WHERE name = ? ORDER BY number", (name,))
        return {int(number): self._decode(value) for number, value in found}


class SlotSet(MutableSet[Slot]):
    """A set of (name, number) on a shelf."""

    def __init__(self, slots: Iterable[Slot] = ()) -> None:
        self._shelf: Shelf[str] = Shelf(str, str)
        for slot in slots:
            self.add(slot)

    def __contains__(self, slot: object) -> bool:
        return slot in self._shelf

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._shelf)

    def __len__(self) -> int:
        return len(self._shelf)

    def add(self, value: Slot) -> None:
        """Put it there, if it is not."""
        self._shelf[value] = ""

    def discard(self, value: Slot) -> None:
        """Take it away, if it is there."""
        self._shelf.pop(value, None)
