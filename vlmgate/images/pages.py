"""From a file that the walk found to its pages, each a `Picture` or an `Unreadable`; call `open_pages`.

`Container` opens a file of any kind; `measure` says how well a picture was taken. Whatever is wrong with one
file is a value about that file, and no warning of a decoder gets out.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from io import BufferedReader
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin
from PIL.ImageFile import ImageFile as PillowImage

from vlmgate.config import ImageConfig
from vlmgate.data import ImageFile, Picture, Quality, Source, Unreadable
from vlmgate.images.damage import (
    PngFrames,
    check_integrity,
    check_jpeg,
    check_webp,
    count_tiff_pages,
    ends_with_gif_trailer,
)
from vlmgate.images.decode import decode, decode_16_bit_colour, decode_pnm, is_16_bit_colour
from vlmgate.images.find import opened
from vlmgate.images.formats import HEAD_BYTES, OPENERS, RefusedError, explain, extension_of, kind_of, printable

log = logging.getLogger(__name__)

MAX_PAGES = 10_000  # of one file; more than any camera writes, less than a hostile file can claim
_IN_MEMORY = 64 << 20  # bytes; larger files are decoded from the open file
STANDARD = 512  # pixels; pictures of more than this squared are reduced to it before sharpness is measured
DARK, BRIGHT = 2, 253  # of 255; what lies at or beyond is clipped, and JPEG shifts a value by one or two
_GREYS = np.arange(256, dtype=np.float64)
_SAMPLED = 4_000_000  # pixels that exposure, contrast and clipping are taken from at most
_NOISE_CROP = 1024  # pixels; noise is measured at full resolution, where averaging has not hidden it yet


def open_pages(source: Source, config: ImageConfig) -> Iterator[Picture | Unreadable]:
    """Decode a file: its first page, or with `config.pages == "all"` every page, frames of an animation included.

    At least one result comes, whatever the file. Pages come one by one: only the one in hand is in memory.
    """
    with closing(pages_of(source, config, lambda _pixels: None)) as pages:
        for result, _last in pages:
            yield result


def pages_of(
    source: Source, config: ImageConfig, admit: Callable[[int], None]
) -> Generator[tuple[Picture | Unreadable, bool], None, None]:
    """Yield each result and whether it is the source's last; `admit` is told a page's pixels before it is decoded."""
    page = 1
    try:
        with opened(source.path) as file:
            contents = _Contents(file)
            container = Container(contents.stream, extension_of(source.path.name), config.max_pixels, config.least_side)
            wanted = container.num_pages if config.pages == "all" else 1
            for page in range(1, min(wanted, MAX_PAGES) + 1):
                result, end = _page(source, page, container, contents, admit)
                last = end or page == wanted
                yield result, last
                if last:
                    return
            page = MAX_PAGES + 1
            raise RefusedError(f"more than {MAX_PAGES:,} pages; those from here on were not read")
    except Exception as error:  # the one promise of this module
        yield Unreadable(source.file_name, explain(error), page), True


def _page(
    source: Source, page: int, container: Container, contents: _Contents, admit: Callable[[int], None]
) -> tuple[Picture | Unreadable, bool]:
    """Decode one page; True beside the result if there is no going on from here."""
    try:
        width, height = container.seek(page)
        admit(width * height)
        rgb, mode, notes = container.decode(page)
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
        with quiet() as complaints:
            check_integrity(stream, self.kind)
            self._image = self._open()
            self.num_pages, self.cut_off = self._count_pages()
        self._complaints = complaints
        self._twin: PillowImage | None = None
        self._png_frames: PngFrames | None = None

    def _open(self) -> PillowImage:
        self._stream.seek(0)
        return OPENERS[self.kind](self._stream)

    def _count_pages(self) -> tuple[int, bool]:
        """Count pages, one that is announced but cut off included; True with the count when the last one is that."""
        if self.kind == "TIFF":  # not Pillow's n_frames, which gives up at the first page of a kind it does not know
            return count_tiff_pages(self._stream, MAX_PAGES + 1)
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
            raise RefusedError(f"larger than the limit of {limit} ({width} x {height} pixels); see max_pixels")
        return width, height

    def decode(self, page: int) -> tuple[Image.Image, str, list[str]]:
        """Decode the page that `seek` went to: upright 8-bit RGB, the stored mode, and what was done, in words."""
        with quiet() as complaints:
            self._check_page(page)
            if is_16_bit_colour(self._image) and (self.kind == "TIFF" or self.num_pages == 1):
                rgb, mode, notes = decode_16_bit_colour(self._image, self._stream, partial(self._open_twin, page))
            elif self.kind == "PNM" and self._image.tile[0].codec_name == "ppm":
                rgb, mode, notes = decode_pnm(self._image, self._stream)
            else:
                rgb, mode, notes = decode(self._image, self._stream)
        notes += [f"Pillow: {printable(text)}" for text in dict.fromkeys(self._complaints + complaints)]
        if self.cut_off and page < self.num_pages:
            notes.append(f"file is damaged after page {self.num_pages - 1}")
        rgb.info = {}  # an orientation left in here would turn the picture again in the next library
        return rgb, mode, notes

    def _check_page(self, page: int) -> None:
        """Refuse a page with pixels missing that the decoder would fill in; within the pixel limit by now."""
        position = self._stream.tell()
        if self.kind == "PNG":
            self._png_frames = self._png_frames or PngFrames(self._stream)
            self._png_frames.check(page)
        elif self.kind == "WEBP" and page == 1:
            self._stream.seek(0)
            check_webp(self._stream.read())
        self._stream.seek(position)  # Pillow goes on from there
        if self.kind == "JPEG":
            self._check_jpeg()

    def _check_jpeg(self) -> None:
        """Refuse a JPEG with pixels missing; have a large one decoded smaller.

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
        image.fp = io.BytesIO(data[: jpeg.end])

    def _open_twin(self, page: int) -> PillowImage:
        """Return the same page in a second reader, which goes forwards beside the first."""
        self._twin = self._twin or self._open()
        if page > 1:
            self._twin.seek(page - 1)
        return self._twin


# --- how well a picture was taken ------------------------------------------------------------------------------------

# A defect that blur or darkness hides is read as "no defect" with no more diversity than a clean part shows; these
# figures are for such escapes. They compare pictures of one camera and one kind of part, not cameras or parts with each
# other. A JPEG that was decoded smaller is measured as it then is, which takes away noise.


def measure(rgb: Image.Image) -> Quality | None:
    """Return the quality of a picture, or None where it cannot be had: no image may be lost for it."""
    try:
        sample = _resized(rgb, math.sqrt(_SAMPLED), Image.Resampling.NEAREST)  # not averaged: what is clipped stays so
        luma = np.array(sample.convert("L").histogram(), np.float64)  # (256,); ITU-R BT.601
        luma /= luma.sum()
        left, top = max(0, rgb.width - _NOISE_CROP) // 2, max(0, rgb.height - _NOISE_CROP) // 2
        centre = rgb.crop((left, top, min(rgb.width, left + _NOISE_CROP), min(rgb.height, top + _NOISE_CROP)))
        figures = {
            "sharpness": sharpness(np.asarray(_resized(rgb, STANDARD, Image.Resampling.BILINEAR).convert("L"))),
            "exposure": float(luma @ _GREYS) / 255,
            "contrast": contrast(luma),
            "noise": noise(np.asarray(centre.convert("L"))),
            "clipped_dark": float(luma[: DARK + 1].sum()),
            "clipped_bright": float(luma[BRIGHT:].sum()),
        }
        return Quality(**{name: None if value is None else round(value, 4) for name, value in figures.items()})
    except Exception as error:
        log.warning("the quality of a picture could not be measured", exc_info=error)
        return None


def _resized(rgb: Image.Image, side: float, method: Image.Resampling) -> Image.Image:
    """Return the picture with the area of a square of this side; one that is smaller stays as it is."""
    share = side / math.sqrt(rgb.width * rgb.height)
    if share >= 1:
        return rgb
    size = (max(1, round(rgb.width * share)), max(1, round(rgb.height * share)))
    return rgb.resize(size, method, reducing_gap=None if method is Image.Resampling.NEAREST else 2.0)


def sharpness(luma: NDArray[np.uint8]) -> float | None:
    """Return the variance of the Laplacian of (H, W) luma; higher = sharper, though noise counts as sharpness, too.

    LAPV of Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy: a comparative study" (ICPR 2000).
    """
    if min(luma.shape) < 3:
        return None
    x = luma.astype(np.int16)
    laplacian = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:] - 4 * x[1:-1, 1:-1]
    return float(laplacian.astype(np.float64).var())


def contrast(shares: NDArray[np.float64]) -> float:
    """Return the RMS contrast of luma, in [0, 0.5]: its standard deviation as a share of full scale; higher = more.

    `shares` (256,) says how much of the picture has each luma.

    Peli, "Contrast in complex images" (J. Opt. Soc. Am. A 7, 1990).
    """
    return math.sqrt(float(shares @ (_GREYS - shares @ _GREYS) ** 2)) / 255


def noise(luma: NDArray[np.uint8]) -> float | None:
    """Return the standard deviation of the noise in (H, W) luma, in grey levels of 255; higher = noisier.

    Immerkær, "Fast noise variance estimation" (Computer Vision and Image Understanding 64, 1996): the mean magnitude
    after a mask that is blind to slopes and edges. Fine texture counts as noise.
    """
    if min(luma.shape) < 3:
        return None
    x = luma.astype(np.int16)
    masked = np.diff(np.diff(x, 2, axis=0), 2, axis=1)  # the outer product of (1, -2, 1) with itself
    return math.sqrt(math.pi / 2) / 6 * float(np.abs(masked).mean(dtype=np.float64))
