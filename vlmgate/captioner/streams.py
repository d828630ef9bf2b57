"""What follows from an image's seed: random numbers and noised views; and test pictures, which need none.

Start with `uniforms` (with which samples are drawn) and `views_of` (noised copies of a picture). PCG64, SeedSequence
and `random_raw` are frozen by numpy's compatibility policy; `Generator` is not, so the rest is spelled out here. There
is no global random state: a stream is made anew from its key wherever it is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmgate.data import ImageFile, Picture

# Cells of noise along the longer side, at most: shrinking a large photograph would average finer noise away.
CELLS = 512
STRIP = 256  # rows of pixels that are added up at once: a line-scan image has hundreds of megapixels

Stream = Literal["captions", "answers", "views"]

Colour = Literal["red", "green"]
COLOURS: tuple[Colour, ...] = ("red", "green")
COLOUR_QUESTION = "Is the picture red or green?"
_COLOURS: dict[Colour, tuple[int, int, int]] = {"red": (220, 30, 30), "green": (30, 180, 40)}

# The words that follow the page in a stream's key. Captions have none: their streams were there first. The lengths
# differ from use to use, so that no child of one use is another use's stream.
_WORDS: dict[Stream, tuple[int, ...]] = {"captions": (), "answers": (1,), "views": (2, 0)}


def uniforms(
    seed: int, sha256: str, page: int, num_samples: int, num_tokens: int, use: Stream = "captions"
) -> NDArray[np.float64]:
    """Return the (K, T) uniforms in [0, 1) with which the samples of one page are drawn, one row per sample.

    Each row has its own stream, so that a larger K or T only adds to what a smaller one gives. Captions have other
    streams than answers, so that a question changes no caption.
    """
    children = _root(seed, sha256, page, use).spawn(num_samples)
    return _uniform(np.stack([np.random.PCG64(child).random_raw(num_tokens) for child in children]))


def seeds(seed: int, sha256: str, page: int, num_samples: int, use: Stream = "captions") -> list[int]:
    """Return K seeds in [0, 2^31) for a server to draw the samples of one page with; a larger K only adds some."""
    children = _root(seed, sha256, page, use).spawn(num_samples)
    return [int(np.random.PCG64(child).random_raw()) >> 33 for child in children]


def view_noise(seed: int, sha256: str, page: int, view: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the standard normal noise of one view of one page."""
    return _normal(_root(seed, sha256, page, "views").spawn(view + 1)[view], shape)


def fixed_normal(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return standard normal numbers that are always the same for a shape, whatever the seed of a run."""
    return _normal(np.random.SeedSequence(shape), shape)


def _root(seed: int, sha256: str, page: int, use: Stream) -> np.random.SeedSequence:
    digest = [int(sha256[i : i + 8], 16) for i in range(0, 64, 8)]
    return np.random.SeedSequence([seed & 0xFFFFFFFF, seed >> 32, *digest, page, *_WORDS[use]])


def _normal(key: np.random.SeedSequence, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return standard normal numbers by the method of Box and Muller (1958)."""
    count = int(np.prod(shape))
    first, second = _uniform(np.random.PCG64(key).random_raw((2, -(-count // 2))))
    radius = np.sqrt(-2.0 * np.log1p(-first))
    normal = np.concatenate([radius * np.cos(2.0 * np.pi * second), radius * np.sin(2.0 * np.pi * second)])
    return normal[:count].reshape(shape)


def _uniform(raw: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


# --- pictures ---------------------------------------------------------------------------------------------------------


def trial_picture() -> Picture:
    """Return a picture that any model can read, from no file: a grey ramp with a dark disc."""
    y, x = np.mgrid[0:256, 0:320]
    grey = np.where((x - 160) ** 2 + (y - 128) ** 2 < 80**2, 60, 120 + x // 4).astype(np.uint8)
    image = ImageFile("test image", Path(), "0" * 64, 1, 1, 320, 256, "RGB", None, 0, 0, 0)
    return Picture(image, Image.fromarray(np.repeat(grey[..., None], 3, axis=2)))


def colour_picture(colour: Colour) -> Image.Image:
    """Return a picture of one colour, as large as the trial picture.

    The two differ in brightness as well, so that a model that sees in grey gets two different pictures.
    """
    return Image.new("RGB", trial_picture().rgb.size, _COLOURS[colour])


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
