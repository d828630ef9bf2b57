"""A picture that any model can read, to find out whether a model works at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vlmgate.data import ImageFile, Picture


def trial_picture() -> Picture:
    """Return a picture that any model can read, from no file: a grey ramp with a dark disc."""
    y, x = np.mgrid[0:256, 0:320]
    grey = np.where((x - 160) ** 2 + (y - 128) ** 2 < 80**2, 60, 120 + x // 4).astype(np.uint8)
    image = ImageFile("test image", Path(), "0" * 64, 1, 1, 320, 256, "RGB", None, 0, 0, 0)
    return Picture(image, Image.fromarray(np.repeat(grey[..., None], 3, axis=2)))
