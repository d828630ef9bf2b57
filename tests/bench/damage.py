"""How many damaged pictures are read as whole, by format and by kind of damage; how many good ones are refused.

    python -m tests.bench.damage --seed 1 [--mutations 5000] [--photos FOLDER] [--good FOLDER ...] [--json FILE]

Sixty good files are made of the photographs of a folder (by default `sample_images/labelled`), in every format that is
read and in its usual variants. Each mutation is one kind of damage to one of them. It counts where more than 5 % of the
pixels differ by more than 8 of 255 levels, or where no decoder makes anything of it; `read` says how many of those came
out as a picture. With `--good`, folders of good files are read, too: what is refused as damaged there is a false alarm,
if Pillow reads it without a complaint and its name does not call it broken.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageFile

from tests.bench._timing import table
from vlmgate.config import ImageConfig
from vlmgate.data import Picture, Source
from vlmgate.images import find_images, open_pages

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Random = np.random.Generator
SHARE, LEVELS = 0.05, 8  # of the pixels; of 255
CHECKED = ("cut", "cut, then zeros", "cut, then an end mark", "zeroed block", "repeated block", "missing strips")
PLAIN = ("TIFF plain", "BMP", "PPM", "TGA")  # their pixels are not compressed
ZEROS = ("cut, then zeros", "zeroed block")
STRIP_TAGS = {"offset": (273, 324), "length": (279, 325)}  # of strips, of tiles


# --- good files ------------------------------------------------------------------------------------------------------

JPEGS: list[dict[str, Any]] = [
    *({"quality": quality} for quality in (50, 75, 85, 95)),
    *({"quality": 92, "subsampling": 0}, {"quality": 97, "subsampling": 0}, {"quality": 85, "optimize": True}),
    *({"quality": 85, "restart_marker_rows": 1}, {"quality": 90, "restart_marker_blocks": 7}),
    *({"quality": 80, "progressive": True}, {"quality": 95, "progressive": True, "subsampling": 0}),
]


def good_files(photos: list[Image.Image]) -> Iterator[tuple[str, str, bytes]]:
    """Yield sixty (format, variant, bytes), each of a photograph of its own."""
    number = 0

    def photo(mode: str = "RGB") -> Image.Image:
        nonlocal number
        number += 1
        return photos[number % len(photos)].convert(mode)

    def saved(image: Image.Image, format_: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, format_, **options)
        return buffer.getvalue()

    def tiff(values: np.ndarray[Any, Any], **options: Any) -> bytes:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, values, **options)
        return buffer.getvalue()

    for options in JPEGS:
        yield "JPEG", str(options), saved(photo(), "JPEG", **options)
    for mode in ("L", "L", "CMYK"):
        yield "JPEG", mode, saved(photo(mode), "JPEG", quality=85)
    for mode in ("RGB", "RGB", "L", "RGBA", "P", "1"):
        yield "PNG", mode, saved(photo(mode), "PNG")
    yield "PNG", "16-bit", saved(Image.fromarray(np.asarray(photo("L")).astype(np.uint16) * 257), "PNG")
    yield "PNG", "fast", saved(photo(), "PNG", compress_level=1)
    for mode, rows in (("RGB", 8), ("RGB", 32), ("L", 1), ("L", 320)):
        yield "TIFF plain", f"{mode}, {rows} rows", tiff(np.asarray(photo(mode)), rowsperstrip=rows)
    yield "TIFF plain", "tiles", tiff(np.asarray(photo()), tile=(64, 64))
    yield "TIFF plain", "16-bit", tiff(np.asarray(photo("L")).astype(np.uint16) * 16, rowsperstrip=16)
    yield "TIFF plain", "big", tiff(np.asarray(photo()), rowsperstrip=16, bigtiff=True)
    yield (
        "TIFF plain",
        "planar",
        tiff(np.asarray(photo()).transpose(2, 0, 1).copy(), rowsperstrip=32, photometric="rgb"),
    )
    for options in ({"rowsperstrip": 16}, {"tile": (128, 128)}, {"rowsperstrip": 320}, {"predictor": True}):
        yield "TIFF Deflate", str(options), tiff(np.asarray(photo()), compression="zlib", **options)
    yield (
        "TIFF Deflate",
        "16-bit",
        tiff(np.asarray(photo("L")).astype(np.uint16) * 16, compression="zlib", rowsperstrip=16),
    )
    yield "TIFF Deflate", "libtiff", saved(photo(), "TIFF", compression="tiff_adobe_deflate")
    for mode in ("RGB", "L"):
        yield "TIFF LZW", mode, saved(photo(mode), "TIFF", compression="tiff_lzw")
        yield "TIFF PackBits", mode, saved(photo(mode), "TIFF", compression="packbits")
        yield "TIFF JPEG", mode, saved(photo(mode), "TIFF", compression="jpeg", quality=85)
    for code in ("group3", "group4"):
        yield "TIFF fax", code, saved(photo("1"), "TIFF", compression=code)
    for quality in (60, 80, 90, 95):
        yield "WebP lossy", str(quality), saved(photo(), "WEBP", quality=quality)
    for method in (0, 4):
        yield "WebP lossless", str(method), saved(photo(), "WEBP", lossless=True, method=method)
    for quality in (60, 85, 95):
        yield "AVIF", str(quality), saved(photo(), "AVIF", quality=quality, speed=8)
    yield "JPEG 2000", "lossless", saved(photo(), "JPEG2000")
    yield "JPEG 2000", "lossy", saved(photo(), "JPEG2000", quality_mode="rates", quality_layers=[10])
    for format_, mode in (("BMP", "RGB"), ("PPM", "RGB"), ("GIF", "P"), ("TGA", "RGB"), ("QOI", "RGB")):
        yield format_, mode, saved(photo(mode), format_)


# --- damage ----------------------------------------------------------------------------------------------------------


def _span(data: bytes, rng: Random) -> tuple[int, int]:
    """Return where a block begins and how long it is: sectors of a disk, pages of memory, at most a third of a file."""
    length = min(int(rng.choice([512, 1024, 4096])), len(data) // 3)
    return int(rng.integers(0, len(data) - length)), length


def cut(data: bytes, rng: Random) -> bytes:
    return data[: int(rng.integers(1, len(data)))]


def cut_then_zeros(data: bytes, rng: Random) -> bytes:
    return cut(data, rng).ljust(len(data), b"\0")


def cut_then_ended(data: bytes, rng: Random) -> bytes:
    return cut(data, rng).rstrip(b"\xff") + b"\xff\xd9"


def zeroed(data: bytes, rng: Random) -> bytes:
    at, length = _span(data, rng)
    return data[:at] + bytes(length) + data[at + length :]


def repeated(data: bytes, rng: Random) -> bytes:
    at, length = _span(data, rng)
    before = max(0, at - length)
    return data[:at] + data[before : before + length] + data[at + length :]


def lost(data: bytes, rng: Random) -> bytes:
    at, length = _span(data, rng)
    return data[:at] + data[at + length :]


def swapped(data: bytes, rng: Random) -> bytes:
    at, length = _span(data, rng)
    half = length // 2
    return data[:at] + data[at + half : at + 2 * half] + data[at : at + half] + data[at + 2 * half :]


def one_bit(data: bytes, rng: Random) -> bytes:
    at = int(rng.integers(len(data)))
    return data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]


def random_bytes(data: bytes, rng: Random) -> bytes:
    at, length = int(rng.integers(len(data))), int(rng.choice([1, 4, 16, 128]))
    return (data[:at] + rng.bytes(length) + data[at + length :])[: len(data)]


def missing_strips(data: bytes, rng: Random) -> bytes:
    """Lose strips or tiles of a TIFF: no offset, no length, an offset behind the end, or another strip's offset."""
    broken, ways = bytearray(data), ("offset", "length", "both", "behind", "other")
    way = str(rng.choice(ways))
    fields = {name: next(filter(None, (_tiff_field(data, tag) for tag in tags))) for name, tags in STRIP_TAGS.items()}
    count = fields["offset"][2]
    lost = rng.choice(count, max(1, round(count * float(rng.uniform(0.06, 0.6)))), replace=False)
    for name, (at, kind, _count) in fields.items():
        values = list(struct.unpack_from(f"<{count}{kind}", data, at))
        for one in map(int, lost):
            if way in (name, "both"):
                values[one] = 0
            elif name == "offset" and way == "behind" and kind != "H":
                values[one] += len(data)
            elif name == "offset" and way == "other":
                values[one] = values[(one + 1) % count]
        struct.pack_into(f"<{count}{kind}", broken, at, *values)
    return bytes(broken)


def _tiff_field(data: bytes, wanted: int) -> tuple[int, str, int] | None:
    """Return where the values of a tag of the first page lie, what they are to `struct`, and how many they are."""
    big = data[2] == 43
    (directory,) = struct.unpack_from("<Q" if big else "<I", data, 8 if big else 4)
    (entries,) = struct.unpack_from("<Q" if big else "<H", data, directory)
    for number in range(entries):
        at = directory + (8 + 20 * number if big else 2 + 12 * number)
        tag, kind, count = struct.unpack_from("<HHQ" if big else "<HHI", data, at)
        if tag == wanted:
            code = {3: "H", 4: "I", 16: "Q"}[kind]
            inline = count * struct.calcsize("<" + code) <= (8 if big else 4)
            value = at + (12 if big else 8)
            return (value if inline else struct.unpack_from("<Q" if big else "<I", data, value)[0]), code, count
    return None


KINDS: dict[str, tuple[Callable[[bytes, Random], bytes], str]] = {  # and the formats that they happen to
    "cut": (cut, ""),
    "cut, then zeros": (cut_then_zeros, ""),
    "cut, then an end mark": (cut_then_ended, "JPEG"),
    "zeroed block": (zeroed, ""),
    "repeated block": (repeated, ""),
    "missing strips": (missing_strips, "TIFF"),
    "lost block": (lost, ""),
    "swapped blocks": (swapped, ""),
    "random bytes": (random_bytes, ""),
    "one bit": (one_bit, ""),
}


# --- what comes of it ------------------------------------------------------------------------------------------------


def changed(pixels: Pixels, wanted: Pixels) -> float:
    """Return the share of the pixels that differ, [0, 1]; 1 for another size."""
    if pixels.shape != wanted.shape:
        return 1.0
    return float((np.abs(pixels.astype(np.int16) - wanted) > LEVELS).any(axis=2).mean())


def lenient(data: bytes) -> Pixels | None:
    """Return what Pillow makes of a file when it is asked to pass over what is missing; None for nothing."""
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except Exception:
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


def read(folder: Path, format_: str, data: bytes) -> Picture | str:
    """Return the first page, or the reason why there is none."""
    path = folder / ("damaged.tga" if format_ == "TGA" else "damaged.image")
    path.write_bytes(data)
    result = next(open_pages(Source(path.name, path), ImageConfig()))  # type: ignore[call-overload]  # an iterator
    return result if isinstance(result, Picture) else str(result.reason)


def flat(picture: Picture) -> float:
    assert picture.quality is not None and picture.quality.flat_rows is not None
    return picture.quality.flat_rows


def mutate(files: list[tuple[str, str, bytes]], number: int, rng: Random, folder: Path) -> dict[str, Any]:
    """Damage files in turn; return the counts by format and kind, and the slowest file."""
    harmful: Counter[tuple[str, str]] = Counter()
    passed: Counter[tuple[str, str]] = Counter()
    whole: list[Picture] = []
    for format_, variant, data in files:
        picture = read(folder, format_, data)
        assert not isinstance(picture, str), f"{format_} {variant}: {picture}"
        whole.append(picture)
    flattest, flattened = max(map(flat, whole)), [0, 0]
    slowest, examples = (0.0, ""), []
    for turn in range(number):
        which = turn % len(files)
        format_, variant, data = files[which]
        kind = str(rng.choice([name for name, (_, of) in KINDS.items() if format_.startswith(of)]))
        broken = KINDS[kind][0](data, rng)
        begun = time.perf_counter()
        got = read(folder, format_, broken)
        slowest = max(slowest, (time.perf_counter() - begun, f"{format_} {variant} {kind}"))
        shown = lenient(broken) if isinstance(got, str) else np.asarray(got.rgb)
        if shown is None or changed(shown, np.asarray(whole[which].rgb)) > SHARE:
            harmful[format_, kind] += 1
            if not isinstance(got, str):
                passed[format_, kind] += 1
                examples.append((turn, format_, variant, kind))
                if format_ in PLAIN and kind in ZEROS:
                    flattened = [flattened[0] + (flat(got) > flattest), flattened[1] + 1]
    return {"harmful": harmful, "passed": passed, "flat": flattened, "slowest": slowest, "examples": examples}


DAMAGE = (  # how reasons begin
    *("truncated", "damaged", "compressed data", "a block of zeros", "cannot be decoded", "cannot be opened:"),
    *("several strips", "a page without a size"),
)
NOT_GOOD = re.compile(r"crash|fuzz|oom-|timeout|(^|/)bad/", re.IGNORECASE)  # files of suites that are broken on purpose


def false_alarms(folder: Path) -> tuple[int, list[str]]:
    """Return how many files of a folder Pillow reads without a complaint, and those that are refused as damaged."""
    number, alarms = 0, []
    for source in find_images(folder).sources:
        try:
            assert not NOT_GOOD.search(source.file_name)
            with Image.open(source.path) as image:
                image.load()
        except Exception:
            continue
        number += 1
        result = next(iter(open_pages(source, ImageConfig())))
        if not isinstance(result, Picture) and result.reason.startswith(DAMAGE):
            alarms.append(f"{source.file_name}: {result.reason}")
    return number, alarms


def _share(found: dict[str, Any], formats: tuple[str, ...], kinds: tuple[str, ...]) -> str:
    both = [
        (found["passed"][key], number)
        for key, number in found["harmful"].items()
        if key[0] in formats and key[1] in kinds
    ]
    passed, harmful = (sum(numbers) for numbers in zip(*both, strict=True)) if both else (0, 0)
    return f"{passed} of {harmful} ({passed / max(1, harmful):.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutations", type=int, default=5000)
    parser.add_argument("--photos", type=Path, default=Path("sample_images/labelled"))
    parser.add_argument("--good", type=Path, action="append", default=[])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    paths = sorted(source.path for source in find_images(args.photos).sources)
    photos = [Image.open(paths[i]).convert("RGB") for i in rng.choice(len(paths), min(64, len(paths)), replace=False)]
    files = list(good_files(photos))
    with tempfile.TemporaryDirectory() as folder:
        found = mutate(files, args.mutations, rng, Path(folder))
    formats = list(dict.fromkeys(format_ for format_, _, _ in files))
    cells = [[f"{found['passed'][one, kind]} / {found['harmful'][one, kind]}" for kind in KINDS] for one in formats]
    print(f"{args.mutations} mutations of {len(files)} good files; read as whole / changed by more than {SHARE:.0%}\n")
    print(table(["", *KINDS], [[one, *row] for one, row in zip(formats, cells, strict=True)]))
    compressed = tuple(one for one in formats if one in ("JPEG", "PNG") or ("TIFF" in one and one not in PLAIN))
    webp = ("WebP lossy", "WebP lossless")
    print("\nread as whole, of those that were changed:")
    for words, these, kinds in (
        ("JPEG, PNG, compressed TIFF: cuts, zeroed or repeated blocks, missing strips", compressed, CHECKED),
        ("plain TIFF: cuts, missing strips", ("TIFF plain",), ("cut", "missing strips")),
        ("PNG: all kinds", ("PNG",), tuple(KINDS)),
        ("Deflate TIFF: all kinds", ("TIFF Deflate",), tuple(KINDS)),
        ("WebP: all kinds", webp, tuple(KINDS)),
        ("apart: bit flips and random bytes in JPEG", ("JPEG",), ("one bit", "random bytes")),
        ("apart: zeros and blocks in pixels without compression", PLAIN, (*ZEROS, "repeated block")),
    ):
        print(f"  {words}: {_share(found, these, kinds)}")
    print("  {} of {} of these zeros left more flat rows than any good file has".format(*found["flat"]))
    print("slowest: {:.2f} s, {}".format(*found["slowest"]))
    alarms = {str(folder): false_alarms(folder) for folder in args.good}
    for folder, (number, names) in alarms.items():
        print(f"{folder}: {len(names)} of {number} good files refused as damaged", *names, sep="\n  ")
    if args.json is not None:
        told = {"examples": found["examples"], "passed": {" | ".join(k): n for k, n in found["passed"].items()}}
        args.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
