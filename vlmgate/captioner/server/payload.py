"""Turn a picture into what a model server takes: a data URL of bounded size.

Knows pixels and file formats; knows nothing of servers or prompts.
"""

from __future__ import annotations

import base64
import io

from PIL import Image

MOST_PNG = 4 * 1024**2  # bytes; above it JPEG is sent, for many servers and proxies refuse large bodies
JPEG_QUALITY = 95


def describe(max_side: int) -> str:
    """Say in words how pictures are sent."""
    return (
        f"upright 8-bit RGB, at most {max_side:,} pixels a side; PNG, or JPEG of quality {JPEG_QUALITY} where a PNG "
        f"exceeds {MOST_PNG // 1024**2} MiB"
    )


def data_url(rgb: Image.Image, max_side: int) -> str:
    """Return an RGB picture as a data URL, shrunk to `max_side` pixels where it is larger.

    Nothing but pixels is sent: no EXIF, no colour profile, no file name.
    """
    bare = _shrunk(rgb, max_side)
    bare.info = {}
    png = _saved(bare, "PNG", compress_level=6)
    if len(png) <= MOST_PNG:
        return _url("png", png)
    return _url("jpeg", _saved(bare, "JPEG", quality=JPEG_QUALITY, subsampling=0))


def _shrunk(rgb: Image.Image, max_side: int) -> Image.Image:
    longer = max(rgb.size)
    if longer <= max_side:
        return rgb.copy()
    width, height = (max(1, round(side * max_side / longer)) for side in rgb.size)
    return rgb.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _saved(picture: Image.Image, form: str, **options: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def _url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
