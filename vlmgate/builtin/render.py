"""Draw inspection photographs of parts, with the truth about them, from a seed.

Knows geometry, light and cameras; knows nothing of models, sentences or files. The same seed and the same library
versions give the same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmgate.builtin.defects import DRAW, Canvas
from vlmgate.builtin.degrade import degrade, to_image
from vlmgate.builtin.shapes import Field, Hole, Shape, draw_shape, hole_distance, step
from vlmgate.builtin.world import CLEAN, CONDITIONS, DEGRADATIONS, FINISHES, NONE, PARTS, POSITIONS, Truth

SIZE = 320  # pixels, both ways
_T = TypeVar("_T", str, float)
_THIRD = 0.27  # part units; where the middle row and column end
_MARGIN = 0.04  # part units; defects are not centred nearer than this to where one position becomes another


@dataclass(frozen=True, slots=True, eq=False)
class Render:
    """A rendered photograph and everything that is true of it."""

    image: Image.Image
    truth: Truth
    mask: NDArray[np.bool_]  # (H, W) pixels of the defect
    degradation: str
    severity: float  # [0, 1], higher = worse; 0 for a clean render
    defect_size: float  # [0, 1], small to large
    defect_strength: float  # (0, 1], faint to plain


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a render must be; everything left out is drawn at random."""

    part: str | None = None
    finish: str | None = None
    condition: str | None = None
    position: str | None = None  # honoured where the defect can be there, otherwise another place
    degradation: str | None = None
    severity: float | None = None
    defect_size: float | None = None
    defect_strength: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Metal:
    colour: tuple[float, float, float]
    bare: tuple[float, float, float]  # where a tool or a blow laid it open
    grain: float  # contrast of the tool marks
    gloss: float  # strength of the broad highlight
    dark: bool = False


_METALS = {
    "brushed steel": _Metal((0.60, 0.61, 0.635), (0.98, 0.98, 0.99), 0.085, 0.26),
    "brass": _Metal((0.72, 0.57, 0.23), (1.0, 0.93, 0.66), 0.035, 0.24),
    "black oxide": _Metal((0.135, 0.14, 0.15), (0.66, 0.67, 0.69), 0.016, 0.13, dark=True),
    "copper": _Metal((0.69, 0.37, 0.24), (1.0, 0.80, 0.66), 0.035, 0.24),
}
_BACKGROUNDS = (  # mat, belt, light table, bench, cardboard
    ((0.30, 0.36, 0.42), 0.012),
    ((0.23, 0.23, 0.24), 0.022),
    ((0.86, 0.87, 0.87), 0.006),
    ((0.42, 0.47, 0.43), 0.012),
    ((0.66, 0.58, 0.47), 0.018),
)


def render(seed: int | Sequence[int], wanted: Wanted = Wanted(), size: int = SIZE) -> Render:
    """Draw one photograph of `size` by `size` pixels."""
    rng = np.random.default_rng(seed)
    # Everything is drawn even where it is not used, so that a wish changes nothing but what is wished for.
    part = _or(wanted.part, _pick(rng, PARTS))
    finish = _or(wanted.finish, _pick(rng, FINISHES))
    condition = _or(wanted.condition, NONE if rng.random() < 0.22 else _pick(rng, CONDITIONS[1:]))
    kind = _or(wanted.degradation, CLEAN if rng.random() < 0.6 else _pick(rng, DEGRADATIONS))
    severity = _or(wanted.severity, float(rng.uniform(0.1, 1.0)))
    defect_size = _or(wanted.defect_size, float(rng.uniform(0, 1)))
    strength = _or(wanted.defect_strength, float(rng.uniform(0.5, 1)))

    scale = float(rng.uniform(0.64, 0.80))
    center = rng.uniform(-0.07, 0.07, 2)
    gx, gy = _grid(size)
    x, y = (gx - np.float32(center[0])) / np.float32(scale), (gy - np.float32(center[1])) / np.float32(scale)
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    shape = draw_shape(part, x * cos + y * sin, y * cos - x * sin, rng)
    holes = [Hole(float(h.u * cos - h.v * sin), float(h.v * cos + h.u * sin), h.radius) for h in shape.holes]

    metal = _METALS[finish]
    pixel = 2 / (size * scale)
    canvas = Canvas(
        x=x,
        y=y,
        pixel=pixel,
        outline=shape.outline,
        height=np.zeros_like(x),
        paint=_paint(metal, x, y, rng),
        bare=np.array(metal.bare, np.float32),
        dark=metal.dark,
        mask=np.zeros(x.shape, np.bool_),
    )
    lost = _lost_hole(holes, part, wanted.position, rng) if condition == "missing hole" else None
    kept = [hole for hole in holes if hole is not lost]
    openings = _openings(kept, canvas)
    if lost is not None:
        canvas.mask |= hole_distance(lost, x, y) < 0
    elif condition != NONE:
        at = _place(condition, canvas, openings, wanted.position, rng)
        DRAW[condition](canvas, at, defect_size, strength, rng)
    body = np.maximum(canvas.outline, openings)  # negative in metal
    if condition != "chipped edge":
        canvas.mask &= body < 0
    pixels = _photograph(canvas, shape, body, metal, rng, (gx, gy))
    if kind != CLEAN:
        pixels = degrade(pixels, kind, severity, rng)
    truth = Truth(part, finish, condition, _position(canvas) if condition != NONE else None)
    return Render(to_image(pixels), truth, canvas.mask, kind, severity if kind != CLEAN else 0.0, defect_size, strength)


def _pick(rng: np.random.Generator, names: Sequence[str]) -> str:
    return names[int(rng.integers(len(names)))]


def _or(wish: _T | None, drawn: _T) -> _T:
    return drawn if wish is None else wish


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[Field, Field]:
    axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / size) - 1
    gx, gy = np.meshgrid(axis, axis)
    return gx, gy


# --- where a defect lies ----------------------------------------------------------------------------------------------


def _cell(x: float, y: float) -> int:
    return 3 * int((y > -_THIRD) + 0 + (y > _THIRD)) + int((x > -_THIRD) + 0 + (x > _THIRD))


def _position(canvas: Canvas) -> str:
    """Name where the middle of the defect's pixels lies on the part."""
    inside = canvas.mask
    if not inside.any():
        return "center"
    return POSITIONS[_cell(float(canvas.x[inside].mean()), float(canvas.y[inside].mean()))]


def _lost_hole(holes: Sequence[Hole], part: str, position: str | None, rng: np.random.Generator) -> Hole:
    at_wish = [hole for hole in holes if POSITIONS[_cell(hole.u, hole.v)] == position]
    choices = at_wish or holes
    return choices[int(rng.integers(len(choices)))]


def _openings(holes: Sequence[Hole], canvas: Canvas) -> Field:
    """Return the signed distance to the nearest hole's edge, positive inside a hole."""
    nearest = np.full(canvas.x.shape, -9, np.float32)
    for hole in holes:
        where = canvas.window((hole.u, hole.v), hole.radius + 0.4)
        nearest[where] = np.maximum(nearest[where], -hole_distance(hole, canvas.x[where], canvas.y[where]))
    return nearest


def _place(
    condition: str, canvas: Canvas, openings: Field, position: str | None, rng: np.random.Generator
) -> tuple[float, float]:
    """Choose where a defect goes: a position first, so that all are equally frequent, then a point there."""
    x, y, outline = canvas.x[::4, ::4], canvas.y[::4, ::4], canvas.outline[::4, ::4]
    body = np.maximum(outline, openings[::4, ::4])
    free = (np.abs(np.abs(x) - _THIRD) > _MARGIN) & (np.abs(np.abs(y) - _THIRD) > _MARGIN)
    if condition == "chipped edge":
        candidates = (np.abs(outline) < 0.03) & free
    else:
        candidates = (body < -0.09) & free
        if candidates.sum() < 40:
            candidates = (body < -0.05) & free
    px, py = x[candidates], y[candidates]
    cells = 3 * ((py > -_THIRD).astype(int) + (py > _THIRD)) + (px > -_THIRD).astype(int) + (px > _THIRD)
    counts = np.bincount(cells, minlength=9)
    possible = np.flatnonzero(counts >= 3)
    cell = int(rng.choice(possible))
    if position is not None and counts[POSITIONS.index(position)] >= 3:
        cell = POSITIONS.index(position)
    chosen = int(rng.choice(np.flatnonzero(cells == cell)))
    return float(px[chosen]), float(py[chosen])


# --- light ------------------------------------------------------------------------------------------------------------


def _paint(metal: _Metal, x: Field, y: Field, rng: np.random.Generator) -> Field:
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


def _photograph(
    canvas: Canvas, shape: Shape, body: Field, metal: _Metal, rng: np.random.Generator, grid: tuple[Field, Field]
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
    lit = canvas.paint * shade[..., None] + gloss[..., None] * np.array((1.0, 0.98, 0.94), np.float32)

    ground = _background(metal, (size, size), rng) * (1 + np.float32(0.12) * sweep)[..., None]
    throw = round(0.03 * size)
    outer = np.roll(canvas.outline, (round(float(-ly) * throw), round(float(-lx) * throw)), (0, 1))
    ground *= (1 - np.float32(rng.uniform(0.3, 0.55)) * step(-outer, 0.16))[..., None]
    alpha = np.clip(np.float32(0.5) - body / np.float32(canvas.pixel), 0, 1)[..., None]
    pixels: Field = ground + alpha * (lit - ground)

    pixels *= np.float32(rng.uniform(0.88, 1.12)) * (1 - np.float32(0.12) * (gx**2 + gy**2))[..., None]
    pixels += rng.standard_normal((size, size, 1), dtype=np.float32) * np.float32(0.012)
    return pixels


def _background(metal: _Metal, shape: tuple[int, int], rng: np.random.Generator) -> Field:
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
