"""Make slightly noised copies of a picture.

Knows pixels and noise; knows nothing of models. Samples drawn from noised copies disagree where a reading hangs on
details that the noise covers, which samples of one picture need not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmgate.captioner.local.streams import view_noise
from vlmgate.data import Picture

# Cells of noise along the longer side, at most. A processor shrinks a photograph of 4,000 pixels to a few hundred, and
# averages away any noise that changes from pixel to pixel: there a cell is several pixels wide.
CELLS = 512
STRIP = 256  # rows of pixels that are added up at once: a line-scan image has hundreds of megapixels


def views_of(picture: Picture, count: int, noise: float, seed: int) -> list[Image.Image]:
    """Return `count` views of a picture: as it is, then with Gaussian noise of sigma `noise`, of 255."""
    file = picture.file
    grid = _grid(picture.rgb)
    normals = (view_noise(seed, file.sha256, file.page, view, (*grid, 3)) for view in range(1, count))
    return [picture.rgb, *(_noised(picture.rgb, (noise * normal).astype(np.float32)) for normal in normals)]


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


def _grid(rgb: Image.Image) -> tuple[int, int]:
    """Return how many cells of noise, by rows and columns, cover a picture."""
    cell = -(-max(rgb.size) // CELLS)  # pixels
    return -(-rgb.height // cell), -(-rgb.width // cell)
