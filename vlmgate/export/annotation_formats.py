"""Formats of labelling tools and data sets of captions: Label Studio and COCO."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import quote

from vlmgate.data import VERDICTS
from vlmgate.errors import count
from vlmgate.export import output
from vlmgate.export.rows import FACTS, FACTS_WITH_CLAIMS, KEY, StoredRow, StoredRows, Writer
from vlmgate.export.text_formats import dumped, visible

IMAGE_ROOT = "/data/local-files/?d="
_SHOWN = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".avif", ".bmp"))  # by browsers
_NOTHING_READ = -1.0  # comes before every agreement
_EXPECTED = ("id", "file_name", "width", "height")  # of an image, in COCO


class LabelStudioWriter(Writer):
    """Writes tasks with what the model said as predictions, and the labelling configuration that they fit.

    Those that most need a person come first: without a reading, then by agreement, the lowest first. Tasks wait in a
    temporary file until their order is known; only numbers are kept in memory for each.
    """

    usual = ("file_name", *FACTS, "caption", "error")
    looks_at = (*KEY, "captions", "agreement", "answer")
    hidden = 0  # images that no browser shows
    first_hidden = ""

    @staticmethod
    def places(out: Path) -> tuple[Path, ...]:
        """Return the file of tasks and that of the labelling configuration."""
        return out, out.with_suffix(".config.xml")

    def save(self, rows: StoredRows, out: Path | None) -> tuple[list[Path], list[str]]:
        """Write the tasks as every writer does; the labelling configuration beside them, where they lie in a file."""
        written, notes = super().save(rows, out)
        if out is not None and out.is_file():
            written = [*self.places(out)]
            with output.file_at(written[-1]) as file:
                file.write(self.config().encode())
        return written, notes

    def write(self, rows: StoredRows, file: BinaryIO) -> list[str]:
        """Write all tasks."""
        with tempfile.TemporaryFile() as spool:
            places: list[tuple[float, int, int]] = []  # (agreement, offset, bytes)
            offset = 0
            for row in rows:
                line = dumped(self._task(row))
                spool.write(line)
                known = row.get("captions") and row.get("agreement") is not None
                places.append((row["agreement"] if known else _NOTHING_READ, offset, len(line)))
                offset += len(line)
            file.write(b"[")
            for index, (_, start, length) in enumerate(sorted(places)):
                spool.seek(start)
                file.write((b",\n" if index else b"\n") + spool.read(length))
            file.write(b"]\n")
        if not self.hidden:
            return []
        images = f"{count(self.hidden, 'image')} that browsers do not show (TIFF, HEIC, later pages), first: "
        return [f"{images}{self.first_hidden}; convert them and give --image-root."]

    def config(self) -> str:
        """Return the labelling configuration, whose controls are those that the predictions name."""
        return (
            "<View>\n"
            '  <Text name="file_name" value="$file_name"/>\n'
            '  <Image name="image" value="$image" zoom="true"/>\n'
            '  <Header value="What the model said"/>\n'
            '  <TextArea name="caption" toName="image" editable="true" maxSubmissions="0"/>\n'
            + (_control("answer", "Answer", self._choices()) if self._choices() else "")
            + _control("verdict", "The reading is", VERDICTS, ' required="true"')
            + "</View>\n"
        )

    def _choices(self) -> Sequence[str]:
        return self.provenance["sampling"].get("choices") or ()

    def _task(self, row: StoredRow) -> dict[str, Any]:
        file_name, captions = row["file_name"], row.get("captions")
        if PurePosixPath(file_name).suffix.lower() not in _SHOWN or (row.get("page") or 1) > 1:
            self.first_hidden = self.first_hidden or file_name
            self.hidden += 1
        root = IMAGE_ROOT if self.options.image_root is None else self.options.image_root
        slash = "" if not root or root[-1] in "/=" else "/"
        data = {"image": f"{root}{slash}{quote(file_name, safe='/')}", "file_name": file_name}
        data |= {name: row.get(name) for name in self.columns if name != "image"}
        return {"data": data, "predictions": [self._prediction(row, captions)] if captions else []}

    def _prediction(self, row: StoredRow, captions: Sequence[str]) -> dict[str, Any]:
        results = [_result("caption", "textarea", {"text": list(captions)})]
        if row.get("answer") in self._choices():
            results.append(_result("answer", "choices", {"choices": [visible(row["answer"])]}))
        model = self.provenance.get("model") or {}
        version = "@".join(str(model[key]) for key in ("model", "revision") if model.get(key)) or "unknown"
        agreement = row.get("agreement")
        score = {} if agreement is None else {"score": min(1.0, max(0.0, agreement))}
        return {"model_version": version, "result": results} | score


def _control(name: str, title: str, choices: Sequence[str], more: str = "") -> str:
    """Return a control of the labelling configuration that lets one of these be chosen."""
    from xml.sax.saxutils import quoteattr  # brings half of the network library along

    listed = "".join(f"    <Choice value={quoteattr(visible(choice))}/>\n" for choice in choices)
    start = f'  <Header value="{title}"/>\n  <Choices name="{name}" toName="image" choice="single"{more}>\n'
    return f"{start}{listed}  </Choices>\n"


def _result(control: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"id": control, "from_name": control, "to_name": "image", "type": kind, "value": value}


class CocoWriter(Writer):
    """Writes a JSON object with every image that was opened, and every caption as an annotation.

    It goes through the rows twice, for the two lists.
    """

    usual = FACTS_WITH_CLAIMS
    looks_at = ("file_name", "width", "height", "captions")

    def write(self, rows: StoredRows, file: BinaryIO) -> list[str]:
        """Write all rows."""
        file.write(b'{"info": ' + dumped(self._info()) + b',\n"licenses": [],\n"images": [')
        images = _list(file, self._images(_opened(rows)))
        file.write(b'],\n"annotations": [')
        _list(file, _annotations(_opened(rows)))
        file.write(b"]}\n")
        others = len(rows) - images
        if not others:
            return []
        return [f"{count(others, 'image')} that could not be opened left out: COCO wants a width and a height."]

    def _info(self) -> dict[str, Any]:
        model = self.provenance.get("model") or {}
        finished = str(self.provenance.get("finished", ""))
        return {
            "description": f"captions sampled by {model.get('model', 'an unknown model')}, exported by vlmgate",
            "version": self.provenance.get("vlmgate_version"),
            "year": int(finished[:4]) if finished[:4].isdecimal() else None,
            "date_created": finished,
        }

    def _images(self, rows: Iterable[StoredRow]) -> Iterator[StoredRow]:
        extra = [name for name in self.columns if name not in _EXPECTED]
        for number, row in enumerate(rows, 1):
            yield {"id": number} | {name: row.get(name) for name in (*_EXPECTED[1:], *extra)}


def _opened(rows: StoredRows) -> Iterator[StoredRow]:
    return (row for row in rows if row.get("width") is not None and row.get("height") is not None)


def _annotations(rows: Iterable[StoredRow]) -> Iterator[StoredRow]:
    said = ((image, caption) for image, row in enumerate(rows, 1) for caption in row.get("captions") or ())
    for number, (image, caption) in enumerate(said, 1):
        yield {"id": number, "image_id": image, "caption": caption}


def _list(file: BinaryIO, items: Iterable[Mapping[str, Any]]) -> int:
    """Write the items of a list; return how many there are."""
    number = 0
    for number, item in enumerate(items, 1):
        file.write((b",\n" if number > 1 else b"\n") + dumped(item))
    return number
