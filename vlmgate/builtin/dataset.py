"""Render the training set once, with every core, into arrays on disk that training reads at random.

Knows renders and files; knows nothing of models. A set that was made by the same recipe is used again; one that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmgate.builtin.render import Render, render, view
from vlmgate.builtin.world import (
    CLEAN,
    CONDITIONS,
    DEGRADATIONS,
    FINISHES,
    PARTS,
    POSITIONS,
    VIEW_SIZE,
    VISIBLE,
    Defect,
    Truth,
)

GRID = 10  # patches of the model's view, both ways
MOST = 3  # defects on one part
NO_POSITION = len(POSITIONS)  # stands where there is no defect
UNKNOWN = 255  # the condition of a patch whose defect is all but invisible: nothing is learned from it
_CHUNK = 512  # renders per file
_SHARE = 0.03  # of a patch; with less of the defect it does not count as showing it


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the training set."""

    seed: int = 1
    count: int = 50_000
    version: int = 2  # raise when the renderer changes


@dataclass(frozen=True, slots=True, eq=False)
class RenderedSet:
    """N renders and their truth; conditions, positions and visibilities are gravest first, padded to three defects."""

    images: NDArray[np.uint8]  # (N, V, V, 3)
    patches: NDArray[np.uint8]  # (N, 10, 10) condition of each patch, or UNKNOWN
    labels: NDArray[np.int64]  # (N, 2) part, finish
    conditions: NDArray[np.int64]  # (N, 3) 0 = no further defect
    positions: NDArray[np.int64]  # (N, 3)
    visibilities: NDArray[np.float32]  # (N, 3)
    ghosts: NDArray[np.float32]  # (N,) visibility that a defect has, or would have, on this photograph
    kinds: NDArray[np.int64]  # (N,) 0 = clean, then the degradations
    severities: NDArray[np.float32]  # (N,)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def clean(self) -> NDArray[np.bool_]:
        """Return which images are not degraded: (N,)."""
        clean: NDArray[np.bool_] = self.kinds == 0
        return clean


def truth_of(labels: Sequence[int], conditions: Sequence[int], positions: Sequence[int]) -> Truth:
    """Return the truth that a row of labels stands for."""
    defects = (Defect(CONDITIONS[c], POSITIONS[p]) for c, p in zip(conditions, positions, strict=True) if c)
    return Truth(PARTS[labels[0]], FINISHES[labels[1]], tuple(defects))


def load_or_render(recipe: Recipe, folder: Path, tell: Callable[[str], None]) -> RenderedSet:
    """Return the set that `recipe` describes, rendering what `folder` lacks of it."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / "recipe.json"
    wanted = json.dumps(asdict(recipe) | {"view": VIEW_SIZE})
    if not stamp.exists() or stamp.read_text() != wanted:
        for old in folder.glob("*.npz"):
            old.unlink()
        stamp.write_text(wanted)
    starts = range(0, recipe.count, _CHUNK)
    missing = [start for start in starts if not _chunk_path(folder, start).exists()]
    begin = time.monotonic()
    if missing:
        for done, _ in enumerate(_in_parallel(partial(_render_chunk, recipe, folder), missing), start=1):
            rate = done * _CHUNK / (time.monotonic() - begin)
            tell(f"rendered {done * _CHUNK:,} of {len(missing) * _CHUNK:,} images, {rate:.0f} a second")
    return _loaded([_chunk_path(folder, start) for start in starts], recipe.count)


def _loaded(paths: Sequence[Path], count: int) -> RenderedSet:
    """Fill one array of each kind file by file, so that the set lies in memory once."""
    whole: dict[str, NDArray[Any]] = {}
    filled = 0
    for path in paths:
        with np.load(path) as chunk:
            for name in chunk.files:
                part = chunk[name]
                if name not in whole:
                    whole[name] = np.empty((count, *part.shape[1:]), part.dtype)
                whole[name][filled : filled + len(part)] = part
        filled += len(part)
    return RenderedSet(**whole)


def _in_parallel(task: Callable[[int], None], starts: Sequence[int]) -> Iterator[None]:
    """Run `task` on every start with all cores; alone in this process where there is one only."""
    if len(starts) == 1:
        task(starts[0])
        yield
        return
    context = multiprocessing.get_context("spawn")  # torch runs threads, which a fork would leave half alive
    with ProcessPoolExecutor(max_workers=os.cpu_count(), mp_context=context) as pool:
        yield from pool.map(task, starts)


def _chunk_path(folder: Path, start: int) -> Path:
    return folder / f"{start:07d}.npz"


def _render_chunk(recipe: Recipe, folder: Path, start: int) -> None:
    made = [_row(render((recipe.seed, start + i))) for i in range(min(_CHUNK, recipe.count - start))]
    temporary = folder / f"{start:07d}.part.npz.tmp"
    with temporary.open("wb") as file:
        np.savez(file, **{name: np.stack([row[name] for row in made]) for name in made[0]})  # type: ignore[arg-type]
    temporary.replace(_chunk_path(folder, start))


def _row(made: Render) -> dict[str, NDArray[Any]]:
    """Return one render as the arrays of a `RenderedSet`, without the first axis."""
    truth = made.truth
    missing = MOST - len(truth.defects)
    conditions = [CONDITIONS.index(defect.condition) for defect in truth.defects]
    return {
        "images": view(made.image),
        "patches": _patches(made),
        "labels": np.array([PARTS.index(truth.part), FINISHES.index(truth.finish)], np.int64),
        "conditions": np.array(conditions + [0] * missing, np.int64),
        "positions": np.array(
            [POSITIONS.index(defect.position) for defect in truth.defects] + [NO_POSITION] * missing, np.int64
        ),
        "visibilities": np.array([*made.visibilities, *[0] * missing], np.float32),
        "ghosts": np.array(made.ghost_visibility, np.float32),
        "kinds": np.array(0 if made.degradation == CLEAN else 1 + DEGRADATIONS.index(made.degradation), np.int64),
        "severities": np.array(made.severity, np.float32),
    }


def _patches(made: Render) -> NDArray[np.uint8]:
    """Return the condition of each patch; where two defects meet, the graver one's."""
    patches = np.zeros((GRID, GRID), np.uint8)
    for defect, mask, seen in reversed(list(zip(made.truth.defects, made.masks, made.visibilities, strict=True))):
        cell = len(mask) // GRID
        shares = mask.reshape(GRID, cell, GRID, cell).mean(axis=(1, 3))
        shows = (shares >= _SHARE) | ((shares > 0) & (shares == shares.max()))
        patches[shows] = CONDITIONS.index(defect.condition) if seen >= VISIBLE / 2 else UNKNOWN
    return patches
