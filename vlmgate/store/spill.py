"""Mappings and sets that lie in a file, so that a night of images takes no more memory than an hour of them.

Knows SQLite and the folder for temporary files; knows nothing of what is kept. A shelf belongs to one run: its file is
for nobody else to find, holds nothing that is not in the journal too, and is gone when the run ends. Where the folder
has little room, or none any more in the middle of a night, what is kept is in memory after all.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, MutableMapping, MutableSet
from typing import Generic, TypeVar

from vlmgate.errors import StoreError, one_line

log = logging.getLogger(__name__)

V = TypeVar("V")
Slot = tuple[str, int]

CACHE = 512  # KiB that a shelf keeps in memory; what is beyond lies in the file
ROOM = 2**30  # bytes that must be free; a hundred thousand images take 80 MB in all
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


def _opened(file: str | None) -> sqlite3.Connection:
    """Return an empty shelf in a file, or in memory; every statement is whole on its own, or has done nothing."""
    db = sqlite3.connect(file or ":memory:", isolation_level=None, check_same_thread=False)
    try:
        for setting in ("locking_mode = EXCLUSIVE", "journal_mode = MEMORY", "synchronous = OFF"):
            db.execute(f"PRAGMA {setting}").fetchall()
        db.execute(f"PRAGMA cache_size = -{CACHE}")
        db.execute(
            "CREATE TABLE shelf (name TEXT, number INTEGER, value TEXT, PRIMARY KEY (name, number)) WITHOUT ROWID"
        )
    except BaseException:
        db.close()
        raise
    return db


def _in_memory(db: sqlite3.Connection) -> sqlite3.Connection:
    """Return a copy of a shelf that is in memory."""
    copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    try:
        db.backup(copy)
    except BaseException:
        copy.close()
        raise
    return copy


def _unlink(file: str | None) -> None:
    if file is not None:
        with contextlib.suppress(OSError):
            os.unlink(file)  # noqa: PTH108


def _put_away(db: sqlite3.Connection, file: str | None) -> None:
    db.close()
    _unlink(file)


class Shelf(MutableMapping[Slot, V], Generic[V]):
    """A mapping from (name, number) to values that can be told as text, in the order of its keys.

    Threads may share it; what is written while it is iterated over may be met or not. Raises `StoreError` where the
    folder for temporary files fails and what lies there cannot be had any more; from then on it always does.
    """

    def __init__(self, encode: Callable[[V], str], decode: Callable[[str], V]) -> None:
        self._encode, self._decode = encode, decode
        self._lock = threading.RLock()
        self._broken: sqlite3.Error | None = None
        file = _new_file()
        try:
            self._db = _opened(file)
        except sqlite3.Error as error:  # some network disks know no locks
            log.warning("%s: not used for what a run remembers", file, exc_info=error)
            _unlink(file)
            file = None
            self._db = _opened(None)
        self._closing = weakref.finalize(self, _put_away, self._db, file)
        self._in_file = file is not None
        if os.name == "posix":
            _unlink(file)  # from here on nobody can open it, and nothing is left of it, come what may

    def _run(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[str, ...]]:
        with self._lock:
            try:
                if self._broken is not None:
                    raise self._broken
                try:
                    return self._db.execute(statement, values).fetchall()
                except sqlite3.OperationalError as error:
                    if not self._in_file:
                        raise
                    log.warning("the folder for temporary files fails; going on in memory", exc_info=error)
                    self._move(_in_memory(self._db))
                    return self._db.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                self._broken = error  # what is left may be less than was put there
                raise StoreError(
                    f"{tempfile.gettempdir()}: the folder for temporary files cannot be used ({one_line(error)}); make "
                    "room, or name another in TMPDIR; the same command resumes."
                ) from error

    def _move(self, db: sqlite3.Connection) -> None:
        put_away = self._closing
        self._db, self._in_file, self._closing = db, False, weakref.finalize(self, _put_away, db, None)
        put_away()

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

    def numbers(self, name: str) -> list[int]:
        """Return the numbers that there is something at under a name, in order; nothing of it is read."""
        found = self._run("SELECT number FROM shelf WHERE name = ? ORDER BY number", (name,))
        return [int(number) for (number,) in found]

    def under(self, name: str) -> dict[int, V]:
        """Return what there is under a name, by number and in order."""
        found = self._run("SELECT number, value FROM shelf WHERE name = ? ORDER BY number", (name,))
        return {int(number): self._decode(value) for number, value in found}

    def values_under(self, name: str) -> Iterator[V]:
        """Return what there is under a name, in order; what is not asked for costs nothing."""
        select = "SELECT number, value FROM shelf WHERE name = ? AND number > ? ORDER BY number LIMIT ?"
        some = self._run(select, (name, -(2**63), 1))
        while some:
            yield from (self._decode(value) for _, value in some)
            some = self._run(select, (name, some[-1][0], _AT_ONCE))


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
