"""From a file that the walk found to its pages, each a `Picture` or an `Unreadable`; call `open_pages`.

`Container` opens a file of any kind. Whatever is wrong with one file is a value about that file, and no warning of a
decoder gets out.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import closing
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from vlmgate.config import ImageConfig
from vlmgate.data import ImageFile, Picture, Source, Unreadable
from vlmgate.images.beside import FEWEST_PIXELS, beside
from vlmgate.images.container import MAX_PAGES, Container
from vlmgate.images.depth import Span, alone
from vlmgate.images.find import opened
from vlmgate.images.formats import RefusedError, explain, extension_of
from vlmgate.images.memory import GIGABYTE, IN_MEMORY, usual_budget
from vlmgate.images.quality import measure

_MOST_MEASURED = 100_000_000  # pixels of a picture that is looked at for the sake of others

# Takes the bytes of a page at the peak of decoding and once it is decoded; or before, those of a large file, and 0.
Admit = Callable[[int, int], None]


def open_pages(source: Source, config: ImageConfig) -> Iterator[Picture | Unreadable]:
    """Decode a file: its first page, or with `config.pages == "all"` every page, frames of an animation included.

    At least one result comes, whatever the file. Pages come one by one: only the one in hand is in memory.
    """
    with closing(pages_of(source, config, lambda _peak, _kept: None)) as pages:
        for result, _last in pages:
            yield result


def pages_of(
    source: Source, config: ImageConfig, admit: Admit
) -> Generator[tuple[Picture | Unreadable, bool], None, None]:
    """Yield each result and whether it is the source's last; `admit` is told of the memory of a page beforehand."""
    page = 1
    try:
        with opened(source.path) as file:
            contents = _Contents(file)
            extension, whole_file = extension_of(source.path.name), partial(_admit, config, admit, kept=0)
            container = Container(contents.stream, extension, config.max_pixels, config.least_side, whole_file)
            first = 1 if config.pages == "all" else container.first_page
            wanted = container.num_pages if config.pages == "all" else first
            for page in range(first, min(wanted, MAX_PAGES) + 1):
                result, end = _page(source, page, container, contents, partial(_admit, config, admit))
                last = end or page == wanted
                yield result, last
                if last:
                    return
            page = MAX_PAGES + 1
            raise RefusedError(f"more than {MAX_PAGES:,} pages; those from here on were not read")
    except Exception as error:  # the one promise of this module
        yield Unreadable(source.file_name, explain(error), page), True


def _page(
    source: Source, page: int, container: Container, contents: _Contents, admit: Admit
) -> tuple[Picture | Unreadable, bool]:
    """Decode one page; True beside the result if there is no going on from here."""
    try:
        width, height = container.seek(page)
        admit(*container.memory())
        many = width * height >= FEWEST_PIXELS
        rgb, mode, notes = container.decode(page, beside(source.path, container.camera, _measure) if many else alone)
        contents.check_unchanged()
    except Exception as error:
        end = page < container.num_pages and not container.independent_pages
        more = end and page < container.num_pages - container.cut_off  # else what is cut off is this very page
        reason = explain(error) + ("; the frames after it build on it and were not read" if more else "")
        return Unreadable(source.file_name, reason, page), end
    stored = (width, height) if (width < height) == (rgb.width < rgb.height) else (height, width)  # upright
    file = ImageFile(
        file_name=source.file_name,
        path=source.path,
        sha256=contents.sha256,
        page=page,
        num_pages=container.num_pages,
        width=stored[0],
        height=stored[1],
        mode=mode,
        conversion="; ".join(notes) or None,
        size_bytes=contents.status.st_size,
        mtime_ns=contents.status.st_mtime_ns,
        ctime_ns=contents.status.st_ctime_ns,
    )
    return Picture(file, rgb, measure(rgb)), False


def budget_of(config: ImageConfig) -> int:
    """Return the bytes that all pictures together may take."""
    return usual_budget() if config.image_memory is None else int(config.image_memory * GIGABYTE)


def _admit(config: ImageConfig, admit: Admit, peak: int, kept: int) -> None:
    """Refuse a page, or a large file, that would never fit; ask for room for any other."""
    budget = budget_of(config) if config.image_memory is not None or peak > GIGABYTE else GIGABYTE
    if peak > budget:
        takes, most = (f"{bytes_ / GIGABYTE:.2g} GB" for bytes_ in (peak, budget))
        raise RefusedError(f"needs more memory than images may take: {takes} to decode, of {most}; see --image-memory")
    admit(peak, kept)


class _MeasuredError(Exception):
    """Ends the decoding of a picture whose range alone was wanted."""

    def __init__(self, span: Span) -> None:
        self.span = span


def _few(held: int) -> None:
    """Refuse a file that is looked at for the sake of others, and takes many bytes."""
    if held > GIGABYTE:
        raise RefusedError("large")


def _measure(path: Path, camera: Hashable) -> Span | None:
    """Return the range of the values of a picture of this camera; None for any other file."""

    def found(span: Span) -> Span:
        raise _MeasuredError(span)

    try:
        with opened(path) as file:
            container = Container(file, extension_of(path.name), _MOST_MEASURED, admit=_few)
            container.seek(container.first_page)
            if container.camera == camera:
                container.decode(container.first_page, found)
    except _MeasuredError as measured:
        return measured.span
    except Exception:  # whatever is wrong with it, is said when it is its turn
        return None
    return None


class _Contents:
    """The bytes of an open file, their hash, and a stream to decode from that sees the same bytes.

    Up to 64 MiB are read into memory once, hashed and decoded from there. A larger file is hashed and then decoded
    through the same open descriptor, so that a file put in its place is not seen, and size and time of change are
    compared after decoding, so that a file written to meanwhile is refused.
    """

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self.status = os.fstat(file.fileno())
        if self.status.st_size <= IN_MEMORY:
            data = file.read(self.status.st_size + 1)
            if len(data) != self.status.st_size:
                raise RefusedError("changed while it was being read")
            self.sha256 = hashlib.sha256(data).hexdigest()
            self.stream: BinaryIO = io.BytesIO(data)
        else:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            self.stream = file

    def check_unchanged(self) -> None:
        if self.stream is self._file:
            now = os.fstat(self._file.fileno())  # not the time of status change: a new link to the file moves it
            if (now.st_size, now.st_mtime_ns) != (self.status.st_size, self.status.st_mtime_ns):
                raise RefusedError("changed while it was being read")
