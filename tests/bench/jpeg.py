"""How much damage to JPEGs is found, how many whole ones are refused, and what the check costs.

    python -m tests.bench.jpeg [--seed 0]

Compares Pillow alone, simplejpeg in strict mode and `check_jpeg`. A damaged file counts where more than 1 % of its
pixels differ visibly, or where it cannot be decoded. The oddities are whole files with headers or padding that some
cameras and programs write.
"""

from __future__ import annotations

import argparse
import io
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import simplejpeg
from PIL import Image, ImageFilter

from tests.bench._timing import table
from vlmgate.images.damage import check_jpeg

END = b"\xff\xd9"


def picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Return blurred noise with a little grain: compresses like a photograph."""
    noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    soft = np.asarray(noise.filter(ImageFilter.GaussianBlur(4))).astype(int)
    return Image.fromarray((soft + rng.integers(-3, 4, soft.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)  # type: ignore[arg-type]  # options of the encoder
    return buffer.getvalue()


def whole(rng: np.random.Generator) -> Iterator[bytes]:
    kinds = product((1, 25, 50, 75, 90, 100), (0, 1, 2, "4:1:1"), (False, True), (0, 1), ("RGB", "L", "CMYK"))
    for quality, subsampling, progressive, restarts, mode in kinds:
        side = int(rng.integers(120, 320))
        image = picture(rng, side, 200).convert(mode)
        options = {"restart_marker_rows": 1} if restarts else {}
        yield encoded(image, quality=quality, subsampling=subsampling, progressive=progressive, **options)


def oddities(data: bytes) -> Iterator[bytes]:
    for padding in (bytes(16), bytes(512), b"\x12\x34\x56\x78", b"\xff" * 64):
        yield data[:-2] + padding + END
    table_at = data.index(b"\xff\xdb")
    yield data[:table_at] + b"\0\1\2" + data[table_at:]
    yield data.replace(b"JFIF\0\x01", b"JFIF\0\x02", 1)


def damaged(data: bytes, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    start = data.index(b"\xff\xda") + 14
    at = int(rng.integers(start, len(data) - 2))
    yield "cut, with an end marker", data[:at].rstrip(b"\xff") + END
    yield "rest is zeros", data[:at].rstrip(b"\xff") + bytes(len(data) - at) + END
    yield "512 zeros", data[:at] + bytes(512) + data[at + 512 :]
    yield "300 bytes lost", data[:at] + data[at + 300 :]
    yield "16 random bytes", data[:at] + rng.bytes(16) + data[at + 16 :]
    yield "one bit", data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def passes(judge: Callable[[bytes], object], data: bytes) -> bool:
    try:
        judge(data)
    except Exception:
        return False
    return True


JUDGES: dict[str, Callable[[bytes], object]] = {
    "Pillow": pixels,
    "simplejpeg": simplejpeg.decode_jpeg,
    "check_jpeg": check_jpeg,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    rng = np.random.default_rng(parser.parse_args().seed)
    count: Counter[str] = Counter()
    passed: Counter[tuple[str, str]] = Counter()
    for data in whole(rng):
        right, cases = pixels(data), [("whole", data), *(("oddity", odd) for odd in oddities(data))]
        for kind, broken in damaged(data, rng):
            if not passes(pixels, broken) or (abs(pixels(broken) - right).max(axis=2) > 8).mean() > 0.01:
                cases.append((kind, broken))
        for kind, case in cases:
            count[kind] += 1
            passed.update((kind, name) for name, judge in JUDGES.items() if passes(judge, case))
    print(
        table(
            ["passed as whole", "files", *JUDGES], [[k, n, *(passed[k, j] for j in JUDGES)] for k, n in count.items()]
        )
    )
    for progressive in (False, True):
        data = encoded(picture(rng, 4000, 3000), quality=90, progressive=progressive)
        for name, judge in JUDGES.items():
            begun = time.process_time()
            judge(data)
            print(f"12 megapixels, progressive={progressive}, {name}: {time.process_time() - begun:.3f} CPU s")


if __name__ == "__main__":
    main()
