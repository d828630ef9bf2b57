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
from dataclasses import asdict, astuple, dataclass
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

_MOST_PAGES = 2**31
_WHOLE = ""  # the region that is the whole image; there is no other yet
_FACTS = tuple(name for name in ImageFile.__dataclass_fields__ if name != "path")
_SEAL = re.compile(rb',"crc":(\d{1,10})\}\n$')


# --- a line of a journal ---


def sealed(line: Mapping[str, Any]) -> str:
    """Return the line as JSON with a checksum of itself as its last key, so that lost bytes do not go unseen."""
    text = json.dumps(line, allow_nan=False, separators=(",", ":"))
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


def is_place(value: object) -> bool:
    """Say whether this is the place of a line among those of its image: [index, size]."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) for n in value)


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
        """Return an entry as a line says it; `seconds` is the wall time of a reading."""
        if isinstance(entry, Unreadable):
            return {"kind": "unreadable"} | asdict(entry)
        image = asdict(entry.image) | {"path": os.fsdecode(entry.image.path)}
        if isinstance(entry, Failure):
            return {"kind": "failure", "image": image, "error": entry.error}
        if isinstance(entry, Duplicate):
            return {"kind": "duplicate", "image": image}
        more = {
            "answers": None if entry.answers is None else {self.question: [asdict(one) for one in entry.answers]},
            "features": None if entry.features is None else base64.b64encode(entry.features).decode("ascii"),
            "views": entry.views,
            "quality": None if entry.quality is None else asdict(entry.quality),
        }
        line = {
            "kind": "reading",
            "image": image,
            "region": _WHOLE,
            "captions": [asdict(one) for one in entry.captions],
        }
        return line | {key: value for key, value in more.items() if value is not None} | {"seconds": seconds}

    def from_json(self, line: Mapping[str, Any]) -> tuple[Entry, float | None]:
        """Return what a line says, and the seconds of a reading.

        Raises whatever comes of a line that is none, and `ValueError` for a key that no image has, for a reading of
        another region, and for one with too few or too many samples.
        """
        entry = self._entry(line)
        file_name, page = key_of(entry)
        sha256 = "" if isinstance(entry, Unreadable) else entry.image.sha256
        _ = file_name.encode("utf-8"), sha256.encode("utf-8")
        if type(page) is not int or not 0 < page < _MOST_PAGES:
            raise ValueError(f"page {page}")
        return entry, line["seconds"] if isinstance(entry, Reading) else None

    def _entry(self, line: Mapping[str, Any]) -> Entry:
        kind = line["kind"]
        if kind == "unreadable":
            return Unreadable(line["file_name"], line["reason"], line["page"])
        image = ImageFile(**(line["image"] | {"path": Path(line["image"]["path"])}))
        if kind == "failure":
            return Failure(image, line["error"])
        if kind == "duplicate":
            return Duplicate(image)
        if line["region"] != _WHOLE:
            raise ValueError(f"region {line['region']}")
        reading = Reading(
            image,
            captions=tuple(Caption(**caption) for caption in line["captions"]),
            answers=tuple(Caption(**one) for one in line["answers"][self.question]) if "answers" in line else None,
            features=base64.b64decode(line["features"], validate=True) if "features" in line else None,
            views=tuple(line["views"]) if "views" in line else None,
            quality=Quality(**line["quality"]) if "quality" in line else None,
        )
        for what in ("captions", "answers", "views"):
            held = getattr(reading, what)
            if held is not None and (
                len(held) != len(reading.captions) or (self.counts and len(held) not in self.counts)
            ):
                raise ValueError(f"{len(held)} {what}")
        return reading


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
    if isinstance(found, Unreadable):
        return json.dumps(["unreadable", *astuple(found)])
    *image, path = [getattr(found.image, name) for name in (*_FACTS, "path")]
    kind, more = ("failure", found.error) if isinstance(found, Failure) else ("read", found.seconds)
    return json.dumps([kind, more, os.fsdecode(path), *image])


def found_of_text(text: str) -> Found:
    """Return what such a text says."""
    kind, *parts = json.loads(text)
    if kind == "unreadable":
        return Unreadable(*parts)
    more, path, *facts = parts
    image = ImageFile(**dict(zip(_FACTS, facts, strict=True)), path=Path(path))
    return Failure(image, more) if kind == "failure" else Read(image, more)
