"""How well a picture was taken: `measure` returns sharpness, exposure, contrast, noise and clipping.

A defect that blur or darkness hides is read as "no defect" with
no more diversity than a clean part shows; these figures are for such escapes. They compare pictures of one camera and
one kind of part, not cameras or parts with each other. A JPEG that was decoded smaller is measured as it then is, which
takes away noise.
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
        luma = np.array(_sampled(rgb).convert("L").histogram(), np.float64)  # (256,)
        luma /= luma.sum()
        return Quality(
            sharpness=_rounded(sharpness(_pixels(_reduced(rgb)))),
            exposure=_rounded(float(luma @ _GREYS) / 255),
            contrast=_rounded(contrast(luma)),
            noise=_rounded(noise(_pixels(_centre(rgb)))),
            clipped_dark=_rounded(float(luma[: DARK + 1].sum())),
            clipped_bright=_rounded(float(luma[BRIGHT:].sum())),
        )
    except Exception as error:
        log.warning("the quality of a picture could not be measured", exc_info=error)
        return None


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


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return luma (ITU-R BT.601) as (H, W)."""
    return np.asarray(image.convert("L"))


def _sampled(rgb: Image.Image) -> Image.Image:
    """Return some of the pixels, evenly spread and not averaged, so that what is clipped stays so."""
    return _resized(rgb, math.sqrt(_SAMPLED), Image.Resampling.NEAREST)


def _reduced(rgb: Image.Image) -> Image.Image:
    return _resized(rgb, STANDARD, Image.Resampling.BILINEAR)


def _resized(rgb: Image.Image, side: float, method: Image.Resampling) -> Image.Image:
    """Return the picture with the area of a square of this side; one that is smaller stays as it is."""
    share = side / math.sqrt(rgb.width * rgb.height)
    if share >= 1:
        return rgb
    size = (max(1, round(rgb.width * share)), max(1, round(rgb.height * share)))
    return rgb.resize(size, method, reducing_gap=None if method is Image.Resampling.NEAREST else 2.0)


def _centre(rgb: Image.Image) -> Image.Image:
    left, top = max(0, rgb.width - _NOISE_CROP) // 2, max(0, rgb.height - _NOISE_CROP) // 2
    return rgb.crop((left, top, min(rgb.width, left + _NOISE_CROP), min(rgb.height, top + _NOISE_CROP)))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
