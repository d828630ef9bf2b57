"""Read what people say of images: classes by folder or by table, or verdicts on readings.

Knows folder layouts, tables and words; knows nothing of readings, scores or models.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlmgate.errors import LabelError
from vlmgate.export.cells import undefused
from vlmgate.images import Walk, find_images

Kind = Literal["class", "verdict", "ambiguity"]
Key = tuple[str, int]  # (file_name, page)

VERDICTS = ("correct", "wrong", "unusable")
AMBIGUITY = ("clear", "ambiguous")
LABEL_COLUMNS = ("label", "class", "category", "defect", "condition", "target", "verdict")
TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".xlsx", ".json")
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # the names that a Hugging Face ImageFolder has


@dataclass(frozen=True, slots=True)
class Labels:
    """What people say, by image."""

    kind: Kind
    form: str  # what was recognised, in words
    source: Path
    folder: Path | None  # the file names below are relative to it; None for a table that lies apart from images
    by_name: Mapping[Key, str] = field(default_factory=dict)
    by_content: Mapping[Key, str] = field(default_factory=dict)  # (sha256, page); goes before the name
    readings: Mapping[Key, str] = field(default_factory=dict)  # by name, what a person says it should have read
    ignored: tuple[str, ...] = ()  # what was left out, in words

    def __len__(self) -> int:
        return max(len(self.by_name), len(self.by_content))

    def counts(self) -> dict[str, int]:
        """Return the classes or verdicts with their numbers, the most frequent first."""
        return dict(Counter((self.by_name or self.by_content).values()).most_common())


def read_labels(source: Path, column: str | None = None) -> Labels:
    """Read a labelled folder or a table; raises `LabelError` where nothing is recognised.

    A folder is one of, in this order: with tables `metadata.csv`, `.jsonl` or `.parquet` that have `file_name` and a
    label column; in the layout of MVTec AD (`test/good`, `test/<defect>`); with `clear/` and `ambiguous/`; with a
    sub-folder for each class.
    """
    if source.is_dir():
        tables = [path for name in _METADATA for path in sorted([source / name, *source.glob(f"*/{name}")])]
        found = [path for path in tables if path.is_file()]
        labelled = [path for path in found if _label_column(_header(path), column) is not None]
        if labelled:
            return _of_metadata(source, labelled, column)
        if column is not None:
            raise LabelError(f"{source}: no metadata table in it has a column '{column}'; see --label-column.")
        return _of_folders(source, [f"{path.name}: has no label column" for path in found])
    if not source.is_file():
        raise LabelError(f"{source}: no such folder or table; name a labelled folder, or a table of labels.")
    if source.suffix.lower() not in TABLES:
        raise LabelError(f"{source}: is no table that can be read; give a folder or one of {', '.join(TABLES)}.")
    return _of_table(source, column)


# --- folders ----------------------------------------------------------------------------------------------------------


def _of_folders(source: Path, ignored: Sequence[str]) -> Labels:
    try:
        folders = {path.name for path in source.iterdir() if path.is_dir() and not path.name.startswith(".")}
    except OSError as error:
        raise LabelError(f"{source}: cannot be listed ({error.strerror}).") from error
    root, form, kind = source, "a sub-folder for each class", "class"
    aside = list(ignored)
    if "test" in folders and (source / "test" / "good").is_dir():
        root, form = source / "test", "MVTec AD (test/good and test/<defect>)"
        aside += [f"{name}/" for name in sorted(folders - {"test"})]
    elif folders >= set(AMBIGUITY):
        form, kind = "clear/ and ambiguous/: the target is the ambiguity itself", "ambiguity"
        aside += [f"{name}/" for name in sorted(folders - set(AMBIGUITY))]
    walk = find_images(root)
    by_name: dict[Key, str] = {}
    loose = []
    for name in _names(walk):
        label, _, rest = name.partition("/")
        if not rest:
            loose.append(name)
        elif kind == "class" or label in AMBIGUITY:
            by_name[name, 1] = label
    if not by_name:
        raise LabelError(
            f"{source}: no labels found; it takes a sub-folder for each class, test/good and test/<defect>, clear/ and "
            "ambiguous/, or a metadata.csv with file_name and label."
        )
    if loose:
        aside.append(f"{len(loose):,} images in no class folder, first: {loose[0]}")
    if walk.ignored:
        aside.append(f"{len(walk.ignored):,} files that are no images, first: {walk.ignored[0]}")
    return Labels("ambiguity" if kind == "ambiguity" else "class", form, source, root, by_name, ignored=tuple(aside))


def _names(walk: Walk) -> list[str]:
    return [s.file_name for s in walk.sources] + [u.file_name for u in walk.unreadable]


def _of_metadata(source: Path, tables: Sequence[Path], column: str | None) -> Labels:
    """Join the tables of a folder and of its splits, whose file names are relative to where each lies."""
    parts = [_of_table(path, column) for path in tables]
    if len({part.kind for part in parts}) > 1:
        raise LabelError(f"{source}: some tables hold classes, some verdicts; keep one kind.")
    by_name: dict[Key, str] = {}
    readings: dict[Key, str] = {}
    for path, part in zip(tables, parts, strict=True):
        prefix = path.parent.relative_to(source).as_posix()
        prefix = "" if prefix == "." else f"{prefix}/"
        by_name |= {(prefix + name, page): label for (name, page), label in part.by_name.items()}
        readings |= {(prefix + name, page): text for (name, page), text in part.readings.items()}
    listed = {name for name, _ in by_name}
    walk = find_images(source)
    without = [name for name in _names(walk) if name not in listed]
    ignored = [text for part in parts for text in part.ignored]
    if without:
        ignored.append(f"{len(without):,} images without a label, first: {without[0]}")
    form = f"{', '.join(path.relative_to(source).as_posix() for path in tables)} ({parts[0].form})"
    return Labels(parts[0].kind, form, source, source, by_name, readings=readings, ignored=tuple(ignored))


# --- tables -----------------------------------------------------------------------------------------------------------


def _of_table(path: Path, column: str | None) -> Labels:
    rows = list(_rows(path))
    header = list(rows[0]) if rows else _header(path)
    name = _label_column(header, column)
    if name is None:
        known = f"a column '{column}'" if column else f"one of the columns {', '.join(LABEL_COLUMNS)}"
        raise LabelError(f"{path}: needs {known}, and has {', '.join(map(str, header)) or 'none'}; see --label-column.")
    if "file_name" not in header and "sha256" not in header:
        raise LabelError(f"{path}: needs a column file_name (or sha256) that says which image a label is of.")
    verdicts = {_text(row.get(name)).casefold() for row in rows} - {""}
    kind: Kind = "verdict" if name == "verdict" or (verdicts and verdicts <= set(VERDICTS)) else "class"
    if kind == "class" and verdicts and verdicts <= set(AMBIGUITY):
        kind = "ambiguity"
    return _Table(path, name, kind).read(rows)


@dataclass
class _Table:
    """A table while it is read."""

    path: Path
    column: str
    kind: Kind

    def read(self, rows: Sequence[Mapping[str, Any]]) -> Labels:
        names: dict[Key, set[str]] = {}
        contents: dict[Key, set[str]] = {}
        readings: dict[Key, str] = {}
        blank = 0
        for number, row in enumerate(rows, start=2):
            label = self._label(row, number)
            if label is None:
                blank += 1
                continue
            page = self._page(row, number)
            name, sha256 = _cell(row.get("file_name")), _text(row.get("sha256")).casefold()
            if name:
                names.setdefault((name, page), set()).add(label)
                if read := _text(row.get("reading")):
                    readings[name, page] = read
            if sha256:
                contents.setdefault((sha256, page), set()).add(label)
        ignored = [f"{blank:,} rows without a {self.column}"] if blank else []
        torn = [key for key, labels in names.items() if len(labels) > 1]
        if torn:
            ignored.append(f"{len(torn):,} images with two different labels, first: {torn[0][0]}")
        by_name = {key: next(iter(labels)) for key, labels in names.items() if len(labels) == 1}
        by_content = {key: next(iter(labels)) for key, labels in contents.items() if len(labels) == 1}
        if not by_name and not by_content:
            raise LabelError(f"{self.path}: no row has both a file_name and a {self.column}; fill that column in.")
        form = f"{self.path.suffix[1:]} with {'verdicts' if self.kind == 'verdict' else f'the column {self.column}'}"
        return Labels(self.kind, form, self.path, None, by_name, by_content, readings, tuple(ignored))

    def _label(self, row: Mapping[str, Any], number: int) -> str | None:
        text = _text(row.get(self.column))
        if self.kind == "class":
            return _cell(row.get(self.column)) or None
        if text and text.casefold() not in (VERDICTS if self.kind == "verdict" else AMBIGUITY):
            raise LabelError(
                f"{self.path}: row {number} has the verdict '{text[:40]}'; known: {', '.join(VERDICTS)}, or an empty "
                "cell for an image that nobody has judged."
            )
        return text.casefold() or None

    def _page(self, row: Mapping[str, Any], number: int) -> int:
        text = _text(row.get("page")) or "1"
        try:
            return int(float(text))
        except (ValueError, OverflowError) as error:
            raise LabelError(f"{self.path}: row {number} has the page '{text[:40]}', which is no number.") from error


def _label_column(header: Sequence[str], wanted: str | None) -> str | None:
    names = LABEL_COLUMNS if wanted is None else (wanted,)
    return next((name for name in names if name in header), None)


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _cell(value: object) -> str:
    """Return a cell as it was before a spreadsheet was kept from taking it for a formula."""
    return "" if value is None else undefused(str(value))


def _header(path: Path) -> list[str]:
    return list(next(_rows(path), {}))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield a table's rows by column name; raises `LabelError` for what is no table."""
    readers = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".parquet": _parquet, ".xlsx": _xlsx, ".json": _studio}
    reader = readers[path.suffix.lower()]
    try:
        yield from reader(path)
    except LabelError:
        raise
    except OSError as error:
        raise LabelError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except Exception as error:
        detail = " ".join(str(error).split())[:120]
        raise LabelError(f"{path}: is no {path.suffix[1:]} table that can be read ({detail}).") from error


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(1 << 24)
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        mark = max("\t;,", key=first.count)  # commas where nothing is found
        yield from csv.DictReader(file, delimiter=mark)


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("a line is no object")
                yield row


def _studio(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what was annotated in Label Studio: its JSON export of the tasks that `vlmgate export` wrote."""
    tasks = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(tasks, list):
        raise ValueError("it is no list of tasks of Label Studio")
    for task in tasks:
        data = task["data"]
        done = [one for one in task.get("annotations", ()) if not one.get("was_cancelled")]
        row = {"file_name": data["file_name"], "page": data.get("page"), "sha256": data.get("sha256"), "verdict": None}
        for result in done[-1]["result"] if done else ():
            chosen = result["value"].get("choices") or result["value"].get("text") or ()
            name = {"verdict": "verdict", "answer": "reading"}.get(result["from_name"])
            if name and chosen:
                row[name] = chosen[0]
        yield row


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        table = pq.ParquetFile(file)
        flat = [column.name for column in table.schema_arrow if not pa.types.is_nested(column.type)]  # no pixels
        for batch in table.iter_batches(columns=flat):
            yield from batch.to_pylist()


def _xlsx(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise LabelError(f"{path}: needs openpyxl; pip install openpyxl, or save the sheet as CSV.") from error
    book = load_workbook(path, read_only=True, data_only=True)
    try:
        lines = book.worksheets[0].iter_rows(values_only=True)
        header = [_text(cell) for cell in next(lines, ())]
        for line in lines:
            if any(cell is not None for cell in line):
                yield dict(zip(header, line, strict=False))
    finally:
        book.close()
