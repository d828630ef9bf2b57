"""What people said of the images: checked, and kept in one CSV file that is always whole. Call `VerdictFile`."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlmgate.data import VERDICTS
from vlmgate.errors import StoreError, UsageError
from vlmgate.export.sheet import read_sheet
from vlmgate.export.text_formats import defused, undefused
from vlmgate.review.items import Item
from vlmgate.store.result import write_file

COLUMNS = ("file_name", "page", "sha256", "verdict", "reading", "note", "at", "audit", "route")
LONGEST = {"reading": 10_000, "note": 10_000}  # characters
_NOT_KEPT = re.compile(r"[^\n\t -~\u00a0-\U0010ffff]|[\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a person said of one image."""

    verdict: str  # "correct", "wrong" or "unusable"
    reading: str  # what the picture shows, as the person has it; empty = not said
    note: str
    at: str  # ISO time, UTC


class VerdictError(ValueError):
    """What came is no verdict."""


def checked(sent: Mapping[str, Any], at: datetime | None = None) -> Verdict | None:
    """Return the verdict that a page sent, None where it was taken back; raises `VerdictError`."""
    verdict, reading, note = (sent.get(name, "") for name in ("verdict", "reading", "note"))
    if not (isinstance(verdict, str) and isinstance(reading, str) and isinstance(note, str)):
        raise VerdictError("verdict, reading and note are texts")
    if verdict not in ("", *VERDICTS):
        raise VerdictError(f"a verdict is one of {', '.join(VERDICTS)}")
    if len(reading) > LONGEST["reading"] or len(note) > LONGEST["note"]:
        raise VerdictError("reading and note have at most 10,000 characters")
    if not verdict:
        return None
    when = (at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Verdict(verdict, _NOT_KEPT.sub("", reading), _NOT_KEPT.sub("", note), when)


def to_csv(items: Iterable[Item], given: Mapping[str, Verdict]) -> str:
    """Return the verdicts as CSV, one row an image, in the order of the page."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for item in items:
        if said := given.get(item.key):
            row, audit = item.record, "true" if item.audit else "false"
            texts = (said.verdict, said.reading, said.note, said.at)
            values = (row.file_name, str(row.page), row.sha256 or "", *texts, audit, row.route)
            writer.writerow([defused(value) for value in values])
    return out.getvalue()


class VerdictFile:
    """The verdicts on disk: read once, then replaced in one step with each verdict, so never half written."""

    def __init__(self, path: Path, items: Sequence[Item]) -> None:
        self.path, self.items = path, items
        self.keys = {item.key for item in items}
        try:
            filled = read_sheet(path, each=True) if path.exists() and path.stat().st_size else []
        except (OSError, UsageError) as error:
            raise StoreError(f"{path}: cannot be read as verdicts; move it away, or mend it ({error})") from error
        keys: dict[tuple[str, int, str | None], str] = {}
        for item in items:
            row = item.record
            for name in (undefused(row.file_name), row.file_name):  # earlier releases wrote ' before less than now
                keys[name, row.page, row.sha256] = item.key
        said = [(keys.get((one.file_name, one.page, one.sha256)), one) for one in filled]
        self.given = {
            key: Verdict(one.verdict, one.reading or "", one.note or "", one.at or "") for key, one in said if key
        }
        if len(filled) > sum(item.key in self.given for item in items):
            raise StoreError(f"{path}: holds verdicts on images that are not in this review; move it away, or give -o.")

    def put(self, key: str, verdict: Verdict | None) -> None:
        """Keep a verdict, or take it back; raises `OSError` where the disk does not take it, and nothing changes."""
        changed = {name: said for name, said in self.given.items() if name != key}
        if verdict is not None:
            changed[key] = verdict
        write_file(self.path, to_csv(self.items, changed).encode("utf-8"))
        self.given = changed

    def as_json(self) -> dict[str, dict[str, str]]:
        """Return the verdicts by key, as the page asks for them at its start."""
        return {key: asdict(said) for key, said in self.given.items()}
