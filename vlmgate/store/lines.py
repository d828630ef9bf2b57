"""What comes of an image as text: as a line of a journal, and as what a run remembers of it.

Call `LineForm.of` with the fingerprint of a journal, then its `to_json` and `from_json`. `sealed` and `parsed` add and
check the checksum of a line.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmgate.data import (
    Caption,
    Duplicate,
    Entry,
    Failure,
    Found,
    ImageFile,
    Quality,
    Read,
    Reading,
    Unreadable,
    key_of,
)
from vlmgate.scores.answer_probability import is_scored

_MOST_PAGES = 2**31
_WHOLE = ""  # the region that is the whole image; there is no other yet


def _plain(value: Any) -> Any:
    """Return what JSON holds in the place of a value that it does not know."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return os.fsdecode(value) if isinstance(value, Path) else _fields(value)


def _fields(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass with slots; `asdict` copies all that is in them, which takes much longer."""
    return {name: getattr(value, name) for name in value.__slots__}


_LINE = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=_plain)
_SEAL = re.compile(rb',"crc":(\d{1,10})\}\n$')


# --- a line of a journal ---


def sealed(line: Mapping[str, Any]) -> str:
    """Return the line as JSON with a checksum of itself as its last key, so that lost bytes do not go unseen."""
    text = _LINE.encode(line)
    return f'{text[:-1]},"crc":{zlib.crc32(text.encode("ascii"))}}}'


def parsed(line: bytes, *, checked: bool = True) -> dict[str, Any] | None:
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


def question_id(question: str | None) -> str:
    """Return the key of a question's answers in a line: 12 hexadecimal digits that follow from its wording."""
    return hashlib.sha256((question or "").encode("utf-8", "surrogatepass")).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class LineForm:
    """What the lines of one journal have in common."""

    counts: range | None  # how many samples a reading may hold; None = any number
    question: str  # the id of the one question

    @classmethod
    def of(cls, fingerprint: Mapping[str, Any]) -> LineForm:
        """Return the form that a run with this fingerprint writes and reads."""
        most = fingerprint.get("num_samples")
        counts = None if most is None else range(fingerprint.get("first_samples") or most, most + 1)
        return cls(counts, question_id(fingerprint.get("question")))

    def to_json(self, entry: Entry, seconds: float | None) -> dict[str, Any]:
        """Return an entry as a line says it; `seconds` is the wall time of a reading. What is not known is left out."""
        line = {"kind": type(entry).__name__.lower()} | {k: v for k, v in _fields(entry).items() if v is not None}
        if isinstance(entry, Reading):
            line |= {"region": _WHOLE, "seconds": seconds}
            if entry.answers is not None:
                line["answers"] = {self.question: entry.answers}
        return line

    def from_json(self, line: Mapping[str, Any]) -> tuple[Entry, float | None]:
        """Return what a line says, and the seconds of a reading; raises whatever comes of one that cannot be used.

        Such are a key that no image has, a reading of another region, and one with too few or too many samples.
        """
        kind = line["kind"]
        if kind == "unreadable":
            return _checked(Unreadable(line["file_name"], line["reason"], line["page"])), None
        image = ImageFile(**(line["image"] | {"path": Path(line["image"]["path"])}))
        if kind == "duplicate":
            return _checked(Duplicate(image)), None
        if kind != "reading":
            return _checked(Failure(image, line["error"], line.get("deaths", 0))), None
        if line["region"] != _WHOLE:
            raise ValueError(f"region {line['region']}")
        reading = Reading(
            image,
            captions=tuple(Caption(**one) for one in line["captions"]),
            answers=tuple(Caption(**one) for one in line["answers"][self.question]) if "answers" in line else None,
            features=base64.b64decode(line["features"], validate=True) if "features" in line else None,
            views=tuple(line["views"]) if "views" in line else None,
            quality=Quality(**line["quality"]) if "quality" in line else None,
        )
        drawn = None if is_scored(reading.answers) else reading.answers
        sizes = {len(held) for held in (reading.captions, drawn, reading.views) if held is not None}
        if len(sizes) != 1 or (self.counts and not sizes <= {*self.counts}):
            raise ValueError(f"{sizes} samples")
        return _checked(reading), line["seconds"]


def _checked(entry: Entry) -> Entry:
    """Return the entry; raises `ValueError` for a key that is none, or that would not be found again."""
    file_name, page = key_of(entry)
    _ = file_name.encode("utf-8"), ("" if isinstance(entry, Unreadable) else entry.image.sha256).encode("utf-8")
    if type(page) is not int or not 0 < page < _MOST_PAGES:
        raise ValueError(f"page {page}")
    return entry


def from_version_1(line: dict[str, Any], question: str) -> dict[str, Any]:
    """Return what a line of a journal of version 1 says in the form of today; `question` is the id of its question."""
    line = {key: value for key, value in line.items() if key not in ("batch", "crc")}
    if line.get("kind") == "reading":
        line["region"] = _WHOLE
        if "answers" in line:
            line["answers"] = {question: line["answers"]}
    return line


# --- what is remembered of it ---


def found_as_text(found: Found) -> str:
    """Return what is remembered as text, in less room than a line of a journal."""
    parts = [[*_fields(one).values()] if isinstance(one, ImageFile) else one for one in _fields(found).values()]
    return _LINE.encode([type(found).__name__, *parts])


def found_of_text(text: str) -> Found:
    """Return what such a text says."""
    kind, first, *more = json.loads(text)
    if kind == "Unreadable":
        return Unreadable(first, *more)
    file_name, path, *facts = first
    image = ImageFile(file_name, Path(path), *facts)
    return Failure(image, *more) if kind == "Failure" else Read(image, *more)
