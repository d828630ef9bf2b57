"""Light a painted part, lay it on a background, take the picture (`photograph`), and spoil it (`degrade`).

Degradations are those that cameras make: blur, noise, wrong exposure, glare, dirt, compression. Misframing is not here:
`render` decides where the camera points.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vlmgate.factory.defects import Canvas, Extras
from vlmgate.factory.world import Field, Shape, step


@dataclass(frozen=True, slots=True, eq=False)
class Metal:
    colour: tuple[float, float, float]
    bare: tuple[float, float, float]  # where a tool or a blow laid it open
    grain: float  # contrast of the tool marks
    gloss: float  # strength of the broad highlight
    dark: bool = False


METALS = {
    "brushed steel": Metal((0.60, 0.61, 0.635), (0.98, 0.98, 0.99), 0.085, 0.26),
    "brass": Metal((0.72, 0.57, 0.23), (1.0, 0.93, 0.66), 0.035, 0.24),
    "black oxide": Metal((0.135, 0.14, 0.15), (0.66, 0.67, 0.69), 0.016, 0.13, dark=True),
    "copper": Metal((0.69, 0.37, 0.24), (1.0, 0.80, 0.66), 0.035, 0.24),
}
_BACKGROUNDS = (  # mat, belt, light table, bench, cardboard
    ((0.30, 0.36, 0.42), 0.012),
    ((0.23, 0.23, 0.24), 0.022),
    ((0.86, 0.87, 0.87), 0.006),
    ((0.42, 0.47, 0.43), 0.012),
    ((0.66, 0.58, 0.47), 0.018),
)


def paint(metal: Metal, x: Field, y: Field, rng: np.random.Generator) -> Field:
    """Return the metal's own colour with its tool marks, straight or round."""
    angle = rng.uniform(0, np.pi)
    across = np.hypot(x, y) if rng.random() < 0.35 else x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    marks = rng.standard_normal(512, dtype=np.float32)
    marks = (marks + np.roll(marks, 1)) * np.float32(0.7)
    fine = marks[((across + 2) * np.float32(128)).astype(np.int32) & 511]
    blotch = _smooth_noise(x.shape, 7, rng)
    tone = 1 + np.float32(metal.grain) * fine + np.float32(0.035) * blotch
    batch = np.array(rng.uniform(0.94, 1.06, 3) * rng.uniform(0.92, 1.08), np.float32)  # no two are quite alike
    colour = np.array(metal.colour, np.float32) * batch
    painted: Field = tone[..., None] * colour
    return painted


def _smooth_noise(shape: tuple[int, ...], cells: int, rng: np.random.Generator) -> Field:
    small = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(small.resize((shape[1], shape[0]), Image.Resampling.BICUBIC), dtype=np.float32)


def photograph(
    canvas: Canvas,
    shape: Shape,
    body: Field,
    metal: Metal,
    rng: np.random.Generator,
    grid: tuple[Field, Field],
    extras: Extras,
) -> Field:
    """Light the part, lay it on a background and take the picture."""
    gx, gy = grid
    size = len(gx)
    light = rng.uniform(0, 2 * np.pi)
    lx, ly = np.float32(np.cos(light)), np.float32(np.sin(light))
    bevel = np.float32(0.05) * (1 - np.sqrt(np.clip(1 - (np.clip(1 + body / np.float32(0.055), 0, 1)) ** 2, 0, 1)))
    relief = canvas.height - bevel if shape.relief is None else canvas.height + shape.relief - bevel
    slope = np.zeros_like(relief)  # towards the light
    slope[:, 1:-1] += (relief[:, 2:] - relief[:, :-2]) * lx
    slope[1:-1] += (relief[2:] - relief[:-2]) * ly
    slope = np.clip(slope / np.float32(-2 * canvas.pixel), -1.3, 1.3)
    sweep = gx * lx + gy * ly
    shade = 1 + np.float32(0.55) * slope + np.float32(rng.uniform(0.02, 0.2)) * sweep
    band = (canvas.x * np.float32(np.cos(light + 0.4)) + canvas.y * np.float32(np.sin(light + 0.4))) - np.float32(
        rng.uniform(-0.7, 0.7)
    )
    gloss = np.exp(-((band / np.float32(rng.uniform(0.25, 0.5))) ** 2)) * np.float32(metal.gloss * rng.uniform(0.4, 1))
    gloss += np.clip(slope, -0.5, 1) * np.float32(0.12)
    if extras.glow is not None:
        gloss += extras.glow
    lit = canvas.paint * shade[..., None] + gloss[..., None] * np.array((1.0, 0.98, 0.94), np.float32)

    ground = _background(metal, (size, size), rng) * (1 + np.float32(0.12) * sweep)[..., None]
    throw = round(0.03 * size)
    outer = np.roll(canvas.outline, (round(float(-ly) * throw), round(float(-lx) * throw)), (0, 1))
    ground *= (1 - np.float32(rng.uniform(0.3, 0.55)) * step(-outer, 0.16))[..., None]
    alpha = np.clip(np.float32(0.5) - body / np.float32(canvas.pixel), 0, 1)[..., None]
    pixels: Field = ground + alpha * (lit - ground)

    if extras.shade is not None:
        pixels *= extras.shade[..., None]
    pixels *= np.float32(rng.uniform(0.88, 1.12)) * (1 - np.float32(0.12) * (gx**2 + gy**2))[..., None]
    pixels *= np.array(rng.uniform(0.96, 1.04, 3), np.float32)  # colour of the lamps
    pixels *= 1 + rng.standard_normal((1, size, 1), dtype=np.float32) * np.float32(0.005)  # a line camera's own columns
    pixels += rng.standard_normal((size, size, 1), dtype=np.float32) * np.float32(0.012)
    return pixels


def _background(metal: Metal, shape: tuple[int, int], rng: np.random.Generator) -> Field:
    """Return a surface that is clearly lighter or darker than the part."""
    own = sum(metal.colour) / 3
    choices = [b for b in _BACKGROUNDS if abs(sum(b[0]) / 3 - own) > 0.08]
    colour, grain = choices[int(rng.integers(len(choices)))]
    tone = 1 + np.float32(0.04) * _smooth_noise(shape, 5, rng)
    tone += rng.standard_normal(shape, dtype=np.float32) * np.float32(grain)
    if rng.random() < 0.3:  # ribs of a belt or fibres of a mat
        axis = np.arange(shape[0], dtype=np.float32) * np.float32(rng.uniform(0.25, 0.7))
        tone += np.float32(0.035) * np.sin(axis)[:, None] if rng.random() < 0.5 else np.float32(0.035) * np.sin(axis)
    tint = np.array(colour, np.float32) * np.array(rng.uniform(0.9, 1.1, 3), np.float32)
    surface: Field = tone[..., None] * tint
    return surface


# --- degradations -----------------------------------------------------------------------------------------------------


def degrade(pixels: Field, kind: str, severity: float, rng: np.random.Generator) -> Field:
    """Return `pixels` degraded by `kind`; `severity` in [0, 1], higher = worse. Lengths scale with the image's size."""
    return _APPLY[kind](pixels, severity, rng)


def to_image(pixels: Field) -> Image.Image:
    """Return an 8-bit RGB image."""
    return Image.fromarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8))


def _from_image(image: Image.Image) -> Field:
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def _centred(size: int) -> tuple[Field, Field]:
    """Return (y, x) from -1 to 1."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / np.float32(size / 2) - 1
    return y, x


def _defocus(pixels: Field, severity: float, rng: np.random.Generator) -> Field:
    radius = (0.006 + 0.062 * severity) * len(pixels)  # pixels
    return _from_image(to_image(pixels).filter(ImageFilter.GaussianBlur(radius)))


def _motion(pixels: Field, severity: float, rng: np.random.Generator) -> Field:
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


def _sensor_noise(pixels: Field, sigma: float, rng: np.random.Generator) -> Field:
    """Add noise that has `sigma` left once the image is reduced to 160 pixels."""
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(pixels + noise * np.float32(sigma * max(1.0, len(pixels) / 160)), 0, 1)


def _noise(pixels: Field, severity: float, rng: np.random.Generator) -> Field:
    return _sensor_noise(pixels, 0.03 + 0.3 * severity, rng)


def _under_exposure(pixels: Field, severity: float, rng: np.random.Generator) -> Field:
    gain = 0.45 * 0.05**severity
    return _sensor_noise(pixels * np.float32(gain), 0.006 + 0.01 * severity, rng)


def _over_exposure(pixels: Field, severity: float, rng: np.random.Generator) -> Field:
    """Multiply the light and let the sensor clip; wells that run over spill a little onto their neighbours."""
    bright = pixels * np.float32(1.4 * 9**severity) + np.float32(0.3 * severity)
    spill = _from_image(to_image(np.clip(bright - 1, 0, 1)).filter(ImageFilter.GaussianBlur(0.012 * len(pixels))))
    return np.clip(bright + spill * np.float32(0.4 * severity), 0, 1)


def _glare(pixels: Field, severity: float, rng: np.random.Generator) -> Field:
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


def _dust(pixels: Field, severity: float, rng: np.random.Generator) -> Field:
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
    dusty: Field = pixels * (1 - alpha) + tone * alpha
    return dusty


def _compression(pixels: Field, severity: float, rng: np.random.Generator) -> Field:
    """Store as a small and then a very small JPEG, as a slow link asks for."""
    size = len(pixels)
    small = max(16, round(size / (1 + 3.2 * severity)))
    image = to_image(pixels).resize((small, small), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=max(1, round(34 * 0.06**severity)))
    return _from_image(Image.open(file).convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def _occlusion(pixels: Field, severity: float, rng: np.random.Generator) -> Field:
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
    covered: Field = np.clip(pixels * (1 - alpha) + colour * weave * alpha, 0, 1)
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
