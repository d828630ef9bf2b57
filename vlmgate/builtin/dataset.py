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

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmgate.builtin.checkpoint import INPUT_SIZE, PATCH
from vlmgate.builtin.render import SIZE, render
from vlmgate.builtin.world import CLEAN, CONDITIONS, FINISHES, NONE, PARTS, POSITIONS

GRID = INPUT_SIZE // PATCH  # patches, both ways
_CHUNK = 512  # renders per file
NO_POSITION = len(POSITIONS)  # the label of a part without a defect


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the training set."""

    seed: int = 1
    count: int = 36_000
    version: int = 1  # raise when the renderer changes


@dataclass(frozen=True, slots=True, eq=False)
class RenderedSet:
    """N renders and their truth."""

    images: NDArray[np.uint8]  # (N, 160, 160, 3)
    patches: NDArray[np.uint8]  # (N, 10, 10) share of each patch that is defect, of 255
    labels: NDArray[np.int64]  # (N, 4) part, finish, condition, position
    clean: NDArray[np.bool_]  # (N,)

    def __len__(self) -> int:
        return len(self.labels)


def reduce(image: Image.Image) -> NDArray[np.uint8]:
    """Return an image as the model's processor will see it before it scales the values."""
    return np.asarray(image.resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BICUBIC))


def load_or_render(recipe: Recipe, folder: Path, tell: Callable[[str], None]) -> RenderedSet:
    """Return the set that `recipe` describes, rendering what `folder` lacks of it."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / "recipe.json"
    wanted = json.dumps(asdict(recipe) | {"size": SIZE, "input": INPUT_SIZE})
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
    chunks = [np.load(_chunk_path(folder, start)) for start in starts]
    return RenderedSet(
        images=np.concatenate([chunk["images"] for chunk in chunks]),
        patches=np.concatenate([chunk["patches"] for chunk in chunks]),
        labels=np.concatenate([chunk["labels"] for chunk in chunks]),
        clean=np.concatenate([chunk["clean"] for chunk in chunks]),
    )


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
    count = min(_CHUNK, recipe.count - start)
    images = np.empty((count, INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
    patches = np.empty((count, GRID, GRID), np.uint8)
    labels = np.empty((count, 4), np.int64)
    clean = np.empty(count, np.bool_)
    for i in range(count):
        made = render((recipe.seed, start + i))
        images[i] = reduce(made.image)
        cell = SIZE // GRID
        shares = made.mask.reshape(GRID, cell, GRID, cell).mean(axis=(1, 3))
        patches[i] = np.ceil(shares * 255).astype(np.uint8)
        truth = made.truth
        labels[i] = (
            PARTS.index(truth.part),
            FINISHES.index(truth.finish),
            CONDITIONS.index(truth.condition),
            NO_POSITION if truth.condition == NONE or truth.position is None else POSITIONS.index(truth.position),
        )
        clean[i] = made.degradation == CLEAN
    temporary = folder / f"{start:07d}.part.npz.tmp"
    with temporary.open("wb") as file:
        np.savez(file, images=images, patches=patches, labels=labels, clean=clean)
    temporary.replace(_chunk_path(folder, start))
