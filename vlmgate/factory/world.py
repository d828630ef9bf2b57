"""The rendered world: its words, what is true of a render, and the outlines and holes of its parts.

Shapes are signed distances in part units: outer radius about 1, negative inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PARTS = ("washer", "gear", "hex nut", "plate", "flange", "bracket")
FINISHES = ("brushed steel", "brass", "black oxide", "copper")
NONE = "none"
# After "none" the defects, gravest first: of several on one part captions name them in this order, answers the first.
CONDITIONS = (NONE, "crack", "missing hole", "chipped edge", "rust", "dent", "scratch", "stain")
DEFECTS = CONDITIONS[1:]
POSITIONS = (  # row by row; index = 3 * row + column
    "upper left",
    "upper center",
    "upper right",
    "middle left",
    "center",
    "middle right",
    "lower left",
    "lower center",
    "lower right",
)
LOOK_ALIKES = ("machining mark", "reflection", "shadow", "drill point")  # no defects, and never spoken of
CLEAN = "none"
DEGRADATIONS = (
    "defocus",
    "motion blur",
    "sensor noise",
    "under-exposure",
    "over-exposure",
    "glare",
    "dust",
    "compression",
    "occlusion",
    "misframing",
)
VIEW_SIZE = 240  # pixels, both ways: what the model sees of a photograph
JUDGED_SIZE = 160  # pixels, both ways: where visibility is defined, whatever the model sees
VISIBLE = 16.0  # visibility (see `render.visibility`) from which on a defect counts as visible


@dataclass(frozen=True, slots=True)
class Defect:
    """One defect and where it lies on the part."""

    condition: str
    position: str


@dataclass(frozen=True, slots=True)
class Truth:
    """What the renderer drew; the defects are in the order of `CONDITIONS`, none of them twice."""

    part: str
    finish: str
    defects: tuple[Defect, ...] = ()

    @property
    def condition(self) -> str:
        """Return the gravest defect, or "none"."""
        return self.defects[0].condition if self.defects else NONE

    @property
    def position(self) -> str | None:
        """Return where the gravest defect lies."""
        return self.defects[0].position if self.defects else None


Field = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Hole:
    """A round hole in part units."""

    u: float
    v: float
    radius: float


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """A part's outline, the holes that belong in it, and the relief that its making leaves."""

    outline: Field  # (H, W) signed distance to the outer edge
    holes: tuple[Hole, ...]
    relief: Field | None  # (H, W) height of hubs, grooves and chamfers


def draw_shape(part: str, u: Field, v: Field, rng: np.random.Generator) -> Shape:
    """Return the shape of `part` on the grid (u, v), with its proportions drawn from `rng`."""
    return _DRAW[part](u, v, rng)


def hole_distance(hole: Hole, u: Field, v: Field) -> Field:
    """Return the signed distance to a hole's edge, negative inside the hole."""
    distance: Field = np.hypot(u - np.float32(hole.u), v - np.float32(hole.v)) - np.float32(hole.radius)
    return distance


def step(x: Field, width: float) -> Field:
    """Rise smoothly from 0 to 1 while x goes from -width / 2 to width / 2."""
    t = np.clip(x / np.float32(width) + np.float32(0.5), 0, 1)
    risen: Field = t * t * (3 - 2 * t)
    return risen


def _ring_of_holes(count: int, distance: float, radius: float) -> tuple[Hole, ...]:
    angles = np.arange(count) * (2 * np.pi / count)
    return tuple(Hole(float(distance * np.cos(a)), float(distance * np.sin(a)), radius) for a in angles)


def _box(u: Field, v: Field, center: tuple[float, float], half: tuple[float, float], corner: float) -> Field:
    a = np.abs(u - np.float32(center[0])) - np.float32(half[0] - corner)
    b = np.abs(v - np.float32(center[1])) - np.float32(half[1] - corner)
    outside = np.hypot(np.maximum(a, 0), np.maximum(b, 0))
    distance: Field = outside + np.minimum(np.maximum(a, b), 0) - np.float32(corner)
    return distance


def _washer(u: Field, v: Field, rng: np.random.Generator) -> Shape:
    return Shape(np.hypot(u, v) - 1, (Hole(0, 0, float(rng.uniform(0.38, 0.52))),), None)


def _gear(u: Field, v: Field, rng: np.random.Generator) -> Shape:
    teeth = int(rng.integers(13, 21))
    r = np.hypot(u, v)
    wave = np.clip(np.sin(np.arctan2(v, u) * np.float32(teeth)) * np.float32(2.2), -1, 1)
    outline = (r - (np.float32(0.93) + np.float32(0.07) * wave)) * np.float32(0.85)
    hub = step(np.float32(0.36) - r, 0.05) * np.float32(0.05)
    return Shape(outline, (Hole(0, 0, 0.2), *_ring_of_holes(5, 0.58, 0.11)), hub)


def _hex_nut(u: Field, v: Field, rng: np.random.Generator) -> Shape:
    bore = float(rng.uniform(0.44, 0.52))
    r = np.hypot(u, v)
    sides = [np.abs(u * np.float32(np.cos(a)) + v * np.float32(np.sin(a))) for a in (0, np.pi / 3, 2 * np.pi / 3)]
    outline = np.maximum(np.maximum(sides[0], sides[1]), sides[2]) - np.float32(0.86)
    chamfer = -step(r - np.float32(0.86), 0.10) * np.float32(0.06)
    thread = -step(np.float32(bore + 0.07) - r, 0.05) * np.float32(0.05)
    return Shape(outline, (Hole(0, 0, bore),), chamfer + thread)


def _plate(u: Field, v: Field, rng: np.random.Generator) -> Shape:
    half = (0.95, float(rng.uniform(0.62, 0.8)))
    x, y = half[0] - 0.2, half[1] - 0.2
    radius = float(rng.uniform(0.075, 0.1))
    holes = tuple(Hole(x * i, y * j, radius) for i in (-1, 1) for j in (-1, 1))
    return Shape(_box(u, v, (0, 0), half, 0.1), holes, None)


def _flange(u: Field, v: Field, rng: np.random.Generator) -> Shape:
    r = np.hypot(u, v)
    hub = step(np.float32(0.5) - r, 0.05) * np.float32(0.06)
    return Shape(r - 1, (Hole(0, 0, float(rng.uniform(0.26, 0.32))), *_ring_of_holes(6, 0.75, 0.1)), hub)


def _bracket(u: Field, v: Field, rng: np.random.Generator) -> Shape:
    arm = float(rng.uniform(0.27, 0.33))  # half width of both arms
    corner = 0.85
    upright = _box(u, v, (-corner + arm, 0), (arm, corner), 0.08)
    foot = _box(u, v, (0, corner - arm), (corner, arm), 0.08)
    inner = corner - arm
    holes = tuple(Hole(a, b, 0.11) for a, b in ((-inner, -0.58), (-inner, inner), (0.58, inner)))
    return Shape(np.minimum(upright, foot), holes, None)


_DRAW = {
    "washer": _washer,
    "gear": _gear,
    "hex nut": _hex_nut,
    "plate": _plate,
    "flange": _flange,
    "bracket": _bracket,
}
