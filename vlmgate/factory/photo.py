"""Paint a part's surface, light it, lay it on a background and take the picture.

Knows metals, light and backgrounds; knows nothing of defects' names, degradations or truths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlmgate.factory.defects import Canvas
from vlmgate.factory.lookalikes import Extras
from vlmgate.factory.shapes import Field, Shape, step


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
