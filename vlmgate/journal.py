"""The journal of a run: what a model said of which bytes, written as it is said.

Knows lines and files; knows nothing of models or of how a decision is reached.

`OUT.journal.jsonl` is the truth while a run lasts: a header line, then one line per image page, forced to the disk
batch by batch. A line holds what the model said, not what was decided, so that another limit needs no model. Killed at
any moment it is at worst two batches behind; what is torn at its end, or damaged anywhere, is dropped and read again.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from vlmgate.errors import OutputError, ResumeError, StoreError
from vlmgate.records import Caption, ImageFile, Quality, Reading, Unreadable
from vlmgate.store import sync_folder, unused

JOURNAL_VERSION = 1
_OPENING = b'{"vlmgate_journal"'

Key = tuple[str, int]  # (file_name, page)
Content = tuple[str, int]  # (sha256, page): what a reading belongs to


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that opened but that the model could not read, alone in a batch."""

    image: ImageFile
    error: str


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An image whose bytes were read before, under this or another name; it shares that reading."""

    image: ImageFile


Entry = Reading | Failure | Duplicate | Unreadable


def content_of(image: ImageFile) -> Content:
    """Return what two files share when one reading serves both: the hash of their bytes, and the page."""
    return image.sha256, image.page


@dataclass(slots=True)
class Journal:
    """What has been read so far, in memory as in the file.

    `readings` are kept for good: they belong to bytes, and bytes may come back. `entries` say what was found under each
    name the last time it was opened. Open with `Journal.open`, add a batch at a time with `append`, close.
    """

    path: Path
    run_id: str
    fingerprint: dict[str, Any]
    model: dict[str, Any] | None = None  # ModelInfo as a dict, once a model has been loaded
    readings: dict[Content, Reading] = field(default_factory=dict)
    entries: dict[Key, Entry] = field(default_factory=dict)
    seconds: dict[Key, float] = field(default_factory=dict)
    dropped: int = 0  # lines that could not be used; what they held is read again
    _then: dict[str, Any] = field(default_factory=dict)  # the fingerprint that the file was begun with
    _pages: dict[str, set[int]] = field(default_factory=dict)  # file_name → pages in `entries`
    _file: BinaryIO | None = None

    @classmethod
    def open(cls, path: Path, fingerprint: Mapping[str, Any], *, restart: bool = False) -> Journal:
        """Open the journal of an earlier run with the same fingerprint, or begin one.

        A journal in which nothing was read yet is begun afresh. Raises `ResumeError` where the journal was made with
        other settings, `OutputError` where the file is no journal. With `restart` the old one is kept aside.
        """
        journal = cls(path, uuid.uuid4().hex, json.loads(json.dumps(fingerprint)))
        try:
            if restart and path.exists():
                os.replace(path, unused(path.with_suffix(".old.jsonl")))
            length = journal._load() if path.exists() else 0
            journal._start(length)
        except OSError as error:
            raise OutputError(f"{path}: cannot use the journal ({error.strerror}); give another -o.") from error
        return journal

    # --- what was found under a name ---

    def entries_of(self, file_name: str) -> list[Entry]:
        """Return what is known of the pages of one file, in their order."""
        return [self.entries[file_name, page] for page in sorted(self._pages.get(file_name, ()))]

    def file_names(self) -> Iterable[str]:
        """Return the files of which something is known."""
        return self._pages.keys()

    def forget(self, file_name: str, keep: Iterable[int] = ()) -> None:
        """Drop, in memory, what was found under a name, but for some pages; readings stay."""
        for page in self._pages.get(file_name, set()) - set(keep):
            del self.entries[file_name, page]
            self._pages[file_name].discard(page)

    def _remember(self, entry: Entry, seconds: float | None) -> None:
        file_name, page = key = key_of(entry)
        if not isinstance(entry, Unreadable):
            known = (self.entries[file_name, other] for other in self._pages.get(file_name, ()))
            other = next((e for e in known if not isinstance(e, Unreadable)), None)
            if other is not None and other.image.sha256 != entry.image.sha256:
                self.forget(file_name)  # the file was replaced, so its other pages are of a file that is gone
        self.entries[key] = entry
        self._pages.setdefault(file_name, set()).add(page)
        if isinstance(entry, Reading):
            self.readings[content_of(entry.image)] = entry
        if seconds is not None:
            self.seconds[key] = seconds

    # --- reading the file ---

    def _load(self) -> int:
        """Take up what the file holds; return how many of its bytes are whole lines of a journal that goes on."""
        length = 0
        empty = True
        batch: list[dict[str, Any]] = []
        with self.path.open("rb") as file:
            if not self._is_ours(file.readline()):
                return 0
            length = file.tell()
            for line in file:
                if not line.endswith(b"\n"):  # torn
                    self.dropped += 1
                    break
                length += len(line)
                entry = _parse(line)
                if entry is not None and isinstance(entry.get("model"), dict):
                    self.model = entry["model"]
                elif entry is None or not _is_place(entry.get("batch")):
                    self.dropped += 1
                    empty = False
                else:
                    empty = False
                    batch = self._gather(batch, entry)
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
        told = _parse(header, checked=False)
        if told is None or told.get("vlmgate_journal") != JOURNAL_VERSION or not isinstance(told.get("run_id"), str):
            raise OutputError(
                f"{self.path}: is no journal of this version of vlmgate; move it away or give another -o."
            )
        self.run_id = told["run_id"]
        self._then = told["fingerprint"] if isinstance(told.get("fingerprint"), dict) else {}
        return True

    def _gather(self, batch: list[dict[str, Any]], entry: dict[str, Any]) -> list[dict[str, Any]]:
        """Add a line to its batch; take the batch up when it is whole, and return what is still open."""
        place, size = entry["batch"]
        if place == 0:
            self.dropped += len(batch)
            batch = []
        if place != len(batch) or (batch and batch[0]["batch"][1] != size):
            self.dropped += len(batch) + 1
            return []
        batch.append(entry)
        if len(batch) < size:
            return batch
        self._take_up(batch)
        return []

    def _take_up(self, batch: Sequence[Mapping[str, Any]]) -> None:
        """Remember a batch whole or not at all, so that the images read again fall into the same batches as before."""
        try:
            entries = [_from_json(line, _counts(self.fingerprint)) for line in batch]
        except Exception:  # whatever a damaged line holds, it costs its batch and no more
            self.dropped += len(batch)
            return
        for entry, seconds in entries:
            self._remember(entry, seconds)

    # --- writing the file ---

    def _start(self, length: int) -> None:
        self._file = self.path.open("r+b" if length else "wb", buffering=0)
        self._file.truncate(length)
        self._file.seek(length)
        if not length:
            header = {"vlmgate_journal": JOURNAL_VERSION, "run_id": self.run_id, "fingerprint": self.fingerprint}
            self._write([json.dumps(header, separators=(",", ":"))])
            sync_folder(self.path.parent)

    def check_model(self, model: Mapping[str, Any], keys: Iterable[str]) -> None:
        """Record what the loaded model says of itself; raise `ResumeError` where it is not the one that read before."""
        wanted: dict[str, Any] = json.loads(json.dumps(model))
        if self.model is not None:
            _check_same(self.path, {k: self.model.get(k) for k in keys}, {k: wanted.get(k) for k in keys})
        self.model = wanted
        self._write([_sealed({"model": wanted})])

    def append(self, entries: Sequence[Entry], seconds: float | None = None) -> None:
        """Add one batch and force it to the disk; `seconds` is the wall time of each of its readings."""
        lines = []
        for i, entry in enumerate(entries):
            took = seconds if isinstance(entry, Reading) else None
            lines.append(_sealed(_to_json(entry, took) | {"batch": [i, len(entries)]}))
        self._write(lines)
        for entry in entries:
            self._remember(entry, seconds if isinstance(entry, Reading) else None)

    def _write(self, lines: Iterable[str]) -> None:
        if self._file is None:
            raise StoreError(f"{self.path}: the journal is closed.")
        data = memoryview("".join(line + "\n" for line in lines).encode("ascii"))
        try:
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StoreError(
                f"{self.path}: cannot write ({error.strerror}); make room and run the same command again, it resumes."
            ) from error

    def close(self) -> None:
        """Let go of the file; all that counts is on the disk already."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


def key_of(entry: Entry) -> Key:
    """Return (file_name, page)."""
    image = entry if isinstance(entry, Unreadable) else entry.image
    return image.file_name, image.page


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


_SEAL = re.compile(rb',"crc":(\d{1,10})\}\n$')


def _sealed(line: Mapping[str, Any]) -> str:
    """Return the line as JSON with a checksum of itself as its last key, so that lost bytes do not go unseen."""
    text = json.dumps(line, allow_nan=False, separators=(",", ":"))
    return f'{text[:-1]},"crc":{zlib.crc32(text.encode("ascii"))}}}'


def _parse(line: bytes, *, checked: bool = True) -> dict[str, Any] | None:
    """Return the object of a line, or None where it is none or its checksum does not fit."""
    if checked:
        seal = _SEAL.search(line)
        if seal is None or zlib.crc32(line[: seal.start()] + b"}") != int(seal[1]):
            return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_place(value: object) -> bool:
    """Say whether this is the place of a line in its batch: [index, size]."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) for n in value)


def _to_json(entry: Entry, seconds: float | None) -> dict[str, Any]:
    if isinstance(entry, Unreadable):
        return {"kind": "unreadable"} | asdict(entry)
    image = asdict(entry.image) | {"path": os.fsdecode(entry.image.path)}
    if isinstance(entry, Failure):
        return {"kind": "failure", "image": image, "error": entry.error}
    if isinstance(entry, Duplicate):
        return {"kind": "duplicate", "image": image}
    line = {"kind": "reading", "image": image, "captions": [asdict(caption) for caption in entry.captions]}
    more = {
        "answers": None if entry.answers is None else [asdict(answer) for answer in entry.answers],
        "features": None if entry.features is None else base64.b64encode(entry.features).decode("ascii"),
        "views": entry.views,
        "quality": None if entry.quality is None else asdict(entry.quality),
    }
    return line | {key: value for key, value in more.items() if value is not None} | {"seconds": seconds}


def _counts(fingerprint: Mapping[str, Any]) -> range | None:
    """Return how many samples a reading may hold; None where nothing is known."""
    most = fingerprint.get("num_samples")
    return None if most is None else range(fingerprint.get("first_samples") or most, most + 1)


def _from_json(line: Mapping[str, Any], counts: range | None) -> tuple[Entry, float | None]:
    kind = line["kind"]
    if kind == "unreadable":
        return Unreadable(line["file_name"], line["reason"], line["page"]), None
    image = ImageFile(**(line["image"] | {"path": Path(line["image"]["path"])}))
    if kind == "failure":
        return Failure(image, line["error"]), None
    if kind == "duplicate":
        return Duplicate(image), None
    reading = Reading(
        image,
        captions=tuple(Caption(**caption) for caption in line["captions"]),
        answers=tuple(Caption(**answer) for answer in line["answers"]) if "answers" in line else None,
        features=base64.b64decode(line["features"], validate=True) if "features" in line else None,
        views=tuple(line["views"]) if "views" in line else None,
        quality=Quality(**line["quality"]) if "quality" in line else None,  # journals of before have none of the four
    )
    for what in ("captions", "answers", "views"):
        told = getattr(reading, what)
        if told is not None and (len(told) != len(reading.captions) or (counts and len(told) not in counts)):
            raise ValueError(f"{len(told)} {what}")
    return reading, line["seconds"]
