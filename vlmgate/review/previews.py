"""The pictures of the page: upright 8-bit JPEGs of the files that the model read, or why there is none.

Call `make_previews`. A file that is not what the model read has no preview.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlmgate.config import ImageConfig
from vlmgate.data import Reason, Source, Unreadable
from vlmgate.errors import plain
from vlmgate.images import read_ahead
from vlmgate.review.items import Item

if TYPE_CHECKING:
    from PIL import Image

LARGEST = 1600  # pixels of a preview's longer side
THUMBNAIL = 256  # pixels of a thumbnail's longer side
_FINE = 512  # pixels of the longer side up to which a preview is kept free of visible artefacts; it is small anyway


@dataclass(frozen=True, slots=True)
class Preview:
    """Two JPEGs of one image on disk, or the larger one in memory."""

    width: int  # pixels of the preview
    height: int
    size_bytes: int  # on disk
    jpeg: bytes | None = None  # the preview, where it is not written to a file


@dataclass(frozen=True, slots=True)
class Lacking:
    """Why there is no preview."""

    why: str  # a sentence without its full stop
    kind: str  # "unreadable" (as the scan said), "missing", "changed"


def make_previews(
    items: Sequence[Item],
    images: Sequence[Source],
    config: ImageConfig,
    *,
    into: Path | None,
    largest: int = LARGEST,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[int, Preview | Lacking]:
    """Return by number a preview of each item, or why there is none.

    `into` is the folder whose sub-folders `previews` and `thumbs` are filled; None keeps the previews in memory. Only
    files among `images` are opened, whatever path a result names. `largest` is in pixels of the longer side.
    """
    wanted = {(item.record.file_name, item.record.page): item for item in items}
    found = {source.file_name: source for source in images}
    made: dict[int, Preview | Lacking] = {}
    sources: dict[str, Source] = {}
    for item in items:
        name = item.record.file_name
        if item.record.reason == Reason.UNREADABLE:
            made[item.number] = Lacking(
                f"The scan could not read this file: {plain(item.record.error or '')}", "unreadable"
            )
        elif name not in found:
            made[item.number] = Lacking("This file is not in the image folder any more", "missing")
        else:
            sources[name] = found[name]
    advance(len(made))
    if into is not None:
        for folder in ("previews", "thumbs"):
            (into / folder).mkdir()
    for item, result in _encoded(list(sources.values()), wanted, config, into, largest):
        made[item.number] = result
        advance(1)
    for item in items:  # pages that a file does not have any more
        made.setdefault(item.number, Lacking("This page is not in the file any more", "changed"))
    return made


def _encoded(
    sources: Sequence[Source], wanted: dict[tuple[str, int], Item], config: ImageConfig, into: Path | None, largest: int
) -> Iterator[tuple[Item, Preview | Lacking]]:
    """Yield the preview of each wanted page, or why there is none; decoding and encoding have separate threads."""
    workers = config.workers or min(8, os.cpu_count() or 1)
    waiting: deque[tuple[Item, Future[Preview]]] = deque()
    with ThreadPoolExecutor(workers, "vlmgate-encode") as pool, closing(read_ahead(sources, config)) as line:
        try:
            for opened in line:
                result = opened.result
                page = result.page if isinstance(result, Unreadable) else result.file.page
                item = wanted.get((opened.source.file_name, page))
                if item is None:
                    continue
                if isinstance(result, Unreadable):
                    yield item, Lacking(f"This file cannot be read now: {plain(result.reason)}", "changed")
                elif item.record.sha256 not in (None, result.file.sha256):
                    why = "This file has changed since the model read it, so what it shows now is not what was read"
                    yield item, Lacking(why, "changed")
                else:
                    waiting.append((item, pool.submit(_encode, result.rgb, item.number, into, largest)))
                del opened, result  # or the picture would stay in memory while the next is waited for
                if len(waiting) > 2 * workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
            yield from ((item, future.result()) for item, future in waiting)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _encode(rgb: Image.Image, number: int, into: Path | None, largest: int) -> Preview:
    preview = _shrunk(rgb, largest)
    jpeg = _jpeg(preview, 95 if max(preview.size) <= _FINE else 85)
    if into is None:
        return Preview(preview.width, preview.height, 0, jpeg)
    thumbnail = _jpeg(_shrunk(preview, THUMBNAIL), 78)
    (into / "previews" / f"{number:06d}.jpg").write_bytes(jpeg)
    (into / "thumbs" / f"{number:06d}.jpg").write_bytes(thumbnail)
    return Preview(preview.width, preview.height, len(jpeg) + len(thumbnail))


def _shrunk(rgb: Image.Image, largest: int) -> Image.Image:
    from PIL import Image

    share = largest / max(rgb.size)
    if share >= 1:
        return rgb
    size = (max(1, round(rgb.width * share)), max(1, round(rgb.height * share)))
    return rgb.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _jpeg(rgb: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    rgb.save(out, "JPEG", quality=quality, subsampling=0 if quality > 90 else -1)
    return out.getvalue()
