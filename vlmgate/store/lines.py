"""What comes of an image, and how it is written down: as a line of a journal, and as what is remembered of it.

Knows entries and text; knows nothing of files, of how an entry came about, or of what is decided on it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, astuple
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
_FACTS = tuple(name for name in ImageFile.__dataclass_fields__ if name != "path")


# --- a line of a journal ---


_SEAL = re.compile(rb',"crc":(\d{1,10})\}\n$')


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
    """Say whether this is the place of a line in its batch: [index, size]."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) for n in value)


def to_json(entry: Entry, seconds: float | None) -> dict[str, Any]:
    """Return an entry as a line says it; `seconds` is the wall time of a reading."""
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


def counts_of(fingerprint: Mapping[str, Any]) -> range | None:
    """Return how many samples a reading may hold; None where nothing is known."""
    most = fingerprint.get("num_samples")
    return None if most is None else range(fingerprint.get("first_samples") or most, most + 1)


def from_json(line: Mapping[str, Any], counts: range | None) -> tuple[Entry, float | None]:
    """Return what a line says, and the seconds of a reading.

    Raises whatever comes of a line that is none, and `ValueError` for a reading without as many samples as `counts`.
    """
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


# --- what is remembered of it ---


def checked(entry: Entry, seconds: float | None) -> tuple[Entry, float | None]:
    """Return what can be remembered; raises for a key that is none, or that would not be found again."""
    file_name, page = key_of(entry)
    sha256 = "" if isinstance(entry, Unreadable) else entry.image.sha256
    _ = file_name.encode("utf-8"), sha256.encode("utf-8")
    if type(page) is not int or not 0 < page < _MOST_PAGES:
        raise ValueError(f"page {page}")
    return entry, seconds


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
