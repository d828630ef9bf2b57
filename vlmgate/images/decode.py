"""Turn one opened page into upright 8-bit RGB: high bit depths, palettes, alpha, colour models, orientation.

`decode` takes any page but 16-bit colour (`decode_16_bit_colour`) and binary PNM (`decode_pnm`). A picture that might
be wrong is refused with a reason rather than guessed: a person then looks, whereas a model would read a wrongly
converted (say, white) picture K times the same way and it would be accepted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import (
    ExifTags,
    Image,
    ImageCms,
    ImageFile,
    ImagePalette,
    Jpeg2KImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
)

from vlmgate.images.depth import BITS, Shared, alone, alpha_to_8_bits, to_8_bits
from vlmgate.images.formats import RefusedError
from vlmgate.images.more import Pixels

BACKGROUND = 128  # mid-grey: neither dark nor bright parts vanish into it
_SUBFILE_TYPE = 254  # TIFF tag
_MAX_SAMPLE_VALUE, _NO_DATA = 281, 42113  # TIFF tags; the latter is GDAL's
_SIGNED = 2  # TIFF sample format

Array = npt.NDArray[Any]


def decode(image: ImageFile.ImageFile, stream: BinaryIO, shared: Shared = alone) -> tuple[Image.Image, str, list[str]]:
    """Return upright 8-bit RGB, the mode as stored, and what was done in words; raises `RefusedError`, or as Pillow.

    `shared` makes the range of pictures of more than 8 bits that of their camera.
    """
    mode = image.mode
    notes: list[str] = []
    declared = _declared_maximum(image, stream)
    tags = _tiff_tags(image)
    tiff_orientation = tags.get(ExifTags.Base.Orientation)
    image.load()
    if mode.startswith("I") or mode == "F":
        values = np.asarray(image)
        if tags and mode == "I" and tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0] == 1:
            values = values.view(np.uint32)  # Pillow has no unsigned 32-bit mode
        declared = declared or _significant_maximum(values, image, stream)
        grey, words = to_8_bits(values, declared, _no_data(tags), shared)
        notes.append(words)
        if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
            np.subtract(255, grey, out=grey)
            notes.append("inverted (stored with white as zero)")
        flat = Image.fromarray(grey)
        if isinstance(image.info.get("transparency"), int):
            flat.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
        rgb = _flatten(flat, notes)
    elif mode in ("L", "RGB") and tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0] == _SIGNED:
        signed = np.asarray(image).view(np.int8)  # Pillow takes -1 for 255, the brightest of all
        rgb = _flatten(Image.fromarray((signed.astype(np.int16) + 128).astype(np.uint8)), notes)
        notes.append("signed 8-bit values: -128 is black, 127 white")
    else:
        if mode in ("P", "PA"):
            _repair_8_bit_palette(image, tags.get(TiffImagePlugin.COLORMAP, ()), notes)
        rgb = _flatten(image, notes)
    rgb = _upright(image, rgb, tiff_orientation, notes)
    if tags.get(_SUBFILE_TYPE, 0) & 1:
        notes.append("marked as a small copy of another page")
    if isinstance(image, Jpeg2KImagePlugin.Jpeg2KImageFile) and mode[0] != "I" and (_jpeg2000_bits(stream) or 8) > 8:
        notes.append("upper 8 bits taken")
    _note_profile(image, notes)
    return rgb, mode, notes


def _tiff_tags(image: ImageFile.ImageFile) -> Mapping[int, Any]:
    return image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}


def _no_data(tags: Mapping[int, Any]) -> float | None:
    """Return the value that a TIFF page declares to stand for no data; None without one."""
    try:
        return float(str(tags[_NO_DATA]).strip(" \0"))
    except (KeyError, ValueError):
        return None


def _flatten(image: Image.Image, notes: list[str]) -> Image.Image:
    """Turn any 8-bit image into RGB that shares no memory with it, alpha laid on mid-grey."""
    if image.mode == "LAB":
        notes.append("CIE Lab to sRGB")
        transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None
        return converted
    if image.mode == "CMYK":
        notes.append("CMYK to RGB without a colour profile")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    lowest, highest = cast("tuple[int, int]", rgba.getchannel("A").getextrema())
    if highest < 16:  # an unused fourth channel; laid on a background it would hide the whole image
        notes.append("alpha is zero everywhere and was ignored")
    elif lowest < 255:
        notes.append(f"transparency laid on mid-grey ({BACKGROUND})")
        backdrop = Image.new("RGBA", rgba.size, (BACKGROUND, BACKGROUND, BACKGROUND, 255))
        backdrop.alpha_composite(rgba)
        rgba = backdrop
    return rgba.convert("RGB")


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image, rgb: Image.Image, tiff_orientation: object, notes: list[str]) -> Image.Image:
    """Apply the EXIF orientation; Pillow has done so already while it loaded a TIFF page."""
    orientation = tiff_orientation
    if tiff_orientation is None:
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation)
        except Exception:  # hostile EXIF raises nearly anything; the pixels are sound
            notes.append("EXIF data is damaged: orientation unknown, left as stored")
    if not isinstance(orientation, int) or orientation not in _UPRIGHT:
        return rgb
    notes.append(f"turned upright (EXIF orientation {orientation})")
    return rgb if tiff_orientation is not None else rgb.transpose(_UPRIGHT[orientation])


def _note_profile(image: Image.Image, notes: list[str]) -> None:
    """Say that a colour profile was ignored.

    Ignored on purpose: models are trained on pixels as stored, a conversion would differ with the version of the colour
    library, and a hostile profile would be one more parser to get through.
    """
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes) and b"sRGB" not in profile.replace(b"\0", b""):
        notes.append("colour profile ignored")


def _repair_8_bit_palette(image: Image.Image, color_map: tuple[int, ...], notes: list[str]) -> None:
    """Take a TIFF colour map as 8-bit if no entry exceeds 255: its upper bytes, which Pillow takes, are all zero."""
    if color_map and 0 < max(color_map) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(color_map))
        image.load()
        notes.append("8-bit colour map")


def is_16_bit_colour(image: ImageFile.ImageFile) -> bool:
    """Say whether Pillow would keep only the upper byte of each value."""
    return image.mode in ("RGB", "RGBA") and bool(image.tile) and _rawmode(image)[-4:-1] == ";16"


def is_deep_pnm(image: ImageFile.ImageFile) -> bool:
    """Say whether a binary PPM has 16 bits in each channel."""
    tile = image.tile[0] if image.tile else None
    deep = tile is not None and tile.codec_name == "ppm" and cast("tuple[str, int]", tile.args)[1] > 255
    return deep and image.mode == "RGB"


def _rawmode(image: ImageFile.ImageFile) -> str:
    args = image.tile[0].args
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _with_rawmode(image: ImageFile.ImageFile, rawmode: str) -> ImageFile.ImageFile:
    image.tile = [
        tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode)
        for tile in image.tile
    ]
    return image


def decode_16_bit_colour(
    image: ImageFile.ImageFile,
    stream: BinaryIO,
    open_twin: Callable[[], ImageFile.ImageFile],
    shared: Shared = alone,
) -> tuple[Image.Image, str, list[str]]:
    """Decode 16-bit colour at full depth.

    Pillow keeps the upper byte of each value, so that 12-bit colour in a 16-bit container comes out nearly black. A
    second pass with the byte order reversed yields the lower bytes.
    """
    rawmode = _rawmode(image)
    if rawmode.startswith("RGBa"):
        raise RefusedError("16-bit TIFF with premultiplied alpha cannot be opened; save it without alpha")
    notes: list[str] = []
    declared = _declared_maximum(image, stream)
    orientation = _tiff_tags(image).get(ExifTags.Base.Orientation)
    key = image.info.get("transparency")
    if rawmode == "LA;16B":  # four bytes a pixel: the upper and lower byte of grey, then of alpha
        _with_rawmode(image, "RGBA").load()
        values = np.asarray(image).view(">u2")  # (H, W, 2)
        mode = "LA;16"
    else:
        image.load()
        order = rawmode[-1]
        native = "L" if sys.byteorder == "little" else "B"
        reverse = {"L": "B", "B": "L"}[native if order == "N" else order]
        lower = _with_rawmode(open_twin(), rawmode[:-1] + reverse)
        lower.load()
        values = np.asarray(image).astype(np.uint16) << 8 | np.asarray(lower)  # (H, W, 3 or 4)
        mode = image.mode + ";16"
    alpha = values.shape[2] in (2, 4)
    colours = values[..., :-1] if alpha else values
    declared = declared or _significant_maximum(colours, image, stream)
    scaled, words = to_8_bits(colours, declared, shared=shared)
    notes.append(words)
    flat = Image.fromarray(scaled[..., 0] if scaled.shape[2] == 1 else scaled)
    if alpha:
        flat.putalpha(Image.fromarray(alpha_to_8_bits(values[..., -1])))
    elif isinstance(key, tuple):
        flat.putalpha(Image.fromarray(np.where((values == key).all(axis=2), 0, 255).astype(np.uint8)))
    rgb = _upright(image, _flatten(flat, notes), orientation, notes)
    _note_profile(image, notes)
    return rgb, mode, notes


def decode_values(pixels: Pixels, shared: Shared = alone) -> tuple[Image.Image, str, list[str]]:
    """Return upright 8-bit RGB, the mode as stored, and what was done in words, of values that Pillow has not read."""
    values, notes = pixels.values, list(pixels.notes)
    bands = 1 if values.ndim == 2 else values.shape[2]
    if values.ndim not in (2, 3) or bands > 4:
        raise RefusedError(f"holds {bands} channels; save it as grey or RGB")
    alpha = values[..., -1] if bands in (2, 4) else None
    colours = values if alpha is None else values[..., :-1]
    colours = colours[..., 0] if colours.ndim == 3 and colours.shape[2] == 1 else colours
    if values.dtype == np.uint8:
        scaled: npt.NDArray[np.uint8] = np.ascontiguousarray(colours)
    else:
        signed = values.dtype == np.int8
        scaled, words = to_8_bits(
            colours.astype(np.int16) if signed else colours, pixels.declared, pixels.no_data, shared
        )
        notes.append(words)
    if pixels.white_is_zero:
        scaled = 255 - scaled
        notes.append("inverted (stored with white as zero)")
    flat = Image.fromarray(scaled)
    if alpha is not None:
        floats = alpha.dtype.kind == "f"
        levels = np.rint(np.clip(alpha, 0, 1) * 255).astype(np.uint8) if floats else alpha_to_8_bits(alpha)
        flat.putalpha(Image.fromarray(np.ascontiguousarray(levels)))
    rgb = _flatten(flat, notes)
    if pixels.orientation in _UPRIGHT:
        notes.append(f"turned upright (EXIF orientation {pixels.orientation})")
        rgb = rgb.transpose(_UPRIGHT[pixels.orientation])
    return rgb, pixels.mode, notes


def decode_stripes(image: ImageFile.ImageFile, rgb: Image.Image, smaller: int) -> tuple[Image.Image, str, list[str]]:
    """Return a picture that was read in stripes from this file, upright, the mode as stored, and what was done."""
    notes = [f"read in stripes, {smaller} times smaller"]
    orientation = _tiff_tags(image).get(ExifTags.Base.Orientation)
    if orientation in _UPRIGHT:
        notes.append(f"turned upright (EXIF orientation {orientation})")
        rgb = rgb.transpose(_UPRIGHT[orientation])
    _note_profile(image, notes)
    return rgb, image.mode, notes


def decode_pnm(
    image: ImageFile.ImageFile, stream: BinaryIO, shared: Shared = alone
) -> tuple[Image.Image, str, list[str]]:
    """Decode binary PGM or PPM whose maximum is not 255; Pillow would take a microsecond of Python per value."""
    bands = len(image.getbands())
    maximum = cast("tuple[str, int]", image.tile[0].args)[1]
    kind = np.dtype(">u2" if maximum > 255 else "u1")
    size = image.width * image.height * bands * kind.itemsize
    stream.seek(image.tile[0].offset)
    data = stream.read(size)
    if len(data) < size:
        raise RefusedError("truncated")
    shape = (image.height, image.width) if bands == 1 else (image.height, image.width, bands)
    values = np.frombuffer(data, kind).reshape(shape)
    mode = ("L" if bands == 1 else "RGB") + (";16" if maximum > 255 else "")
    if maximum == 65535:  # many writers put this whatever the camera's depth
        scaled, words = to_8_bits(values, shared=shared)
    else:
        scaled, words = to_8_bits(np.minimum(values, maximum), maximum)
    return Image.fromarray(scaled).convert("RGB"), mode, [words]


# --- bit depth -------------------------------------------------------------------------------------------------------


def _declared_maximum(image: ImageFile.ImageFile, stream: BinaryIO) -> int | None:
    """Return the value that the file itself declares to be full brightness; None if it says nothing of use."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)) == (12,):
            return 4095
        declared = image.tag_v2.get(_MAX_SAMPLE_VALUE)
        declared = max(declared) if isinstance(declared, tuple) and declared else declared
        if not isinstance(declared, int) or not 0 < declared < 65535:
            return None
        # some writers put the largest value of this image there: its depth is what all images of a camera share
        return int(2 ** next(bits for bits in BITS if declared < 2**bits)) - 1
    if isinstance(image, PpmImagePlugin.PpmImageFile) and image.tile[0].codec_name == "ppm_plain":
        args = cast("tuple[str, int]", image.tile[0].args)
        return None if image.mode != "I" or args[1] == 65535 else 65535  # Pillow scales to 65535
    if isinstance(image, Jpeg2KImagePlugin.Jpeg2KImageFile):
        return None if _jpeg2000_bits(stream) in (None, 16) else 65535  # Pillow shifts the top bit to bit 15
    return None


def _significant_maximum(values: Array, image: ImageFile.ImageFile, stream: BinaryIO) -> int | None:
    """Return full brightness by the sBIT chunk of a 16-bit PNG, which tells the bits that the camera delivered.

    The standard has such values scaled up to 16 bits. Some writers store them as they are: the values then stay below
    2^bits and their lower bits, which scaling leaves empty in values that small, are in use.
    """
    if not isinstance(image, PngImagePlugin.PngImageFile):
        return None
    position, bits = stream.tell(), 0
    stream.seek(8)
    while len(header := stream.read(8)) == 8 and header[4:] not in (b"IDAT", b"IEND"):
        length = int.from_bytes(header[:4], "big")
        if header[4:] == b"sBIT":
            bits = max(stream.read(length), default=0)
            break
        stream.seek(length + 4, 1)
    stream.seek(position)
    if not 8 <= bits < 16:
        return None
    as_they_are = bool(values.max() < 2**bits) and bool((values & (2 ** (16 - bits) - 1)).any())
    return 2**bits - 1 if as_they_are else 65535


def _jpeg2000_bits(stream: BinaryIO) -> int | None:
    position = stream.tell()
    stream.seek(0)
    head = stream.read(1 << 16)
    stream.seek(position)
    at = head.find(b"\xff\x4f\xff\x51")
    return (head[at + 42] & 0x7F) + 1 if 0 <= at < len(head) - 42 else None
