"""How well a picture was taken: `measure`.

A defect that blur or darkness hides is read as "no defect" with no more diversity than a clean part shows; these
figures are for such escapes. They compare pictures of one camera and one kind of part, not cameras or parts with each
other. A JPEG that was decoded smaller is measured as it then is, which takes away noise.
"""

from __future__ import annotations

import logging
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmgate.data import Quality

log = logging.getLogger(__name__)

STANDARD = 512  # pixels; pictures of more than this squared are reduced to it before sharpness is measured
DARK, BRIGHT = 2, 253  # of 255; what lies at or beyond is clipped, and JPEG shifts a value by one or two
_GREYS = np.arange(256, dtype=np.float64)
_SAMPLED = 4_000_000  # pixels that exposure, contrast and clipping are taken from at most
_NOISE_CROP = 1024  # pixels; noise is measured at full resolution, where averaging has not hidden it yet


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
            "flat_rows": flat_rows(np.asarray(sample)),
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


def flat_rows(rgb: NDArray[np.uint8]) -> float | None:
    """Return the share of the rows of (H, W, 3) pixels that are one colour from end to end, or of the columns if more.

    In [0, 1]; higher = worse. Columns count too, because a picture may have been turned upright.
    """
    if min(rgb.shape[:2]) < 3:
        return None
    return max(_flat_share(rgb), _flat_share(rgb.swapaxes(0, 1)))


def _flat_share(rows: NDArray[np.uint8]) -> float:
    """Return the share of rows (N, M, 3) that are one colour."""
    some = rows[:, :: max(1, rows.shape[1] // 32)]  # most rows differ within a few pixels
    likely = rows[(some == some[:, :1]).all(axis=(1, 2))]
    return float((likely == likely[:, :1]).all(axis=(1, 2)).sum() / len(rows))
