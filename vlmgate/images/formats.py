"""Which files are images, by extension or signature (`sniff`); why one cannot be read, in plain words (`explain`)."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from typing import BinaryIO

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PcxImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    QoiImagePlugin,
    SgiImagePlugin,
    TgaImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile as PillowImage

HEAD_BYTES = 512  # enough for every signature below
_JUNK = re.compile(r"[^\x20-\x7e]+")


class RefusedError(Exception):
    """This file or page cannot be shown faithfully; the message is the reason in plain words."""


# --- formats ---------------------------------------------------------------------------------------------------------

# Extensions whose files Pillow can open. The signature inside decides how; the extension only says "this is an image".
_OPENABLE = (
    "jpg jpeg jpe jfif jif mpo png apng bmp dib webp avif avifs jp2 j2k j2c jpc jpf jpx tif tiff btf tf8 "
    "pgm ppm pbm pnm pfm gif tga icb vda vst pcx qoi sgi rgb rgba bw"
)
OPENABLE = frozenset(_OPENABLE.split())
# Images that cannot be opened here, or with an extra only: they become `Unreadable`, they never vanish.
_NOT_OPENABLE = {
    "HEIF": "heic heif heics heifs hif",
    "JPEG XL": "jxl",
    "JPEG XR": "jxr hdp wdp",
    "JPEG-LS": "jls",
    "camera raw": "3fr arw cr2 cr3 crw dcr dng erf fff iiq k25 kdc mef mos mrw nef nrw orf pef ptx r3d raf raw rw2 rwl "
    "sr2 srf srw x3f",
    "PAM": "pam",
    "Photoshop": "psd psb",
    "GIMP": "xcf",
    "OpenEXR": "exr",
    "Radiance HDR": "hdr rgbe",
    "DICOM": "dcm dicom",
    "FITS": "fit fits fts",
    "DDS": "dds",
    "icon": "ico cur icns",
    "legacy bitmap": "ras sun xbm xpm xwd pict pct",
    "vector drawing": "svg svgz eps wmf emf",
    "microscope": "czi lif nd2 oib oif vsi svs ndpi mrxs scn",
}
NOT_OPENABLE = {extension: kind for kind, extensions in _NOT_OPENABLE.items() for extension in extensions.split()}
TIFF_PAGE = "this kind of TIFF"
MORE = {
    "HEIF": "heic",
    "DICOM": "dicom",
    "camera raw": "raw",
    "JPEG XL": "jxl",
    TIFF_PAGE: "tiff",
}  # extras that open them
BY_EXTENSION = {  # formats whose signature is missing, or too weak to tell a file of unknown extension
    **dict.fromkeys(("tga", "icb", "vda", "vst"), "TGA"),
    **dict.fromkeys(("pgm", "ppm", "pbm", "pnm", "pfm"), "PNM"),
    "pcx": "PCX",
    "dib": "DIB",
}


def extension_of(name: str) -> str:
    """Return what follows the last dot, in lower case; empty without a dot."""
    return name.rpartition(".")[2].lower() if "." in name else ""


_SIGNATURES: tuple[tuple[str, re.Pattern[bytes]], ...] = tuple(
    (kind, re.compile(pattern, re.DOTALL))
    for kind, pattern in (
        ("JPEG", rb"\xff\xd8\xff"),
        ("PNG", rb"\x89PNG\r\n\x1a\n"),
        ("TIFF", rb"II[*+]\x00|MM\x00[*+]"),
        ("BMP", rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\x00\x00\x00"),
        ("GIF", rb"GIF8[79]a"),
        ("WEBP", rb"RIFF.{4}WEBP"),
        ("AVIF", rb".{4}ftypavi[fs]|.{4}ftypmi[fa]1.{0,64}?avi[fs]"),
        ("HEIF", rb".{4}ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)"),
        ("JPEG 2000", rb"\xff\x4f\xff\x51|\x00\x00\x00\x0cjP  \r\n\x87\n"),
        ("PNM", rb"P[14]\s+\d+\s+\d+\s|P[2356]\s+\d+\s+\d+\s+\d+\s|Pf\s+\d+\s+\d+\s+-?[\d.]+\s"),
        ("QOI", rb"qoif"),
        ("SGI", rb"\x01\xda[\x00\x01][\x01\x02]\x00[\x01-\x03]"),
        ("JPEG XL", rb"\xff\x0a|\x00\x00\x00\x0cJXL \r\n\x87\n"),
        ("JPEG XR", rb"II\xbc[\x00\x01]"),
        ("PAM", rb"P7\n"),
        ("Photoshop", rb"8BPS\x00[\x01\x02]"),
        ("GIMP", rb"gimp xcf "),
        ("OpenEXR", rb"\x76\x2f\x31\x01"),
        ("Radiance HDR", rb"#\?(?:RADIANCE|RGBE)\n"),
        ("DICOM", rb".{128}DICM"),
        ("FITS", rb"SIMPLE  = {20}T"),
        ("DDS", rb"DDS \x7c\x00\x00\x00"),
    )
)


def sniff(head: bytes) -> str | None:
    """Name the image format whose signature the first bytes of a file carry; None = no image that is known here."""
    return next((kind for kind, pattern in _SIGNATURES if pattern.match(head)), None)


class _Tiff(TiffImagePlugin.TiffImageFile):
    """A TIFF page that is held against our own pixel limit only.

    Pillow checks its process-wide limit (179 megapixels) in `load_prepare` when it allocates; allocating first keeps
    that check out of the way without touching the limit for other users of Pillow.
    """

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.new(self.mode, self._tile_size, None).im
        super().load_prepare()


# Plugin classes are called directly: `Image.open` would hold the file against Pillow's process-wide pixel limit, and
# would try decoders that run other programs (EPS) or accept nearly anything (TGA).
OPENERS: dict[str, Callable[[BinaryIO], PillowImage]] = {
    "JPEG": JpegImagePlugin.jpeg_factory,
    "PNG": PngImagePlugin.PngImageFile,
    "TIFF": _Tiff,
    "BMP": BmpImagePlugin.BmpImageFile,
    "DIB": BmpImagePlugin.DibImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "JPEG 2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "PNM": PpmImagePlugin.PpmImageFile,
    "QOI": QoiImagePlugin.QoiImageFile,
    "SGI": SgiImagePlugin.SgiImageFile,
    "TGA": TgaImagePlugin.TgaImageFile,
    "PCX": PcxImagePlugin.PcxImageFile,
}


def kind_of(head: bytes, extension: str) -> str:
    """Name the kind of a file by its first bytes and its name; raises `RefusedError` for one that cannot be opened."""
    kind = sniff(head)
    unopenable = NOT_OPENABLE.get(extension)
    if unopenable == "camera raw" and kind in (None, "TIFF"):
        # Many raw formats are TIFF files whose first page is a thumbnail: it would be read instead of the image.
        return unopenable
    kind = kind or unopenable or BY_EXTENSION.get(extension)
    if kind is None:
        raise RefusedError("not an image")
    if kind not in OPENERS and kind not in MORE:
        raise RefusedError(f"{kind} files cannot be opened; convert them to PNG or TIFF")
    return kind


# --- reasons ---------------------------------------------------------------------------------------------------------


# What a file system says of a disk that is away, not of a file; and of a file that was listed a moment ago.
_AWAY = "EIO ENOTCONN ETIMEDOUT EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH ESTALE".split()
_CODES = [getattr(errno, name) for name in _AWAY if hasattr(errno, name)]  # Windows lacks some
_OF_THE_DISK = frozenset({"vanished", *(os.strerror(code).lower() for code in _CODES)})


def is_of_the_disk(reason: str) -> bool:
    """Say whether a reason that `explain` gave lies with the disk, so that a second try may succeed."""
    return reason in _OF_THE_DISK


def sort_of(reason: str) -> str:
    """Return what is wrong without the particulars, so that it can be counted: "truncated: 3 of 9" → "truncated"."""
    return re.split(r"[:;(]", reason, maxsplit=1)[0].strip() or reason


def explain(error: BaseException) -> str:
    """Say in one plain line why a file could not be read."""
    if isinstance(error, RefusedError):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, Image.DecompressionBombError):
        return f"larger than Pillow's own limit ({printable(str(error))})"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, FileNotFoundError):
        return "vanished"
    if isinstance(error, OSError) and error.strerror:
        return printable(error.strerror).lower()
    text = printable(str(error))
    if isinstance(error, EOFError) or "truncated" in text.lower() or "unexpected end" in text.lower():
        return "truncated"
    what = "cannot be decoded" if isinstance(error, OSError) else "cannot be opened"
    return f"{what}: {text or type(error).__name__}"


def printable(text: str) -> str:
    """Return what a decoder said as printable ASCII of at most 160 characters; it may quote bytes of the file."""
    return _JUNK.sub(" ", text).strip()[:160]
