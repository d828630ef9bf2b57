"""An image file opened for reading, of whatever kind it is: `Container`."""

from __future__ import annotations

import io
from collections.abc import Callable, Hashable
from functools import partial
from typing import BinaryIO

from PIL import Image, JpegImagePlugin, TiffImagePlugin
from PIL.ImageFile import ImageFile as PillowImage

from vlmgate.images.damage import PngFrames, check_integrity, check_qoi_end, check_webp, ends_with_gif_trailer
from vlmgate.images.decode import (
    decode,
    decode_16_bit_colour,
    decode_pnm,
    decode_stripes,
    decode_values,
    is_16_bit_colour,
    is_deep_pnm,
)
from vlmgate.images.depth import Shared, alone
from vlmgate.images.formats import HEAD_BYTES, MORE, OPENERS, RefusedError, kind_of, printable
from vlmgate.images.hush import quiet, silence_loggers
from vlmgate.images.jpeg import EOI, check_jpeg
from vlmgate.images.libtiff import be_quiet
from vlmgate.images.memory import IN_MEMORY, KEPT, held_of, peak_of
from vlmgate.images.more import Reader, needs_tifffile, open_heif, open_more, open_tiff
from vlmgate.images.stripes import Stripes
from vlmgate.images.tiff import TiffPage, check_page, holds_raw, read_pages

MAX_PAGES = 10_000  # of one file; more than any camera writes, less than a hostile file can claim
NO_END = "JPEG without an end marker, though all of the picture is there"
_MAKE, _MODEL = 271, 272  # TIFF tags


class Container:
    """An image file opened for reading, its pages one after the other; not safe in several threads at a time."""

    def __init__(
        self,
        stream: BinaryIO,
        extension: str,
        max_pixels: int,
        least_side: int = 0,
        admit: Callable[[int], None] = lambda _bytes: None,
    ) -> None:
        """Read the header; raises `RefusedError`, or whatever Pillow makes of a hostile file.

        Some kinds are read whole to be checked or opened: of a large file, `admit` is told the bytes beforehand, and
        raises `RefusedError` where they are too many.

        With `least_side`, large JPEGs, and line scans that are read in stripes, come out smaller, down to sides of that
        many pixels.
        """
        head = stream.read(HEAD_BYTES)
        if not head:
            raise RefusedError("empty file")
        self._stream, self._max_pixels, self._least_side = stream, max_pixels, least_side
        self.kind = kind_of(head, extension)
        self.cut_off = False  # the last page is announced, but not there
        self._pillow: PillowImage | None = None
        self._reader: Reader | None = None  # of a kind, or a page, that Pillow cannot read
        self._tiff: list[TiffPage] = []
        silence_loggers()
        self._admit_file(admit)
        with quiet() as self._complaints:
            check_integrity(stream, self.kind)
            if self.kind == "TIFF":
                be_quiet()
                self._tiff, self.cut_off = read_pages(stream, MAX_PAGES + 1)
                if self.cut_off and len(self._tiff) == 1:
                    raise RefusedError("truncated")
                if holds_raw(self._tiff):
                    self.kind = "camera raw"
                    self._admit_file(admit)
            self.num_pages = self._count_pages()
        self.independent_pages = self.kind in ("TIFF", "DICOM")  # others are frames that build on the one before
        self._big_endian_big = head[:4] == b"MM\0+"
        self._stripes: Stripes | None = None  # of a page that is too large to be read at once
        self._twin: PillowImage | None = None
        self._png_frames: PngFrames | None = None

    def _admit_file(self, admit: Callable[[int], None]) -> None:
        """Ask for room for a large file of a kind that is read whole; a smaller one is in memory by now."""
        size = self._stream.seek(0, 2)
        if size > IN_MEMORY and (held := held_of(self.kind, size)):
            admit(held)

    @property
    def first_page(self) -> int:
        """Return the first page that is no small copy of another one, or where all are called that, the largest."""
        if self.kind != "TIFF":
            return 1
        sound = self._tiff[: len(self._tiff) - self.cut_off]
        full = next((number for number, page in enumerate(sound, 1) if not page.reduced), 0)
        if full or self.cut_off:
            return full or 1
        return 1 + max(range(len(sound)), key=lambda number: sound[number].pixels)

    @property
    def _image(self) -> PillowImage:
        """Return the file as Pillow opens it; a TIFF whose first page it cannot read may have others."""
        if self._pillow is None:
            self._pillow = self._open()
        return self._pillow

    def _open(self) -> PillowImage:
        self._stream.seek(0)
        return open_heif(self._stream) if self.kind == "HEIF" else OPENERS[self.kind](self._stream)

    def _count_pages(self) -> int:
        """Count pages, one that is announced but cut off included, and open what the first of them needs."""
        if self.kind == "TIFF":  # not Pillow's n_frames, which gives up at the first page of a kind it does not know
            return len(self._tiff)
        if self.kind in MORE and self.kind != "HEIF":
            self._reader = open_more(self.kind, self._stream)
            return min(self._reader.num_pages, MAX_PAGES + 1)
        image = self._image  # what is wrong with the first page is said here
        try:
            num_pages = int(getattr(image, "n_frames", 1))
            self.cut_off = self.kind == "GIF" and not ends_with_gif_trailer(self._stream)
        except Exception:  # whatever is broken behind the first page must not take the first page with it
            num_pages, self.cut_off = self._count_sound_frames(), True
            self._pillow = self._open()
        return min(num_pages + self.cut_off, MAX_PAGES + 1)

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
        if page > 1 or self.kind == "TIFF":
            with quiet() as self._complaints:
                self._go_to(page)
        width, height = self._size
        if width * height > self._max_pixels:
            limit = f"{self._max_pixels / 1e6:g} megapixels"
            raise RefusedError(f"larger than the limit of {limit} ({width} x {height} pixels); see --max-pixels")
        self._stripes = Stripes.of(self._image, self._least_side) if self._reader is None else None
        return width, height

    def _go_to(self, page: int) -> None:
        if self.kind == "TIFF":
            self._reader = None
            if self._needs_tifffile(page):
                self._reader = open_tiff(self._stream, page)
        if self._reader is not None:
            return
        if self._tiff and page > 1 and self._needs_tifffile(1):
            self._pillow = self._open_alone(page)
        else:
            self._image.seek(page - 1)

    def _needs_tifffile(self, page: int) -> bool:
        return needs_tifffile(self._stream, self._tiff[page - 1], big_endian_big=self._big_endian_big)

    def _open_alone(self, page: int) -> PillowImage:
        """Open a page of a TIFF whose first one Pillow cannot read: in a copy that begins with this page."""
        self._stream.seek(0)
        data = self._stream.read()
        size = 8 if data[2:4] in (b"+\0", b"\0+") else 4  # bytes of an offset, and where the first of them stands
        offset = self._tiff[page - 1].offset
        first = offset.to_bytes(size, "little") if data[:2] == b"II" else offset.to_bytes(size, "big")
        return OPENERS["TIFF"](io.BytesIO(data[:size] + first + data[2 * size :]))

    @property
    def _size(self) -> tuple[int, int]:
        return self._image.size if self._reader is None else self._reader.size

    def memory(self) -> tuple[int, int]:
        """Return the bytes that decoding the page that `seek` went to takes, at its peak and once it is decoded."""
        if self._stripes is not None:
            return self._stripes.memory
        width, height = self._size
        position = self._stream.tell()
        size = self._stream.seek(0, 2)
        self._stream.seek(position)
        mode = self._image.mode if self._reader is None else self._reader.mode
        deep = self._reader is None and (is_16_bit_colour(self._image) or is_deep_pnm(self._image))
        decoded = 0 if self._reader is None else self._reader.decoded
        peak = peak_of(self.kind, mode, width * height, size, deep_colour=deep, decoded=decoded)
        return peak, width * height * KEPT

    @property
    def camera(self) -> Hashable:
        """Return what pictures of one camera have in common, as far as files say."""
        if self._reader is not None:
            return self.kind, self._reader.mode, self._reader.size, self._reader.camera
        tags = self._image.tag_v2 if isinstance(self._image, TiffImagePlugin.TiffImageFile) else {}
        return self.kind, self._image.mode, self._image.size, str(tags.get(_MAKE)), str(tags.get(_MODEL))

    def decode(self, page: int, shared: Shared = alone) -> tuple[Image.Image, str, list[str]]:
        """Decode the page that `seek` went to: upright 8-bit RGB, the stored mode, and what was done, in words."""
        with quiet() as complaints:
            odd = self._check_page(page)
            if self._reader is not None:
                rgb, mode, notes = decode_values(self._reader.read(page), shared)
            elif self._stripes is not None:
                rgb, mode, notes = decode_stripes(self._image, self._stripes.read(self._stream), self._stripes.smaller)
            elif is_16_bit_colour(self._image) and (self.kind == "TIFF" or self.num_pages == 1):
                rgb, mode, notes = decode_16_bit_colour(
                    self._image, self._stream, partial(self._open_twin, page), shared
                )
            elif self.kind == "PNM" and self._image.tile[0].codec_name == "ppm":
                rgb, mode, notes = decode_pnm(self._image, self._stream, shared)
            else:
                rgb, mode, notes = decode(self._image, self._stream, shared)
                if self.kind == "QOI":
                    check_qoi_end(self._stream)
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
        return [] if jpeg.end > 0 else [NO_END]

    def _open_twin(self, page: int) -> PillowImage:
        """Return the same page in a second reader, which goes forwards beside the first."""
        if self._tiff and page > 1 and self._needs_tifffile(1):
            return self._open_alone(page)
        self._twin = self._twin or self._open()
        if page > 1:
            self._twin.seek(page - 1)
        return self._twin
