"""What a run remembers of its images, in one temporary file, so that a night takes no more memory than an hour.

Make one `Index`, and a `Table` in it for each kind of thing. All that it holds can be made again from the journal, and
it is gone when the run ends. Where the folder for temporary files (TMPDIR) fails or fills up, it goes on in memory.
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
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, Generic, TypeVar

from vlmgate.errors import StoreError, one_line

log = logging.getLogger(__name__)

K = TypeVar("K", bound=tuple[Any, ...])
V = TypeVar("V")

ROOM = 2**30  # bytes that must be free; else the index is in memory from the beginning
CACHE = 1024  # KiB that an index keeps in memory; what is beyond lies in the file: 80 MB for a hundred thousand images
_AT_ONCE = 1000  # rows


class Index:
    """A temporary SQLite database; threads may share it.

    Raises `StoreError` once what lies there is lost, and from then on always: it must not pass for what was not read.
    """

    def __init__(self) -> None:
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
        self._in_memory = file is None
        self._closing = weakref.finalize(self, _close, self._db, file)
        if os.name == "posix":
            _unlink(file)  # from here on nobody can open it, and nothing is left of it, come what may

    def run(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Return what a statement finds; each is whole by itself, or has done nothing."""
        with self._lock:
            try:
                if self._broken is not None:
                    raise self._broken
                try:
                    return self._db.execute(statement, values).fetchall()
                except sqlite3.OperationalError as error:
                    if self._in_memory:
                        raise
                    log.warning("the folder for temporary files fails; going on in memory", exc_info=error)
                    self._move()
                    return self._db.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                self._broken = error  # what is left may be less than was put there
                raise StoreError(
                    f"{tempfile.gettempdir()}: the folder for temporary files cannot be used ({one_line(error)}); make "
                    "room, or name another in TMPDIR; the same command resumes."
                ) from error

    def _move(self) -> None:
        """Go on in memory, with all that is there."""
        db = _opened(None)
        try:
            self._db.backup(db)
        except BaseException:
            db.close()
            raise
        self._closing()
        self._closing = weakref.finalize(self, _close, db, None)
        self._db, self._in_memory = db, True


def _new_file() -> str | None:
    """Return a new, empty file that only this user can open; None where there is no room for one."""
    try:
        if shutil.disk_usage(tempfile.gettempdir()).free < ROOM:
            return None
        descriptor, file = tempfile.mkstemp(prefix="vlmgate-", suffix=".index")
        os.close(descriptor)
    except OSError:
        return None
    return file


def _opened(file: str | None) -> sqlite3.Connection:
    """Return an empty database in a file, or in memory.

    SQLite's own temporary databases will not do: after a write for which the disk has no room, they cannot be read.
    """
    db = sqlite3.connect(file or ":memory:", isolation_level=None, check_same_thread=False)
    try:
        for setting in ("locking_mode = EXCLUSIVE", "journal_mode = MEMORY", "synchronous = OFF"):
            db.execute(f"PRAGMA {setting}").fetchall()
        db.execute(f"PRAGMA cache_size = -{CACHE}")
        db.execute("CREATE TABLE opened (k0)")  # so that the file is open before it loses its name
    except BaseException:
        db.close()
        raise
    return db


def _unlink(file: str | None) -> None:
    if file is not None:
        with contextlib.suppress(OSError):
            os.unlink(file)  # noqa: PTH108


def _close(db: sqlite3.Connection, file: str | None) -> None:
    db.close()
    _unlink(file)


class Table(MutableMapping[K, V], Generic[K, V]):
    """A mapping from keys, tuples of `columns` texts and numbers, to values, in the order of the keys.

    `encode` and `decode` turn a value into text and back. What is written while it is iterated over may be met or not.
    A table of that name from before is emptied.
    """

    def __init__(
        self, index: Index, name: str, columns: int, encode: Callable[[V], str], decode: Callable[[str], V]
    ) -> None:
        self.index, self._name, self._encode, self._decode = index, name, encode, decode
        self._columns, keys = columns, [f"k{i}" for i in range(columns)]
        self._keys, self._marks = ", ".join(keys), ", ".join("?" * columns)
        index.run(f"DROP TABLE IF EXISTS {name}")
        index.run(f"CREATE TABLE {name} ({self._keys}, value, PRIMARY KEY ({self._keys})) WITHOUT ROWID")

    def __getitem__(self, key: K) -> V:
        found = self._where("SELECT value", key)
        if not found:
            raise KeyError(key)
        return self._decode(found[0][0])

    def __contains__(self, key: object) -> bool:
        return isinstance(key, tuple) and bool(self._where("SELECT 1", key))

    def __setitem__(self, key: K, value: V) -> None:
        self.index.run(f"INSERT OR REPLACE INTO {self._name} VALUES ({self._marks}, ?)", (*key, self._encode(value)))

    def __delitem__(self, key: K) -> None:
        if key not in self:
            raise KeyError(key)
        self._where("DELETE", key)

    def __len__(self) -> int:
        return int(self.index.run(f"SELECT count(*) FROM {self._name}")[0][0])

    def __bool__(self) -> bool:
        return bool(self.index.run(f"SELECT 1 FROM {self._name} LIMIT 1"))

    def __iter__(self) -> Iterator[K]:
        order = f"ORDER BY {self._keys} LIMIT {_AT_ONCE}"
        some: list[Any] = self.index.run(f"SELECT {self._keys} FROM {self._name} {order}")
        while some:
            yield from some
            after = f"WHERE ({self._keys}) > ({self._marks})"
            some = self.index.run(f"SELECT {self._keys} FROM {self._name} {after} {order}", some[-1])

    def names(self) -> Iterator[Any]:
        """Return the first parts of the keys, each once and in order."""
        last = None
        for name, *_ in self:
            if name != last:
                yield name
            last = name

    def under(self, name: str) -> Iterator[tuple[int, V]]:
        """Return the second parts and the values of the keys (name, number), in order; the first costs little."""
        select = f"SELECT k1, value FROM {self._name} WHERE k0 = ? AND k1 > ? ORDER BY k1 LIMIT ?"
        some = self.index.run(select, (name, -(2**63), 1))
        while some:
            for number, value in some:
                yield number, self._decode(value)
            some = self.index.run(select, (name, some[-1][0], _AT_ONCE))

    def _where(self, what: str, key: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if len(key) != self._columns:
            return []
        return self.index.run(f"{what} FROM {self._name} WHERE ({self._keys}) = ({self._marks})", key)
