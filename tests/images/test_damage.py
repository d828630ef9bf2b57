"""Damage that decoders pass over in silence: none of it may come out as a picture, and nothing whole may be refused."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vlmgate.config import ImageConfig
from vlmgate.data import Picture, Source, Unreadable
from vlmgate.images import open_pages
from vlmgate.images.damage import PngFrames

END = b"\xff\xd9"
Result = Picture | Unreadable


def photo(width: int = 320, height: int = 240, mode: str = "RGB") -> Image.Image:
    """Something like a photograph: blurred noise over a gradient, with a little grain."""
    rng = np.random.default_rng(3)
    noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    soft = np.asarray(noise.filter(ImageFilter.GaussianBlur(4))).astype(int)
    ramp = np.linspace(-60, 60, height).astype(int)[:, None, None]
    grained = soft + ramp + rng.integers(-3, 4, soft.shape)
    return Image.fromarray(np.clip(grained, 0, 255).astype(np.uint8)).convert(mode)


def black_below() -> Image.Image:
    image = np.zeros((480, 640, 3), np.uint8)
    image[:120] = np.asarray(photo(640, 120))
    return Image.fromarray(image)


def encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def results(tmp_path: Path, data: bytes, name: str = "a", pages: str = "first") -> list[Result]:
    path = tmp_path / name
    path.write_bytes(data)
    return list(open_pages(Source(name, path), ImageConfig(pages=pages)))  # type: ignore[arg-type]  # a test's str


def reason(tmp_path: Path, data: bytes) -> str:
    (result,) = results(tmp_path, data)
    assert isinstance(result, Unreadable), "passed for whole"
    return result.reason


def accepted(tmp_path: Path, data: bytes) -> Picture:
    (result,) = results(tmp_path, data)
    assert isinstance(result, Picture), result
    return result


# --- JPEG ------------------------------------------------------------------------------------------------------------

JPEGS: list[dict[str, Any]] = [
    {},
    {"quality": 95, "subsampling": 0},
    {"optimize": True},
    {"quality": 10},
    {"restart_marker_blocks": 7},
    {"restart_marker_rows": 1},
    {"progressive": True},
    {"progressive": True, "quality": 95, "subsampling": 0},
]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", JPEGS, ids=str)
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
def test_a_jpeg_cut_and_properly_ended(tmp_path: Path, mode: str, options: dict[str, Any], kept: float) -> None:
    data = encoded(photo(mode=mode), "JPEG", **options)
    accepted(tmp_path, data)
    cut = data[: int(len(data) * kept)].rstrip(b"\xff")
    for tail in (END, END + bytes(len(data) - len(cut)), END + bytes(5000) + END, b"\xff" * 9 + END):
        assert reason(tmp_path, cut + tail) == "truncated"


@pytest.mark.parametrize("options", [{}, {"quality": 95, "subsampling": 0}, {"optimize": True}], ids=str)
def test_a_jpeg_whose_end_became_zeros(tmp_path: Path, options: dict[str, Any]) -> None:
    data = encoded(photo(), "JPEG", **options)
    for kept in (len(data) // 2, len(data) * 9 // 10):
        for zeros in (100, len(data) - kept, 9 * len(data)):
            assert reason(tmp_path, data[:kept].rstrip(b"\xff") + bytes(zeros) + END).startswith("truncated")


def test_a_marker_in_the_middle_of_a_scan_ends_it(tmp_path: Path) -> None:
    data = bytearray(encoded(photo(), "JPEG", quality=98))
    accepted(tmp_path, bytes(data))
    at = data.index(b"\xff\x00", len(data) // 2)
    for marker in (0x01, 0xC0, 0xC4, 0xD3, 0xD8, 0xDA, 0xDB, 0xDD, 0xFE):
        data[at + 1] = marker
        assert reason(tmp_path, bytes(data)) == "truncated"
    data[at + 1 : at + 1] = b"\xda\x00\x0c\x03\x01\x00\x02\x11\x03\x11\x00\x3f\x00"  # as a second scan would begin
    assert reason(tmp_path, bytes(data)) == "truncated"


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 16), (17, 33), (640, 480)])
@pytest.mark.parametrize("options", JPEGS, ids=str)
def test_whole_jpegs_come_out_as_ever(tmp_path: Path, size: tuple[int, int], options: dict[str, Any]) -> None:
    flat = [Image.new("RGB", size, (grey,) * 3) for grey in (0, 128, 255)]
    half_grey = photo(*size)
    half_grey.paste((128, 128, 128), (0, size[1] // 2, *size))
    for image in (photo(*size), *flat, half_grey, half_grey.convert("L"), half_grey.convert("CMYK")):
        data = encoded(image, "JPEG", **options)
        with Image.open(io.BytesIO(data)) as wanted:
            assert np.array_equal(np.asarray(accepted(tmp_path, data).rgb), np.asarray(wanted.convert("RGB")))


def test_a_jpeg_may_be_padded_before_its_end(tmp_path: Path) -> None:
    for options in JPEGS:
        data = encoded(photo(), "JPEG", **options)
        accepted(tmp_path, data[:-2] + bytes(512) + END)
        accepted(tmp_path, data[:-2] + b"\xff" * 512 + END)
        accepted(tmp_path, data + bytes(512))
    ends_in_a_zero = encoded(Image.new("RGB", (16, 24), (128,) * 3), "JPEG")
    assert ends_in_a_zero.endswith(b"\0" + END)  # or this tests nothing
    for zeros in (16, 512):
        accepted(tmp_path, ends_in_a_zero[:-2] + bytes(zeros) + END)


@pytest.mark.parametrize("options", JPEGS, ids=str)
def test_a_jpeg_with_a_block_of_zeros_or_without_a_piece(tmp_path: Path, options: dict[str, Any]) -> None:
    data = encoded(photo(), "JPEG", **options)
    at = len(data) * 2 // 3
    for broken in (data[:at] + bytes(512) + data[at + 512 :], data[: at - 700] + data[at:]):
        assert reason(tmp_path, broken).startswith(("truncated", "corrupt image data"))


def test_a_progressive_jpeg_that_broke_off_between_scans(tmp_path: Path) -> None:
    data = encoded(photo(), "JPEG", progressive=True)
    scans = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    assert len(scans) > 5
    for start in scans:
        assert reason(tmp_path, data[:start] + END) == "truncated"


def test_headers_that_only_a_strict_decoder_minds(tmp_path: Path) -> None:
    for data in (encoded(photo(), "JPEG"), encoded(photo(), "JPEG", progressive=True)):
        accepted(tmp_path, data.replace(b"JFIF\0\x01", b"JFIF\0\x02", 1))  # a version that nobody knows
        table = data.index(b"\xff\xdb")
        accepted(tmp_path, data[:table] + b"\0\x01\x02" + data[table:])
        accepted(tmp_path, data[:-2] + b"\x12\x34\x56\x78" + END)  # some cameras leave bytes behind the scan
    data = encoded(photo(), "JPEG")
    assert data.count(b"\x00\x3f\x00") == 1  # from the first coefficient to the last: what a baseline scan has to say
    accepted(tmp_path, data.replace(b"\x00\x3f\x00", b"\x00\x00\x00"))


@pytest.mark.parametrize("options", JPEGS, ids=str)
def test_a_jpeg_that_the_strict_decoder_does_not_take(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmgate.images.damage._jpeg_warning", lambda data: "Could not determine subsampling level")
    data = encoded(photo(), "JPEG", **options)
    accepted(tmp_path, data)
    accepted(tmp_path, data[:-2] + bytes(512) + END)
    for kept in (0.2, 0.5, 0.9):
        cut = data[: int(len(data) * kept)].rstrip(b"\xff")
        for tail in (END, b"\xff" * 9 + END, bytes(len(data) - len(cut)) + END):
            assert reason(tmp_path, cut + tail).startswith("truncated")


def test_a_flat_jpeg_that_rightly_ends_in_zeros(tmp_path: Path) -> None:
    for options in ({"optimize": True}, {"optimize": True, "subsampling": 0}):
        for height in range(470, 480):
            accepted(tmp_path, encoded(black_below().crop((0, 0, 640, height)), "JPEG", **options))


def test_every_picture_of_an_mpo_is_held_to_its_scan(tmp_path: Path) -> None:
    first, *others = (photo().rotate(turn) for turn in (0, 90, 180))
    data = encoded(first, "MPO", save_all=True, append_images=others)
    assert all(isinstance(result, Picture) for result in results(tmp_path, data, pages="all"))
    starts = [at for at in range(len(data)) if data.startswith(b"\xff\xd8\xff", at)]
    cut = (starts[1] + starts[2]) // 2
    broken = data[:cut] + END + bytes(starts[2] - cut - 2) + data[starts[2] :]
    found = results(tmp_path, broken, pages="all")
    assert [isinstance(result, Picture) for result in found][:2] == [True, False]


# --- PNG -------------------------------------------------------------------------------------------------------------


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, pixels: bytes, *, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    packed = zlib.compress(pixels)
    parts = [chunk(b"IDAT", packed[at : at + 700]) for at in range(0, len(packed), 700)]
    palette = chunk(b"PLTE", bytes(range(48))) if colour == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + palette + b"".join(parts) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("depth", "colour", "stride"),
    [(8, 2, 111), (8, 0, 37), (1, 0, 5), (4, 3, 19), (16, 2, 222), (16, 0, 74), (8, 6, 148)],
)
def test_a_png_whose_rows_end_early(tmp_path: Path, depth: int, colour: int, stride: int) -> None:
    rng = np.random.default_rng(0)
    rows = [b"\0" + rng.integers(0, 256, stride, dtype=np.uint8).tobytes() for _ in range(100)]
    accepted(tmp_path, png(37, 100, b"".join(rows), depth=depth, colour=colour))
    accepted(tmp_path, png(37, 100, b"".join(rows) + b"more than is needed", depth=depth, colour=colour))
    for kept in (0, 1, 50, 99):
        assert reason(tmp_path, png(37, 100, b"".join(rows[:kept]), depth=depth, colour=colour)) == "truncated"
    assert reason(tmp_path, png(37, 100, b"".join(rows)[:-1], depth=depth, colour=colour)) == "truncated"


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 5), (9, 1), (1, 9), (37, 41)])
def test_an_interlaced_png_whose_rows_end_early(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    counts = {
        "x": [0, 4, 0, 2, 0, 1, 0],
        "dx": [8, 8, 4, 4, 2, 2, 1],
        "y": [0, 0, 4, 0, 2, 0, 1],
        "dy": [8, 8, 8, 4, 4, 2, 2],
    }
    pixels = b""
    for x, dx, y, dy in zip(*counts.values(), strict=True):
        columns, rows = len(range(x, width, dx)), len(range(y, height, dy))
        pixels += (b"\0" + b"\x55" * 3 * columns) * rows if columns else b""
    assert accepted(tmp_path, png(width, height, pixels, interlace=1)).rgb.getextrema() == ((0x55, 0x55),) * 3
    assert reason(tmp_path, png(width, height, pixels[:-1], interlace=1)) == "truncated"
    assert reason(tmp_path, png(width, height, pixels[: len(pixels) // 2], interlace=1)) == "truncated"


def test_a_frame_of_an_animated_png_whose_rows_end_early(tmp_path: Path) -> None:
    first, *others = (photo(40, 30).rotate(turn) for turn in (0, 90, 180))
    data = encoded(first, "PNG", save_all=True, append_images=others)
    assert all(isinstance(result, Picture) for result in results(tmp_path, data, pages="all"))
    at = data.index(b"fdAT", data.index(b"fdAT") + 4)
    (length,) = struct.unpack(">I", data[at - 4 : at])
    inflated = zlib.decompress(data[at + 8 : at + 4 + length])
    short = chunk(b"fdAT", data[at + 4 : at + 8] + zlib.compress(inflated[: len(inflated) // 2]))
    found = results(tmp_path, data[: at - 4] + short + data[at + 8 + length :], pages="all")
    assert [isinstance(result, Picture) for result in found] == [True, True, False]


def test_counting_the_rows_of_a_png_takes_little_memory() -> None:
    frames = PngFrames(io.BytesIO(png(8000, 2000, bytes(24001 * 2000))))
    tracemalloc.start()
    frames.check(1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20  # bytes, of 48 million


def test_a_png_that_inflates_without_end(tmp_path: Path) -> None:
    accepted(tmp_path, png(10, 10, bytes(31 * 10) + bytes(50_000_000)))


# --- GIF -------------------------------------------------------------------------------------------------------------


def gif(frames: int = 3) -> bytes:
    first, *others = (photo(40, 30).rotate(45 * turn).quantize(64) for turn in range(frames))
    return encoded(first, "GIF", save_all=True, append_images=others, duration=50)


def test_frames_that_a_cut_gif_lost_are_told(tmp_path: Path) -> None:
    data = gif()
    assert [isinstance(result, Picture) for result in results(tmp_path, data, pages="all")] == [True] * 3
    assert accepted(tmp_path, data).file.conversion is None
    accepted(tmp_path, data + bytes(300))
    second = data.index(b"\x21\xf9\x04", data.index(b"\x21\xf9\x04") + 1)
    for cut in (data[:second], data[:second] + bytes(100), data[:second] + b"garbage", data[: second + 4]):
        one, two = results(tmp_path, cut, pages="all")
        assert isinstance(one, Picture)
        assert isinstance(two, Unreadable)
        assert "damaged after page 1" in str(accepted(tmp_path, cut).file.conversion)
    assert isinstance(results(tmp_path, data[:-1], pages="all")[-1], Unreadable)


def test_a_gif_cut_within_a_frame(tmp_path: Path) -> None:
    data = gif(1)
    assert reason(tmp_path, data[: len(data) // 2]) == "truncated"
    three = gif(3)
    found = results(tmp_path, three[: len(three) - 40], pages="all")
    assert [isinstance(result, Picture) for result in found] == [True, True, False]


# --- zeros at the end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [64, 100, 3000])
@pytest.mark.parametrize(
    ("format_", "options"), [("AVIF", {}), ("JPEG2000", {}), ("QOI", {}), ("WEBP", {"quality": 80})], ids=str
)
def test_a_file_that_ends_in_zeros(tmp_path: Path, format_: str, options: dict[str, Any], zeros: int) -> None:
    data = encoded(photo(1200, 800), format_, **options)
    assert reason(tmp_path, data[:-zeros] + bytes(zeros)).startswith(("truncated", "corrupt"))


def test_a_lossless_webp_that_ends_in_zeros(tmp_path: Path) -> None:
    data = encoded(photo(), "WEBP", lossless=True)
    for kept in (0.3, 0.5, 0.9):
        cut = data[: int(len(data) * kept)]
        assert reason(tmp_path, cut + bytes(len(data) - len(cut)))


def test_an_animated_webp_that_ends_in_zeros(tmp_path: Path) -> None:
    first, *others = (photo().rotate(turn) for turn in (0, 90, 180))
    data = encoded(first, "WEBP", save_all=True, append_images=others)
    assert all(isinstance(result, Picture) for result in results(tmp_path, data, pages="all"))
    for kept in (0.4, 0.6, 0.95):
        cut = data[: int(len(data) * kept)]
        found = results(tmp_path, cut + bytes(len(data) - len(cut)), pages="all")
        assert any(isinstance(result, Unreadable) for result in found)


def test_a_whole_webp_may_end_in_zeros(tmp_path: Path) -> None:
    data = encoded(black_below(), "WEBP", lossless=True, quality=0, method=0)
    assert data.endswith(bytes(3000))  # or this test tests nothing
    accepted(tmp_path, data)
    lossy = encoded(black_below().resize((1600, 1200), Image.Resampling.NEAREST), "WEBP", quality=95, method=0)
    assert lossy.endswith(bytes(9000))
    accepted(tmp_path, lossy)
    for exif in (bytes(4000), b"Exif\0\0MM\0*\0\0\0\x08\0\0" + bytes(4000)):
        accepted(tmp_path, encoded(photo(), "WEBP", exif=exif))


MAKERS: list[Callable[[int, int], Image.Image]] = [
    photo,
    lambda width, height: Image.new("RGB", (width, height)),
    lambda width, height: Image.new("RGB", (width, height), (255, 255, 255)),
    lambda width, height: Image.merge("RGBA", (*photo(width, height).split(), Image.new("L", (width, height)))),
    lambda width, height: black_below().resize((width, height), Image.Resampling.NEAREST),
]


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (64, 64), (257, 129)])
def test_what_encoders_write_is_never_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    for image in (maker(*size) for maker in MAKERS):
        for format_, options in [
            *(
                ("WEBP", {"quality": q, "method": m, "lossless": lossless})
                for q in (0, 60)
                for m in (0, 4)
                for lossless in (False, True)
            ),
            *(("AVIF", {"quality": q, "speed": 10}) for q in (1, 60, 100)),
            ("QOI", {}),
            ("JPEG2000", {}),
            ("PNG", {}),
            ("PNG", {"optimize": True}),
        ]:
            accepted(tmp_path, encoded(image, format_, **options))
