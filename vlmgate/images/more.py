"""Formats that take a package of their own: HEIC, DICOM, camera raw, JPEG XL, and TIFF pages that Pillow cannot read.

`open_more` opens a file of such a kind, `open_tiff` a page; each reader knows the size before it decodes anything. What
is not installed is named in the reason, with the extra that brings it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
from PIL.ImageFile import ImageFile as PillowImage

from vlmgate.images.damage import check_end, check_jpeg2000
from vlmgate.images.depth import FEWEST_LEVELS
from vlmgate.images.formats import MORE, TIFF_PAGE, RefusedError, printable
from vlmgate.images.jpeg import check_jpeg
from vlmgate.images.tiff import BY_TIFFFILE, COMPRESSION, PLANAR, SAMPLE_FORMAT, TiffPage, bits_of

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Pixels:
    """The values of one page as they are stored."""

    values: Array  # (H, W), or (H, W, C) with C = 2 (grey, alpha), 3 or 4 (colour, alpha)
    mode: str  # in the manner of Pillow
    declared: int | None = None  # the value that is white
    no_data: float | None = None
    white_is_zero: bool = False
    orientation: int = 1  # of EXIF
    notes: list[str] = field(default_factory=list)


class Reader(Protocol):
    """An open file, or one page of a TIFF."""

    num_pages: int
    size: tuple[int, int]  # width, height, as stored
    mode: str
    camera: str  # maker and model, "" = unknown
    decoded: int  # bytes that its package takes for the values of a page, all channels at their depth, copies included

    def read(self, page: int) -> Pixels:
        """Decode a page, counted from 1."""


@contextmanager
def _needed(kind: str) -> Iterator[None]:
    """Name the extra where a package is not installed."""
    extra = MORE[kind]
    try:
        yield
    except ImportError as error:
        other = "PNG" if kind == TIFF_PAGE else "PNG or TIFF"
        raise RefusedError(
            f"{kind} needs the extra '{extra}': pip install 'vlmgate[{extra}]', or convert it to {other}"
        ) from error


def open_more(kind: str, stream: BinaryIO) -> Reader:
    """Open a file of a kind that Pillow does not know; raises `RefusedError`, or as its package does."""
    stream.seek(0)
    readers: dict[str, Callable[[BinaryIO], Reader]] = {"DICOM": _Dicom, "camera raw": _Raw, "JPEG XL": _JpegXl}
    with _needed(kind):
        return readers[kind](stream)


def open_heif(stream: BinaryIO) -> PillowImage:
    """Open HEIC, which is what phones write, as Pillow opens other files."""
    with _needed("HEIF"):
        from pillow_heif import HeifImageFile
    image: PillowImage = HeifImageFile(stream)
    return image


# --- DICOM -----------------------------------------------------------------------------------------------------------

_CONVERTED = 8  # bytes a pixel: units or palettes are applied in float64 or 16-bit colour
# JPEG, lossless JPEG, JPEG-LS, JPEG 2000 and its high-throughput form
_JPEG_FAMILY = tuple(f"1.2.840.10008.1.2.4.{tens}" for tens in (5, 7, 8, 9, 20))
_LOSSLESS_JPEG = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_JPEG_SYNTAXES = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")


class _Dicom:
    def __init__(self, stream: BinaryIO) -> None:
        import pydicom

        self._data = pydicom.dcmread(stream)
        if "PixelData" not in self._data and "FloatPixelData" not in self._data:
            raise RefusedError("DICOM without a picture")
        self.num_pages = max(1, int(self._data.get("NumberOfFrames") or 1))
        self.size = int(self._data.Columns), int(self._data.Rows)
        self.camera = f"{self._data.get('Manufacturer', '')} {self._data.get('ManufacturerModelName', '')}".strip()
        colour = int(self._data.get("SamplesPerPixel") or 1) > 1
        bits = int(self._data.get("BitsAllocated") or 8)
        self.mode = "RGB" if colour else "I" if bits > 8 else "L"
        each = 2 * max(1, int(self._data.get("SamplesPerPixel") or 1)) * -(-bits // 8) + _CONVERTED
        self.decoded = self.size[0] * self.size[1] * each

    def read(self, page: int) -> Pixels:
        from pydicom.encaps import get_frame
        from pydicom.pixels import apply_color_lut, apply_rescale, pixel_array

        data = self._data
        syntax = data.file_meta.TransferSyntaxUID
        if syntax.startswith(_JPEG_FAMILY):
            frame = get_frame(data.PixelData, page - 1, number_of_frames=self.num_pages)
            if syntax in _JPEG_SYNTAXES:
                check_jpeg(frame)
            elif syntax in _LOSSLESS_JPEG:  # its black parts may be coded as zeros
                check_end(frame)
            else:
                check_jpeg2000(frame)
        values: Array = pixel_array(data, index=page - 1)
        kind = str(data.get("PhotometricInterpretation") or "")
        plain = "RescaleSlope" not in data or (float(data.RescaleSlope), float(data.RescaleIntercept)) == (1, 0)
        if kind == "PALETTE COLOR":
            values = apply_color_lut(values, data)
        elif values.ndim == 2 and not plain:
            values = apply_rescale(values, data)
        padding = data.get("PixelPaddingValue")
        return Pixels(
            values,
            self.mode,
            no_data=float(padding) if padding is not None and plain else None,
            white_is_zero=kind == "MONOCHROME1",
        )


# --- camera raw ------------------------------------------------------------------------------------------------------


class _Raw:
    num_pages, mode, decoded = 1, "raw", 0  # what LibRaw takes is in the figure for its mode

    def __init__(self, stream: BinaryIO) -> None:
        import rawpy

        try:
            self._raw = rawpy.imread(stream)
        except rawpy.LibRawError as error:
            raise RefusedError(f"camera raw that LibRaw cannot read: {_said(error)}") from error
        sizes = self._raw.sizes
        self.size, self.camera = (int(sizes.width), int(sizes.height)), ""

    def read(self, page: int) -> Pixels:
        import rawpy

        try:
            # The same for every picture: no brightening by what is on it.
            values = self._raw.postprocess(use_camera_wb=True, no_auto_bright=True, output_bps=8)
        except rawpy.LibRawError as error:
            raise RefusedError(f"cannot be developed: {_said(error)}") from error
        if len(np.unique(values[::7, ::7])) < FEWEST_LEVELS <= len(np.unique(self._raw.raw_image[::7, ::7])):
            raise RefusedError("camera raw whose values do not fit the white that it declares; convert it to TIFF")
        return Pixels(values, self.mode, notes=["developed by LibRaw, white balance of the camera"])


def _said(error: Exception) -> str:
    words = error.args[0] if error.args else ""
    return words.decode("ascii", "replace") if isinstance(words, bytes) else str(words)


# --- JPEG XL ---------------------------------------------------------------------------------------------------------


_MOST_OF_JXL = 16  # bytes a pixel: four channels of 32 bits


class _JpegXl:
    num_pages, camera = 1, ""

    def __init__(self, stream: BinaryIO) -> None:
        import imagecodecs  # noqa: F401 - said to be missing before the file is read

        self._data = stream.read()
        self.size, self.mode = _size_of_jxl(self._data), "RGBA"
        self.decoded = self.size[0] * self.size[1] * _MOST_OF_JXL

    def read(self, page: int) -> Pixels:
        import imagecodecs

        try:
            values: Array = imagecodecs.jpegxl_decode(self._data)
        except imagecodecs.JpegxlError as error:
            raise RefusedError(f"cannot be decoded: {error}") from error
        values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
        return Pixels(values, _mode_of(values))


_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # of width to height


def _size_of_jxl(data: bytes) -> tuple[int, int]:
    """Return width and height, which a hostile file may claim to be anything; ISO/IEC 18181-1, the size header."""
    at = 0
    if data[:2] != b"\xff\x0a":  # in boxes
        at = max(0, *(data.find(name) + skipped for name, skipped in ((b"jxlc", 4), (b"jxlp", 8))))
        at = data.find(b"\xff\x0a", at)
    bits = int.from_bytes(data[at + 2 : at + 18], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & (1 << count) - 1, bits >> count
        return value

    def side() -> int:
        return 8 * (1 + take(5)) if small else 1 + take((9, 13, 18, 30)[take(2)])

    if at < 0:
        raise RefusedError("truncated")
    small = bool(take(1))
    height = side()
    ratio = take(3)
    wide, high = _RATIOS[ratio - 1]
    return (height * wide // high if ratio else side()), height


def _mode_of(values: Array) -> str:
    """Name a mode in the manner of Pillow: "RGB;16", "F"."""
    bands = 1 if values.ndim == 2 else values.shape[2]
    name = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}.get(bands, f"{bands} channels")
    bits = 8 * values.dtype.itemsize
    return name + ("" if bits == 8 else f";{bits}" + ("F" if values.dtype.kind == "f" else ""))


# --- TIFF ------------------------------------------------------------------------------------------------------------

_PILLOW_BITS = (1, 2, 4, 8, 16, 32)
_FLOAT = 3  # sample format


def needs_tifffile(stream: BinaryIO, page: TiffPage, *, big_endian_big: bool) -> bool:
    """Say whether Pillow cannot read a page, by its tags."""
    bits = bits_of(stream, page)
    bands = len(bits)
    deep, format_ = max(bits) > 8, (page.all(SAMPLE_FORMAT, stream) or (1,))[0]
    usual = max(bits) in _PILLOW_BITS or (max(bits) == 12 and bands == 1)
    # Pillow swaps the bytes of compressed values a second time, but for plain ones of 16 bits, and does not know plain
    # ones of 32 bits in this order.
    plain, compressed = format_ == 1, page.first(COMPRESSION, 1) != 1
    swapped = page.order == "big" and deep and (compressed if not plain else max(bits) == 32)
    return (
        big_endian_big
        or swapped
        or page.first(COMPRESSION, 1) in BY_TIFFFILE
        or not usual
        or (format_ == _FLOAT and (bands > 1 or max(bits) != 32))
        or (deep and bands > 1 and (page.first(PLANAR, 1) == 2 or bands == 2 or max(bits) > 16 or format_ != 1))
    )


class _TiffPage:
    num_pages = 1

    def __init__(self, stream: BinaryIO, number: int) -> None:
        import tifffile

        stream.seek(0)
        self._page = tifffile.TiffFile(stream, name="page").pages[number - 1]  # an open file may have a number for name
        self.size = int(self._page.imagewidth), int(self._page.imagelength)
        bits = int(np.dtype(self._page.dtype or np.uint8).itemsize) * 8
        whole, piece = int(self._page.nbytes), math.prod(self._page.chunks) * bits // 8
        self.decoded = whole + max(whole, piece)  # it may be a single strip, which is there twice for a moment
        self.mode = "F" if np.dtype(self._page.dtype or np.uint8).kind == "f" else "I" if bits > 8 else "RGBA"
        tags = self._page.tags
        self.camera = " ".join(str(tags[tag].value) for tag in (271, 272) if tag in tags)

    def read(self, page: int) -> Pixels:
        import tifffile

        one = self._page
        if one.extrasamples[:1] == (tifffile.EXTRASAMPLE.ASSOCALPHA,) and np.dtype(one.dtype).itemsize > 1:
            raise RefusedError(
                "TIFF with premultiplied alpha of more than 8 bits cannot be opened; save it without alpha"
            )
        try:
            values: Array = one.asarray()
        except Exception as error:  # each codec has its own: one that is not installed, or broken data
            raise RefusedError(f"cannot be decoded: {printable(str(error))}") from error
        colours = values.shape[0] if one.planarconfig == tifffile.PLANARCONFIG.SEPARATE and values.ndim == 3 else 0
        if colours:
            values = np.moveaxis(values, 0, -1)
        values = values.reshape(*values.shape[:2], -1)
        kept = {"RGB": 3}.get(one.photometric.name, 1)
        alpha = one.extrasamples[:1] == (tifffile.EXTRASAMPLE.UNASSALPHA,)
        more = values.shape[2] - kept - alpha
        notes = [f"{more} further channels left out"] if more > 0 else []
        if one.photometric.name not in ("RGB", "MINISBLACK", "MINISWHITE", "YCBCR"):
            raise RefusedError(f"TIFF of the colour model {one.photometric.name} cannot be opened; save it as RGB")
        if one.photometric.name == "YCBCR":
            kept = 3  # its codec has made RGB of it
        values = values[..., : kept + alpha]
        declared = 2**one.bitspersample - 1 if 8 < one.bitspersample < 16 else None
        tags, orientation = one.tags, 274
        return Pixels(
            values[..., 0] if values.shape[2] == 1 else values,
            _mode_of(values[..., 0] if values.shape[2] == 1 else values),
            declared,
            no_data=_number(tags[42113].value) if 42113 in tags else None,
            white_is_zero=one.photometric.name == "MINISWHITE",
            orientation=int(tags[orientation].value) if orientation in tags else 1,
            notes=notes,
        )


def open_tiff(stream: BinaryIO, number: int) -> Reader:
    """Open a page, counted from 1, with tifffile; raises `RefusedError` where that is not installed."""
    with _needed(TIFF_PAGE):
        return _TiffPage(stream, number)


def _number(text: object) -> float | None:
    try:
        return float(str(text).strip(" \0"))
    except ValueError:
        return None
