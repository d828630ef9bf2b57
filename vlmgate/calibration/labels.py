"""Read what people say of images: classes by folder or by table, or verdicts on readings. Call `read_labels`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from vlmgate.calibration.parts import check_all, groups_in, text_of, within
from vlmgate.data import VERDICTS, Key
from vlmgate.errors import LabelError
from vlmgate.export.sheet import TABLES, Cells, read_rows
from vlmgate.export.text_formats import undefused
from vlmgate.images import composed, find_images, spelt_as
from vlmgate.run.shards import names_of
from vlmgate.store.result import TRIES_FILE

Kind = Literal["class", "verdict", "ambiguity"]

AMBIGUITY = ("clear", "ambiguous")
LABEL_COLUMNS = ("label", "class", "category", "defect", "condition", "target", "verdict")
SPLITS = frozenset(("train", "val", "valid", "validation", "test"))
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # the names that a Hugging Face ImageFolder has


@dataclass(frozen=True, slots=True)
class Labels:
    """What people say, by image."""

    kind: Kind
    form: str  # what was recognised, in words
    source: Path
    folder: Path | None  # the file names below are relative to it; None for a table that lies apart from images
    by_name: Mapping[Key, str] = field(default_factory=dict)
    by_content: Mapping[Key, str] = field(default_factory=dict)  # by (sha256, page); goes before the name
    readings: Mapping[Key, str] = field(default_factory=dict)  # by name, what a person says it should have read
    ignored: tuple[str, ...] = ()  # what was left out, in words
    written: Mapping[Key, Key] = field(default_factory=dict)  # a name with \\, as a row has it → its key in by_name
    parts: Mapping[Key, str] = field(default_factory=dict)  # by name, the part that an image shows; empty = not told
    parts_by_content: Mapping[Key, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return max(len(self.by_name), len(self.by_content))

    def counts(self) -> dict[str, int]:
        """Return the classes or verdicts with their numbers, the most frequent first."""
        return dict(Counter((self.by_name or self.by_content).values()).most_common())

    def for_images(self, names: Collection[str]) -> Labels:
        """Return the labels for images of these names: where one is called as a row was written, that row is its own.

        A \\ parts folders on Windows; elsewhere it may be a character of a name, which only the images can tell. So may
        an "é" be one character or two.
        """
        literal = {key: row for row, key in self.written.items() if row[0] in names}
        by_name, parts = (
            respelt({literal.get(key, key): one for key, one in said.items()}, names)
            for said in (self.by_name, self.parts)
        )
        return replace(self, by_name=by_name, parts=parts, written={})


def respelt(by_name: Mapping[Key, str], names: Collection[str]) -> dict[Key, str]:
    """Return what is said of images by the names that these have, where a table spells them in another form."""
    spelt = spelt_as((name for name, _ in by_name), names)
    return {(spelt.get(name, name), page): said for (name, page), said in by_name.items()}


def read_labels(source: Path, column: str | None = None, group: str | None = None) -> Labels:
    """Read a labelled folder or a table; raises `LabelError` where nothing is recognised.

    `group` is the column that says which part an image shows, in the table of labels or in the folder's metadata;
    every labelled image must have one.

    A folder is one of, in this order: with tables `metadata.csv`, `.jsonl` or `.parquet` that have `file_name` and a
    label column; in the layout of MVTec AD (`test/good`, `test/<defect>`); with `clear/` and `ambiguous/`; with splits
    (`train/`, `val/`, `test/`) that have a sub-folder for each class; with a sub-folder for each class.
    """
    labels = _labels_in(source, column)
    return labels if group is None else _with_parts(labels, group)


def _with_parts(labels: Labels, group: str) -> Labels:
    """Add the part of every image; raises `LabelError` where one has none."""
    tables = [labels.source] if labels.source.is_file() else _tables(labels.source)
    by_name: dict[Key, str] = {}
    by_content: dict[Key, str] = {}
    headers: list[str] = []
    for path in tables:
        headers += _header(path)
        names, contents = groups_in(path, group)
        by_name |= names if labels.folder is None else within(names, path.parent, labels.folder)
        by_content |= contents
    if group not in headers:
        there = _shown(", ".join(dict.fromkeys(headers)), 200) or "no metadata.csv"
        raise LabelError(
            f"{labels.source}: no table has the column '{group}' (--group); there is {there}. --group-pattern takes "
            "parts from file names."
        )
    check_all(((key[0], by_name.get(key)) for key in labels.by_name), f"the column '{group}'")
    if not labels.by_name:
        check_all(((key[0], by_content.get(key)) for key in labels.by_content), f"the column '{group}'")
    return replace(labels, parts=by_name, parts_by_content=by_content)


def _tables(folder: Path) -> list[Path]:
    """Return the metadata tables of a folder and of its splits."""
    tables = [path for name in _METADATA for path in sorted([folder / name, *folder.glob(f"*/{name}")])]
    return [path for path in tables if path.is_file()]


def _labels_in(source: Path, column: str | None) -> Labels:
    if source.is_dir():
        found = _tables(source)
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


def _of_folders(source: Path, ignored: Sequence[str]) -> Labels:
    try:
        folders = {path.name for path in source.iterdir() if path.is_dir() and not path.name.startswith(".")}
    except OSError as error:
        raise LabelError(f"{source}: cannot be listed ({error.strerror}).") from error
    walk, depth, form, kind = find_images(source), 0, "a sub-folder for each class", "class"
    root, aside = source, list(ignored)
    if splits := _splits(source, names_of(walk)):
        depth, form = 1, f"splits {', '.join(f'{name}/' for name in splits)} with a sub-folder for each class"
    elif "test" in folders and (source / "test" / "good").is_dir():
        root, form = source / "test", "MVTec AD (test/good and test/<defect>)"
        walk = find_images(root)
        aside += [f"{name}/" for name in sorted(folders - {"test"})]
    elif folders >= set(AMBIGUITY):
        form, kind = "clear/ and ambiguous/: the target is the ambiguity itself", "ambiguity"
        aside += [f"{name}/" for name in sorted(folders - set(AMBIGUITY))]
    by_name: dict[Key, str] = {}
    loose = []
    for name in names_of(walk):
        above = name.split("/")[:-1]
        if len(above) <= depth:
            loose.append(name)
        elif kind == "class" or above[depth] in AMBIGUITY:
            by_name[name, 1] = composed(above[depth])  # as models and tables write it
    if not by_name:
        raise LabelError(
            f"{source}: no labels found; it takes a sub-folder for each class, test/good and test/<defect>, clear/ and "
            "ambiguous/, or a metadata.csv with file_name and label."
        )
    if loose:
        aside.append(f"{len(loose):,} images in no class folder, first: {loose[0]}")
    if ignored := [name for name in walk.ignored if PurePosixPath(name).name != TRIES_FILE]:
        aside.append(f"{len(ignored):,} files that are no images, first: {ignored[0]}")
    return Labels("ambiguity" if kind == "ambiguity" else "class", form, source, root, by_name, ignored=tuple(aside))


def _splits(source: Path, names: Iterable[str]) -> list[str]:
    """Return the folders where all are splits, with a folder for each class below; none where it is otherwise."""
    classes: dict[str, set[str]] = {}
    for name in names:
        top, *below = name.split("/")
        if below and not top.startswith("."):
            classes.setdefault(top, set()).update(below[:-1][:1])
    if not {top.casefold() for top in classes} <= SPLITS or not all(classes.values()):
        return []
    others = set[str]().union(*(found for top, found in classes.items() if top != "test"))
    if (source / "test" / "good").is_dir() and others <= {"good"}:
        return []  # MVTec AD, which has nothing but good parts outside of test/
    return sorted(classes)


def _of_metadata(source: Path, tables: Sequence[Path], column: str | None) -> Labels:
    """Join the tables of a folder and of its splits, whose file names are relative to where each lies."""
    parts = [_of_table(path, column) for path in tables]
    if len({part.kind for part in parts}) > 1:
        raise LabelError(f"{source}: some tables hold classes, some verdicts; keep one kind.")
    by_name: dict[Key, str] = {}
    readings: dict[Key, str] = {}
    walk = find_images(source)
    names = set(names_of(walk))
    for path, part in zip(tables, parts, strict=True):
        prefix = path.parent.relative_to(source).as_posix()
        prefix = "" if prefix == "." else f"{prefix}/"
        part = part.for_images({name.removeprefix(prefix) for name in names if name.startswith(prefix)})
        by_name |= {(prefix + name, page): label for (name, page), label in part.by_name.items()}
        readings |= {(prefix + name, page): text for (name, page), text in part.readings.items()}
    listed = {name for name, _ in by_name}
    without = [name for name in names_of(walk) if name not in listed]
    ignored = [text for part in parts for text in part.ignored]
    if without:
        ignored.append(f"{len(without):,} images without a label, first: {without[0]}")
    form = f"{', '.join(path.relative_to(source).as_posix() for path in tables)} ({parts[0].form})"
    return Labels(parts[0].kind, form, source, source, by_name, readings=readings, ignored=tuple(ignored))


def _of_table(path: Path, column: str | None) -> Labels:
    rows = list(read_rows(path))
    header = list(rows[0][1]) if rows else []
    name = _label_column(header, column)
    if name is None:
        known = f"a column '{column}'" if column else f"one of the columns {', '.join(LABEL_COLUMNS)}"
        there = _shown(", ".join(header), 200) or "none"
        raise LabelError(f"{path}: needs {known}, and has {there}; see --label-column.")
    if "file_name" not in header and "sha256" not in header:
        raise LabelError(f"{path}: needs a column file_name (or sha256) that says which image a label is of.")
    for number, row in rows:
        for column in (name, "file_name", "page", "sha256", "reading"):
            if isinstance(row.get(column), list | dict):
                raise LabelError(f"{path}: row {number} has a list or an object as {column}; it takes one text there.")
    verdicts = {text_of(row.get(name)).casefold() for _, row in rows} - {""}
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

    def read(self, rows: Sequence[tuple[int, Cells]]) -> Labels:
        names: dict[Key, set[str]] = {}
        contents: dict[Key, set[str]] = {}
        readings: dict[Key, str] = {}
        blank = 0
        for number, row in rows:
            label = self._label(row, number)
            if label is None:
                blank += 1
                continue
            page = self._page(row, number)
            name, sha256 = _cell(row.get("file_name")), text_of(row.get("sha256")).casefold()
            if name:
                name = PurePosixPath(name).as_posix()  # "./a.png" is "a.png"
                names.setdefault((name, page), set()).add(label)
                if read := text_of(row.get("reading")):
                    readings[name, page] = read
            if sha256:
                contents.setdefault((sha256, page), set()).add(label)
        ignored = [f"{blank:,} rows without a {self.column}"] if blank else []
        torn = [key for key, labels in names.items() if len(labels) > 1]
        if torn:
            ignored.append(f"{len(torn):,} images with two different labels, first: {torn[0][0]}")
        written = _with_slashes(names)
        readings |= {key: readings[row] for row, key in written.items() if row in readings}
        by_name = {written.get(key, key): next(iter(said)) for key, said in names.items() if len(said) == 1}
        by_content = {key: next(iter(labels)) for key, labels in contents.items() if len(labels) == 1}
        if not by_name and not by_content:
            raise LabelError(f"{self.path}: no row has both a file_name and a {self.column}; fill that column in.")
        form = f"{self.path.suffix[1:]} with {'verdicts' if self.kind == 'verdict' else f'the column {self.column}'}"
        return Labels(self.kind, form, self.path, None, by_name, by_content, readings, tuple(ignored), written)

    def _label(self, row: Mapping[str, Any], number: int) -> str | None:
        text = text_of(row.get(self.column))
        if self.kind == "class":
            return composed(_cell(row.get(self.column))) or None
        if text and text.casefold() not in (VERDICTS if self.kind == "verdict" else AMBIGUITY):
            raise LabelError(
                f"{self.path}: row {number} has the verdict '{_shown(text)}'; known: {', '.join(VERDICTS)}, or an "
                "empty cell for an image that nobody has judged."
            )
        return text.casefold() or None

    def _page(self, row: Mapping[str, Any], number: int) -> int:
        text = text_of(row.get("page")) or "1"
        try:
            return int(float(text))
        except (ValueError, OverflowError) as error:
            raise LabelError(f"{self.path}: row {number} has the page '{_shown(text)}', which is no number.") from error


def _with_slashes(names: Iterable[Key]) -> dict[Key, Key]:
    """Return names with a backslash → the same with slashes, but where another row has that name already."""
    taken = set(names)
    slashed = {
        (name, page): (PurePosixPath(name.replace("\\", "/")).as_posix(), page) for name, page in taken if "\\" in name
    }
    times = Counter(slashed.values())
    return {row: key for row, key in slashed.items() if key not in taken and times[key] == 1}


def _label_column(header: Sequence[str], wanted: str | None) -> str | None:
    names = LABEL_COLUMNS if wanted is None else (wanted,)
    return next((name for name in names if name in header), None)


def _cell(value: object) -> str:
    """Return a cell as it was before a spreadsheet was kept from taking it for a formula."""
    return "" if value is None else undefused(str(value))


def _shown(text: str, most: int = 40) -> str:
    """Return the beginning of a text that may be anything, on one line."""
    return " ".join(text[: 4 * most].split())[:most]


def _header(path: Path) -> list[str]:
    return list(next(read_rows(path), (0, {}))[1])
