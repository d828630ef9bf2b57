"""Write the sample images: `python -m tests.bench.samples sample_images`.

They are drawn with a seed that training never sees; the same library versions give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bench._anomalies import draw_anomaly
from vlmgate.factory.render import Render, Wanted, render
from vlmgate.factory.world import CLEAN, CONDITIONS, DEGRADATIONS

SEED = 3
PER_CONDITION = 26
_COLUMNS = ("file_name", "label", "part", "finish", "position", "degradation", "severity", "visibility")
_NOTES = """Rendered inspection photographs, as a line might drop them: clear ones, spoilt ones, doubtful ones,
a file that was cut off while copying, a 12-bit camera TIFF, a photograph taken with the camera turned,
the same photograph twice under two names, two images that show no part at all, and this note, which is no image.
"""


@dataclass(frozen=True, slots=True)
class SampleFile:
    """A file of the sample folders: its path below them and its bytes."""

    path: str
    content: bytes


def sample_files() -> Iterator[SampleFile]:
    """Yield every file."""
    yield from _inbox()
    yield from _labelled()


def _inbox() -> Iterator[SampleFile]:
    names = (f"part_{number:04d}.jpg" for number in range(1, 100))
    draws = iter(range(100))

    def shot(wanted: Wanted) -> Image.Image:
        return render((SEED, 0, next(draws)), wanted).image

    first = b""
    plain = Wanted(degradation=CLEAN, num_defects=1, defect_size=0.75, defect_strength=0.9, defect_contrast=1.0)
    for i in range(20):  # every condition twice at least
        content = _jpeg(shot(replace(plain, condition=CONDITIONS[i % len(CONDITIONS)])))
        first = first or content
        yield SampleFile(f"inbox/{next(names)}", content)
    for kind in DEGRADATIONS:
        yield SampleFile(f"inbox/{next(names)}", _jpeg(shot(Wanted(degradation=kind, severity=0.9))))
    for condition in ("scratch", "dent", "stain", "crack"):  # barely visible
        wanted = Wanted(condition=condition, num_defects=1, degradation=CLEAN, defect_size=0.0, defect_contrast=0.15)
        yield SampleFile(f"inbox/{next(names)}", _jpeg(shot(wanted)))
    for number in (17, 42, 43):
        wanted = Wanted(degradation=CLEAN if number != 43 else "glare", severity=0.6)
        yield SampleFile(f"inbox/line2/part_{number:04d}.jpg", _jpeg(shot(wanted)))
    yield SampleFile(f"inbox/{next(names)}", _jpeg(shot(Wanted(num_defects=2, degradation=CLEAN))))
    yield SampleFile("inbox/part_0001 (copy).jpg", first)
    broken = _jpeg(shot(Wanted(condition="scratch", degradation=CLEAN)))
    yield SampleFile("inbox/line2/part_0044.jpg", broken[: len(broken) * 2 // 5])
    steel = replace(plain, part="flange", finish="brushed steel", condition="rust")
    yield SampleFile("inbox/camera7_12bit.tif", _twelve_bit_tiff(shot(steel)))
    turned = replace(plain, part="plate", finish="brass", condition="crack")
    yield SampleFile("inbox/handheld_0003.jpg", _turned_jpeg(shot(turned)))
    black = Wanted(part="gear", finish="black oxide", condition="missing hole", degradation=CLEAN)
    yield SampleFile("inbox/grey_0005.png", _png(shot(black).convert("L")))
    for i, kind in enumerate(("text", "object")):  # what has no business on the line
        yield SampleFile(f"inbox/strange_{i + 1:04d}.jpg", _jpeg(draw_anomaly(kind, (SEED, 9, i))))
    yield SampleFile("inbox/notes.txt", _NOTES.encode())


def _labelled() -> Iterator[SampleFile]:
    rows: list[tuple[str, ...]] = []
    for c, condition in enumerate(CONDITIONS):
        folder = condition.replace(" ", "_")
        for i in range(PER_CONDITION):
            # As a plant would label them: what nobody can see nobody has labelled.
            made = render((SEED, 1 + c, i), Wanted(condition=condition, num_defects=1, defect_contrast=1.0))
            name = f"{folder}/{folder}_{i + 1:03d}.jpg"
            rows.append(_row(name, made))
            yield SampleFile(f"labelled/{name}", _jpeg(made.image))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(rows)
    yield SampleFile("labelled/metadata.csv", text.getvalue().encode())


def _row(name: str, made: Render) -> tuple[str, ...]:
    truth = made.truth
    return (
        name,
        truth.condition,
        truth.part,
        truth.finish,
        truth.position or "",
        made.degradation,
        f"{made.severity:.2f}",
        f"{made.ghost_visibility:.1f}",
    )


def _jpeg(image: Image.Image, exif: Image.Exif | None = None) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88, exif=exif or Image.Exif())
    return file.getvalue()


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _turned_jpeg(image: Image.Image) -> bytes:
    """Store the pixels as a camera held sideways does, with the tag that says how to turn them back."""
    upright = image.crop((0, 14, image.width, image.height - 14))  # wider than high, so that a missed turn shows
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn 90 degrees clockwise to see it upright
    return _jpeg(upright.transpose(Image.Transpose.ROTATE_90), exif)


def _twelve_bit_tiff(image: Image.Image) -> bytes:
    """Store the brightness as 0..4095 in 16-bit words, as cameras with 12-bit sensors do."""
    weights = np.array([0.299, 0.587, 0.114])
    grey = np.rint(np.asarray(image, np.float64) @ weights / 255 * 4095).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "TIFF", compression="tiff_adobe_deflate")
    return file.getvalue()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.samples", description=__doc__)
    parser.add_argument("folder", type=Path, help="where inbox/ and labelled/ are written")
    folder: Path = parser.parse_args().folder
    total = count = 0
    for file in sample_files():
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
        total, count = total + len(file.content), count + 1
    print(f"{count} files, {total / 1e6:.1f} MB, in {folder}")


if __name__ == "__main__":
    main()
