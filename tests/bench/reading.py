"""Images a second that are read from 12-megapixel JPEGs: opened, checked, measured, and shrunk as a processor does.

    python -m tests.bench.reading [--images 24] [--side 384] [--rounds 5] [--workers 0] [--json FILE]

Photographs of 4,000 × 3,000 pixels are made of the sample images with a little noise. "whole" decodes every pixel,
"smaller" leaves to the decoder what a processor that wants `--side` pixels would throw away (twice that, or twice what
sharpness is measured at, is kept). Both take turns; the shrinking is done in one further thread, as a scan does it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bench._timing import interleaved, ratios, spread, table, write
from vlmgate.config import ImageConfig
from vlmgate.data import Picture
from vlmgate.images import STANDARD, find_images, read_ahead

SAMPLES = Path(__file__).parent.parent.parent / "sample_images" / "labelled"


def make(folder: Path, images: int, size: tuple[int, int]) -> Path:
    """Write so many JPEGs of a size, no two alike."""
    rng = np.random.default_rng(0)
    found = [path for path in sorted(SAMPLES.rglob("*.*")) if path.suffix in (".png", ".jpg")]
    for i in range(images):
        with Image.open(found[i * 7 % len(found)]) as sample:
            picture = np.asarray(sample.convert("RGB").resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
        noise = rng.normal(0, 3, (size[1], size[0], 1)).astype(np.int16)
        Image.fromarray(np.clip(picture + noise, 0, 255).astype(np.uint8)).save(folder / f"{i:03d}.jpg", quality=90)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.reading", description=__doc__.splitlines()[0])
    for name, default in {"images": 24, "side": 384, "rounds": 5, "workers": 0, "width": 4000, "height": 3000}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    least = 2 * max(options.side, STANDARD)
    busy: dict[str, list[float]] = {"whole": [], "smaller": []}

    with tempfile.TemporaryDirectory() as scratch:
        sources = find_images(make(Path(scratch), options.images, (options.width, options.height))).sources

        def read(name: str, least_side: int) -> None:
            begun = time.process_time()
            with ThreadPoolExecutor(1) as shrinking:
                for one in read_ahead(sources, ImageConfig(workers=options.workers, least_side=least_side)):
                    assert isinstance(one.result, Picture)
                    shrinking.submit(one.result.rgb.resize, (options.side, options.side), Image.Resampling.BICUBIC)
            busy[name].append(time.process_time() - begun)

        taken = interleaved(
            {"whole": lambda: read("whole", 0), "smaller": lambda: read("smaller", least)}, options.rounds
        )
    count = options.images
    rows = [
        [name, spread([count / t for t in values], 1), spread([1000 * t / count for t in busy[name][1:]], 0)]
        for name, values in taken.items()
    ]
    print(f"{os.cpu_count()} cores, {options.width} x {options.height} pixels, processor of {options.side}")
    print(table(["decoded", "images/s", "CPU ms an image"], rows))
    print(f"\nsmaller takes {spread(ratios(taken, 'smaller', 'whole'))} of the time.")
    write(options.json, "reading", vars(options), {"seconds": taken, "cpu_seconds": busy})


if __name__ == "__main__":
    main()
