"""The images that a result was made from: where they are, and whether they are still the same.

Knows folders and hashes; knows nothing of formats to export to. A path comes from walking the folder, never from a name
in the result, so that no name can lead out of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmgate.config import ImageConfig
from vlmgate.errors import NoImagesError, UsageError
from vlmgate.export.rows import Row

if TYPE_CHECKING:
    from PIL import Image


@dataclass(slots=True)
class Pictures:
    """The images of one folder, by file_name."""

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

    def opened(self, row: Row) -> Image.Image | None:
        """Return the page of a row as upright 8-bit RGB; None, and noted, unless its file is what was read."""
        from vlmgate.data import Picture, Source
        from vlmgate.images import open_pages

        name, page = row["file_name"], row["page"]
        if name in self.paths and row.get("sha256"):
            source = Source(name, self.paths[name])
            config = ImageConfig("first" if page == 1 else "all", self.max_pixels)
            for found in open_pages(source, config):
                if isinstance(found, Picture) and found.file.page == page:
                    if found.file.sha256 == row["sha256"]:
                        return found.rgb
                    break
        self.missing.append(name)
        return None
