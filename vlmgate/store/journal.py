"""The journal of a run: what a model said of which bytes, written as it is said.

Open it with `Journal.open`, add what came of images with `append`, look it up in `readings` and `entries_of`, close it.

`OUT.journal.jsonl` is the truth while a run lasts: a header line, then one line per image page. A line holds what the
model said, not what was decided, so that another limit needs no model. An image is in it whole or not at all; what is
torn at its end, or damaged anywhere, costs the images that it hits, which are read again. Readings stay in the file; an
index holds where each lies.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import threading
import uuid
import weakref
from collections.abc import ItemsView, Iterable, Iterator, Mapping, MutableSet, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from vlmgate.data import Content, Duplicate, Entry, Failure, Found, Key, Read, Reading, Unreadable, content_of, key_of
from vlmgate.errors import OutputError, ResumeError, StoreError
from vlmgate.store.index import Index, Table
from vlmgate.store.lines import LineForm, found_as_text, found_of_text, from_version_1, parsed, sealed
from vlmgate.store.result import new_file, sync_folder, unused

log = logging.getLogger(__name__)

JOURNAL_VERSION = 2
_OPENING = b'{"vlmgate_journal"'


_Line = tuple[dict[str, Any], int, int]  # what it says, empty where it is damaged; at which byte; how many bytes


class Readings(Mapping[Content, Reading]):
    """The readings of a journal, each taken from its line when it is asked for; threads may share it.

    One whose line turns out not to be what it was is not there any more, so that nothing is decided on it.
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


class Journal:
    """What has been read so far; made by `Journal.open`.

    `readings` are kept for good: they belong to bytes, and bytes may come back. What was found under each name is that
    of the last time it was opened.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        self.path, self.run_id = path, uuid.uuid4().hex
        self.fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint))
        self.model: dict[str, Any] | None = None  # ModelInfo as a dict, once a model has been loaded
        self.dropped = 0  # lines that could not be used; what they held is read again
        self.index = Index()
        self._form = LineForm.of(self.fingerprint)
        self.readings = Readings(path, self.index, self._form)
        self._found: Table[Key, Found] = Table(self.index, "found", 2, found_as_text, found_of_text)
        self._rounds: Table[Content, int] = Table(self.index, "rounds", 3, str, int)  # when each was last under way
        self._round = 0
        self._forgotten: dict[str, set[int]] = {}  # pages that the file still has, by their names
        self._failed: set[Key] = set()  # where the model has failed, now or before
        self._file: BinaryIO | None = None
        self._length = 0  # bytes of the file

    @classmethod
    def open(cls, path: Path, fingerprint: Mapping[str, Any], *, restart: bool = False) -> Journal:
        """Open the journal of an earlier run with the same fingerprint, or begin one.

        A journal in which nothing was read yet is begun afresh; one of version 1 is rewritten once, in one step. Raises
        `ResumeError` where the journal was made with other settings, `OutputError` where the file is no journal. With
        `restart` the old one is kept aside.
        """
        journal = cls(path, fingerprint)
        try:
            if restart and path.exists():
                os.replace(path, unused(path.with_suffix(".old.jsonl")))
            journal._start(journal._load() if path.exists() else 0)
        except OSError as error:
            raise OutputError(f"{path}: cannot use the journal ({error.strerror}); give another -o.") from error
        return journal

    # --- what was found under a name ---

    def pages_of(self, file_name: str) -> dict[int, Found]:
        """Return what is known of the pages of one file, by their number and in its order."""
        return dict(self._found.under(file_name))

    def entries_of(self, file_name: str) -> list[Found]:
        """Return the same without the numbers."""
        return [*self.pages_of(file_name).values()]

    def failures(self) -> dict[Content, Failure]:
        """Return what the model failed on, the last time that it was opened."""
        found = (self._found.get(key) for key in sorted(self._failed))
        return {content_of(one.image): one for one in found if isinstance(one, Failure)}

    def file_names(self) -> Iterator[str]:
        """Return the files of which something is known, in order."""
        return self._found.names()

    def seen(self) -> Seen:
        """Return, for a round of reading, the contents that need none; those under way are added to it."""
        self._round += 1
        return Seen(self.readings, self._rounds, self._round)

    def forget(self, file_name: str, keep: Iterable[int] = ()) -> None:
        """Drop, in memory, what was found under a name, but for some pages; readings stay."""
        for page in self.pages_of(file_name).keys() - set(keep):
            del self._found[file_name, page]
            self._forgotten.setdefault(file_name, set()).add(page)

    def end(self, file_name: str, pages: Iterable[int]) -> None:
        """Say that a file was opened to its end and has these pages: others are of a file that is gone."""
        kept = {*pages}
        self.forget(file_name, keep=kept)
        if self._forgotten.pop(file_name, set()) - kept:  # seldom: what is read anew says so by itself
            self._write([sealed({"ended": file_name, "pages": sorted(kept)})])
            self.force()

    def _remember(self, entry: Entry, seconds: float | None, begin: int, length: int) -> None:
        """Remember what the `length` bytes of the file at `begin` say."""
        file_name, page = key_of(entry)
        if not isinstance(entry, Unreadable):
            others = (found for _, found in self._found.under(file_name))
            other = next((found for found in others if not isinstance(found, Unreadable)), None)  # all are of one file
            if other is not None and other.image.sha256 != entry.image.sha256:
                self.forget(file_name)  # the file was replaced, so its other pages are of a file that is gone
        if isinstance(entry, Reading):
            self.readings.put(content_of(entry.image), begin, length)
        if isinstance(entry, Failure):
            self._failed.add((file_name, page))
        if isinstance(entry, Duplicate):  # the same page, opened again
            before = self._found.get((file_name, page))
            seconds = before.seconds if isinstance(before, Read) else seconds
        self._found[file_name, page] = entry if isinstance(entry, Failure | Unreadable) else Read(entry.image, seconds)

    # --- reading the file ---

    def _load(self) -> int:
        """Take up what the file holds; return how many of its bytes are whole lines of a journal that goes on."""
        header = self._header()
        if header is None:
            return 0
        self.run_id, then = header["run_id"], header.get("fingerprint")
        if header["vlmgate_journal"] == 1 and then == self.fingerprint:
            self.dropped += self._rewrite_version_1(header)
        empty, item = True, list[_Line]()
        with self.path.open("rb") as file:
            length = len(file.readline())
            for line in file:
                if not line.endswith(b"\n"):  # torn
                    self.dropped += 1
                    break
                begin, length = length, length + len(line)
                says = parsed(line) or {}
                if isinstance(says.get("model"), dict):
                    self.model = says["model"]
                elif isinstance(says.get("ended"), str):
                    self.forget(says["ended"], keep=says.get("pages") or ())
                    self._forgotten.pop(says["ended"], None)
                else:
                    item, empty = self._gather(item, (says, begin, len(line))), False
        self.dropped += len(item)
        if empty:  # nothing was ever read, so other settings are welcome
            self.model = None
            return 0
        _check_same(self.path, then if isinstance(then, dict) else {}, self.fingerprint)
        return length

    def _header(self) -> dict[str, Any] | None:
        """Return the header line; None where the file is empty or torn in it; `OutputError` for another's file."""
        with self.path.open("rb") as file:
            line = file.readline()
        if not line.endswith(b"\n") and _OPENING.startswith(line[: len(_OPENING)]):
            return None
        says = parsed(line, checked=False) or {}
        if says.get("vlmgate_journal") not in (1, JOURNAL_VERSION) or not isinstance(says.get("run_id"), str):
            raise OutputError(
                f"{self.path}: is no journal of this version of vlmgate; move it away or give another -o."
            )
        return says

    def _rewrite_version_1(self, header: Mapping[str, Any]) -> int:
        """Write the file anew in the form of today, in one step; return how many lines could not be used."""
        dropped = 0
        with new_file(self.path) as new, self.path.open("rb") as old:
            old.readline()
            new.write(_header_line(header["run_id"], self.fingerprint))
            for line in old:
                says = parsed(line)
                if says is None:
                    dropped += 1
                else:
                    new.write(f"{sealed(from_version_1(says, self._form.question))}\n".encode("ascii"))
        return dropped

    def _gather(self, item: list[_Line], line: _Line) -> list[_Line]:
        """Add a line to those of its image; take the image up when it is whole, and return what is still open."""
        place, size = _place(line)
        if place == 0:
            self.dropped += len(item)
            item = []
        item = [*item, line]
        if place != len(item) - 1 or size != _place(item[0])[1]:
            self.dropped += len(item)
            return []
        if len(item) < size:
            return item
        try:
            entries = [self._form.from_json(says) for says, *_ in item]
        except Exception:  # whatever a line holds that should not be there, it costs its image and no more
            self.dropped += len(item)
            return []
        for (entry, seconds), (_, begin, length) in zip(entries, item, strict=True):
            self._remember(entry, seconds, begin, length)
        return []

    # --- writing the file ---

    def _start(self, length: int) -> None:
        self._file = self.path.open("r+b" if length else "wb", buffering=0)
        self._file.truncate(length)
        self._file.seek(length)
        self._length = length
        if not length:
            self._write([_header_line(self.run_id, self.fingerprint).decode("ascii").rstrip()])
            self.force()
            sync_folder(self.path.parent)
        self.readings.hold()

    def check_model(self, model: Mapping[str, Any], keys: Iterable[str]) -> None:
        """Record what the loaded model says of itself; raise `ResumeError` where it is not the one that read before."""
        wanted: dict[str, Any] = json.loads(json.dumps(model))
        if self.model is not None:
            _check_same(self.path, {k: self.model.get(k) for k in keys}, {k: wanted.get(k) for k in keys})
        self.model = wanted
        self._write([sealed({"model": wanted})])
        self.force()

    def append(self, entries: Sequence[Entry], seconds: float | None = None, *, force: bool = True) -> None:
        """Add what came of images; the entries of one file are taken whole or not at all when the journal is opened.

        `seconds` is the wall time of each reading. Without `force` all is on the disk only once `force` was called.
        """
        files: dict[str, list[Entry]] = {}
        for entry in entries:
            files.setdefault(key_of(entry)[0], []).append(entry)
        lines: list[tuple[Entry, float | None, str]] = []
        for item in files.values():
            for i, entry in enumerate(item):
                place = {"item": [i, len(item)]} if len(item) > 1 else {}
                took = seconds if isinstance(entry, Reading) else None
                lines.append((entry, took, sealed(self._form.to_json(entry, took) | place)))
        begin = self._length
        self._write(line for *_, line in lines)
        if force:
            self.force()
        for entry, took, line in lines:
            self._remember(entry, took, begin, len(line) + 1)
            begin += len(line) + 1

    def force(self) -> None:
        """Force all that was written to the disk."""
        with self._writing() as file:
            os.fsync(file.fileno())

    def _write(self, lines: Iterable[str]) -> None:
        data = memoryview("".join(line + "\n" for line in lines).encode("ascii"))
        length = len(data)
        with self._writing() as file:
            while data:
                data = data[file.write(data) :]
        self._length += length

    @contextlib.contextmanager
    def _writing(self) -> Iterator[BinaryIO]:
        if self._file is None:
            raise StoreError(f"{self.path}: the journal is closed.")
        try:
            yield self._file
        except OSError as error:
            raise StoreError(
                f"{self.path}: cannot write ({error.strerror}); make room and run the same command again, it resumes."
            ) from error

    def close(self) -> None:
        """Let go of the file; all that counts is on the disk already. `readings` can still be looked up in it.

        Where a file that is open cannot be moved or removed, they open it anew when they are asked.
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


def begun_with(path: Path) -> Mapping[str, Any]:
    """Return the fingerprint of the run that began a journal; empty where there is none."""
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        found = (parsed(file.readline(), checked=False) or {}).get("fingerprint")
    return found if isinstance(found, dict) else {}


def _place(line: _Line) -> tuple[int, int]:
    """Return the number of a line among those of its image, and how many these are."""
    match line[0].get("item"):
        case [int(number), int(size)]:
            return number, size
    return 0, 1


def _header_line(run_id: str, fingerprint: Mapping[str, Any]) -> bytes:
    header = {"vlmgate_journal": JOURNAL_VERSION, "run_id": run_id, "fingerprint": fingerprint}
    return (json.dumps(header, separators=(",", ":")) + "\n").encode("ascii")


def _check_same(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [
        f"{k} ({then.get(k)!r} then, {now.get(k)!r} now)" for k in sorted({*then, *now}) if then.get(k) != now.get(k)
    ]
    if changed:
        raise ResumeError(
            f"{path}: was made with other settings: {'; '.join(changed)}. Use the same, another -o, or --restart."
        )
