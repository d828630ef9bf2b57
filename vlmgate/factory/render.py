"""Draw inspection photographs of parts, with the truth about them, from a seed: `render`.

The same seed and the same library versions give the same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmgate.factory.defects import DRAW, Canvas, Extras, draw_look_alike
from vlmgate.factory.photo import METALS, degrade, paint, photograph, to_image
from vlmgate.factory.world import (
    CLEAN,
    CONDITIONS,
    DEFECTS,
    DEGRADATIONS,
    FINISHES,
    JUDGED_SIZE,
    LOOK_ALIKES,
    NONE,
    PARTS,
    POSITIONS,
    VIEW_SIZE,
    VISIBLE,
    Defect,
    Field,
    Hole,
    Shape,
    Truth,
    draw_shape,
    hole_distance,
)

SIZES = (240, 260, 280, 300, 320)  # pixels, both ways
_T = TypeVar("_T", str, float, int)
_THIRD = 0.27  # part units; where the middle row and column end
_MARGIN = 0.04  # part units; defects are not centred nearer than this to where one position becomes another
_APART = 0.45  # part units between the middles of two defects
_FLOOR = 0.02  # [0, 1] of full scale; texture below which nothing can be made out, however smooth the surface


@dataclass(frozen=True, slots=True, eq=False)
class Render:
    """A rendered photograph and everything that is true of it."""

    image: Image.Image
    truth: Truth
    masks: tuple[NDArray[np.bool_], ...]  # of each defect, (H, W): its pixels; empty where it lies outside the frame
    visibilities: tuple[float, ...]  # of each defect, >= 0, higher = plainer; see `visibility`
    ghost_visibility: float  # of the plainest defect there is, or of a middling one that a sound part might have had
    degradation: str
    severity: float  # [0, 1], higher = worse; 0 for a clean render
    look_alike: str | None

    @property
    def tells(self) -> bool:
        """Say whether the photograph shows what it takes to judge the condition."""
        return self.ghost_visibility >= VISIBLE

    @property
    def all_visible(self) -> bool:
        """Say whether every defect lies above the visibility bound."""
        return min(self.visibilities, default=VISIBLE) >= VISIBLE


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a render must be; everything left out is drawn at random."""

    part: str | None = None
    finish: str | None = None
    condition: str | None = None  # of the first defect
    position: str | None = None  # of the first defect; honoured where it can be there, otherwise another place
    num_defects: int | None = None  # 0 to 3; 0 and `condition` "none" mean the same
    degradation: str | None = None
    severity: float | None = None
    defect_size: float | None = None
    defect_strength: float | None = None
    defect_contrast: float | None = None
    size: int | None = None  # pixels


@dataclass(frozen=True, slots=True)
class _Planned:
    """A defect to be drawn."""

    condition: str
    position: str | None
    size: float  # [0, 1], small to large
    strength: float  # [0, 1], slight to heavy
    contrast: float  # (0, 1], barely visible to as drawn; a chip and a missing hole are always as drawn
    seed: int


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where the camera points: the part's centre and radius in the image, in units of half its width."""

    x: float
    y: float
    scale: float

    def grid(self, size: int) -> tuple[Field, Field]:
        """Return (x, y) of every pixel in part units, axes those of the image."""
        gx, gy = _grid(size)
        return (gx - np.float32(self.x)) / np.float32(self.scale), (gy - np.float32(self.y)) / np.float32(self.scale)


def render(seed: int | Sequence[int], wanted: Wanted = Wanted()) -> Render:
    """Draw one photograph."""
    return _drawn(seed, wanted)[0]


def render_relatives(seed: int | Sequence[int]) -> tuple[tuple[Render, bool], ...]:
    """Draw one photograph, degraded, and what was photographed on the way; say which of them are twins.

    To know how plainly a defect shows, a scene is photographed with and without it, and before the degradation. These
    are images, too, and pairs that differ in nothing but one defect teach what a defect is. A twin lacks a defect that
    was drawn, or has one that was not; what is no twin is distributed as `render` draws it.
    """
    rng = np.random.default_rng([*np.atleast_1d(seed), 1])
    first, scene = _drawn(seed, Wanted(degradation=_pick(rng, DEGRADATIONS), severity=float(rng.uniform(0.1, 1.0))))
    if first.degradation == "misframing":  # before the degradation it was misframed already
        return ((first, False),)
    with_all, without = scene.with_all.undegraded(), scene.without.undegraded()
    shown = tuple(visibility(with_all, twin.undegraded()) for twin in scene.twins)
    clean = _with_truth(with_all, scene, scene.planned, shown, max(shown, default=VISIBLE))
    left = scene.planned[1:] if scene.planned else (scene.middling,)
    seen = shown[1:] if scene.planned else (visibility(without, with_all),)
    twin = _with_truth(without, scene, left, seen, max(seen, default=VISIBLE))
    return (first, False), (clean, False), (twin, True)


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """What was drawn and photographed to make one render."""

    scene: _Scene
    planned: tuple[_Planned, ...]
    middling: _Planned  # the defect that a sound part might have had
    kind: str
    severity: float
    with_all: Shot
    twins: tuple[Shot, ...]  # without each of the defects

    @property
    def without(self) -> Shot:
        """Return the photograph without the first defect; of a sound part, with the middling one."""
        if self.twins:
            return self.twins[0].dropping(0)
        return self.scene.photograph((self.middling,), self.kind, self.severity)


def _drawn(seed: int | Sequence[int], wanted: Wanted) -> tuple[Render, _Drawn]:
    rng = np.random.default_rng(seed)
    # Everything is drawn even where it is not used, so that a wish changes nothing but what is wished for.
    part = _or(wanted.part, _pick(rng, PARTS))
    finish = _or(wanted.finish, _pick(rng, FINISHES))
    drawn = CLEAN if rng.random() < 0.5 else _pick(rng, DEGRADATIONS)
    drawn_severity = float((rng.spawn(1)[0] if drawn == CLEAN else rng).uniform(0.1, 1.0))
    kind = _or(wanted.degradation, drawn)
    severity = _or(wanted.severity, drawn_severity) if kind != CLEAN else 0.0
    size = _or(wanted.size, int(SIZES[int(rng.integers(len(SIZES)))]))
    planned = _plan(rng, wanted)
    look_alike = _pick(rng, LOOK_ALIKES) if rng.random() < 0.35 else None
    seeds = [int(s) for s in rng.integers(0, 2**62, 6)]
    dx, dy = rng.uniform(-0.07, 0.07, 2)
    whole = _Frame(float(dx), float(dy), float(rng.uniform(0.64, 0.80)))
    frame = _misframed(whole, severity, rng) if kind == "misframing" else whole

    scene = _Scene(part, finish, frame, whole, size, seeds, look_alike)
    middling = _Planned(_pick(rng, DEFECTS), None, 0.6, 0.8, 1.0, seeds[5]) if not planned else planned[0]
    real = scene.photograph(planned, kind, severity)
    twins = tuple(scene.photograph(planned, kind, severity, without=i) for i in range(len(planned)))
    made = _Drawn(scene, planned, middling, kind, severity, real, twins)
    seen = tuple(visibility(real, twin) for twin in twins)
    ghost = max(seen, default=0.0)
    if not planned:
        ghost = visibility(made.without, real) if kind != CLEAN else VISIBLE
    return _with_truth(real, made, planned, seen, ghost), made


def _with_truth(shot: Shot, drawn: _Drawn, planned: Sequence[_Planned], seen: Sequence[float], ghost: float) -> Render:
    """Return a photograph with the truth about it, its defects gravest first."""
    order = sorted(range(len(planned)), key=lambda i: CONDITIONS.index(planned[i].condition))
    scene, sharp = drawn.scene, shot.image is shot.sharp and drawn.kind != "misframing"
    return Render(
        image=shot.image,
        truth=Truth(scene.part, scene.finish, tuple(Defect(planned[i].condition, shot.positions[i]) for i in order)),
        masks=tuple(shot.masks[i] for i in order),
        visibilities=tuple(seen[i] for i in order),
        ghost_visibility=ghost,
        degradation=CLEAN if sharp else drawn.kind,
        severity=0.0 if sharp else drawn.severity,
        look_alike=scene.look_alike,
    )


def visibility(shown: Shot, without: Shot) -> float:
    """Return how plainly a defect shows: what is left of its contrast, to the clutter of what it lies on; >= 0.

    `without` is the same photograph of the same part, in the same light, with the same noise, but without the defect.
    The difference of the two, at the size where it is judged, is what the defect changes. It is matched with what the
    defect changes before the degradation; the filter's output over the clutter is the signal-to-noise ratio of the
    ideal observer who knows what to look for, and it is multiplied by the cosine of the two differences, for a contrast
    whose shape is gone cannot be named. Rose (J. Opt. Soc. Am. 38, 1948) asks for about 5; `VISIBLE` asks for more,
    since here nobody tells the observer where, or what.
    """
    seen, unseen = _judged(shown.image), _judged(without.image)
    changed = (seen.astype(np.float32) - unseen) / np.float32(255)  # (V, V, 3)
    before = (_judged(shown.sharp).astype(np.float32) - _judged(without.sharp)) / np.float32(255)
    pattern = (before**2).sum(axis=2)
    if pattern.max() < (1 / 255) ** 2:  # outside the frame
        return 0.0
    matched = float((changed * before).sum())
    if matched <= 0:
        return 0.0
    signal = matched / float(np.sqrt(pattern.sum()))
    likeness = signal / float(np.sqrt((changed**2).sum()))
    rows, columns = np.nonzero(pattern > 0.06 * pattern.max())
    around = (slice(max(0, rows.min() - 4), rows.max() + 5), slice(max(0, columns.min() - 4), columns.max() + 5))
    surface = unseen.astype(np.float32)[around] / np.float32(255)
    rough = np.concatenate([np.diff(surface, axis=0).reshape(-1), np.diff(surface, axis=1).reshape(-1)])
    clutter = 1.4826 / np.sqrt(2) * float(np.median(np.abs(rough)))  # robust against the edges of the part
    return signal * likeness / float(np.hypot(_FLOOR, clutter))


def view(image: Image.Image) -> NDArray[np.uint8]:
    """Return an image as the model's processor will see it before it scales the values: (V, V, 3)."""
    return np.asarray(image.resize((VIEW_SIZE, VIEW_SIZE), Image.Resampling.BICUBIC))


def _judged(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.resize((JUDGED_SIZE, JUDGED_SIZE), Image.Resampling.BICUBIC))


def _plan(rng: np.random.Generator, wanted: Wanted) -> tuple[_Planned, ...]:
    """Draw which defects there are: none on 22 % of parts, several on 14 % of the others."""
    drawn = 0 if rng.random() < 0.22 else int(rng.choice([1, 2, 3], p=[0.86, 0.12, 0.02]))
    count = 0 if wanted.condition == NONE else _or(wanted.num_defects, drawn)
    if wanted.condition not in (None, NONE):
        count = max(1, count)
    kinds = [str(kind) for kind in rng.permutation(DEFECTS)]
    if wanted.condition in kinds:
        kinds.remove(wanted.condition)
        kinds.insert(0, wanted.condition)
    shapes = rng.uniform((0, 0.2), (1, 1), (3, 2))  # size, strength
    contrasts = np.where(rng.random(3) < 0.2, rng.uniform(0.03, 0.6, 3), 1.0)
    seeds = rng.integers(0, 2**62, 3)
    return tuple(
        _Planned(
            kinds[i],
            wanted.position if i == 0 else None,
            _or(wanted.defect_size, float(shapes[i, 0])),
            _or(wanted.defect_strength, float(shapes[i, 1])),
            _or(wanted.defect_contrast, float(contrasts[i])),
            int(seeds[i]),
        )
        for i in range(count)
    )


def _misframed(frame: _Frame, severity: float, rng: np.random.Generator) -> _Frame:
    """Move the part out of the image, or the camera too near; severity 1 leaves a sliver or a detail of it."""
    angle = rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.6:
        reach = 0.25 + 1.6 * severity
        return _Frame(frame.x + float(reach * np.cos(angle)), frame.y + float(reach * np.sin(angle)), frame.scale)
    scale = frame.scale * (1.25 + 4.5 * severity)
    off = 0.55 * (scale - frame.scale) * float(rng.uniform(0.6, 1))
    return _Frame(frame.x + off * float(np.cos(angle)), frame.y + off * float(np.sin(angle)), scale)


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """A photograph with its defects' pixels and positions, in the order in which they were planned."""

    image: Image.Image
    sharp: Image.Image  # before the degradation
    masks: tuple[NDArray[np.bool_], ...]
    positions: tuple[str, ...]

    def undegraded(self) -> Shot:
        """Return the photograph as it was before the degradation."""
        return replace(self, image=self.sharp)

    def dropping(self, i: int) -> Shot:
        """Return the same photograph, as if defect `i` were not on it."""
        return replace(
            self, masks=self.masks[:i] + self.masks[i + 1 :], positions=self.positions[:i] + self.positions[i + 1 :]
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Scene:
    """A part before a camera. Every photograph of it is the same but for the defects and what they change."""

    part: str
    finish: str
    frame: _Frame
    whole: _Frame  # the part as it lies when it is framed well; where defects are placed
    size: int
    seeds: Sequence[int]
    look_alike: str | None

    def photograph(self, planned: Sequence[_Planned], kind: str, severity: float, without: int | None = None) -> Shot:
        """Take the picture with these defects; without one of them all the others stay where they are."""
        x, y = self.frame.grid(self.size)
        shape, holes = self._shape(x, y)
        metal = METALS[self.finish]
        canvas = Canvas(
            x=x,
            y=y,
            pixel=2 / (self.size * self.frame.scale),
            outline=shape.outline,
            height=np.zeros_like(x),
            paint=paint(metal, x, y, np.random.default_rng(self.seeds[1])),
            bare=np.array(metal.bare, np.float32),
            dark=metal.dark,
            mask=np.zeros(x.shape, np.bool_),
        )
        extras = self._draw_look_alike(canvas, holes)
        points: list[tuple[float, float]] = []
        lost: list[Hole] = []
        masks: list[NDArray[np.bool_]] = []
        for i, one in enumerate(planned):
            rng = np.random.default_rng(one.seed)
            hole = _lost_hole(holes, one.position, rng) if one.condition == "missing hole" else None
            at = (hole.u, hole.v) if hole is not None else self._place(one, holes, points, rng)
            points.append(at)
            canvas.mask = np.zeros(x.shape, np.bool_)
            masks.append(canvas.mask)
            if i == without:
                continue
            if hole is not None:
                canvas.mask |= hole_distance(hole, x, y) < 0
                lost.append(hole)
            else:
                _draw_defect(canvas, one, at, rng)
        openings = _openings([hole for hole in holes if hole not in lost], canvas)
        body = np.maximum(canvas.outline, openings)  # negative in metal
        for one, mask in zip(planned, masks, strict=True):
            if one.condition not in ("chipped edge", "missing hole"):
                mask &= body < 0
        rng = np.random.default_rng(self.seeds[2])
        pixels = photograph(canvas, shape, body, metal, rng, _grid(self.size), extras)
        sharp = image = to_image(pixels)
        if kind not in (CLEAN, "misframing"):
            image = to_image(degrade(pixels, kind, severity, np.random.default_rng(self.seeds[3])))
        return Shot(image, sharp, tuple(masks), tuple(POSITIONS[_cell(*point)] for point in points))

    def _shape(self, x: Field, y: Field) -> tuple[Shape, list[Hole]]:
        """Return the part's shape on a grid, and its holes as they lie in the image."""
        rng = np.random.default_rng(self.seeds[0])
        angle = rng.uniform(0, 2 * np.pi)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        shape = draw_shape(self.part, x * cos + y * sin, y * cos - x * sin, rng)
        turned = [Hole(float(h.u * cos - h.v * sin), float(h.v * cos + h.u * sin), h.radius) for h in shape.holes]
        return shape, turned

    def _draw_look_alike(self, canvas: Canvas, holes: Sequence[Hole]) -> Extras:
        extras = Extras()
        if self.look_alike is not None:
            rng = np.random.default_rng(self.seeds[4])
            at = self._place(_Planned(self.look_alike, None, 0, 0, 1, 0), holes, (), rng)
            draw_look_alike(self.look_alike, canvas, at, extras, rng)
        return extras

    def _place(
        self, one: _Planned, holes: Sequence[Hole], taken: Sequence[tuple[float, float]], rng: np.random.Generator
    ) -> tuple[float, float]:
        """Choose where a defect goes: a position first, so that all are equally frequent, then a point there."""
        x, y = self.whole.grid(72)
        outline = self._shape(x, y)[0].outline
        nearest_hole = np.max([-hole_distance(hole, x, y) for hole in holes], axis=0)
        body = np.maximum(outline, nearest_hole)
        free = (np.abs(np.abs(x) - _THIRD) > _MARGIN) & (np.abs(np.abs(y) - _THIRD) > _MARGIN)
        apart = free.copy()
        for u, v in taken:
            apart &= np.hypot(x - np.float32(u), y - np.float32(v)) > _APART
        free = apart if apart.sum() > 200 else free
        if one.condition == "chipped edge":
            candidates = (np.abs(outline) < 0.03) & free
        else:
            candidates = (body < -0.09) & free
            if candidates.sum() < 40:
                candidates = (body < -0.05) & free
        px, py = x[candidates], y[candidates]
        cells = 3 * ((py > -_THIRD).astype(int) + (py > _THIRD)) + (px > -_THIRD).astype(int) + (px > _THIRD)
        counts = np.bincount(cells, minlength=9)
        cell = int(rng.choice(np.flatnonzero(counts >= min(3, counts.max()))))
        if one.position is not None and counts[POSITIONS.index(one.position)] >= 3:
            cell = POSITIONS.index(one.position)
        chosen = int(rng.choice(np.flatnonzero(cells == cell)))
        return float(px[chosen]), float(py[chosen])


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


def _draw_defect(canvas: Canvas, one: _Planned, at: tuple[float, float], rng: np.random.Generator) -> None:
    before, height = canvas.paint.copy(), canvas.height.copy()
    DRAW[one.condition](canvas, at, one.size, one.strength, rng)
    if one.condition != "chipped edge":
        canvas.paint = before + (canvas.paint - before) * np.float32(one.contrast)
        canvas.height = height + (canvas.height - height) * np.float32(one.contrast)


def _lost_hole(holes: Sequence[Hole], position: str | None, rng: np.random.Generator) -> Hole:
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
