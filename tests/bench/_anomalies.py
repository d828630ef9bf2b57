"""Draw images that are no photographs of parts, for asking whether a model notices: training never sees any of them.

They share no code with the renderer of parts, so that only chance makes the two look alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

KINDS = ("texture", "gradient", "text", "object")
_SIZE = 300  # pixels, both ways
_WORDS = """
shift order batch pallet invoice deliver before noon handle with care this side up keep dry lot serial number
operator signature date page total quantity approved rejected returned warehouse dock gate customer address
torque table warning hot surface press start wait for green lamp ticket 4711 0815 12.5 mm 3/8 M6 x 20 EN 10204
""".split()

Colour = tuple[int, int, int]
Floats = NDArray[np.float32]


def draw_anomaly(kind: str, seed: int | Sequence[int]) -> Image.Image:
    """Return an RGB image of `kind`, one of `KINDS`."""
    rng = np.random.default_rng(seed)
    drawings = _DRAWINGS[kind]
    return drawings[int(rng.integers(len(drawings)))](rng).convert("RGB")


def _colour(rng: np.random.Generator, low: int = 0, high: int = 256) -> Colour:
    r, g, b = (int(v) for v in rng.integers(low, high, 3))
    return r, g, b


def _mix(amount: Floats, low: Colour, high: Colour) -> Image.Image:
    """Return the image that goes from `low` to `high` as `amount` (H, W) goes from 0 to 1."""
    t = np.clip(amount, 0, 1)[..., None]
    return Image.fromarray((np.array(low) * (1 - t) + np.array(high) * t).astype(np.uint8))


def _axes() -> tuple[Floats, Floats]:
    axis = np.linspace(0, 1, _SIZE, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y


def _cloud(rng: np.random.Generator, cells: int, octaves: int = 4) -> Floats:
    """Return smooth noise in [0, 1], finer octaves weaker."""
    total = np.zeros((_SIZE, _SIZE), np.float32)
    for octave in range(octaves):
        n = min(_SIZE, cells * 2**octave)
        grid = Image.fromarray(rng.random((n, n), dtype=np.float32))
        total += np.asarray(grid.resize((_SIZE, _SIZE), Image.Resampling.BICUBIC)) / np.float32(2**octave)
    low, high = total.min(), total.max()
    scaled: Floats = (total - low) / (high - low)
    return scaled


# --- textures ---------------------------------------------------------------------------------------------------------


def _wood(rng: np.random.Generator) -> Image.Image:
    x, y = _axes()
    rings = np.hypot(x - rng.uniform(-1, 0), (y - 0.5) * rng.uniform(0.1, 0.4)) + 0.06 * _cloud(rng, 3)
    return _mix((0.5 + 0.5 * np.sin(rings * rng.uniform(60, 160))).astype(np.float32), (96, 58, 28), (190, 140, 86))


def _marble(rng: np.random.Generator) -> Image.Image:
    veins = np.abs(np.sin(rng.uniform(6, 16) * (_axes()[0] + 1.5 * _cloud(rng, 4)))) ** 0.4
    return _mix(veins.astype(np.float32), _colour(rng, 0, 120), _colour(rng, 170, 256))


def _weave(rng: np.random.Generator) -> Image.Image:
    x, y = _axes()
    f = float(rng.uniform(60, 200))
    over = np.sin(x * f) * (np.sin(x * f / 2) * np.sin(y * f / 2) > 0) + np.sin(y * f) * (
        np.sin(x * f / 2) * np.sin(y * f / 2) <= 0
    )
    return _mix((0.5 + 0.4 * over + 0.1 * _cloud(rng, 8)).astype(np.float32), _colour(rng, 0, 100), _colour(rng, 100))


def _bricks(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (_SIZE, _SIZE), _colour(rng, 150, 220))
    pen, height, width = ImageDraw.Draw(image), int(rng.integers(18, 50)), int(rng.integers(40, 110))
    base = _colour(rng, 60, 200)
    for row in range(_SIZE // height + 1):
        for column in range(-1, _SIZE // width + 2):
            left, top = column * width + (row % 2) * width // 2, row * height
            shift = int(rng.integers(-25, 25))
            fill = (base[0] + shift, base[1] + shift, base[2] + shift)
            pen.rectangle((left + 2, top + 2, left + width - 3, top + height - 3), fill=fill)
    return image


def _pebbles(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (_SIZE, _SIZE), _colour(rng, 0, 80))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(150, 500))):
        cx, cy = rng.uniform(0, _SIZE, 2)
        a, b = rng.uniform(5, 22, 2)
        pen.ellipse((cx - a, cy - b, cx + a, cy + b), fill=_colour(rng, 60), outline=_colour(rng, 0, 60))
    return image


def _pixel_noise(rng: np.random.Generator) -> Image.Image:
    side = int(rng.choice([12, 40, 300]))
    noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    return noise.resize((_SIZE, _SIZE), Image.Resampling.NEAREST)


# --- gradients --------------------------------------------------------------------------------------------------------


def _linear(rng: np.random.Generator) -> Image.Image:
    x, y = _axes()
    a = rng.uniform(0, 2 * np.pi)
    return _mix((0.5 + (x - 0.5) * np.cos(a) + (y - 0.5) * np.sin(a)).astype(np.float32), _colour(rng), _colour(rng))


def _radial(rng: np.random.Generator) -> Image.Image:
    x, y = _axes()
    cx, cy = rng.uniform(0.2, 0.8, 2)
    return _mix((np.hypot(x - cx, y - cy) * rng.uniform(0.8, 2)).astype(np.float32), _colour(rng), _colour(rng))


def _sky(rng: np.random.Generator) -> Image.Image:
    return _mix(_cloud(rng, 2, 3), (60, 110, 190), (240, 242, 245))


def _flat(rng: np.random.Generator) -> Image.Image:
    return Image.new("RGB", (_SIZE, _SIZE), _colour(rng))


# --- text -------------------------------------------------------------------------------------------------------------


def _page(rng: np.random.Generator) -> Image.Image:
    dark = rng.random() < 0.25
    image = Image.new("RGB", (_SIZE, _SIZE), _colour(rng, 0, 60) if dark else _colour(rng, 200))
    pen, size = ImageDraw.Draw(image), float(rng.uniform(10, 26))
    font, ink = ImageFont.load_default(size), _colour(rng, 200) if dark else _colour(rng, 0, 90)
    top = float(rng.uniform(4, 20))
    while top < _SIZE:
        words = " ".join(str(word) for word in rng.choice(_WORDS, 8))
        pen.text((float(rng.uniform(4, 20)), top), words, fill=ink, font=font)
        top += size * 1.5
    return image.rotate(float(rng.uniform(-8, 8)), fillcolor=image.getpixel((0, 0)))


def _label(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (_SIZE, _SIZE), _colour(rng, 60, 160))
    pen = ImageDraw.Draw(image)
    pen.rectangle((30, 60, 270, 240), fill=(245, 245, 240), outline=(20, 20, 20), width=3)
    left = 50
    while left < 240:  # a bar code
        width = int(rng.integers(1, 6))
        pen.rectangle((left, 80, left + width, 160), fill=(15, 15, 15))
        left += width + int(rng.integers(2, 6))
    pen.text(
        (55, 175), " ".join(str(w) for w in rng.choice(_WORDS, 3)), fill=(10, 10, 10), font=ImageFont.load_default(22)
    )
    return image


def _chart(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (_SIZE, _SIZE), "white")
    pen = ImageDraw.Draw(image)
    for i, height in enumerate(rng.uniform(20, 220, 8)):
        pen.rectangle((35 + i * 31, 260 - height, 58 + i * 31, 260), fill=_colour(rng))
    pen.line((28, 20, 28, 262, 290, 262), fill="black", width=2)
    pen.text((60, 268), str(rng.choice(_WORDS)), fill="black", font=ImageFont.load_default(18))
    return image


# --- objects ----------------------------------------------------------------------------------------------------------


def _scene(rng: np.random.Generator) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = _mix(_cloud(rng, 3), _colour(rng, 60), _colour(rng, 60))
    return image, ImageDraw.Draw(image)


def _finish(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Soften and grain, so that no drawing is told by its clean edges."""
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 1.2)))), np.float32)
    return Image.fromarray(np.clip(soft + rng.normal(0, 4, soft.shape), 0, 255).astype(np.uint8))


def _bottle(rng: np.random.Generator) -> Image.Image:
    image, pen = _scene(rng)
    glass, x = _colour(rng, 0, 150), int(rng.integers(110, 190))
    pen.rounded_rectangle((x - 38, 110, x + 38, 285), 18, fill=glass)
    pen.rectangle((x - 14, 40, x + 14, 120), fill=glass)
    pen.rectangle((x - 17, 25, x + 17, 45), fill=_colour(rng))
    pen.rectangle((x - 38, 160, x + 38, 225), fill=_colour(rng, 180))
    pen.line((x - 26, 120, x - 26, 275), fill=(240, 240, 240), width=4)
    return _finish(image, rng)


def _face(rng: np.random.Generator) -> Image.Image:
    image, pen = _scene(rng)
    pen.ellipse((70, 40, 230, 260), fill=(224, 180, 150))
    pen.pieslice((65, 25, 235, 200), 180, 360, fill=_colour(rng, 0, 110))
    for x in (115, 185):
        pen.ellipse((x - 16, 125, x + 16, 145), fill="white")
        pen.ellipse((x - 7, 127, x + 7, 143), fill=_colour(rng, 20, 120))
    pen.line((150, 145, 140, 185, 155, 187), fill=(180, 130, 105), width=3)
    pen.arc((110, 170, 190, 230), 20, 160, fill=(160, 50, 50), width=6)
    return _finish(image, rng)


def _house(rng: np.random.Generator) -> Image.Image:
    image, pen = _scene(rng)
    pen.rectangle((0, 230, 300, 300), fill=(70, 120, 60))
    pen.rectangle((70, 130, 230, 260), fill=_colour(rng, 100))
    pen.polygon([(50, 135), (150, 50), (250, 135)], fill=_colour(rng, 40, 160))
    for x in (90, 180):
        pen.rectangle((x, 155, x + 35, 190), fill=(190, 220, 240), outline=(40, 40, 40), width=3)
    pen.rectangle((135, 200, 165, 260), fill=_colour(rng, 20, 120))
    return _finish(image, rng)


def _fruit(rng: np.random.Generator) -> Image.Image:
    image, pen = _scene(rng)
    for _ in range(int(rng.integers(1, 5))):
        cx, cy, r = (int(v) for v in rng.integers((70, 90, 35), (230, 230, 80)))
        hue = _colour(rng, 80)
        for step in range(r, 0, -2):  # a ball lit from the upper left
            t = 1 - step / r
            shade = (int(hue[0] * (0.5 + 0.5 * t)), int(hue[1] * (0.5 + 0.5 * t)), int(hue[2] * (0.5 + 0.5 * t)))
            o = int(r * 0.3 * t)
            pen.ellipse((cx - o - step, cy - o - step, cx - o + step, cy - o + step), fill=shade)
        pen.line((cx, cy - r + 4, cx + 8, cy - r - 18), fill=(80, 50, 20), width=5)
    return _finish(image, rng)


def _circuit(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (_SIZE, _SIZE), (18, int(rng.integers(70, 120)), 50))
    pen = ImageDraw.Draw(image)
    for _ in range(50):
        x, y = (int(v) for v in rng.integers(0, _SIZE, 2))
        dx, dy = (int(v) for v in rng.integers(-90, 90, 2))
        pen.line((x, y, x + dx, y, x + dx, y + dy), fill=(170, 190, 90), width=2)
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(200, 200, 200))
    for _ in range(8):
        x, y, w, h = (int(v) for v in rng.integers((0, 0, 20, 15), (250, 250, 80, 60)))
        pen.rectangle((x, y, x + w, y + h), fill=_colour(rng, 0, 60))
    return _finish(image, rng)


def _vehicle(rng: np.random.Generator) -> Image.Image:
    image, pen = _scene(rng)
    body = _colour(rng)
    pen.rectangle((0, 225, 300, 300), fill=(90, 90, 95))
    pen.rounded_rectangle((35, 160, 265, 225), 16, fill=body)
    pen.polygon([(85, 162), (115, 112), (205, 112), (232, 162)], fill=body)
    pen.polygon([(100, 158), (120, 120), (155, 120), (155, 158)], fill=(190, 215, 230))
    pen.polygon([(163, 158), (163, 120), (200, 120), (216, 158)], fill=(190, 215, 230))
    for x in (90, 212):
        pen.ellipse((x - 26, 198, x + 26, 250), fill=(20, 20, 22))
        pen.ellipse((x - 12, 212, x + 12, 236), fill=(170, 170, 175))
    return _finish(image, rng)


def _plant(rng: np.random.Generator) -> Image.Image:
    image, pen = _scene(rng)
    for _ in range(int(rng.integers(12, 40))):
        a, length = float(rng.uniform(-2.6, -0.5)), float(rng.uniform(60, 190))
        tip = (150 + length * np.cos(a), 250 + length * np.sin(a))
        side = (float(rng.uniform(8, 22)) * np.sin(a), -float(rng.uniform(8, 22)) * np.cos(a))
        middle = ((150 + tip[0]) / 2, (250 + tip[1]) / 2)
        green = (int(rng.integers(10, 110)), int(rng.integers(90, 190)), int(rng.integers(10, 90)))
        pen.polygon(
            [
                (150, 250),
                (middle[0] + side[0], middle[1] + side[1]),
                tip,
                (middle[0] - side[0], middle[1] - side[1]),
            ],
            fill=green,
        )
    pen.polygon([(110, 245), (190, 245), (178, 298), (122, 298)], fill=_colour(rng, 60, 200))
    return _finish(image, rng)


_DRAWINGS: dict[str, tuple[Callable[[np.random.Generator], Image.Image], ...]] = {
    "texture": (_wood, _marble, _weave, _bricks, _pebbles, _pixel_noise),
    "gradient": (_linear, _radial, _sky, _flat),
    "text": (_page, _label, _chart),
    "object": (_bottle, _face, _house, _fruit, _circuit, _vehicle, _plant),
}
