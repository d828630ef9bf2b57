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
from vlmgate.errors import StoreError
from vlmgate.review.items import Item
from vlmgate.store.result import write_file

COLUMNS = ("file_name", "page", "sha256", "verdict", "reading", "note", "at", "audit", "route")
LONGEST = {"reading": 10_000, "note": 10_000}  # characters
# What makes a spreadsheet take a cell for a formula, when it comes first; after quotes, so that one can be taken off.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
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


def cell(text: str) -> str:
    """Return a text that a spreadsheet does not take for a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


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
            writer.writerow([cell(value) for value in values])
    return out.getvalue()


def from_csv(text: str, items: Sequence[Item]) -> dict[str, Verdict]:
    """Return the verdicts that a CSV file holds on these images, by key; what it says of others is passed over."""
    keys = {(cell(item.record.file_name), str(item.record.page), item.record.sha256 or ""): item.key for item in items}
    given: dict[str, Verdict] = {}
    for row in csv.DictReader(io.StringIO(text, newline="")):
        key = keys.get((row.get("file_name") or "", row.get("page") or "", row.get("sha256") or ""))
        if key is not None and row.get("verdict") in VERDICTS:
            given[key] = Verdict(*(_uncell(row.get(name) or "") for name in ("verdict", "reading", "note", "at")))
    return given


def _uncell(text: str) -> str:
    return text[1:] if text.startswith("'") and _FORMULA.match(text[1:]) else text


class VerdictFile:
    """The verdicts on disk: read once, then replaced in one step with each verdict, so never half written."""

    def __init__(self, path: Path, items: Sequence[Item]) -> None:
        self.path, self.items = path, items
        self.keys = {item.key for item in items}
        try:
            there = path.read_bytes().decode("utf-8-sig") if path.exists() else ""
            self.given = from_csv(there, items)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise StoreError(f"{path}: cannot be read as verdicts ({error}); move it away, or mend it.") from error
        rows = sum(1 for _ in csv.reader(io.StringIO(there, newline=""))) - 1
        if rows > sum(item.key in self.given for item in items):
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
