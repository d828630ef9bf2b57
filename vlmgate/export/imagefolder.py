"""A folder that loads with `datasets.load_dataset("imagefolder", …)`: images, and metadata.parquet beside them.

Images are named by number, with what is harmless of their own names: no name in a result can lead out of the folder,
meet another, be reserved on some system, be hidden, or be taken for a split such as "test". `Pictures` finds the images
that a result was made from.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from vlmgate.config import ImageConfig
from vlmgate.errors import NoImagesError, UsageError, count
from vlmgate.export import output
from vlmgate.export.rows import FACTS_WITH_CLAIMS, KEY, StoredRow, StoredRows, Writer

if TYPE_CHECKING:
    from PIL import Image

ORIGINAL = "original_name"  # no "…_file_name": datasets would open what such a column names
_TRAIN = "train"  # datasets looks at folders' names for splits, and at files' names only where no folder has one
# What is taken over as it is; everything else becomes PNG. Fewer than datasets knows: those that it opens everywhere.
_KEPT = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"))
_AT_ONCE = 1024  # rows


@dataclass(slots=True)
class Pictures:
    """The images that a result was made from: where they are, and whether they are still the same.

    A path comes from walking the folder, never from a name in the result, so that no name can lead out of it.
    """

    paths: Mapping[str, Path]
    max_pixels: int = ImageConfig().max_pixels
    missing: list[str] = field(default_factory=list)  # file names of what is gone, changed or cannot be opened

    @classmethod
    def of(cls, folder: Path | None, provenance: Mapping[str, Any]) -> Pictures:
        """Find the images in a folder, or where the result says that they were; raises `UsageError`."""
        from vlmgate.images import sources_of

        try:
            sources = sources_of(provenance, folder)
        except NoImagesError as error:
            place = folder or provenance.get("folder")
            raise UsageError(f"{place}: the images are not there any more; name their folder with --images.") from error
        limit = (provenance.get("image_config") or {}).get("max_pixels") or ImageConfig().max_pixels
        return cls({source.file_name: source.path for source in sources}, limit)

    def opened(self, row: StoredRow) -> Image.Image | None:
        """Return the page of a row as upright 8-bit RGB; None, and noted, unless its file is what was read."""
        from vlmgate.data import Picture, Source
        from vlmgate.images import open_pages

        name, page = row["file_name"], row["page"]
        if name in self.paths and row.get("sha256"):
            source = Source(name, self.paths[name])
            config = ImageConfig("first" if page == 1 else "all", self.max_pixels)
            pages = (one for one in open_pages(source, config) if isinstance(one, Picture) and one.file.page == page)
            found = next(pages, None)
            if found is not None and found.file.sha256 == row["sha256"]:
                return found.rgb
        self.missing.append(name)
        return None


class ImageFolderWriter(Writer):
    """Writes every image that was opened and is still what it was; later pages of a file become PNG."""

    usual = (*FACTS_WITH_CLAIMS, "caption", "captions")
    looks_at = (*KEY, "width")
    suffix = ".imagefolder"

    def save(self, rows: StoredRows, out: Path | None) -> tuple[list[Path], list[str]]:
        """Write all rows into a folder that is not there, or empty; return it, and notes."""
        if out is None:
            raise UsageError("--to imagefolder makes a folder; give -o FOLDER.")
        scanned = Path("" if self.provenance.get("listed") else self.provenance.get("folder") or "")
        for images in (self.options.images, scanned if scanned.is_absolute() else None):
            output.check_outside(out, images, "copies")
        self.pictures = Pictures.of(self.options.images, self.provenance)
        with output.folder_at(out) as folder:
            self._fill(folder, rows)
        gone = self.pictures.missing
        left_out = f"{count(len(gone), 'image')} left out (gone, changed since the scan, or unreadable), first: "
        return [out], [left_out + gone[0]] if gone else []

    def _fill(self, folder: Path, rows: StoredRows) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        (train := folder / _TRAIN).mkdir()
        names = [name for name in self.columns if name not in ("file_name", ORIGINAL, "image")]
        held, keys = rows.schema(), [pa.field(name, pa.string()) for name in ("file_name", ORIGINAL)]
        schema = pa.schema([*keys, *(held.field(name) for name in names)])
        done: list[dict[str, Any]] = []
        with pq.ParquetWriter(train / "metadata.parquet", schema, compression="zstd") as metadata:
            for number, row in enumerate(rows, 1):
                if (name := self._image(row, number, train)) is not None:
                    facts = {column: row.get(column) for column in names}
                    done.append({"file_name": name, ORIGINAL: row["file_name"]} | facts)
                if len(done) == _AT_ONCE:
                    metadata.write_table(pa.Table.from_pylist(done, schema=schema))
                    done = []
            metadata.write_table(pa.Table.from_pylist(done, schema=schema))

    def _image(self, row: StoredRow, number: int, folder: Path) -> str | None:
        """Put one image into the folder; return its name there, or None where it is not what was read."""
        suffix = PurePosixPath(row["file_name"]).suffix.lower()
        stem = f"{number:07d}{_harmless(row['file_name'])}"
        path = self.pictures.paths.get(row["file_name"])
        if suffix in _KEPT and row["page"] == 1 and path is not None and row.get("width") is not None:
            if self._take_over(path, folder / (stem + suffix), row["sha256"]):
                return stem + suffix
            self.pictures.missing.append(row["file_name"])
            return None
        picture = self.pictures.opened(row)
        if picture is None:
            return None
        picture.save(folder / f"{stem}.png")
        return f"{stem}.png"

    def _take_over(self, source: Path, target: Path, sha256: str | None) -> bool:
        """Copy or link a file; False, and nothing left behind, where its bytes are not those that were read."""
        if not (self.options.link and _linked(source, target)) and not _copied(source, target):
            return False
        with target.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == sha256
        if not same:
            target.unlink()
        return same


def _linked(source: Path, target: Path) -> bool:
    try:
        target.hardlink_to(source.resolve())
    except OSError:  # another disk, or one that knows no links
        return False
    return True


def _copied(source: Path, target: Path) -> bool:
    from vlmgate.images.find import opened
    from vlmgate.images.formats import RefusedError

    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(opened(source))
        except (OSError, RefusedError):
            return False
        shutil.copyfileobj(file, stack.enter_context(target.open("wb")), 1 << 20)
    return True


def _harmless(file_name: str) -> str:
    """Return "_part_0042" for "line2/part_0042.jpg": so much of a name as means the same everywhere."""
    stem = re.sub(r"[^A-Za-z0-9]+", "_", PurePosixPath(file_name).stem).strip("_")[:60]
    return f"_{stem}" if stem else ""
