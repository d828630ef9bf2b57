"""From one decoded page to upright 8-bit RGB: palettes, alpha, colour models, orientation.

Knows Pillow's modes; knows nothing of files or threads. A picture that might be wrong is refused with a reason rather
than guessed: a person then looks, whereas a model would read a wrongly converted (say, white) picture K times the same
way and it would be accepted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import BinaryIO, cast

import numpy as np
from PIL import (
    ExifTags,
    Image,
    ImageCms,
    ImageFile,
    ImagePalette,
    Jpeg2KImagePlugin,
    TiffImagePlugin,
)

from vlmgate.images.depth import (
    declared_maximum,
    jpeg2000_bits,
    png_significant_bits,
    scale_to_8_bits,
    significant_maximum,
)
from vlmgate.images.formats import RefusedError

BACKGROUND = 128  # mid-grey: neither dark nor bright parts vanish into it
_DNG_VERSION = 50706  # TIFF tag
_SUBFILE_TYPE = 254  # TIFF tag


def decode(image: ImageFile.ImageFile, stream: BinaryIO) -> tuple[Image.Image, str, list[str]]:
    mode = image.mode
    notes: list[str] = []
    _refuse_what_pillow_gets_wrong(image)
    declared = declared_maximum(image, stream)
    tiff_tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else None
    tiff_orientation = tiff_tags.get(ExifTags.Base.Orientation) if tiff_tags is not None else None
    image.load()
    if mode.startswith("I") or mode == "F":
        if tiff_tags is not None and mode == "I" and tiff_tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0] == 1:
            values = np.asarray(image).view(np.uint32)  # Pillow has no unsigned 32-bit mode
        else:
            values = np.asarray(image)
        declared = declared or significant_maximum(values, png_significant_bits(image, stream))
        grey, words = scale_to_8_bits(values, declared)
        notes.append(words)
        if tiff_tags is not None and tiff_tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
            np.subtract(255, grey, out=grey)
            notes.append("inverted (stored with white as zero)")
        flat = Image.fromarray(grey)
        if isinstance(image.info.get("transparency"), int):
            flat.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
        rgb = _flatten(flat, notes)
    else:
        if tiff_tags is not None and mode in ("P", "PA"):
            _repair_8_bit_palette(image, tiff_tags.get(TiffImagePlugin.COLORMAP, ()), notes)
        rgb = _flatten(image, notes)
    rgb = _upright(image, rgb, tiff_orientation, notes)
    if tiff_tags is not None and tiff_tags.get(_SUBFILE_TYPE, 0) & 1:
        notes.append("marked as a small copy of another page")
    if isinstance(image, Jpeg2KImagePlugin.Jpeg2KImageFile) and mode[0] != "I" and (jpeg2000_bits(stream) or 8) > 8:
        notes.append("upper 8 bits taken")
    _note_profile(image, notes)
    return rgb, mode, notes


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


def _refuse_what_pillow_gets_wrong(image: ImageFile.ImageFile) -> None:
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    if _DNG_VERSION in image.tag_v2:
        raise RefusedError("camera raw files (DNG) cannot be opened; convert them to TIFF or PNG")
    bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    planar = image.tag_v2.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2
    if max(bits) > 8 and len(bits) > 1 and planar:
        raise RefusedError(
            "TIFF with separate 16-bit colour planes cannot be opened; save it with interleaved channels"
        )


def is_16_bit_colour(image: ImageFile.ImageFile) -> bool:
    return image.mode in ("RGB", "RGBA") and bool(image.tile) and ";16" in _rawmode(image)


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
    image: ImageFile.ImageFile, stream: BinaryIO, open_twin: Callable[[], ImageFile.ImageFile]
) -> tuple[Image.Image, str, list[str]]:
    """Decode 16-bit colour at full depth.

    Pillow keeps the upper byte of each value, so that 12-bit colour in a 16-bit container comes out nearly black. A
    second pass with the byte order reversed yields the lower bytes.
    """
    rawmode = _rawmode(image)
    if rawmode.startswith("RGBa"):
        raise RefusedError("16-bit TIFF with premultiplied alpha cannot be opened; save it without alpha")
    _refuse_what_pillow_gets_wrong(image)
    notes: list[str] = []
    declared = declared_maximum(image, stream)
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else None
    orientation = tags.get(ExifTags.Base.Orientation) if tags is not None else None
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
    declared = declared or significant_maximum(colours, png_significant_bits(image, stream))
    scaled, words = scale_to_8_bits(colours, declared)
    notes.append(words)
    flat = Image.fromarray(scaled[..., 0] if scaled.shape[2] == 1 else scaled)
    if alpha:
        flat.putalpha(Image.fromarray(scale_to_8_bits(values[..., -1])[0]))
    elif isinstance(key, tuple):
        flat.putalpha(Image.fromarray(np.where((values == key).all(axis=2), 0, 255).astype(np.uint8)))
    rgb = _upright(image, _flatten(flat, notes), orientation, notes)
    _note_profile(image, notes)
    return rgb, mode, notes


def decode_pnm(image: ImageFile.ImageFile, stream: BinaryIO) -> tuple[Image.Image, str, list[str]]:
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
        scaled, words = scale_to_8_bits(values)
    else:
        scaled, words = scale_to_8_bits(np.minimum(values, maximum), maximum)
    return Image.fromarray(scaled).convert("RGB"), mode, [words]
