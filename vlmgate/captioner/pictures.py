"""The pictures that a model is shown besides the images themselves: noised copies, and a test picture.

Samples drawn from noised copies disagree where a reading depends on details that the noise covers, which samples of one
picture need not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmgate.captioner.streams import view_noise
from vlmgate.data import ImageFile, Picture

# Cells of noise along the longer side, at most. A processor shrinks a photograph of 4,000 pixels to a few hundred, and
# averages away any noise that changes from pixel to pixel: there a cell is several pixels wide.
CELLS = 512
STRIP = 256  # rows of pixels that are added up at once: a line-scan image has hundreds of megapixels


def trial_picture() -> Picture:
    """Return a picture that any model can read, from no file: a grey ramp with a dark disc."""
    y, x = np.mgrid[0:256, 0:320]
    grey = np.where((x - 160) ** 2 + (y - 128) ** 2 < 80**2, 60, 120 + x // 4).astype(np.uint8)
    image = ImageFile("test image", Path(), "0" * 64, 1, 1, 320, 256, "RGB", None, 0, 0, 0)
    return Picture(image, Image.fromarray(np.repeat(grey[..., None], 3, axis=2)))


def views_of(picture: Picture, count: int, noise: float, seed: int) -> list[Image.Image]:
    """Return `count` views of a picture: as it is, then with Gaussian noise of sigma `noise`, of 255."""
    rgb, file = picture.rgb, picture.file
    cell = -(-max(rgb.size) // CELLS)  # pixels
    shape = (-(-rgb.height // cell), -(-rgb.width // cell), 3)
    normals = (view_noise(seed, file.sha256, file.page, view, shape) for view in range(1, count))
    return [rgb, *(_noised(rgb, (noise * normal).astype(np.float32)) for normal in normals)]


def _noised(rgb: Image.Image, noise: NDArray[np.float32]) -> Image.Image:
    """Add (H', W', 3) noise, one cell of it to each block of pixels; what leaves the range is clipped."""
    pixels: NDArray[Any] = np.array(rgb)
    height, width = pixels.shape[:2]
    rows = np.arange(height) * noise.shape[0] // height
    columns = np.arange(width) * noise.shape[1] // width
    for top in range(0, height, STRIP):
        strip = slice(top, top + STRIP)
        pixels[strip] = np.clip(np.rint(pixels[strip] + noise[rows[strip]][:, columns]), 0, 255)
    return Image.fromarray(pixels)
