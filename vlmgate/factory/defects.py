"""Draw each defect, and each mark that only looks like one, onto a part that is being painted.

`DRAW` holds the defects, `draw_look_alike` draws the others. A look-alike differs from the defect that it resembles in
something that can be seen: machining marks are many and evenly spaced, a reflection is broad and soft, a shadow goes on
over the background, a drill point is small and exactly round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlmgate.factory.world import Field, step

Window = tuple[slice, slice]


@dataclass(slots=True, eq=False)
class Canvas:
    """A part half painted. All lengths in part units, axes those of the image, origin the part's centre."""

    x: Field  # (H, W) to the right
    y: Field  # (H, W) downwards
    pixel: float  # size of a pixel in part units
    outline: Field  # (H, W) signed distance to the outer edge, negative inside
    height: Field  # (H, W) relief
    paint: Field  # (H, W, 3) colour before light, [0, 1]
    bare: Field  # (3,) colour of freshly exposed metal
    dark: bool  # a dark finish: marks on it are lighter than it
    mask: NDArray[np.bool_]  # (H, W) the defect's pixels

    def window(self, at: tuple[float, float], reach: float) -> Window:
        """Return the slices that hold everything within `reach` of `at`."""
        rows, columns = self.x.shape
        row = (at[1] - float(self.y[0, 0])) / self.pixel
        column = (at[0] - float(self.x[0, 0])) / self.pixel
        extent = reach / self.pixel + 2
        return (
            slice(max(0, int(row - extent)), max(0, min(rows, int(row + extent) + 1))),
            slice(max(0, int(column - extent)), max(0, min(columns, int(column + extent) + 1))),
        )

    def blend(self, where: Window, amount: Field, colour: Field) -> None:
        """Mix `colour` into the paint by `amount` in [0, 1]."""
        part = self.paint[where]
        part += np.clip(amount, 0, 1)[..., None] * (colour - part)


Draw = Callable[[Canvas, tuple[float, float], float, float, np.random.Generator], None]


def _scratch(c: Canvas, at: tuple[float, float], size: float, strength: float, rng: np.random.Generator) -> None:
    half = 0.14 + 0.3 * size
    width = max(0.008 + 0.01 * size, 0.9 * c.pixel)
    where = c.window(at, half + 0.1)
    x, y = c.x[where] - np.float32(at[0]), c.y[where] - np.float32(at[1])
    angle, bend = rng.uniform(0, np.pi), rng.uniform(-0.5, 0.5)
    along = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    across = y * np.float32(np.cos(angle)) - x * np.float32(np.sin(angle)) - np.float32(bend) * (along**2 - half**2 / 3)
    ends = step(np.float32(half) - np.abs(along), 0.12)
    lines = [0.0] if rng.random() < 0.6 else [0.0, float(rng.uniform(3, 5) * width)]
    for offset in lines:
        core = np.exp(-(((across - np.float32(offset)) / np.float32(width)) ** 2)) * ends
        lip = np.exp(-(((across - np.float32(offset + 1.7 * width)) / np.float32(width)) ** 2)) * ends
        c.blend(where, lip * np.float32(0.55 * strength), np.zeros(3, np.float32))
        c.blend(where, core * np.float32(0.95 * strength), c.bare)
        c.mask[where] |= core > 0.3


def _crack(c: Canvas, at: tuple[float, float], size: float, strength: float, rng: np.random.Generator) -> None:
    half = 0.14 + 0.26 * size
    where = c.window(at, 1.3 * half)
    x, y = c.x[where], c.y[where]
    heading = rng.uniform(0, 2 * np.pi)
    width = max(0.014 + 0.012 * size, 1.0 * c.pixel)
    nearest = np.full(x.shape, 9, np.float32)
    for sign in (0.0, np.pi):  # both ways from the middle, thinning towards the tips
        px, py = at
        count = 4
        for i in range(count):
            turn = heading + sign + rng.uniform(-0.75, 0.75)
            qx, qy = px + half / count * np.cos(turn), py + half / count * np.sin(turn)
            nearest = np.minimum(nearest, _segment(x, y, (px, py), (qx, qy)) / np.float32(width * (1 - 0.17 * i)))
            if i == 1 and rng.random() < 0.5:  # a side branch
                fork = turn + rng.choice([-0.9, 0.9])
                tip = (qx + 0.3 * half * np.cos(fork), qy + 0.3 * half * np.sin(fork))
                nearest = np.minimum(nearest, _segment(x, y, (qx, qy), tip) / np.float32(width * 0.6))
            px, py = float(qx), float(qy)
    core = np.clip(np.float32(1.25) - nearest, 0, 1)
    rim = np.clip(np.float32(2.6) - nearest, 0, 1)
    c.blend(where, rim * np.float32((0.5 if c.dark else 0.15) * strength), c.bare)
    c.blend(where, core * np.float32(0.45 + 0.55 * strength), np.full(3, 0.02, np.float32))
    c.mask[where] |= core > 0.3


def _segment(x: Field, y: Field, p: tuple[float, float], q: tuple[float, float]) -> Field:
    """Return the distance to the segment from p to q."""
    dx, dy = np.float32(q[0] - p[0]), np.float32(q[1] - p[1])
    ax, ay = x - np.float32(p[0]), y - np.float32(p[1])
    t = np.clip((ax * dx + ay * dy) / (dx * dx + dy * dy), 0, 1)
    return np.hypot(ax - t * dx, ay - t * dy)


def _dent(c: Canvas, at: tuple[float, float], size: float, strength: float, rng: np.random.Generator) -> None:
    radius = 0.09 + 0.1 * size
    where = c.window(at, 2.4 * radius)
    x, y = c.x[where] - np.float32(at[0]), c.y[where] - np.float32(at[1])
    angle, flat = rng.uniform(0, np.pi), rng.uniform(0.7, 1.0)
    along = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    across = (y * np.float32(np.cos(angle)) - x * np.float32(np.sin(angle))) / np.float32(flat)
    squared = (along**2 + across**2) / np.float32(radius**2)
    bowl = np.exp(-(squared**1.5))
    c.height[where] -= np.float32((0.5 + 0.5 * strength) * 0.62 * radius) * bowl
    c.mask[where] |= squared < 1.4


def _blob(x: Field, y: Field, radius: float, rng: np.random.Generator) -> Field:
    """Return the signed distance, about, to the edge of a lobed spot around the origin; positive inside."""
    theta = np.arctan2(y, x)
    edge = np.full(x.shape, radius, np.float32)
    for k in (2, 3, 5):
        swing, phase = rng.uniform(0.05, 0.28), rng.uniform(0, 6.3)
        edge += np.float32(radius * swing / k**0.5) * np.cos(k * theta + np.float32(phase))
    return edge - np.hypot(x, y)


def _disc(x: Field, y: Field, cx: float, cy: float, radius: float) -> Field:
    """Return the signed distance to a circle, positive inside."""
    distance: Field = np.float32(radius) - np.hypot(x - np.float32(cx), y - np.float32(cy))
    return distance


def _stain(c: Canvas, at: tuple[float, float], size: float, strength: float, rng: np.random.Generator) -> None:
    radius = 0.09 + 0.15 * size
    where = c.window(at, 1.9 * radius)
    depth = _blob(c.x[where] - np.float32(at[0]), c.y[where] - np.float32(at[1]), radius, rng)
    inside = step(depth, 0.05)
    ring = np.exp(-(((depth - 0.02) / 0.025) ** 2))
    amount = (inside * np.float32(0.5) + ring * np.float32(0.35)) * np.float32(strength)
    tone = (0.5, 0.54, 0.62) if c.dark else (0.16, 0.17, 0.27)
    c.blend(where, amount, np.array(tone, np.float32) * np.float32(rng.uniform(0.85, 1.15)))
    c.mask[where] |= depth > 0


def _rust(c: Canvas, at: tuple[float, float], size: float, strength: float, rng: np.random.Generator) -> None:
    radius = 0.09 + 0.15 * size
    where = c.window(at, 2.0 * radius)
    x, y = c.x[where] - np.float32(at[0]), c.y[where] - np.float32(at[1])
    depth = _blob(x, y, 0.62 * radius, rng)
    for _ in range(int(rng.integers(5, 10))):  # satellites
        a, d, r = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0.6, 1.1), radius * rng.uniform(0.1, 0.3)
        depth = np.maximum(depth, _disc(x, y, d * np.cos(a), d * np.sin(a), r))
    grain = _coarse_noise(x.shape, max(2, round(0.025 / c.pixel)), rng)
    inside = step(depth + grain * np.float32(0.02), 0.05)
    fleck = np.clip(grain * np.float32(0.9) + np.float32(0.4), 0, 1)[..., None]
    colour = np.array((0.30, 0.12, 0.04), np.float32) * (1 - fleck) + np.array((0.80, 0.40, 0.12), np.float32) * fleck
    part = c.paint[where]
    part += (inside * np.float32(0.4 + 0.6 * strength))[..., None] * (colour - part)
    c.height[where] += inside * grain * np.float32(0.006)
    c.mask[where] |= depth > 0


def _coarse_noise(shape: tuple[int, ...], cell: int, rng: np.random.Generator) -> Field:
    """Return blocky standard noise with cells of `cell` pixels, softened by one neighbour."""
    rows, columns = -(-shape[0] // cell), -(-shape[1] // cell)
    small = rng.standard_normal((rows, columns), dtype=np.float32)
    full = np.repeat(np.repeat(small, cell, 0), cell, 1)[: shape[0], : shape[1]]
    total = full + np.roll(full, 1, 0) + np.roll(full, 1, 1) + np.roll(full, (1, 1), (0, 1))
    softened: Field = total / np.float32(2.6)
    return softened


def _chip(c: Canvas, at: tuple[float, float], size: float, strength: float, rng: np.random.Generator) -> None:
    radius = 0.09 + 0.1 * size
    where = c.window(at, 2.2 * radius)
    x, y = c.x[where] - np.float32(at[0]), c.y[where] - np.float32(at[1])
    bite = np.float32(radius) - np.hypot(x, y)
    for _ in range(3):  # a broken edge is not round
        a, d, r = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0.5, 0.95), radius * rng.uniform(0.3, 0.6)
        bite = np.maximum(bite, _disc(x, y, d * np.cos(a), d * np.sin(a), r))
    inside = c.outline[where] < 0
    facets = _coarse_noise(x.shape, max(2, round(0.05 / c.pixel)), rng)
    face = step(bite + np.float32(0.07) + facets * np.float32(0.012), 0.04)
    tone = np.clip(np.float32(0.62) + facets * np.float32(0.28), 0.1, 1)[..., None]
    part = c.paint[where]
    part += (face * np.float32(0.35 + 0.5 * strength))[..., None] * (c.bare * tone - part)
    c.mask[where] |= inside & (bite > -0.05)
    c.outline[where] = np.maximum(c.outline[where], bite)


DRAW: dict[str, Draw] = {
    "scratch": _scratch,
    "crack": _crack,
    "dent": _dent,
    "stain": _stain,
    "rust": _rust,
    "chipped edge": _chip,
}


@dataclass(slots=True, eq=False)
class Extras:
    """What look-alikes add to a photograph: to the part's surface at once, to light and background later."""

    glow: Field | None = None  # (H, W) added light on the part
    shade: Field | None = None  # (H, W) factor on everything, in (0, 1]


def draw_look_alike(name: str, c: Canvas, at: tuple[float, float], extras: Extras, rng: np.random.Generator) -> None:
    """Draw the look-alike `name`, near `at` where it has a place."""
    if name == "machining mark":
        _machining_mark(c, at, rng)
    elif name == "drill point":
        _drill_point(c, at, rng)
    elif name == "reflection":
        extras.glow = _soft_band(c, at, rng, half=float(rng.uniform(0.07, 0.16))) * np.float32(rng.uniform(0.15, 0.4))
    else:
        extras.shade = 1 - _soft_band(c, at, rng, half=float(rng.uniform(0.15, 0.4))) * np.float32(
            rng.uniform(0.2, 0.45)
        )


def _machining_mark(c: Canvas, at: tuple[float, float], rng: np.random.Generator) -> None:
    """Four to nine fine lines, evenly spaced, straight or on circles around the part's centre."""
    count, pitch = int(rng.integers(4, 10)), float(rng.uniform(0.035, 0.06))
    reach = float(rng.uniform(0.25, 0.7))
    angle = rng.uniform(0, np.pi)
    x, y = c.x - np.float32(at[0]), c.y - np.float32(at[1])
    along = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    across = y * np.float32(np.cos(angle)) - x * np.float32(np.sin(angle))
    if rng.random() < 0.5:
        across = np.hypot(c.x, c.y) - np.float32(np.hypot(*at))
    nearest = np.abs((across / np.float32(pitch) + np.float32(0.5)) % 1 - np.float32(0.5)) * np.float32(pitch)
    inside = step(np.float32(count * pitch / 2) - np.abs(across), 0.02) * step(np.float32(reach) - np.abs(along), 0.1)
    line = np.exp(-((nearest / np.float32(max(0.006, 0.7 * c.pixel))) ** 2)) * inside
    everywhere = (slice(None), slice(None))
    c.blend(everywhere, line * np.float32(rng.uniform(0.12, 0.3)), c.bare)


def _drill_point(c: Canvas, at: tuple[float, float], rng: np.random.Generator) -> None:
    """A centre punch: a small exact cone with a bright rim."""
    radius = float(rng.uniform(0.028, 0.045))
    where = c.window(at, 2 * radius)
    r = np.hypot(c.x[where] - np.float32(at[0]), c.y[where] - np.float32(at[1]))
    c.height[where] -= np.clip(np.float32(radius) - r, 0, None) * np.float32(0.9)
    c.blend(where, step(np.float32(radius) - r, 0.015) * np.float32(0.55), np.full(3, 0.06, np.float32))
    c.blend(where, np.exp(-(((r - np.float32(1.15 * radius)) / np.float32(0.01)) ** 2)) * np.float32(0.4), c.bare)


def _soft_band(c: Canvas, at: tuple[float, float], rng: np.random.Generator, half: float) -> Field:
    """Return a band through `at` whose edges are soft, from 0 to 1."""
    angle = rng.uniform(0, np.pi)
    across = (c.y - np.float32(at[1])) * np.float32(np.cos(angle)) - (c.x - np.float32(at[0])) * np.float32(
        np.sin(angle)
    )
    band: Field = np.exp(-((np.abs(across) / np.float32(half)) ** 2.5))
    return band
