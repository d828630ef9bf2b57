"""The journal of a run: what a model said of which bytes, written as it is said.

Knows lines and files; knows nothing of models or of how a decision is reached.

`OUT.journal.jsonl` is the truth while a run lasts: a header line, then one line per image page, forced to the disk
batch by batch. A line holds what the model said, not what was decided, so that another limit needs no model. Killed at
any moment it is at worst two batches behind; what is torn at its end, or damaged anywhere, is dropped and read again.
What was read stays in the file: in memory there is where to find it, and that lies on shelves (see `shelf`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import uuid
import weakref
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from vlmgate.data import (
    Content,
    Duplicate,
    Entry,
    Failure,
    Found,
    Key,
    Read,
    Reading,
    Unreadable,
    content_of,
    key_of,
)
from vlmgate.errors import OutputError, ResumeError, StoreError
from vlmgate.store.files import sync_folder, unused
from vlmgate.store.lines import (
    checked,
    counts_of,
    found_as_text,
    found_of_text,
    from_json,
    is_place,
    parsed,
    sealed,
    to_json,
)
from vlmgate.store.spill import Shelf

log = logging.getLogger(__name__)

JOURNAL_VERSION = 1
_OPENING = b'{"vlmgate_journal"'
_MOST_PAGES = 2**31


class Readings(Mapping[Content, Reading]):
    """The readings of a journal, each taken from its line when it is asked for.

    One whose line turns out not to be what it was is not there any more, so that nothing is decided on it. Threads may
    share it.
    """

    def __init__(self, path: Path, counts: range | None) -> None:
        self._path, self._counts = path, counts
        self._places: Shelf[tuple[int, int]] = Shelf(_place_as_text, _place_of_text)  # byte, number of bytes
        self._lock = threading.RLock()
        self._open: int | None = None  # descriptor
        self._closing: Any = None

    def __getitem__(self, content: Content) -> Reading:
        begin, length = self._places[content]
        line = parsed(self._bytes(begin, length))
        try:
            entry, _ = from_json(line or {}, self._counts)
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
        """Say which line holds a reading from now on."""
        self._places[content] = begin, length

    def forget(self, content: Content) -> None:
        """Take a reading as not there; in the file it stays."""
        del self._places[content]

    def hold(self) -> None:
        """Open the file now: from then on its name may be taken away, and what it holds is still there."""
        with self._lock:
            if self._open is None:
                self._open = os.open(self._path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                self._closing = weakref.finalize(self, os.close, self._open)

    def close(self) -> None:
        """Let go of the file, until a reading is asked for."""
        with self._lock:
            if self._closing is not None:
                self._closing()
            self._open = self._closing = None

    def _bytes(self, begin: int, length: int) -> bytes:
        try:
            with self._lock:
                self.hold()
                assert self._open is not None
                os.lseek(self._open, begin, os.SEEK_SET)
                parts = []
                while length > 0 and (part := os.read(self._open, length)):
                    parts.append(part)
                    length -= len(part)
                return b"".join(parts)
        except OSError as error:
            raise StoreError(
                f"{self._path}: cannot be read ({error.strerror}); the same command resumes once it can."
            ) from error


class _There(ItemsView[Content, Reading]):
    def __init__(self, readings: Readings) -> None:
        super().__init__(readings)
        self._readings = readings

    def __iter__(self) -> Iterator[tuple[Content, Reading]]:
        for content in self._readings:
            reading = self._readings.get(content)
            if reading is not None:
                yield content, reading


def _place_as_text(place: tuple[int, int]) -> str:
    return f"{place[0]} {place[1]}"


def _place_of_text(text: str) -> tuple[int, int]:
    begin, length = text.split()
    return int(begin), int(length)


@dataclass(frozen=True, slots=True)
class _Line:
    """A line, and where it lies."""

    told: dict[str, Any]
    begin: int  # bytes
    length: int  # bytes


@dataclass(slots=True)
class Journal:
    """What has been read so far: the file, and where in it what is.

    `readings` are kept for good: they belong to bytes, and bytes may come back. What was found under each name is that
    of the last time it was opened. Open with `Journal.open`, add a batch at a time with `append`, close.
    """

    path: Path
    run_id: str
    fingerprint: dict[str, Any]
    readings: Readings
    model: dict[str, Any] | None = None  # ModelInfo as a dict, once a model has been loaded
    dropped: int = 0  # lines that could not be used; what they held is read again
    _found: Shelf[Found] = field(default_factory=lambda: Shelf(found_as_text, found_of_text))  # by (file_name, page)
    _forgotten: dict[str, set[int]] = field(default_factory=dict)  # pages that the file still has, by their names
    _failed: set[Key] = field(default_factory=set)  # where the model has failed, now or before
    _then: dict[str, Any] = field(default_factory=dict)  # the fingerprint that the file was begun with
    _file: BinaryIO | None = None
    _length: int = 0  # bytes of the file

    @classmethod
    def open(cls, path: Path, fingerprint: Mapping[str, Any], *, restart: bool = False) -> Journal:
        """Open the journal of an earlier run with the same fingerprint, or begin one.

        A journal in which nothing was read yet is begun afresh. Raises `ResumeError` where the journal was made with
        other settings, `OutputError` where the file is no journal. With `restart` the old one is kept aside.
        """
        told: dict[str, Any] = json.loads(json.dumps(fingerprint))
        journal = cls(path, uuid.uuid4().hex, told, Readings(path, counts_of(told)))
        try:
            if restart and path.exists():
                os.replace(path, unused(path.with_suffix(".old.jsonl")))
            length = journal._load() if path.exists() else 0
            journal._start(length)
        except OSError as error:
            raise OutputError(f"{path}: cannot use the journal ({error.strerror}); give another -o.") from error
        return journal

    # --- what was found under a name ---

    def pages_of(self, file_name: str) -> dict[int, Found]:
        """Return what is known of the pages of one file, by their number and in its order."""
        return self._found.under(file_name)

    def entries_of(self, file_name: str) -> list[Found]:
        """Return what is known of the pages of one file, in their order."""
        return [*self.pages_of(file_name).values()]

    def failures(self) -> dict[Content, Failure]:
        """Return what the model failed on, the last time that it was opened."""
        found = (self._found.get(key) for key in sorted(self._failed))
        return {content_of(one.image): one for one in found if isinstance(one, Failure)}

    def file_names(self) -> Iterator[str]:
        """Return the files of which something is known, in order."""
        return self._found.names()

    def forget(self, file_name: str, keep: Iterable[int] = ()) -> None:
        """Drop, in memory, what was found under a name, but for some pages; readings stay."""
        for page in set(self._found.numbers(file_name)) - set(keep):
            del self._found[file_name, page]
            self._forgotten.setdefault(file_name, set()).add(page)

    def end(self, file_name: str, pages: Iterable[int]) -> None:
        """Say that a file was opened to its end and has these pages: others are of a file that is gone."""
        kept = {*pages}
        self.forget(file_name, keep=kept)
        if self._forgotten.pop(file_name, set()) - kept:  # seldom: what is read anew says so by itself
            self._write([sealed({"ended": file_name, "pages": sorted(kept)})])

    def _remember(self, entry: Entry, seconds: float | None, begin: int, length: int) -> None:
        """Remember what the `length` bytes of the file at `begin` say."""
        file_name, page = key_of(entry)
        if not isinstance(entry, Unreadable):
            others = self._found.values_under(file_name)
            other = next((e for e in others if not isinstance(e, Unreadable)), None)  # they are all of one file
            if other is not None and other.image.sha256 != entry.image.sha256:
                self.forget(file_name)  # the file was replaced, so its other pages are of a file that is gone
        if isinstance(entry, Reading):
            self.readings.put(content_of(entry.image), begin, length)
        if isinstance(entry, Failure):
            self._failed.add((file_name, page))
        if isinstance(entry, Duplicate):  # the same page, opened again
            before = self._found.get((file_name, page))
            seconds = before.seconds if isinstance(before, Read) else seconds
        known = entry if isinstance(entry, Failure | Unreadable) else Read(entry.image, seconds)
        self._found[file_name, page] = known

    # --- reading the file ---

    def _load(self) -> int:
        """Take up what the file holds; return how many of its bytes are whole lines of a journal that goes on."""
        length = 0
        empty = True
        batch: list[_Line] = []
        with self.path.open("rb") as file:
            if not self._is_ours(file.readline()):
                return 0
            length = file.tell()
            for line in file:
                if not line.endswith(b"\n"):  # torn
                    self.dropped += 1
                    break
                begin, length = length, length + len(line)
                entry = parsed(line)
                if entry is not None and isinstance(entry.get("model"), dict):
                    self.model = entry["model"]
                elif entry is not None and isinstance(entry.get("ended"), str):
                    self.forget(entry["ended"], keep=entry.get("pages") or ())
                    self._forgotten.pop(entry["ended"], None)
                elif entry is None or not is_place(entry.get("batch")):
                    self.dropped += 1
                    empty = False
                else:
                    empty = False
                    batch = self._gather(batch, _Line(entry, begin, len(line)))
        self.dropped += len(batch)
        if empty:  # no batch was ever read, so other settings are welcome
            self.model = None
            return 0
        _check_same(self.path, self._then, self.fingerprint)
        return length

    def _is_ours(self, header: bytes) -> bool:
        """Read the header line; False where the file is empty or torn in it; `OutputError` for another's file."""
        if not header.endswith(b"\n") and _OPENING.startswith(header[: len(_OPENING)]):
            return False
        told = parsed(header, checked=False)
        if told is None or told.get("vlmgate_journal") != JOURNAL_VERSION or not isinstance(told.get("run_id"), str):
            raise OutputError(
                f"{self.path}: is no journal of this version of vlmgate; move it away or give another -o."
            )
        self.run_id = told["run_id"]
        self._then = told["fingerprint"] if isinstance(told.get("fingerprint"), dict) else {}
        return True

    def _gather(self, batch: list[_Line], line: _Line) -> list[_Line]:
        """Add a line to its batch; take the batch up when it is whole, and return what is still open."""
        place, size = line.told["batch"]
        if place == 0:
            self.dropped += len(batch)
            batch = []
        if place != len(batch) or (batch and batch[0].told["batch"][1] != size):
            self.dropped += len(batch) + 1
            return []
        batch.append(line)
        if len(batch) < size:
            return batch
        self._take_up(batch)
        return []

    def _take_up(self, batch: Sequence[_Line]) -> None:
        """Remember a batch whole or not at all, so that the images read again fall into the same batches as before."""
        counts = counts_of(self.fingerprint)
        try:
            entries = [checked(*from_json(line.told, counts)) for line in batch]
        except Exception:  # whatever a damaged line holds, it costs its batch and no more
            self.dropped += len(batch)
            return
        for (entry, seconds), line in zip(entries, batch, strict=True):
            self._remember(entry, seconds, line.begin, line.length)

    # --- writing the file ---

    def _start(self, length: int) -> None:
        self._file = self.path.open("r+b" if length else "wb", buffering=0)
        self._file.truncate(length)
        self._file.seek(length)
        self._length = length
        if not length:
            header = {"vlmgate_journal": JOURNAL_VERSION, "run_id": self.run_id, "fingerprint": self.fingerprint}
            self._write([json.dumps(header, separators=(",", ":"))])
            sync_folder(self.path.parent)
        self.readings.hold()

    def check_model(self, model: Mapping[str, Any], keys: Iterable[str]) -> None:
        """Record what the loaded model says of itself; raise `ResumeError` where it is not the one that read before."""
        wanted: dict[str, Any] = json.loads(json.dumps(model))
        if self.model is not None:
            _check_same(self.path, {k: self.model.get(k) for k in keys}, {k: wanted.get(k) for k in keys})
        self.model = wanted
        self._write([sealed({"model": wanted})])

    def append(self, entries: Sequence[Entry], seconds: float | None = None) -> None:
        """Add one batch and force it to the disk; `seconds` is the wall time of each of its readings."""
        took = [seconds if isinstance(entry, Reading) else None for entry in entries]
        lines = [
            sealed(to_json(entry, each) | {"batch": [i, len(entries)]})
            for i, (entry, each) in enumerate(zip(entries, took, strict=True))
        ]
        begin = self._length
        self._write(lines)
        for entry, each, line in zip(entries, took, lines, strict=True):
            self._remember(entry, each, begin, len(line) + 1)
            begin += len(line) + 1

    def _write(self, lines: Iterable[str]) -> None:
        if self._file is None:
            raise StoreError(f"{self.path}: the journal is closed.")
        data = memoryview("".join(line + "\n" for line in lines).encode("ascii"))
        length = len(data)
        try:
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StoreError(
                f"{self.path}: cannot write ({error.strerror}); make room and run the same command again, it resumes."
            ) from error
        self._length += length

    def close(self) -> None:
        """Let go of the file; all that counts is on the disk already.

        Who has the readings reads on in the file that they are in, whatever gets its name. Where a file that is open
        cannot be moved or removed, that is let go of too, and opened anew when it is asked for.
        """
        if os.name != "posix":
            self.readings.close()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


def is_journal(path: Path) -> bool:
    """Say whether a file begins as a journal does, or as the torn beginning of one."""
    try:
        with path.open("rb") as file:
            return _OPENING.startswith(file.read(len(_OPENING)))
    except OSError:
        return False


def _check_same(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [
        f"{k} ({then.get(k)!r} then, {now.get(k)!r} now)" for k in sorted({*then, *now}) if then.get(k) != now.get(k)
    ]
    if changed:
        raise ResumeError(
            f"{path}: was made with other settings: {'; '.join(changed)}. Use the same, another -o, or --restart."
        )
