"""High bit depths: from 10 to 32 bits and floats to 8 bits, without turning an image white or black.

Knows sample values and what a file declares of them; knows nothing of folders, pages or orientation.
"""

from __future__ import annotations

from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import (
    ImageFile,
    Jpeg2KImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
)

from vlmgate.images.formats import RefusedError

_BITS = (8, 10, 12, 14, 16, 24, 32)  # depths that cameras and their software write
_ROWS_AT_ONCE = 1 << 22  # values; bounds the float copies of a large image
_MAX_SAMPLE_VALUE = 281  # TIFF tag

Array = npt.NDArray[Any]


def declared_maximum(image: ImageFile.ImageFile, stream: BinaryIO) -> int | None:
    """Return the value that the file itself declares to be full brightness; None if it says nothing of use."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)) == (12,):
            return 4095
        declared = image.tag_v2.get(_MAX_SAMPLE_VALUE)
        declared = max(declared) if isinstance(declared, tuple) and declared else declared
        if not isinstance(declared, int) or not 0 < declared < 65535:
            return None
        # some writers put the largest value of this image there: its depth is what all images of a camera share
        return int(2 ** next(bits for bits in _BITS if declared < 2**bits)) - 1
    if isinstance(image, PpmImagePlugin.PpmImageFile) and image.tile[0].codec_name == "ppm_plain":
        args = cast("tuple[str, int]", image.tile[0].args)
        return None if image.mode != "I" or args[1] == 65535 else 65535  # Pillow scales to 65535
    if isinstance(image, Jpeg2KImagePlugin.Jpeg2KImageFile):
        return None if jpeg2000_bits(stream) in (None, 16) else 65535  # Pillow shifts the top bit to bit 15
    return None


def significant_maximum(values: Array, bits: int | None) -> int | None:
    """Return full brightness by the sBIT chunk of a 16-bit PNG, which tells the bits that the camera delivered.

    The standard has such values scaled up to 16 bits. Some writers store them as they are: the values then stay below
    2^bits and their lower bits, which scaling leaves empty in values that small, are in use.
    """
    if bits is None or not 8 <= bits < 16:
        return None
    as_they_are = bool(values.max() < 2**bits) and bool((values & (2 ** (16 - bits) - 1)).any())
    return 2**bits - 1 if as_they_are else 65535


def png_significant_bits(image: ImageFile.ImageFile, stream: BinaryIO) -> int | None:
    if not isinstance(image, PngImagePlugin.PngImageFile):
        return None
    position = stream.tell()
    stream.seek(8)
    bits = None
    while len(header := stream.read(8)) == 8 and header[4:] not in (b"IDAT", b"IEND"):
        length = int.from_bytes(header[:4], "big")
        if header[4:] == b"sBIT":
            bits = max(stream.read(length), default=None)
            break
        stream.seek(length + 4, 1)
    stream.seek(position)
    return bits


def jpeg2000_bits(stream: BinaryIO) -> int | None:
    position = stream.tell()
    stream.seek(0)
    head = stream.read(1 << 16)
    stream.seek(position)
    at = head.find(b"\xff\x4f\xff\x51")
    return (head[at + 42] & 0x7F) + 1 if 0 <= at < len(head) - 42 else None


def scale_to_8_bits(values: Array, declared: int | None = None) -> tuple[npt.NDArray[np.uint8], str]:
    """Map high-bit-depth values (any shape, any number type) to 8 bits, and say how.

    The range taken as black to white is, in this order:
    1. what the file declares, if the values keep to it;
    2. for values in [0, 65535] and beyond, the smallest of 8, 10, 12, 14, 16, 24, 32 bits that holds the largest value
       (cameras leave the upper bits of a 16-bit container empty); for floats in [0, 1], that interval;
    3. where the values would fill less than a sixteenth of that range, are negative, or are floats of no usual range:
       from the smallest (or zero, if there is nothing below it) to the largest.
    Rules 2 and 3 brighten an image that is dark throughout. That is the safe side: brightened, its noise shows and is
    read differently each time; left black, it would be read the same way each time and be accepted. Nothing is ever
    clipped but values beyond the declared range, and there is no stretching within a range.
    """
    floats = values.dtype.kind == "f"
    low, high, bad = _finite_range(values)
    if declared is not None and low >= 0 and high <= declared:
        bottom, top, words = 0.0, float(declared), f"0-{declared} as declared scaled to 8 bits"
        if (declared + 1).bit_count() == 1:
            words = f"{declared.bit_length()}-bit scaled to 8 (as declared)"
    elif floats and low >= 0 and 1 / 16 <= high <= 1:
        bottom, top, words = 0.0, 1.0, "float 0-1 scaled to 8 bits"
    elif low >= 0 and 16 <= high < (65536 if floats else 2**32):
        bits = next(bits for bits in _BITS if high < 2**bits)
        bottom, top = 0.0, float(2**bits - 1)
        words = f"{bits}-bit {'float' if floats else 'grey' if values.ndim == 2 else 'colour'} scaled to 8"
        if bits == 8:
            words = "8-bit values in a wider container"
    elif low == high == 0:
        bottom, top, words = 0.0, 1.0, "all values are zero"
    else:
        bottom, top = min(0.0, low), high
        if top <= bottom:
            bottom, top = low, low + 1
        words = f"values {low:g} to {high:g} stretched to 0-255"
    scaled = _scale(values, bottom, top)
    if bad:
        words += f"; {bad} pixels that are not numbers set to black, or white if +infinite"
    return scaled, words


def _finite_range(values: Array) -> tuple[float, float, int]:
    """Return smallest and largest finite value, and how many values are NaN or infinite."""
    if values.dtype.kind != "f":
        return float(values.min()), float(values.max()), 0
    finite = np.isfinite(values)
    bad = int(values.size - np.count_nonzero(finite))
    if bad == values.size:
        raise RefusedError("no pixel is a finite number")
    low = float(np.min(values, where=finite, initial=np.inf))
    high = float(np.max(values, where=finite, initial=-np.inf))
    return low, high, bad


def _scale(values: Array, bottom: float, top: float) -> npt.NDArray[np.uint8]:
    """Map [bottom, top] linearly to 0..255, rounded to nearest."""
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        steps = np.arange(65536, dtype=np.float64)
        table = np.clip(np.rint((steps - bottom) * (255 / (top - bottom))), 0, 255).astype(np.uint8)
        return table[values]
    out = np.empty(values.shape, np.uint8)
    rows = max(1, _ROWS_AT_ONCE // max(1, values[0].size))
    for start in range(0, len(values), rows):
        block = values[start : start + rows].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            block = (block - bottom) / (top - bottom) * 255.0
        block = np.nan_to_num(block, nan=0.0, posinf=255.0, neginf=0.0)
        out[start : start + rows] = np.clip(np.rint(block), 0, 255).astype(np.uint8)
    return out
