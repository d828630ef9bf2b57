"""What goes wrong between part and file, as cameras make it: blur, noise, wrong exposure, glare, dirt, compression.

Knows pixels; knows nothing of parts or defects. Misframing is not here: where the camera points is seen to in `render`.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Pixels = NDArray[np.float32]  # (H, W, 3) in [0, 1]


def degrade(pixels: Pixels, kind: str, severity: float, rng: np.random.Generator) -> Pixels:
    """Return `pixels` degraded by `kind`; `severity` in [0, 1], higher = worse. Lengths scale with the image's size."""
    return _APPLY[kind](pixels, severity, rng)


def to_image(pixels: Pixels) -> Image.Image:
    """Return an 8-bit RGB image."""
    return Image.fromarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8))


def _from_image(image: Image.Image) -> Pixels:
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def _centred(size: int) -> tuple[Pixels, Pixels]:
    """Return (y, x) from -1 to 1."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / np.float32(size / 2) - 1
    return y, x


def _defocus(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    radius = (0.006 + 0.062 * severity) * len(pixels)  # pixels
    return _from_image(to_image(pixels).filter(ImageFilter.GaussianBlur(radius)))


def _motion(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """Add up the image along a path: straight for a moving belt, bent for a hand."""
    length = (0.02 + 0.3 * severity) * len(pixels)  # pixels
    angle, bend = rng.uniform(0, np.pi), rng.uniform(-0.6, 0.6)
    count = max(3, min(40, int(length / 2)))
    total = np.zeros_like(pixels)
    for t in np.linspace(-0.5, 0.5, count):
        side = bend * (t * t - 1 / 12) * 2
        dx = length * (t * np.cos(angle) - side * np.sin(angle))
        dy = length * (t * np.sin(angle) + side * np.cos(angle))
        total += np.roll(pixels, (round(float(dy)), round(float(dx))), axis=(0, 1))
    return total / np.float32(count)


def _sensor_noise(pixels: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """Add noise that has `sigma` left once the image is reduced to 160 pixels."""
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(pixels + noise * np.float32(sigma * max(1.0, len(pixels) / 160)), 0, 1)


def _noise(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    return _sensor_noise(pixels, 0.03 + 0.3 * severity, rng)


def _under_exposure(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    gain = 0.45 * 0.05**severity
    return _sensor_noise(pixels * np.float32(gain), 0.006 + 0.01 * severity, rng)


def _over_exposure(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """Multiply the light and let the sensor clip; wells that run over spill a little onto their neighbours."""
    bright = pixels * np.float32(1.4 * 9**severity) + np.float32(0.3 * severity)
    spill = _from_image(to_image(np.clip(bright - 1, 0, 1)).filter(ImageFilter.GaussianBlur(0.012 * len(pixels))))
    return np.clip(bright + spill * np.float32(0.4 * severity), 0, 1)


def _glare(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    size = len(pixels)
    y, x = _centred(size)
    light = np.full((size, size), 0.25 * severity, dtype=np.float32)
    for _ in range(int(rng.integers(1, 4))):
        cx, cy = rng.uniform(-0.6, 0.6, 2)
        a, (wide, narrow) = rng.uniform(0, np.pi), (0.2 + 0.55 * severity) * rng.uniform(0.6, 1.3, 2)
        along = (x - cx) * np.cos(a) + (y - cy) * np.sin(a)
        across = (y - cy) * np.cos(a) - (x - cx) * np.sin(a)
        light += np.float32(0.5 + 1.1 * severity) * np.exp(-((along / wide) ** 2) - (across / narrow) ** 2)
    warm = np.array([1.0, 0.98, 0.93], dtype=np.float32)
    return np.clip(pixels + light[..., None].astype(np.float32) * warm, 0, 1)


def _dust(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """Lay specks, lint and smears on the glass before the camera: sharp ones, blurred ones, up to a grey film."""
    size = len(pixels)
    y, x = _centred(size)
    glass = Image.new("L", (size, size))
    pen = ImageDraw.Draw(glass)
    for _ in range(int(15 + 900 * severity**2)):
        cx, cy, r = rng.uniform(0, size), rng.uniform(0, size), (0.0025 + 0.008 * rng.random() ** 3) * size
        pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=int(rng.uniform(120, 255)))
    blurred = np.asarray(glass.filter(ImageFilter.GaussianBlur(0.003 * size)), np.float32) / np.float32(255)
    for _ in range(int(1 + 34 * severity**2)):  # lint: short bent threads
        cx, cy, a = rng.uniform(-0.9, 0.9), rng.uniform(-0.9, 0.9), rng.uniform(0, 2 * np.pi)
        along = (x - cx) * np.cos(a) + (y - cy) * np.sin(a)
        across = (y - cy) * np.cos(a) - (x - cx) * np.sin(a) - rng.uniform(-2, 2) * along**2
        half, width = rng.uniform(0.05, 0.25), rng.uniform(0.006, 0.014)
        blurred += (np.exp(-((across / width) ** 2)) * (np.abs(along) < half) * 0.8).astype(np.float32)
    for _ in range(int(1 + 10 * severity**2)):  # smears
        cx, cy, r = rng.uniform(-0.8, 0.8), rng.uniform(-0.8, 0.8), rng.uniform(0.2, 0.5)
        blurred += (np.exp(-(((x - cx) ** 2 + (y - cy) ** 2) / r**2)) * 0.75 * severity).astype(np.float32)
    alpha = np.clip(blurred, 0, np.float32(0.55 + 0.42 * severity))[..., None]
    tone = np.array(rng.uniform(0.25, 0.6) * rng.uniform(0.95, 1.05, 3), np.float32)
    dusty: Pixels = pixels * (1 - alpha) + tone * alpha
    return dusty


def _compression(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """Store as a small and then a very small JPEG, as a slow link asks for."""
    size = len(pixels)
    small = max(16, round(size / (1 + 3.2 * severity)))
    image = to_image(pixels).resize((small, small), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=max(1, round(34 * 0.06**severity)))
    return _from_image(Image.open(file).convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def _occlusion(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """Lay a strap of cloth, tape or cable across the part; severity 1 hides a little over half of the image's width."""
    size = len(pixels)
    y, x = _centred(size)
    angle = rng.uniform(0, np.pi)
    distance = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)) - np.float32(rng.uniform(-0.35, 0.35))
    wobble = np.float32(0.03) * np.sin((y * np.float32(np.cos(angle)) - x * np.float32(np.sin(angle))) * 5)
    half = 0.1 + 0.45 * severity
    alpha = np.clip((half - np.abs(distance + wobble)) * np.float32(size / 4), 0, 1)[..., None]
    colour = np.array(rng.uniform(0.08, 0.75) * rng.uniform(0.8, 1.2, 3), dtype=np.float32)
    weave = 1 + np.float32(0.06) * np.sin(distance * np.float32(rng.uniform(40, 120)))[..., None]
    covered: Pixels = np.clip(pixels * (1 - alpha) + colour * weave * alpha, 0, 1)
    return covered


_APPLY = {
    "defocus": _defocus,
    "motion blur": _motion,
    "sensor noise": _noise,
    "under-exposure": _under_exposure,
    "over-exposure": _over_exposure,
    "glare": _glare,
    "dust": _dust,
    "compression": _compression,
    "occlusion": _occlusion,
}
