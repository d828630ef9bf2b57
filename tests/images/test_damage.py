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
from PIL import Image, ImageFilter, TiffImagePlugin

from vlmgate.config import ImageConfig
from vlmgate.data import Picture, Source, Unreadable
from vlmgate.images import open_pages, read_ahead
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
        assert reason(tmp_path, broken).startswith(("truncated", "damaged JPEG data: "))


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
    monkeypatch.setattr("vlmgate.images.jpeg._decode", lambda data: ("Could not determine subsampling level", None))
    data = encoded(photo(), "JPEG", **options)
    accepted(tmp_path, data)
    accepted(tmp_path, data[:-2] + bytes(512) + END)
    for kept in (0.2, 0.5, 0.9):
        cut = data[: int(len(data) * kept)].rstrip(b"\xff")
        for tail in (END, b"\xff" * 9 + END, bytes(len(data) - len(cut)) + END):
            assert reason(tmp_path, cut + tail).startswith("truncated")


@pytest.mark.parametrize("zeros", [512, 4096])
def test_zeros_in_a_jpeg_of_high_quality(tmp_path: Path, zeros: int) -> None:
    """There, zeros decode to something nearly always; what tells is that data are left over or lacking."""
    data = encoded(photo(640, 480), "JPEG", quality=95)
    start = data.index(b"\xff\xda") + 14
    places = range(start, len(data) - zeros - 2, (len(data) - start) // 36)
    passed = [
        at for at in places if isinstance(results(tmp_path, data[:at] + bytes(zeros) + data[at + zeros :])[0], Picture)
    ]
    assert len(places) >= 30 and len(passed) <= 1


def test_blocks_brighter_than_white_are_damage(tmp_path: Path) -> None:
    """Codes that were changed and still make sense shift all that follows: brightness is stored as differences."""
    soft = np.asarray(photo(640, 480).filter(ImageFilter.GaussianBlur(6))).astype(float)
    image = Image.fromarray(((soft - 128) * 6 + 128 + np.asarray(photo(640, 480)) / 10).clip(0, 255).astype(np.uint8))
    for options in ({"quality": 75}, {"quality": 85, "subsampling": 0}, {"quality": 95}):
        data = encoded(image, "JPEG", **options)
        accepted(tmp_path, data)
        start = data.index(b"\xff\xda") + 14
        places = range(start, len(data) - 200, len(data) // 60)
        swapped = (data[:at] + data[at + 60 : at + 90] + data[at : at + 60] + data[at + 90 :] for at in places)
        found = [result for broken in swapped for result in results(tmp_path, broken)]
        reasons = [result.reason for result in found if isinstance(result, Unreadable)]
        assert sum("brighter than white" in one for one in reasons) >= 5
        assert len(found) - len(reasons) <= len(found) // 5


@pytest.mark.parametrize("quality", [1, 5, 20, 60, 95, 100])
def test_black_and_white_are_no_brighter_than_white(tmp_path: Path, quality: int) -> None:
    checks = Image.fromarray(np.kron(np.indices((9, 9)).sum(axis=0) % 2 * 255, np.ones((11, 13))).astype(np.uint8))
    for image in (checks, checks.convert("RGB"), checks.convert("CMYK"), Image.new("L", (64, 64), 255)):
        accepted(tmp_path, encoded(image, "JPEG", quality=quality))
        accepted(tmp_path, encoded(image, "JPEG", quality=quality, progressive=True))


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


# --- TIFF ------------------------------------------------------------------------------------------------------------

KINDS_OF_TIFF: list[dict[str, Any]] = [
    {"compression": None},
    {"compression": "tiff_lzw"},
    {"compression": "tiff_adobe_deflate"},
    {"compression": "packbits"},
    {"compression": "jpeg"},
    {"compression": "group4"},
    {"compression": "group3"},
]


def tiff(compression: str | None, rows: int = 16) -> bytes:
    """A page of many strips."""
    image = photo(mode="1" if str(compression).startswith("group") else "RGB")
    strips = {"strip_size": rows * image.width * 3} if compression else {}
    return encoded(image, "TIFF", compression=compression, tiffinfo={278: rows}, **strips)


def placed(data: bytes, tag: int) -> tuple[int, int, str]:
    """Return where the values of a tag of the first page lie, how many they are, and their letter for `struct`."""
    (directory,) = struct.unpack_from("<I", data, 4)
    for entry in range(struct.unpack_from("<H", data, directory)[0]):
        at = directory + 2 + 12 * entry
        number, kind, count = struct.unpack_from("<HHI", data, at)
        if number == tag:
            letter = {3: "H", 4: "I"}[kind]
            inline = count * struct.calcsize(letter) <= 4
            return (at + 8 if inline else struct.unpack_from("<I", data, at + 8)[0]), count, letter
    raise AssertionError(tag)


def with_values(data: bytes, tag: int, change: Callable[[list[int]], list[int]]) -> bytes:
    at, count, letter = placed(data, tag)
    broken = bytearray(data)
    struct.pack_into(f"<{count}{letter}", broken, at, *change(list(struct.unpack_from(f"<{count}{letter}", data, at))))
    return bytes(broken)


def uncompressed(rows: int = 16) -> bytes:
    """A plain TIFF of many strips, which Pillow cannot be made to write."""
    pixels = np.asarray(photo())
    strips = [pixels[top : top + rows].tobytes() for top in range(0, len(pixels), rows)]
    offsets = list(np.cumsum([8, *map(len, strips)]))
    entries = [(256, 3, [320]), (257, 3, [240]), (258, 3, [8, 8, 8]), (259, 3, [1]), (262, 3, [2])]
    entries += [(273, 4, offsets[:-1]), (277, 3, [3]), (278, 3, [rows]), (279, 4, list(map(len, strips)))]
    directory, extra = b"", b""
    after = int(offsets[-1]) + 2 + 12 * len(entries) + 4
    for tag, kind, values in entries:
        packed = struct.pack(f"<{len(values)}{'HI'[kind == 4]}", *values)
        if len(packed) > 4:
            packed, extra = struct.pack("<I", after + len(extra)), extra + packed
        directory += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", offsets[-1])
    return head + b"".join(strips) + struct.pack("<H", len(entries)) + directory + bytes(4) + extra


@pytest.mark.parametrize("data", [uncompressed(), tiff("tiff_adobe_deflate"), tiff("tiff_lzw"), tiff("jpeg")])
def test_a_tiff_with_missing_strips(tmp_path: Path, data: bytes) -> None:
    accepted(tmp_path, data)
    every_third = [lambda values: [0 if i % 3 == 1 else value for i, value in enumerate(values)]] * 2
    for tag, change, words in (
        (273, every_third[0], "were never written"),
        (279, every_third[1], "were never written"),
        (273, lambda values: [*values[:-1], len(data) + 100], "behind the end"),
        (279, lambda values: [*values[:-1], len(data)], "behind the end"),
        (273, lambda values: [values[0], values[0], *values[2:]], "on the same bytes"),
    ):
        broken = with_values(data, tag, change)
        if broken[:4] == b"II*\0" and (tag, words) == (279, "behind the end") and data == uncompressed():
            accepted(tmp_path, broken)  # a length beyond its pixels, which are all there
        else:
            assert words in reason(tmp_path, broken)
    fewer = bytearray(data)
    at = data.index(struct.pack("<H", 273), struct.unpack_from("<I", data, 4)[0])
    (count,) = struct.unpack_from("<I", data, at + 4)
    struct.pack_into("<I", fewer, at + 4, count - 4)
    assert f"4 of {count} strips are not listed" in reason(tmp_path, bytes(fewer))


def test_strips_shorter_than_their_pixels(tmp_path: Path) -> None:
    shorter = with_values(uncompressed(), 279, lambda values: [values[0] // 2, *values[1:]])
    assert "shorter than their pixels" in reason(tmp_path, shorter)


@pytest.mark.parametrize("options", KINDS_OF_TIFF[1:], ids=str)
def test_a_compressed_tiff_with_a_block_of_zeros(
    tmp_path: Path, options: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    data = tiff(options["compression"])
    wanted = np.asarray(accepted(tmp_path, data).rgb)
    changed = refused = 0
    for at in range(200, len(data) - 2000, 1777):
        (result,) = results(tmp_path, data[:at] + bytes(512) + data[at + 512 :])
        if isinstance(result, Unreadable):
            refused += 1
            assert result.reason.startswith(("compressed data", "truncated", "damaged JPEG"))
        else:
            changed += bool((np.asarray(result.rgb) != wanted).any(axis=2).mean() > 0.05)
    assert refused >= 3 and not changed
    assert capfd.readouterr().err == ""  # libtiff writes to the terminal otherwise


def test_a_deflate_strip_whose_checksum_is_another_one(tmp_path: Path) -> None:
    data = tiff("tiff_adobe_deflate", rows=240)
    (offset,), (length,) = (struct.unpack_from(f"<1{letter}", data, at) for at, _, letter in map(
        lambda tag: placed(data, tag), (273, 279)
    ))  # fmt: skip
    broken = bytearray(data)
    broken[offset + length - 1] ^= 1
    assert "do not inflate: strip or tile 1 of 1" in reason(tmp_path, bytes(broken))


def test_the_page_is_read_and_not_its_thumbnail(tmp_path: Path) -> None:
    small, whole = photo().resize((40, 30)), photo()

    def pages(marks: tuple[int, int]) -> bytes:
        buffer = io.BytesIO()
        with TiffImagePlugin.AppendingTiffWriter(buffer, True) as writer:
            for image, mark in zip((small, whole), marks, strict=True):
                image.save(writer, "TIFF", tiffinfo={254: mark})
                writer.newFrame()
        return buffer.getvalue()

    for marks, page in (((1, 0), 2), ((0, 0), 1), ((0, 1), 1), ((1, 1), 2)):  # all are called small: the largest
        file = accepted(tmp_path, pages(marks)).file
        assert (file.page, file.num_pages, file.width) == (page, 2, (40, 320)[page - 1])
        assert ("small copy" in str(file.conversion)) == (marks == (1, 1))
        every = results(tmp_path, pages(marks), pages="all")
        assert [result.file.page for result in every if isinstance(result, Picture)] == [1, 2]


def test_camera_raw_under_the_name_of_a_tiff(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    photo().resize((40, 30)).save(buffer, "TIFF", tiffinfo={254: 1, 330: 8})
    assert "camera raw" in reason(tmp_path, buffer.getvalue())


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
    assert reason(tmp_path, data[:-zeros] + bytes(zeros)).startswith(
        ("truncated", "a block of zeros", "damaged", "cannot be decoded")
    )


def test_a_lossless_webp_that_ends_in_zeros(tmp_path: Path) -> None:
    data = encoded(photo(), "WEBP", lossless=True)
    for kept in (0.3, 0.5, 0.9):
        cut = data[: int(len(data) * kept)]
        assert reason(tmp_path, cut + bytes(len(data) - len(cut)))


@pytest.mark.parametrize(
    ("options", "most"), [({"quality": 80}, 0.02), ({"quality": 95}, 0.1), ({"lossless": True}, 0.25)]
)
def test_a_webp_whose_data_were_changed(tmp_path: Path, options: dict[str, Any], most: float) -> None:
    """Damaged data decode to something; but then more of them are needed, or fewer, than there are."""
    data = encoded(photo(), "WEBP", **options)
    wanted = np.asarray(accepted(tmp_path, data).rgb).astype(int)
    passed = 0
    places = range(200, len(data) - 700, max(1, len(data) // 40))
    for at in places:
        for block in (bytes(512), data[at - 100 : at + 412]):
            (result,) = results(tmp_path, data[:at] + block + data[at + 512 :])
            if isinstance(result, Picture):
                passed += bool((np.abs(np.asarray(result.rgb) - wanted) > 8).any(axis=2).mean() > 0.05)
    assert passed <= len(places) * 2 * most


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


@pytest.mark.parametrize(("format_", "zeros"), [("AVIF", 64), ("JPEG2000", 512)])
def test_a_block_of_zeros_in_entropy_coded_data(tmp_path: Path, format_: str, zeros: int) -> None:
    data = encoded(photo(1200, 800), format_)
    for at in range(len(data) // 3, len(data) - zeros - 10, len(data) // 7):
        assert "zeros" in reason(tmp_path, data[:at] + bytes(zeros) + data[at + zeros :])
    for grey in (0, 128, 255):
        accepted(tmp_path, encoded(Image.new("RGB", (1500, 1500), (grey,) * 3), format_))


def test_a_qoi_whose_data_were_changed(tmp_path: Path) -> None:
    data = encoded(photo(), "QOI")
    accepted(tmp_path, data)
    accepted(tmp_path, data + bytes(100))
    for at in range(100, len(data) - 600, len(data) // 9):
        assert reason(tmp_path, data[:at] + bytes(512) + data[at + 512 :]).startswith(("damaged QOI", "truncated"))


def test_zeros_in_the_metadata_of_an_avif_are_no_damage(tmp_path: Path) -> None:
    accepted(tmp_path, encoded(photo(), "AVIF", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0" + bytes(4000), xmp=bytes(500)))


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


# --- files that claim too much ---------------------------------------------------------------------------------------


def directory(tags: dict[int, int], rows: int = 0, after: int = 0) -> bytes:
    """A TIFF directory of LONG values, some empty rows behind them, and where the next one lies."""
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return struct.pack("<H", len(tags) + rows) + body + bytes(12 * rows) + struct.pack("<I", after)


SMALL = {256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: 4, 278: 4, 279: 16}


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("bands", [4097, 65536, 2**32 - 1])
def test_a_tiff_that_claims_channels_without_end(tmp_path: Path, bands: int, planar: int) -> None:
    data = b"II*\0" + struct.pack("<I", 8) + directory({**SMALL, 277: bands, 284: planar})
    tracemalloc.start()
    try:
        assert f"{bands:,} channels" in reason(tmp_path, data)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


WHOLE = {"AVIF": {}, "JPEG2000": {}, "WEBP": {"lossless": True}, "QOI": {}, "JPEG": {"quality": 95}, "PNG": {}}


@pytest.mark.parametrize("format_", WHOLE)
def test_a_large_file_is_admitted_before_it_is_read_whole(
    tmp_path: Path, format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(encoded(photo(), format_, **WHOLE[format_]))
    for module in ("pages", "container", "memory"):
        monkeypatch.setattr(f"vlmgate.images.{module}.IN_MEMORY", 0)
    source = Source("a", tmp_path / "a")
    (read,) = open_pages(source, ImageConfig(image_memory=0.1))
    assert isinstance(read, Picture)
    for opened in list(read_ahead([source] * 20, ImageConfig(image_memory=0.004, workers=3))):
        assert isinstance(opened.result, Picture)

    def checked(_stream: object, _kind: str) -> None:
        raise AssertionError("read before there was room")

    monkeypatch.setattr("vlmgate.images.container.check_integrity", checked)
    (refused,) = open_pages(source, ImageConfig(image_memory=1e-6))
    assert isinstance(refused, Unreadable)
    assert "needs more memory than images may take" in refused.reason and "see --image-memory" in refused.reason


def test_a_jpeg_with_tables_without_end(tmp_path: Path) -> None:
    whole = encoded(photo(), "JPEG")
    few, many = (whole[:2] + b"\xff\xdd\0\4\0\0" * times + whole[2:] for times in (1000, 5000))
    accepted(tmp_path, few)
    assert reason(tmp_path, many) == "a JPEG whose header has more than 4,096 tables"


def test_a_jpeg_with_scans_without_end(tmp_path: Path) -> None:
    whole = encoded(photo(64, 64), "JPEG", progressive=True)
    last = whole.rfind(b"\xff\xda")
    assert reason(tmp_path, whole[:-2] + whole[last:-2] * 600 + whole[-2:]) == "a JPEG of more than 500 scans"


def test_directories_with_tags_without_end(tmp_path: Path) -> None:
    wanted = "a TIFF whose directories have more tags than any writer makes"
    assert reason(tmp_path, b"II*\0" + struct.pack("<I", 8) + directory(SMALL, rows=5000)) == wanted
    # Each directory begins 8 bytes behind the one before, and its rows hold those that follow.
    pages, rows = 1000, 4000
    body = bytearray(8 + 8 * pages + 12 * rows + 8)
    for page in range(pages):
        struct.pack_into("<H", body, 8 + 8 * page, rows)
        struct.pack_into("<I", body, 8 + 8 * page + 2 + 12 * rows, 16 + 8 * page)
    body[:8] = b"II*\0" + struct.pack("<I", 8)
    assert len(body) < 60_000
    assert reason(tmp_path, bytes(body)) == wanted
