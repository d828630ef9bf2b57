"""COCO captions: one JSON object with images and their K captions as annotations.

Knows COCO; knows nothing of where a row comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

from vlmgate.export.json_lines import dumped
from vlmgate.export.rows import Row, Rows
from vlmgate.export.writers import count

_EXPECTED = ("id", "file_name", "width", "height")


@dataclass(frozen=True, slots=True)
class CocoWriter:
    """Writes every image that was opened, and every caption; goes through the rows twice, for the two lists."""

    columns: Sequence[str]  # beside what COCO expects of an image
    provenance: Mapping[str, Any]
    binary: ClassVar[bool] = False

    def write(self, rows: Rows, file: BinaryIO) -> list[str]:
        """Write all rows."""
        opened = _Opened(rows)
        file.write(b'{"info": ' + dumped(self._info()) + b',\n"licenses": [],\n"images": [')
        _listed(file, self._images(opened))
        file.write(b'],\n"annotations": [')
        _listed(file, _annotations(opened))
        file.write(b"]}\n")
        if not opened.others:
            return []
        return [f"{count(opened.others, 'image')} that could not be opened left out: COCO wants a width and a height."]

    def _info(self) -> dict[str, Any]:
        model = self.provenance.get("model") or {}
        finished = str(self.provenance.get("finished", ""))
        return {
            "description": f"captions sampled by {model.get('model', 'an unknown model')}, exported by vlmgate",
            "version": self.provenance.get("vlmgate_version"),
            "year": int(finished[:4]) if finished[:4].isdecimal() else None,
            "date_created": finished,
        }

    def _images(self, rows: Iterator[Row] | _Opened) -> Iterator[dict[str, Any]]:
        extra = [name for name in self.columns if name not in _EXPECTED]
        for number, row in enumerate(rows, 1):
            image = {"id": number, **{name: row.get(name) for name in _EXPECTED[1:]}}
            yield image | {name: row.get(name) for name in extra}


class _Opened:
    """The rows of images that were opened."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.others = 0

    def __iter__(self) -> Iterator[Row]:
        self.others = 0
        for row in self._rows:
            if row.get("width") is None or row.get("height") is None:
                self.others += 1
            else:
                yield row


def _annotations(rows: _Opened) -> Iterator[dict[str, Any]]:
    number = 0
    for image, row in enumerate(rows, 1):
        for caption in row.get("captions") or ():
            number += 1
            yield {"id": number, "image_id": image, "caption": caption}


def _listed(file: BinaryIO, items: Iterator[dict[str, Any]]) -> None:
    write: Callable[[bytes], Any] = file.write
    for index, item in enumerate(items):
        write((b",\n" if index else b"\n") + dumped(item))
