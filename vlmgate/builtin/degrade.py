"""What goes wrong between the part and the file: blur, noise, darkness, glare, something in the way.

Knows pixels; knows nothing of parts or defects.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.float32]  # (H, W, 3) in [0, 1]


def degrade(pixels: Pixels, kind: str, severity: float, rng: np.random.Generator) -> Pixels:
    """Return `pixels` degraded by `kind`; `severity` in [0, 1], higher = worse. Lengths scale with the image's size."""
    return _APPLY[kind](pixels, severity, rng)


def to_image(pixels: Pixels) -> Image.Image:
    """Return an 8-bit RGB image."""
    return Image.fromarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8))


def _from_image(image: Image.Image) -> Pixels:
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def _blur(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    radius = (0.006 + 0.034 * severity) * len(pixels)  # pixels
    return _from_image(to_image(pixels).filter(ImageFilter.GaussianBlur(radius)))


def _motion(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    length = (0.02 + 0.12 * severity) * len(pixels)  # pixels
    angle = rng.uniform(0, np.pi)
    count = max(3, int(length / 2))
    total = np.zeros_like(pixels)
    for t in np.linspace(-0.5, 0.5, count):
        shift = (round(length * t * np.sin(angle)), round(length * t * np.cos(angle)))
        total += np.roll(pixels, shift, axis=(0, 1))
    return total / np.float32(count)


def _sensor_noise(pixels: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """Add noise that has `sigma` left once the image is reduced to 160 pixels."""
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(pixels + noise * np.float32(sigma * max(1.0, len(pixels) / 160)), 0, 1)


def _noise(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    return _sensor_noise(pixels, 0.04 + 0.26 * severity, rng)


def _low_light(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    gain = 0.4 * 0.06**severity
    return _sensor_noise(pixels * np.float32(gain), 0.008 + 0.008 * severity, rng)


def _glare(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    size = len(pixels)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / np.float32(size / 2) - 1
    light = np.full((size, size), 0.25 * severity, dtype=np.float32)
    for _ in range(int(rng.integers(1, 4))):
        cx, cy = rng.uniform(-0.6, 0.6, 2)
        a, (wide, narrow) = rng.uniform(0, np.pi), (0.2 + 0.5 * severity) * rng.uniform(0.6, 1.3, 2)
        along = (x - cx) * np.cos(a) + (y - cy) * np.sin(a)
        across = (y - cy) * np.cos(a) - (x - cx) * np.sin(a)
        light += np.float32(0.5 + 1.1 * severity) * np.exp(-((along / wide) ** 2) - (across / narrow) ** 2)
    warm = np.array([1.0, 0.98, 0.93], dtype=np.float32)
    return np.clip(pixels + light[..., None].astype(np.float32) * warm, 0, 1)


def _occlusion(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """Lay a strap of cloth, tape or cable across the part; severity 1 hides a little over half of the image's width."""
    size = len(pixels)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / np.float32(size / 2) - 1
    angle = rng.uniform(0, np.pi)
    distance = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)) - np.float32(rng.uniform(-0.35, 0.35))
    wobble = np.float32(0.03) * np.sin((y * np.float32(np.cos(angle)) - x * np.float32(np.sin(angle))) * 5)
    half = 0.1 + 0.42 * severity
    alpha = np.clip((half - np.abs(distance + wobble)) * np.float32(size / 4), 0, 1)[..., None]
    colour = np.array(rng.uniform(0.08, 0.75) * rng.uniform(0.8, 1.2, 3), dtype=np.float32)
    weave = 1 + np.float32(0.06) * np.sin(distance * np.float32(rng.uniform(40, 120)))[..., None]
    covered: Pixels = np.clip(pixels * (1 - alpha) + colour * weave * alpha, 0, 1)
    return covered


_APPLY = {
    "blur": _blur,
    "motion": _motion,
    "noise": _noise,
    "low light": _low_light,
    "glare": _glare,
    "occlusion": _occlusion,
}
