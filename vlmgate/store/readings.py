"""The readings of a journal, which stay in its file; in an index there is where to find each.

Call `Readings.put` for a line that was written; look up by content. `Seen` adds what a round of reading is at.
"""

from __future__ import annotations

import io
import json
import logging
import threading
import weakref
from collections.abc import ItemsView, Iterator, Mapping, MutableSet
from pathlib import Path
from typing import Any

from vlmgate.data import Content, Reading, Unreadable, content_of
from vlmgate.errors import StoreError
from vlmgate.store.index import Index, Table
from vlmgate.store.lines import LineForm, parsed

log = logging.getLogger(__name__)


class Readings(Mapping[Content, Reading]):
    """The readings of a journal, each taken from its line when it is asked for.

    One whose line turns out not to be what it was is not there any more, so that nothing is decided on it. Threads may
    share it.
    """

    def __init__(self, path: Path, index: Index, form: LineForm) -> None:
        self._path, self._form = path, form
        self._places: Table[Content, list[int]] = Table(index, "readings", 3, json.dumps, json.loads)  # byte, length
        self._lock = threading.RLock()
        self._file: io.FileIO | None = None
        self._closing: Any = None

    def __getitem__(self, content: Content) -> Reading:
        begin, length = self._places[content]
        line = parsed(self._bytes(begin, length))
        try:
            entry, _ = self._form.from_json(line or {})
        except Exception as error:
            entry = Unreadable("", repr(error))
        if not isinstance(entry, Reading) or content_of(entry.image) != content:
            log.error("%s: the line at byte %d is not what was written there", self._path, begin)
            self._places.pop(content, None)
            raise KeyError(content)
        return entry

    def __contains__(self, content: object) -> bool:
        return content in self._places

    def __iter__(self) -> Iterator[Content]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __bool__(self) -> bool:
        return bool(self._places)

    def items(self) -> ItemsView[Content, Reading]:
        """Return contents and readings, less those that turn out not to be there."""
        return _There(self)

    def put(self, content: Content, begin: int, length: int) -> None:
        """Say which bytes of the file hold a reading from now on."""
        self._places[content] = [begin, length]

    def forget(self, content: Content) -> None:
        """Take a reading as not there; in the file it stays."""
        del self._places[content]

    def hold(self) -> None:
        """Open the file now: from then on its name may be taken away, and what it holds is still there."""
        with self._lock:
            if self._file is None:
                self._file = io.FileIO(self._path)
                self._closing = weakref.finalize(self, self._file.close)

    def close(self) -> None:
        """Let go of the file, until a reading is asked for."""
        with self._lock:
            if self._closing is not None:
                self._closing()
            self._file = self._closing = None

    def _bytes(self, begin: int, length: int) -> bytes:
        try:
            with self._lock:
                self.hold()
                assert self._file is not None
                self._file.seek(begin)
                parts = b""
                while len(parts) < length and (part := self._file.read(length - len(parts))):
                    parts += part
                return parts
        except OSError as error:
            raise StoreError(
                f"{self._path}: cannot be read ({error.strerror}); the same command resumes once it can."
            ) from error


class _There(ItemsView[Content, Reading]):
    def __iter__(self) -> Iterator[tuple[Content, Reading]]:
        readings: Mapping[Content, Reading] = self._mapping  # type: ignore[attr-defined]  # unknown to the type stubs
        found = ((content, readings.get(content)) for content in readings)
        return ((content, reading) for content, reading in found if reading is not None)


class Seen(MutableSet[Content]):
    """The contents that have a reading, and those that were added in this round because one is under way."""

    def __init__(self, readings: Readings, rounds: Table[Content, int], now: int) -> None:
        self._readings, self._rounds, self._now = readings, rounds, now

    def __contains__(self, content: object) -> bool:
        return content in self._readings or self._is_under_way(content)

    def __iter__(self) -> Iterator[Content]:
        yield from self._readings
        yield from (one for one in self._rounds if one not in self._readings and self._is_under_way(one))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def add(self, value: Content) -> None:
        """Say that a reading is under way."""
        self._rounds[value] = self._now

    def discard(self, value: Content) -> None:
        """Say that none is under way any more."""
        self._rounds.pop(value, None)

    def _is_under_way(self, content: Any) -> bool:
        return self._rounds.get(content) == self._now
