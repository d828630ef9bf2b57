"""Label Studio: tasks with what the model said as predictions, and the labelling configuration that they fit.

Knows tasks, controls and URLs; knows nothing of where a row comes from, or of how Label Studio serves images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO, ClassVar
from urllib.parse import quote

from vlmgate.data import VERDICTS
from vlmgate.export.cells import visible
from vlmgate.export.json_lines import dumped
from vlmgate.export.rows import Row, Rows
from vlmgate.export.writers import count

IMAGE_ROOT = "/data/local-files/?d="
_SHOWN = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".avif", ".bmp"))  # by browsers
_NOTHING_READ = -1.0  # comes before every agreement


@dataclass(slots=True)
class LabelStudioWriter:
    """Writes tasks, those that most need a person first: without a reading, then by agreement, the lowest first.

    Tasks wait in a temporary file until their order is known; a number a task is kept in memory.
    """

    columns: Sequence[str]  # what stands in a task's data, beside the image
    provenance: Mapping[str, Any]
    image_root: str = IMAGE_ROOT
    binary: ClassVar[bool] = False
    _hidden: list[str] = field(default_factory=list)  # first of those that no browser shows
    _hidden_count: int = 0

    def write(self, rows: Rows, file: BinaryIO) -> list[str]:
        """Write all rows."""
        with tempfile.TemporaryFile() as spool:
            places: list[tuple[float, int, int]] = []  # (agreement, offset, bytes)
            offset = 0
            for row in rows:
                line = dumped(self._task(row))
                spool.write(line)
                known = row.get("captions") and row.get("agreement") is not None
                places.append((row["agreement"] if known else _NOTHING_READ, offset, len(line)))
                offset += len(line)
            places.sort()
            file.write(b"[")
            for index, (_, start, length) in enumerate(places):
                spool.seek(start)
                file.write((b",\n" if index else b"\n") + spool.read(length))
            file.write(b"]\n")
        return list(self._notes())

    def config(self) -> str:
        """Return the labelling configuration, whose controls are those that the predictions name."""
        from xml.sax.saxutils import quoteattr  # brings half of the network library along

        verdicts = "".join(f"    <Choice value={quoteattr(verdict)}/>\n" for verdict in VERDICTS)
        answers = "".join(f"    <Choice value={quoteattr(visible(choice))}/>\n" for choice in self._choices())
        asked = (
            f'  <Header value="Answer"/>\n  <Choices name="answer" toName="image" choice="single">\n{answers}'
            "  </Choices>\n"
            if answers
            else ""
        )
        return (
            "<View>\n"
            '  <Text name="file_name" value="$file_name"/>\n'
            '  <Image name="image" value="$image" zoom="true"/>\n'
            '  <Header value="What the model said"/>\n'
            '  <TextArea name="caption" toName="image" editable="true" maxSubmissions="0"/>\n'
            f"{asked}"
            '  <Header value="The reading is"/>\n'
            f'  <Choices name="verdict" toName="image" choice="single" required="true">\n{verdicts}  </Choices>\n'
            "</View>\n"
        )

    def _choices(self) -> Sequence[str]:
        return self.provenance["sampling"].get("choices") or ()

    def _task(self, row: Row) -> dict[str, Any]:
        self._look_at(row)
        file_name = row["file_name"]
        data = {"image": self._url(file_name), "file_name": file_name}
        data |= {name: row.get(name) for name in self.columns if name != "image"}
        captions = row.get("captions")
        return {"data": data, "predictions": [self._prediction(row, captions)] if captions else []}

    def _prediction(self, row: Row, captions: Sequence[str]) -> dict[str, Any]:
        results = [_result("caption", "textarea", {"text": list(captions)})]
        if row.get("answer") in self._choices():
            results.append(_result("answer", "choices", {"choices": [visible(row["answer"])]}))
        model = self.provenance.get("model") or {}
        version = "@".join(str(model[key]) for key in ("model", "revision") if model.get(key)) or "unknown"
        told: dict[str, Any] = {"model_version": version, "result": results}
        agreement = row.get("agreement")
        return told if agreement is None else told | {"score": min(1.0, max(0.0, agreement))}

    def _url(self, file_name: str) -> str:
        bare = not self.image_root or self.image_root[-1] in "/="
        return self.image_root + ("" if bare else "/") + quote(file_name, safe="/")

    def _look_at(self, row: Row) -> None:
        if PurePosixPath(row["file_name"]).suffix.lower() not in _SHOWN or (row.get("page") or 1) > 1:
            self._hidden_count += 1
            self._hidden = self._hidden or [row["file_name"]]

    def _notes(self) -> Iterator[str]:
        if self._hidden_count:
            yield (
                f"{count(self._hidden_count, 'image')} that browsers do not show (TIFF, HEIC, later pages), first: "
                f"{self._hidden[0]}; convert them and give --image-root."
            )


def _result(control: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"id": control, "from_name": control, "to_name": "image", "type": kind, "value": value}
