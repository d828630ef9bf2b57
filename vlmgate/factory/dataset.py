"""The training set: rendered with every core into files, which are loaded as they come; training reads it at random.

Start with `Rendering` or `load_or_render`. A set that was made by the same recipe is used again; one that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from vlmgate.factory.render import Render, render, render_relatives, view
from vlmgate.factory.world import (
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
_RELATIVES = 3  # images of one scene, at most
_CHUNK = 128  # scenes per file
_SHARE = 0.03  # of a patch; with less of the defect it does not count as showing it
_FEW_CORES = 4  # up to here all of them render; with more, two are left to training


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the training set."""

    seed: int = 1
    scenes: int = 18_000
    relatives: bool = False  # every scene degraded and not, with a defect and without
    version: int = 3  # raise when the renderer changes

    @property
    def most_images(self) -> int:
        """Return how many images the set has at most."""
        return self.scenes * (_RELATIVES if self.relatives else 1)


class RenderedSet:
    """N renders and their truth; conditions, positions and visibilities are gravest first, padded to three defects.

    It may grow while it is read. Images lie on `device`, together, so that a batch is one gather. The columns, by name:
    "labels" (N, 2), part and finish; "conditions" (N, 3), 0 = no further defect; "positions" (N, 3), `NO_POSITION` = no
    further defect; "visibilities" (N, 3), higher = plainer; "ghosts" (N,), the visibility that a defect has, or would
    have; "kinds" (N,), 0 = not degraded; "twins" (N,), whether an image has a defect more or less than drawn.
    """

    def __init__(self, capacity: int, device: str = "cpu") -> None:
        self._filled = 0
        self._images = torch.empty((capacity, VIEW_SIZE, VIEW_SIZE, 3), dtype=torch.uint8, device=device)
        self._patches = torch.empty((capacity, GRID, GRID), dtype=torch.uint8, device=device)
        self._columns: dict[str, NDArray[Any]] = {}

    def __len__(self) -> int:
        return self._filled

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._columns[name][: self._filled]

    def add(self, rows: dict[str, NDArray[Any]]) -> None:
        """Append the rows of a chunk."""
        end = self._filled + len(rows["images"])
        for tensor, name in ((self._images, "images"), (self._patches, "patches")):
            tensor[self._filled : end] = torch.from_numpy(rows.pop(name)).to(tensor.device)
        for name, part in rows.items():
            whole = self._columns.setdefault(name, np.empty((len(self._images), *part.shape[1:]), part.dtype))
            whole[self._filled : end] = part
        self._filled = end

    def images(self, picked: NDArray[np.int64]) -> torch.Tensor:
        """Return (len(picked), V, V, 3) pixels in 0 to 255."""
        return self._images[torch.from_numpy(picked).to(self._images.device)]

    def patches(self, picked: NDArray[np.int64]) -> torch.Tensor:
        """Return (len(picked), 10, 10) conditions of patches, or `UNKNOWN`."""
        return self._patches[torch.from_numpy(picked).to(self._patches.device)]


def truth_of(labels: Sequence[int], conditions: Sequence[int], positions: Sequence[int]) -> Truth:
    """Return the truth that a row of labels stands for."""
    defects = (Defect(CONDITIONS[c], POSITIONS[p]) for c, p in zip(conditions, positions, strict=True) if c)
    return Truth(PARTS[labels[0]], FINISHES[labels[1]], tuple(defects))


class Rendering:
    """Renders, in other processes, what `folder` lacks of the set that `recipe` describes; use it in a `with`."""

    def __init__(self, recipe: Recipe, folder: Path, tell: Callable[[str], None]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stamp = folder / "recipe.json"
        wanted = json.dumps(asdict(recipe) | {"view": VIEW_SIZE})
        if not stamp.exists() or stamp.read_text() != wanted:
            for old in folder.glob("*.npz"):
                old.unlink()
            stamp.write_text(wanted)
        starts = range(0, recipe.scenes, _CHUNK)
        self._folder, self._tell = folder, tell
        self._ready = [start for start in starts if _chunk_path(folder, start).exists()]
        missing = [start for start in starts if start not in set(self._ready)]
        self._total, self._new, self._loaded, self._begin = len(starts), 0, 0, time.monotonic()
        self._pool: ProcessPoolExecutor | None = None
        self._pending: set[Future[int]] = set()
        self._loader = ThreadPoolExecutor(1)  # files are read while the device works
        self._loading: set[Future[None]] = set()
        if len(missing) == 1:  # not worth a process
            self._ready.append(_render_chunk(recipe, folder, missing[0]))
        elif missing:
            cores = os.cpu_count() or 1
            workers = cores if cores <= _FEW_CORES else cores - 2
            context = multiprocessing.get_context("spawn")  # torch runs threads, which a fork would leave half alive
            self._pool = ProcessPoolExecutor(max_workers=workers, mp_context=context)
            self._pending = {self._pool.submit(_render_chunk, recipe, folder, start) for start in missing}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loader.shutdown(wait=True, cancel_futures=True)
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def fill(self, data: RenderedSet, at_least: float = 0.0) -> None:
        """Begin to load into `data` what has been rendered; wait until it is this share of the whole set."""
        while True:
            rendered = {future for future in self._pending if future.done()}
            self._pending -= rendered
            self._ready += [future.result() for future in rendered]
            self._loading |= {self._loader.submit(self._load, data, start) for start in self._ready}
            self._ready.clear()
            for loaded in [future for future in self._loading if future.done()]:
                self._loading.remove(loaded)
                loaded.result()
                self._loaded += 1
            self._new += len(rendered)
            if rendered and self._new % 32 < len(rendered):
                rate = self._new * _CHUNK / (time.monotonic() - self._begin)
                self._tell(f"{len(data):,} images; {rate:.0f} scenes a second are rendered")
            if self._loaded / self._total >= at_least:
                return
            running: set[Future[Any]] = {*self._pending, *self._loading}
            wait(running, return_when=FIRST_COMPLETED)

    def _load(self, data: RenderedSet, start: int) -> None:
        with np.load(_chunk_path(self._folder, start)) as chunk:
            data.add(dict(chunk))


def load_or_render(recipe: Recipe, folder: Path, tell: Callable[[str], None], device: str = "cpu") -> RenderedSet:
    """Return the whole set that `recipe` describes."""
    data = RenderedSet(recipe.most_images, device)
    with Rendering(recipe, folder, tell) as rendering:
        rendering.fill(data, at_least=1.0)
    return data


def _chunk_path(folder: Path, start: int) -> Path:
    return folder / f"{start:07d}.npz"


def _render_chunk(recipe: Recipe, folder: Path, start: int) -> int:
    """Render the scenes from `start` into a file and return `start`."""
    made: list[tuple[Render, bool]] = []
    for i in range(start, min(start + _CHUNK, recipe.scenes)):
        made += render_relatives((recipe.seed, i)) if recipe.relatives else [(render((recipe.seed, i)), False)]
    rows = [_row(image) | {"twins": np.array(twin)} for image, twin in made]
    temporary = folder / f"{start:07d}.part.npz.tmp"
    with temporary.open("wb") as file:
        np.savez(file, **{name: np.stack([row[name] for row in rows]) for name in rows[0]})  # type: ignore[arg-type]
    temporary.replace(_chunk_path(folder, start))
    return start


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
