"""Make the novelty reference that the built-in model carries: `python -m vlmgate.factory.reference --weights FOLDER`.

Reads freshly drawn clean parts through the product's own path. Knows renders and features; knows nothing of distances.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlmgate.factory.measure import features_of
from vlmgate.factory.render import Wanted, render
from vlmgate.factory.world import CLEAN
from vlmgate.scores.novelty import Reference

STREAM = 5  # first word of every seed drawn here
COUNT = 3_000


def write_reference(weights: Path, count: int = COUNT) -> Path:
    """Write `novelty.npz` into the checkpoint's folder and return its path."""
    images = (render((STREAM, i), Wanted(degradation=CLEAN)).image for i in range(count))
    path = weights / "novelty.npz"
    Reference.fit(features_of(images, weights)).save(path)
    return path


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m vlmgate.factory.reference", description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="the checkpoint folder that takes novelty.npz")
    parser.add_argument("--count", type=int, default=COUNT, help=f"images (default {COUNT})")
    options = parser.parse_args()
    print(write_reference(options.weights, options.count))


if __name__ == "__main__":
    main()
