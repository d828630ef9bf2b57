"""What there is to read: what a folder holds, or what a list names.

Knows configurations and walks; knows nothing of what is inside a file.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmgate.config import ScanConfig
from vlmgate.errors import NoImagesError
from vlmgate.images import Walk, chosen, find_images, find_listed, folders_of
from vlmgate.run.progress import Progress
from vlmgate.store.result import Outputs


def find(config: ScanConfig, outputs: Outputs, progress: Progress, only: Collection[str] | None = None) -> Walk:
    """Return the images of a scan; raises `NoImagesError` where there are none, unless they are still to come.

    `only` names the files that count. Our own files are no ignored ones.
    """
    if config.files is None:
        progress.message(f"Looking for images in {config.folder} …")
        walk = look(config, outputs)
    else:
        progress.message(f"Looking for the {len(config.files):,} files of the list …")
        walk = find_listed(config.files, config.folder)
    if again := len(walk.repeated):
        files = "file" if again == 1 else "files"
        progress.message(f"the list names {again:,} {files} again, which has one row all the same: {walk.repeated[0]}")
    if only is not None:
        walk = replace(walk, sources=chosen(walk.sources, lambda source: source.file_name in only))
    if not walk.sources and not walk.unreadable and config.watch is None:
        raise NoImagesError(_no_images(config.folder, walk))
    return walk


def look(config: ScanConfig, outputs: Outputs) -> Walk:
    """Return what the folder holds now; raises `NoImagesError` where it cannot be listed."""
    walk = find_images(config.folder)
    return replace(walk, ignored=tuple(name for name in walk.ignored if Path(name).name not in outputs.names()))


def told_of_list(config: ScanConfig, walk: Walk) -> dict[str, Any] | None:
    """Return what the provenance says of a list; None for a folder."""
    if config.files is None:
        return None
    return {"entries": len(config.files), "repeated": len(walk.repeated), "folders": folders_of(walk)}


def _no_images(folder: Path, walk: Walk) -> str:
    first = f", among them {walk.ignored[0]!r}" if walk.ignored else ""
    return f"{folder}: no image found ({len(walk.ignored)} other files{first}); name a folder that holds images."
