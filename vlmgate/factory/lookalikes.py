"""Marks that belong to a sound part or to its photograph and could be taken for defects.

Knows strokes and light in part units; knows nothing of defects, finishes' names or files. Each differs from the defect
that it resembles in something that can be seen: machining marks are many and evenly spaced, a reflection is broad and
soft, a shadow runs on over the background, a drill point is small and exactly round.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlmgate.factory.defects import Canvas
from vlmgate.factory.shapes import Field, step


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
