"""From a file that the walk found to its pages, each a `Picture` or an `Unreadable`; call `open_pages`.

`Container` opens a file of any kind. Whatever is wrong with one file is a value about that file, and no warning of a
decoder gets out.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import warnings
from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

from PIL import Image, JpegImagePlugin, TiffImagePlugin
from PIL.ImageFile import ImageFile as PillowImage

from vlmgate.config import ImageConfig
from vlmgate.data import ImageFile, Picture, Source, Unreadable
from vlmgate.images.beside import FEWEST_PIXELS, beside
from vlmgate.images.damage import PngFrames, check_integrity, check_webp, ends_with_gif_trailer
from vlmgate.images.decode import decode, decode_16_bit_colour, decode_pnm, is_16_bit_colour
from vlmgate.images.depth import Shared, Span, alone
from vlmgate.images.find import opened
from vlmgate.images.formats import HEAD_BYTES, OPENERS, RefusedError, explain, extension_of, kind_of, printable
from vlmgate.images.jpeg import EOI, check_jpeg
from vlmgate.images.libtiff import be_quiet
from vlmgate.images.memory import GIGABYTE, KEPT, peak_of, usual_budget
from vlmgate.images.quality import measure
from vlmgate.images.tiff import SUB_PAGES, TiffPage, check_page, read_pages

MAX_PAGES = 10_000  # of one file; more than any camera writes, less than a hostile file can claim
_MOST_MEASURED = 100_000_000  # pixels of a picture that is looked at for the sake of others
_MAKE, _MODEL = 271, 272  # TIFF tags
_IN_MEMORY = 64 << 20  # bytes; larger files are decoded from the open file


Admit = Callable[[int, int], None]  # takes the bytes of a page at the peak of decoding and once it is decoded


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
            container = Container(contents.stream, extension_of(source.path.name), config.max_pixels, config.least_side)
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
    """Refuse a page that would never fit; ask for room for any other."""
    budget = budget_of(config) if config.image_memory is not None or peak > GIGABYTE else GIGABYTE
    if peak > budget:
        raise RefusedError(
            f"takes {peak / GIGABYTE:.2g} GB of memory to decode, more than the {budget / GIGABYTE:.2g} GB that images "
            "may take; see --image-memory"
        )
    admit(peak, kept)


class _MeasuredError(Exception):
    """Ends the decoding of a picture whose range alone was wanted."""

    def __init__(self, span: Span) -> None:
        self.span = span


def _measure(path: Path, camera: Hashable) -> Span | None:
    """Return the range of the values of a picture of this camera; None for any other file."""

    def found(span: Span) -> Span:
        raise _MeasuredError(span)

    try:
        with opened(path) as file:
            container = Container(file, extension_of(path.name), _MOST_MEASURED)
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
        if self.status.st_size <= _IN_MEMORY:
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


# --- warnings --------------------------------------------------------------------------------------------------------


class _Hush(threading.local):
    """A message matcher for `warnings.filters` that matches in the threads that asked for it only, and takes notes.

    `warnings.catch_warnings` swaps the filters of the whole process and is not safe in threads. One entry that is asked
    per warning, and that answers per thread, leaves the warnings of everybody else alone.
    """

    notes: list[str] | None = None

    def match(self, message: str) -> bool:
        if self.notes is None:
            return False
        self.notes.append(message)
        return True


_hush = _Hush()
_hush_entry = ("ignore", _hush, Warning, None, 0)
_hush_lock = threading.Lock()


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Collect the warnings that this thread raises instead of showing them."""
    filters = cast("list[Any]", warnings.filters)  # typed as read-only, though it is documented as a list
    with _hush_lock:
        if not filters or filters[0] is not _hush_entry:
            filters[:] = [_hush_entry, *(entry for entry in filters if entry is not _hush_entry)]
    outer, _hush.notes = _hush.notes, []
    try:
        yield _hush.notes
    finally:
        _hush.notes = outer


# --- containers ------------------------------------------------------------------------------------------------------


class Container:
    """An image file opened for reading, its pages one after the other; not safe in several threads at a time."""

    def __init__(self, stream: BinaryIO, extension: str, max_pixels: int, least_side: int = 0) -> None:
        """Read the header; raises `RefusedError`, or whatever Pillow makes of a hostile file.

        With `least_side`, large JPEGs are decoded smaller, down to sides of that many pixels.
        """
        head = stream.read(HEAD_BYTES)
        if not head:
            raise RefusedError("empty file")
        self._stream, self._max_pixels, self._least_side = stream, max_pixels, least_side
        self.kind = kind_of(head, extension)
        self.independent_pages = self.kind == "TIFF"  # others are frames that build on the one before
        self._tiff: list[TiffPage] = []
        with quiet() as complaints:
            check_integrity(stream, self.kind)
            if self.kind == "TIFF":
                be_quiet()
                self._tiff, self.cut_off = read_pages(stream, MAX_PAGES + 1)
                if self.cut_off and len(self._tiff) == 1:
                    raise RefusedError("truncated")
            self._image = self._open()
            self.num_pages, self.cut_off = self._count_pages()
        self._complaints = complaints
        self._twin: PillowImage | None = None
        self._png_frames: PngFrames | None = None

    @property
    def first_page(self) -> int:
        """Return the first page that is no small copy of another one, or where all are called that, the largest.

        Raises `RefusedError` where the picture itself lies in sub-pages, as in camera raw files.
        """
        sound = self._tiff[: len(self._tiff) - self.cut_off]
        full = next((number for number, page in enumerate(sound, 1) if not page.reduced), 0)
        if full or not sound or len(sound) < len(self._tiff):
            return full or 1
        if any(SUB_PAGES in page.tags for page in sound):
            raise RefusedError("holds a small copy, and the picture itself as camera raw; convert it to plain TIFF")
        return 1 + max(range(len(sound)), key=lambda number: sound[number].pixels)

    def _open(self) -> PillowImage:
        self._stream.seek(0)
        return OPENERS[self.kind](self._stream)

    def _count_pages(self) -> tuple[int, bool]:
        """Count pages, one that is announced but cut off included; True with the count when the last one is that."""
        if self.kind == "TIFF":  # not Pillow's n_frames, which gives up at the first page of a kind it does not know
            return len(self._tiff), self.cut_off
        try:
            num_pages = int(getattr(self._image, "n_frames", 1))
            cut_off = self.kind == "GIF" and not ends_with_gif_trailer(self._stream)
            return min(num_pages + cut_off, MAX_PAGES + 1), cut_off
        except Exception:  # whatever is broken behind the first page must not take the first page with it
            num_pages = self._count_sound_frames()
            self._image = self._open()
            return num_pages + 1, True

    def _count_sound_frames(self) -> int:
        image = self._open()
        for frame in range(1, MAX_PAGES + 1):
            try:
                image.seek(frame)
            except Exception:
                return frame
        return MAX_PAGES

    def seek(self, page: int) -> tuple[int, int]:
        """Go to a page (counted from 1; forwards only) and return its width and height as stored."""
        if page > 1:
            with quiet() as self._complaints:
                self._image.seek(page - 1)
        width, height = self._image.size
        if width * height > self._max_pixels:
            limit = f"{self._max_pixels / 1e6:g} megapixels"
            raise RefusedError(f"larger than the limit of {limit} ({width} x {height} pixels); see --max-pixels")
        return width, height

    def memory(self) -> tuple[int, int]:
        """Return the bytes that decoding the page that `seek` went to takes, at its peak and once it is decoded."""
        width, height = self._image.size
        size = self._stream.seek(0, 2)
        peak = peak_of(
            self.kind,
            self._image.mode,
            width * height,
            size if size <= _IN_MEMORY else 0,
            deep_colour=is_16_bit_colour(self._image),
        )
        return peak, width * height * KEPT

    @property
    def camera(self) -> Hashable:
        """Return what pictures of one camera have in common, as far as files say."""
        tags = self._image.tag_v2 if isinstance(self._image, TiffImagePlugin.TiffImageFile) else {}
        return self.kind, self._image.mode, self._image.size, str(tags.get(_MAKE)), str(tags.get(_MODEL))

    def decode(self, page: int, shared: Shared = alone) -> tuple[Image.Image, str, list[str]]:
        """Decode the page that `seek` went to: upright 8-bit RGB, the stored mode, and what was done, in words."""
        with quiet() as complaints:
            odd = self._check_page(page)
            if is_16_bit_colour(self._image) and (self.kind == "TIFF" or self.num_pages == 1):
                rgb, mode, notes = decode_16_bit_colour(
                    self._image, self._stream, partial(self._open_twin, page), shared
                )
            elif self.kind == "PNM" and self._image.tile[0].codec_name == "ppm":
                rgb, mode, notes = decode_pnm(self._image, self._stream, shared)
            else:
                rgb, mode, notes = decode(self._image, self._stream, shared)
        notes += [*odd, *(f"Pillow: {printable(text)}" for text in dict.fromkeys(self._complaints + complaints))]
        if self.cut_off and page < self.num_pages:
            notes.append(f"file is damaged after page {self.num_pages - 1}")
        rgb.info = {}  # an orientation left in here would turn the picture again in the next library
        return rgb, mode, notes

    def _check_page(self, page: int) -> list[str]:
        """Refuse a page with pixels missing that the decoder would fill in; return what is odd about it, in words."""
        position = self._stream.tell()
        if self.kind == "PNG":
            self._png_frames = self._png_frames or PngFrames(self._stream)
            self._png_frames.check(page)
        elif self.kind == "WEBP" and page == 1:
            self._stream.seek(0)
            check_webp(self._stream.read())
        elif self.kind == "TIFF":
            check_page(self._stream, self._tiff[page - 1])
        self._stream.seek(position)  # Pillow goes on from there
        return self._check_jpeg() if self.kind == "JPEG" else []

    def _check_jpeg(self) -> list[str]:
        """Refuse a JPEG with pixels missing; have a large one decoded smaller; return what is odd about it.

        With `least_side`, at a half, a quarter or an eighth of its size, as long as neither side comes out shorter.
        """
        image = self._image
        assert isinstance(image, JpegImagePlugin.JpegImageFile) and image.fp is not None
        if len(image.tile) != 1:  # no scan begins
            raise RefusedError("truncated")
        image.fp.seek(image.tile[0].offset)
        data = image.fp.read()  # one frame, or with MPO all from this one on
        jpeg = check_jpeg(data)
        side = self._least_side if self.num_pages == 1 and jpeg.reads_once else 0
        if side and min(image.size) >= 2 * side:
            image.draft(None, (side, side))
        image.tile = [image.tile[0]._replace(offset=0)]
        image.fp = io.BytesIO(data[: jpeg.end] if jpeg.end > 0 else data + EOI)
        return [] if jpeg.end > 0 else ["JPEG without an end marker; all of the picture is there"]

    def _open_twin(self, page: int) -> PillowImage:
        """Return the same page in a second reader, which goes forwards beside the first."""
        self._twin = self._twin or self._open()
        if page > 1:
            self._twin.seek(page - 1)
        return self._twin
