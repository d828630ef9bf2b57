"""What a file on disk becomes: upright 8-bit RGB, or a reason. Files are built here, pixels are asserted."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from vlmgate.config import ImageConfig
from vlmgate.data import Picture, Source, Unreadable
from vlmgate.images import open_pages
from vlmgate.images import pages as opening
from vlmgate.images.depth import to_8_bits

ALL = ImageConfig(pages="all")
COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [200, 100, 50]], [[0, 0, 0], [255, 255, 255]]], np.uint8)
RGB = np.kron(COLOURS, np.ones((16, 16, 1), np.uint8))  # (48, 32, 3), six squares, no symmetry
LOSSLESS = ["a.png", "a.bmp", "a.dib", "a.tif", "a.ppm", "a.gif", "a.tga", "a.pcx", "a.qoi", "a.sgi", "a.jp2", "a.j2k"]
RAMP_12 = (np.arange(64 * 64).reshape(64, 64)).astype(np.uint16)  # 0..4095 in 16 bits


def read(path: Path, config: ImageConfig = ImageConfig()) -> Picture | Unreadable:  # noqa: B008 - frozen
    (result,) = open_pages(Source(path.name, path), config)
    return result


def picture(path: Path, config: ImageConfig = ImageConfig()) -> Picture:  # noqa: B008 - frozen
    result = read(path, config)
    assert isinstance(result, Picture), result
    assert result.rgb.mode == "RGB"
    assert (result.file.width, result.file.height) == result.rgb.size
    return result


def pixels(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(picture(path).rgb)


def reason(path: Path, config: ImageConfig = ImageConfig()) -> str:  # noqa: B008 - frozen
    result = read(path, config)
    assert isinstance(result, Unreadable), result
    assert "\n" not in result.reason
    return result.reason


def write_tiff(path: Path, planes: list[bytes], size: tuple[int, int], *, order: str = "<", **tags: Any) -> Path:
    """Write an uncompressed TIFF of one strip per plane; tags are given as t<number>=value or (values), all SHORT."""
    entries = {256: size[0], 257: size[1], 259: 1, 262: 1, 277: 1, 278: size[1]}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    data = b"".join(planes)
    extra = b""
    offsets = [8 + sum(map(len, planes[:i])) for i in range(len(planes))]
    rows = []
    for number, kind, values in sorted(
        [(number, 3, value if isinstance(value, tuple) else (value,)) for number, value in entries.items()]
        + [(273, 4, tuple(offsets)), (279, 4, tuple(map(len, planes)))]
    ):
        packed = struct.pack(f"{order}{len(values)}{'HI'[kind == 4]}", *values)
        if len(packed) > 4:
            packed, extra = struct.pack(order + "I", 8 + len(data) + len(extra)), extra + packed
        rows.append(struct.pack(order + "HHI", number, kind, len(values)) + packed.ljust(4, b"\0"))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data) + len(extra))
    directory = struct.pack(order + "H", len(rows)) + b"".join(rows) + bytes(4)
    path.write_bytes(head + data + extra + directory)
    return path


# --- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_give_the_very_pixels(tmp_path: Path, name: str) -> None:
    Image.fromarray(RGB).save(tmp_path / name)
    assert np.array_equal(pixels(tmp_path / name), RGB)


@pytest.mark.parametrize(("name", "options"), [("a.webp", {"lossless": True}), ("a.tif", {"compression": "tiff_lzw"})])
def test_lossless_options(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    Image.fromarray(RGB).save(tmp_path / name, **options)
    assert np.array_equal(pixels(tmp_path / name), RGB)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.avif"])
def test_lossy_formats_come_close(tmp_path: Path, name: str) -> None:
    Image.fromarray(RGB).save(tmp_path / name, quality=95)
    assert np.abs(pixels(tmp_path / name).astype(int) - RGB).mean() < 8


def test_the_picture_knows_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    file = picture(path).file
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (file.file_name, file.path, file.page, file.num_pages) == ("a.png", path, 1, 1)
    assert (file.width, file.height, file.mode, file.conversion) == (32, 48, "RGB", None)
    assert (file.size_bytes, file.mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)


def test_the_picture_holds_no_file(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    rgb = picture(tmp_path / "a.png").rgb
    (tmp_path / "a.png").unlink()
    assert not hasattr(rgb, "fp")
    rgb.copy().load()


def test_the_picture_is_not_turned_twice_by_the_next_library(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.png", "a.jpg", "a.tif", "a.webp"):
        Image.fromarray(RGB).save(tmp_path / name, exif=exif)
        rgb = picture(tmp_path / name).rgb
        assert rgb.info == {}
        assert ImageOps.exif_transpose(rgb).size == rgb.size == (48, 32)


def test_content_decides_not_the_extension(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "really_png.jpg", format="PNG")
    assert np.array_equal(pixels(tmp_path / "really_png.jpg"), RGB)
    Image.fromarray(RGB).save(tmp_path / "phone.heic", format="JPEG")
    assert picture(tmp_path / "phone.heic").file.mode == "RGB"


def test_grey_palette_and_one_bit(tmp_path: Path) -> None:
    grey = RGB[..., 0]
    for name in ("g.png", "g.jpg", "g.pgm", "g.tif", "g.bmp"):
        Image.fromarray(grey).save(tmp_path / name)
        got = pixels(tmp_path / name)
        assert np.abs(got.astype(int) - grey[..., None]).max() <= 2
        assert picture(tmp_path / name).file.mode == "L"
    Image.fromarray(RGB).quantize(6).save(tmp_path / "p.png")
    assert np.array_equal(pixels(tmp_path / "p.png"), RGB)
    for name in ("1.png", "1.tif", "1.pbm", "1.bmp"):
        Image.fromarray(RGB[..., 1] > 128).save(tmp_path / name)
        assert np.array_equal(pixels(tmp_path / name), np.repeat((RGB[..., 1:2] > 128) * np.uint8(255), 3, 2))


def test_cmyk_jpeg_is_not_a_negative(tmp_path: Path) -> None:
    white = Image.new("RGB", (32, 32), (250, 250, 250)).convert("CMYK")
    white.save(tmp_path / "c.jpg")  # Pillow writes the Adobe marker and inverted values
    assert pixels(tmp_path / "c.jpg").min() > 240
    assert "CMYK" in str(picture(tmp_path / "c.jpg").file.conversion)
    white.save(tmp_path / "c.tif")
    assert pixels(tmp_path / "c.tif").min() > 240


def test_lab_tiff(tmp_path: Path) -> None:
    lab = np.zeros((4, 4, 3), np.uint8)
    lab[..., 0] = 255  # L* = 100, a* = b* = 0: white
    write_tiff(tmp_path / "lab.tif", [lab.tobytes()], (4, 4), t258=(8, 8, 8), t262=8, t277=3)
    assert pixels(tmp_path / "lab.tif").min() >= 253
    assert "Lab" in str(picture(tmp_path / "lab.tif").file.conversion)


def test_one_pixel_and_extreme_shapes(tmp_path: Path) -> None:
    for width, height in ((1, 1), (1, 20000), (20000, 1)):
        Image.new("RGB", (width, height), (10, 20, 30)).save(tmp_path / "a.png")
        assert picture(tmp_path / "a.png").rgb.size == (width, height)


# --- alpha -----------------------------------------------------------------------------------------------------------


def test_alpha_is_laid_on_mid_grey_and_recorded(tmp_path: Path) -> None:
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    rgba[:16, :16, 3] = 0
    for name in ("a.png", "a.tif", "a.webp", "a.tga"):
        Image.fromarray(rgba).save(tmp_path / name, **({"lossless": True, "exact": True} if "webp" in name else {}))
        got = picture(tmp_path / name)
        assert got.rgb.getpixel((5, 5)) == (128, 128, 128), name
        assert np.array_equal(np.asarray(got.rgb)[16:], RGB[16:])
        assert "mid-grey" in str(got.file.conversion)


def test_opaque_alpha_changes_nothing(tmp_path: Path) -> None:
    Image.fromarray(RGB).convert("RGBA").save(tmp_path / "a.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), RGB)
    assert picture(tmp_path / "a.png").file.conversion is None


def test_an_unused_alpha_channel_does_not_hide_the_image(tmp_path: Path) -> None:
    rgba = np.dstack([RGB, np.zeros(RGB.shape[:2], np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), RGB)
    assert "ignored" in str(picture(tmp_path / "a.png").file.conversion)


def test_transparent_palette_grey_and_colour_keys(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    assert pixels(tmp_path / "p.png").tolist() == [[[128] * 3, [0, 255, 0]]]
    palette.save(tmp_path / "pb.png", transparency=b"\x00\xff")
    assert pixels(tmp_path / "pb.png").tolist() == [[[128] * 3, [0, 255, 0]]]
    Image.fromarray(np.array([[7, 9]], np.uint8)).save(tmp_path / "l.png", transparency=7)
    assert pixels(tmp_path / "l.png")[0, :, 0].tolist() == [128, 9]
    Image.fromarray(np.array([[700, 65535]], np.uint16)).save(tmp_path / "i.png", transparency=700)
    assert pixels(tmp_path / "i.png")[0, :, 0].tolist() == [128, 255]
    Image.fromarray(RGB).save(tmp_path / "k.png", transparency=(255, 0, 0))
    assert picture(tmp_path / "k.png").rgb.getpixel((0, 0)) == (128, 128, 128)


# --- high bit depth --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.jp2"])
def test_12_bits_in_16_are_not_white(tmp_path: Path, name: str) -> None:
    Image.fromarray(RAMP_12).save(tmp_path / name)
    got = picture(tmp_path / name)
    assert np.array_equal(np.asarray(got.rgb)[..., 0], np.rint(RAMP_12 * (255 / 4095)))
    assert got.file.conversion == "12-bit grey scaled to 8"
    assert got.file.mode == "I;16"


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_depth_in_both_byte_orders(tmp_path: Path, bits: int, order: str) -> None:
    values = np.linspace(0, 2**bits - 1, 300).astype(order + "u2").reshape(15, 20)
    write_tiff(tmp_path / "a.tif", [values.tobytes()], (20, 15), order=order, t258=16)
    assert np.array_equal(pixels(tmp_path / "a.tif")[..., 0], np.rint(values.astype(float) * 255 / (2**bits - 1)))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_high_depth(tmp_path: Path, compression: str) -> None:
    Image.fromarray(RAMP_12).save(tmp_path / "a.tif", compression=compression)
    assert np.array_equal(pixels(tmp_path / "a.tif")[..., 0], np.rint(RAMP_12 * (255 / 4095)))


def test_packed_12_bits_and_white_is_zero(tmp_path: Path) -> None:
    write_tiff(tmp_path / "packed.tif", [bytes.fromhex("fff000 800100")], (4, 1), t258=12)
    assert pixels(tmp_path / "packed.tif")[0, :, 0].tolist() == [255, 0, 128, 16]
    values = np.array([[0, 4095]], "<u2")
    write_tiff(tmp_path / "white0.tif", [values.tobytes()], (2, 1), t258=16, t262=0)
    assert pixels(tmp_path / "white0.tif")[0, :, 0].tolist() == [255, 0]
    assert "inverted" in str(picture(tmp_path / "white0.tif").file.conversion)
    write_tiff(tmp_path / "white0_8.tif", [bytes([0, 255])], (2, 1), t258=8, t262=0)
    assert pixels(tmp_path / "white0_8.tif")[0, :, 0].tolist() == [255, 0]


def test_a_dark_16_bit_image_is_brightened_so_that_its_noise_shows(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 201, (32, 32)).astype(np.uint16)
    noise[0, 0] = 200
    Image.fromarray(noise).save(tmp_path / "a.tif")
    assert np.array_equal(pixels(tmp_path / "a.tif")[..., 0], noise)
    assert picture(tmp_path / "a.tif").file.conversion == "8-bit values in a wider container"


def test_the_file_may_declare_its_depth(tmp_path: Path) -> None:
    dark = np.array([[0, 200]], "<u2")
    write_tiff(tmp_path / "tag.tif", [dark.tobytes()], (2, 1), t258=16, t281=4095)
    assert pixels(tmp_path / "tag.tif")[0, :, 0].tolist() == [0, 12]
    write_tiff(tmp_path / "statistic.tif", [dark.tobytes()], (2, 1), t258=16, t281=200)
    assert pixels(tmp_path / "statistic.tif")[0, :, 0].tolist() == [0, 200]
    too_bright = np.array([[0, 60000]], "<u2")
    write_tiff(tmp_path / "wrong.tif", [too_bright.tobytes()], (2, 1), t258=16, t281=4095)
    assert pixels(tmp_path / "wrong.tif")[0, :, 0].tolist() == [0, 233]


def _png_with_sbit(path: Path, values: np.ndarray[Any, Any], bits: int) -> Path:
    info = PngImagePlugin.PngInfo()
    info.add(b"sBIT", bytes([bits]))
    Image.fromarray(values).save(path, pnginfo=info)
    return path


def test_png_significant_bits(tmp_path: Path) -> None:
    dark = np.array([[0, 201]], np.uint16)
    assert pixels(_png_with_sbit(tmp_path / "as_is.png", dark, 12))[0, :, 0].tolist() == [0, 13]
    scaled_up = dark << 4  # as the standard has it
    assert pixels(_png_with_sbit(tmp_path / "standard.png", scaled_up, 12))[0, :, 0].tolist() == [0, 13]


def test_16_bit_pgm_and_ppm(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5\n# 12-bit camera\n3 1\n4095\n" + np.array([0, 200, 4095], ">u2").tobytes())
    assert pixels(tmp_path / "a.pgm")[0, :, 0].tolist() == [0, 12, 255]
    (tmp_path / "b.pgm").write_bytes(b"P5 2 1 65535\n" + np.array([0, 4095], ">u2").tobytes())
    assert pixels(tmp_path / "b.pgm")[0, :, 0].tolist() == [0, 255]
    (tmp_path / "c.ppm").write_bytes(b"P6 1 1 1023\n" + np.array([0, 512, 1023], ">u2").tobytes())
    assert pixels(tmp_path / "c.ppm").tolist() == [[[0, 128, 255]]]
    (tmp_path / "d.pgm").write_bytes(b"P5 2 1 15\n" + bytes([0, 15]))
    assert pixels(tmp_path / "d.pgm")[0, :, 0].tolist() == [0, 255]
    (tmp_path / "e.pgm").write_bytes(b"P2 2 1 4095\n0 200\n")
    assert pixels(tmp_path / "e.pgm")[0, :, 0].tolist() == [0, 12]
    (tmp_path / "short.pgm").write_bytes(b"P5 200 100 4095\n" + bytes(500))
    assert reason(tmp_path / "short.pgm") == "truncated"


def test_a_large_12_bit_pgm_is_fast(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (1500, 2000)).astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 2000 1500 4095\n" + values.tobytes())
    assert np.array_equal(pixels(tmp_path / "a.pgm")[..., 0], np.rint(values.astype(float) * 255 / 4095))


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_colour_keeps_its_depth(tmp_path: Path, order: str) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (6, 5, 3)).astype(order + "u2")
    values[0, 0, 0] = 4095
    wanted = np.rint(values.astype(float) * 255 / 4095)
    path = write_tiff(tmp_path / "a.tif", [values.tobytes()], (5, 6), order=order, t258=(16,) * 3, t262=2, t277=3)
    assert np.array_equal(pixels(path), wanted)
    assert picture(path).file.mode == "RGB;16"
    turned = write_tiff(
        tmp_path / "b.tif", [values.tobytes()], (5, 6), order=order, t258=(16,) * 3, t262=2, t277=3, t274=6
    )
    assert np.array_equal(pixels(turned), np.rot90(wanted, -1))


def _png(path: Path, values: np.ndarray[Any, Any], colour_type: int) -> Path:
    """Write a 16-bit PNG, which Pillow cannot do in colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_16_bit_colour_and_alpha_png(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (6, 5, 3)).astype(np.uint16)
    values[0, 0, 0] = 4095
    wanted = np.rint(values.astype(float) * 255 / 4095)
    assert np.array_equal(pixels(_png(tmp_path / "rgb.png", values, 2)), wanted)
    opaque = np.dstack([values, np.full((6, 5), 65535, np.uint16)])
    assert np.array_equal(pixels(_png(tmp_path / "rgba.png", opaque, 6)), wanted)
    grey_alpha = np.array([[[4095, 65535], [4095, 0], [0, 65535]]], np.uint16)
    assert pixels(_png(tmp_path / "la.png", grey_alpha, 4))[0, :, 0].tolist() == [255, 128, 0]


def test_16_bit_colour_on_every_page(tmp_path: Path) -> None:
    first, second = (np.full((4, 4, 3), value, "<u2") for value in (4095, 2048))
    first[0, 0] = second[0, 0] = (4095, 0, 0)
    paths = [
        write_tiff(tmp_path / f"{i}.tif", [v.tobytes()], (4, 4), t258=(16,) * 3, t262=2, t277=3)
        for i, v in enumerate((first, second))
    ]
    one, two = (path.read_bytes() for path in paths)
    # chain them: the second file's offsets move by the length of the first
    shifted = bytearray(two)
    (directory,) = struct.unpack_from("<I", two, 4)
    for entry in range(struct.unpack_from("<H", two, directory)[0]):
        at = directory + 2 + 12 * entry
        number, kind, count, value = struct.unpack_from("<HHII", two, at)
        if number == 273 or (kind == 3 and count > 2):
            struct.pack_into("<I", shifted, at + 8, value + len(one))
    joined = bytearray(one + shifted)
    struct.pack_into("<I", joined, len(one) - 4, len(one) + directory)
    (tmp_path / "both.tif").write_bytes(joined)
    results = list(open_pages(Source("both.tif", tmp_path / "both.tif"), ALL))
    assert [r.rgb.getpixel((2, 2)) for r in results if isinstance(r, Picture)] == [(255,) * 3, (128,) * 3]


def test_separate_8_bit_planes(tmp_path: Path) -> None:
    planes = [np.ascontiguousarray(RGB[..., i]).tobytes() for i in range(3)]
    write_tiff(tmp_path / "b.tif", planes, (32, 48), t258=(8,) * 3, t262=2, t277=3, t284=2)
    assert np.array_equal(pixels(tmp_path / "b.tif"), RGB)


def test_8_bit_colour_map_is_not_black(tmp_path: Path) -> None:
    colour_map = tuple([255] * 256 + [100] * 256 + [7] * 256)
    write_tiff(tmp_path / "a.tif", [bytes(4)], (2, 2), t258=8, t262=3, t320=colour_map)
    assert pixels(tmp_path / "a.tif")[0, 0].tolist() == [255, 100, 7]


def test_signed_and_32_bit_integers(tmp_path: Path) -> None:
    values = np.array([[0, 70000, 2**24 - 1]], np.int32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 1, 255]
    Image.fromarray(np.array([[-100, 0, 100]], np.int32)).save(tmp_path / "b.tif")
    assert pixels(tmp_path / "b.tif")[0, :, 0].tolist() == [0, 128, 255]
    unsigned = np.array([[0, 2**31, 2**32 - 1]], "<u4")
    write_tiff(tmp_path / "c.tif", [unsigned.tobytes()], (3, 1), t258=32, t339=1)
    assert pixels(tmp_path / "c.tif")[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("values", "wanted", "words"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255], "float 0-1"),
        ([0.0, 128.0, 255.0], [0, 128, 255], "8-bit values"),
        ([0.0, 2048.0, 4095.0], [0, 128, 255], "12-bit float"),
        ([-1.0, 0.0, 1.0], [0, 128, 255], "stretched"),
        ([0.0, 0.01, 0.02], [0, 128, 255], "stretched"),  # would be black as a 0-1 image
        ([0.0, 1.01, 2.02], [0, 128, 255], "stretched"),  # would be black as an 8-bit image
        ([0.0, 1e6, 2e6], [0, 128, 255], "stretched"),
        ([np.nan, 0.5, np.inf, -np.inf], [0, 128, 255, 0], "3 pixels that are not numbers"),
        ([3e29, -3e29, 0.0], [255, 0, 128], "stretched"),
    ],
)
def test_float_tiff(tmp_path: Path, values: list[float], wanted: list[int], words: str) -> None:
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "a.tif")
    got = picture(tmp_path / "a.tif")
    assert np.asarray(got.rgb)[0, :, 0].tolist() == wanted
    assert words in str(got.file.conversion)


def test_a_float_image_without_a_number_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "a.tif")
    assert reason(tmp_path / "a.tif") == "no pixel is a finite number"


def test_scaling_by_rows_equals_scaling_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    at_once, _ = to_8_bits(values)
    monkeypatch.setattr("vlmgate.images.depth._ROWS_AT_ONCE", 20)
    assert np.array_equal(to_8_bits(values)[0], at_once)
    assert to_8_bits(np.zeros((2, 2), np.uint16))[0].max() == 0


# --- orientation and profile -----------------------------------------------------------------------------------------

UPRIGHT = {1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1]}
UPRIGHT |= {5: RGB.transpose(1, 0, 2), 6: np.rot90(RGB, -1), 7: RGB[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(RGB)}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "lzw.tif", "a.webp", "a.jpg"])
def test_exif_orientation(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if "webp" in name else {"quality": 100} if "jpg" in name else {}
    if name == "lzw.tif":
        options = {"compression": "tiff_lzw"}
    Image.fromarray(RGB).save(tmp_path / name, exif=exif, **options)
    got = picture(tmp_path / name)
    difference = np.abs(np.asarray(got.rgb).astype(int) - UPRIGHT[orientation])
    assert difference.max() == 0 if "jpg" not in name else difference.mean() < 8
    assert ("EXIF orientation" in str(got.file.conversion)) == (orientation != 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_12_bit_tiff(tmp_path: Path, orientation: int) -> None:
    values = RGB[..., 0].astype("<u2") * 16
    write_tiff(tmp_path / "a.tif", [values.tobytes()], (32, 48), t258=16, t274=orientation)
    wanted = np.rint(UPRIGHT[orientation][..., 0].astype(float) * 16 * (255 / 4095))
    assert np.array_equal(pixels(tmp_path / "a.tif")[..., 0], wanted)


@pytest.mark.parametrize("junk", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage", b"Exif\0\0", b"\xff" * 50])
def test_damaged_exif_costs_nothing_but_a_note(tmp_path: Path, junk: bytes) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=junk)
    assert np.array_equal(pixels(tmp_path / "a.png"), RGB)


def test_a_colour_profile_is_ignored_and_recorded(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png", icc_profile=b"not a profile, and never parsed")
    assert np.array_equal(pixels(tmp_path / "a.png"), RGB)
    assert picture(tmp_path / "a.png").file.conversion == "colour profile ignored"


# --- pages -----------------------------------------------------------------------------------------------------------


def _frames() -> list[Image.Image]:
    return [Image.new("RGB", (40, 30), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.png", "a.webp", "a.avif", "a.mpo"])
def test_one_page_by_default_every_page_on_demand(tmp_path: Path, name: str) -> None:
    first, *others = _frames()
    first.save(tmp_path / name, save_all=True, append_images=others)
    got = picture(tmp_path / name)
    assert (got.file.page, got.file.num_pages) == (1, 3)
    pages = list(open_pages(Source(name, tmp_path / name), ALL))
    assert [page.file.page for page in pages if isinstance(page, Picture)] == [1, 2, 3]
    for page, wanted in zip(pages, _frames(), strict=True):
        assert isinstance(page, Picture)
        assert np.abs(np.asarray(page.rgb).astype(int) - np.asarray(wanted)).max() <= 12


def test_a_page_does_not_change_when_the_next_is_read(tmp_path: Path) -> None:
    first, *others = _frames()
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    pages = open_pages(Source("a", tmp_path / "a.tif"), ALL)
    one = next(pages)
    list(pages)
    assert isinstance(one, Picture)
    assert one.rgb.getpixel((0, 0)) == (255, 0, 0)


def _tiff_directories(data: bytes) -> list[int]:
    (offset,) = struct.unpack_from("<I", data, 4)
    found = []
    while offset:
        found.append(offset)
        (entries,) = struct.unpack_from("<H", data, offset)
        (offset,) = struct.unpack_from("<I", data, offset + 2 + 12 * entries)
    return found


@pytest.mark.parametrize("damage", ["pixels", "header"])
def test_a_broken_page_leaves_the_others(tmp_path: Path, damage: str) -> None:
    first, *others = (frame.resize((64, 64)) for frame in [*_frames(), *_frames()])
    first.save(tmp_path / "a.tif", save_all=True, append_images=others, compression="tiff_adobe_deflate")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    at = _tiff_directories(bytes(data))[2]
    for entry in range(struct.unpack_from("<H", data, at)[0]):
        number, _, _, value = struct.unpack_from("<HHII", data, at + 2 + 12 * entry)
        if number == 273 and damage == "pixels":
            data[value : value + 8] = b"\xee" * 8
        if number == 262 and damage == "header":
            struct.pack_into("<H", data, at + 2 + 12 * entry + 8, 999)
    (tmp_path / "a.tif").write_bytes(data)
    results = list(open_pages(Source("a.tif", tmp_path / "a.tif"), ALL))
    assert [(type(r).__name__, r.file.page if isinstance(r, Picture) else r.page) for r in results] == [
        ("Picture", 1), ("Picture", 2), ("Unreadable", 3), ("Picture", 4), ("Picture", 5), ("Picture", 6)
    ]  # fmt: skip
    assert [r.rgb.getpixel((5, 5)) for r in results if isinstance(r, Picture)][2:] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
    ]


def test_a_file_cut_off_behind_its_first_page(tmp_path: Path) -> None:
    first, *others = _frames()
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[: _tiff_directories(data)[1]])
    got = picture(tmp_path / "a.tif")
    assert got.file.num_pages == 2
    assert "damaged after page 1" in str(got.file.conversion)
    one, two = open_pages(Source("a.tif", tmp_path / "a.tif"), ALL)
    assert isinstance(one, Picture)
    assert isinstance(two, Unreadable)
    assert two.page == 2


def test_a_tiff_whose_pages_lead_in_a_circle_ends(tmp_path: Path) -> None:
    first, *others = _frames()
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    start, last = _tiff_directories(bytes(data))[:: len(_frames()) - 1]
    struct.pack_into("<I", data, last + 2 + 12 * struct.unpack_from("<H", data, last)[0], start)
    (tmp_path / "a.tif").write_bytes(data)
    assert len(list(open_pages(Source("a.tif", tmp_path / "a.tif"), ALL))) == 3


def test_pages_without_end_are_cut_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmgate.images.pages.MAX_PAGES", 5)
    page = Image.new("L", (2, 2))
    for name in ("a.tif", "a.gif"):
        page.save(tmp_path / name, save_all=True, append_images=[Image.new("L", (2, 2), 20 * i) for i in range(1, 10)])
        results = list(open_pages(Source(name, tmp_path / name), ALL))
        assert [isinstance(r, Picture) for r in results] == [True] * 5 + [False]
        assert isinstance(results[-1], Unreadable)
        assert (results[-1].page, "more than 5 pages" in results[-1].reason) == (6, True)


def test_an_animation_that_claims_frames_it_has_not(tmp_path: Path) -> None:
    first, *others = _frames()
    first.save(tmp_path / "a.png", save_all=True, append_images=others)
    data = (tmp_path / "a.png").read_bytes()
    at = data.index(b"acTL")
    claim = b"acTL" + struct.pack(">I", 2_000_000_000) + data[at + 8 : at + 12]
    (tmp_path / "a.png").write_bytes(data[:at] + claim + struct.pack(">I", zlib.crc32(claim)) + data[at + 16 :])
    assert picture(tmp_path / "a.png").file.num_pages == 10_001
    results = list(open_pages(Source("a.png", tmp_path / "a.png"), ALL))
    assert [isinstance(r, Picture) for r in results] == [True, True, True, False]


# --- reasons ---------------------------------------------------------------------------------------------------------


def test_reasons_are_plain(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    assert reason(tmp_path / "empty.jpg") == "empty file"
    (tmp_path / "text.jpg").write_text("hello")
    assert reason(tmp_path / "text.jpg") == "not an image"
    (tmp_path / "zeros.jpg").write_bytes(bytes(5000))
    assert reason(tmp_path / "zeros.jpg") == "not an image"
    assert reason(tmp_path / "gone.jpg") == "vanished"
    os.mkfifo(tmp_path / "pipe.jpg")
    assert reason(tmp_path / "pipe.jpg") == "a named pipe, not a file"
    (tmp_path / "scene.exr").write_bytes(b"\x76\x2f\x31\x01" + bytes(100))
    assert reason(tmp_path / "scene.exr") == "OpenEXR files cannot be opened; convert them to PNG or TIFF"
    (tmp_path / "sensor.raw").write_bytes(bytes(range(256)))
    assert reason(tmp_path / "sensor.raw").startswith("camera raw")
    (tmp_path / "logo.svg").write_text("<svg/>")
    assert reason(tmp_path / "logo.svg").startswith("vector drawing")


def test_a_raw_file_is_not_read_by_its_thumbnail(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "photo.nef", format="TIFF")
    assert reason(tmp_path / "photo.nef").startswith("camera raw")


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"x")

    def deny(path: object, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("vlmgate.images.find.os.open", deny)
    assert reason(tmp_path / "a.png") == "permission denied"


@pytest.mark.parametrize(
    "error", [MemoryError(), KeyError("x"), OverflowError("y"), RecursionError(), SyntaxError("z\nz")]
)
def test_whatever_pillow_raises_becomes_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")

    def fail(self: object) -> None:
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert reason(tmp_path / "a.png")


def test_truncated_and_zero_filled_jpegs(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for options in ({}, {"progressive": True}):
        Image.fromarray(noise).save(tmp_path / "a.jpg", exif=b"Exif\0\0\xff\xd8\xff\xd9", **options)
        data = (tmp_path / "a.jpg").read_bytes()
        for kept in (1, 2, 100, len(data) // 2, len(data) - 4):
            for tail in (b"", bytes(len(data) - kept)):
                (tmp_path / "a.jpg").write_bytes(data[:kept] + tail)
                assert reason(tmp_path / "a.jpg")
        (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
        assert reason(tmp_path / "a.jpg") == "truncated"
        (tmp_path / "a.jpg").write_bytes(data + bytes(512))  # padded to a disk block: nothing is missing
        whole = pixels(tmp_path / "a.jpg")
        for kept in (len(data) - 2, len(data) - 1):  # as cameras write frames: only the end marker is missing
            (tmp_path / "a.jpg").write_bytes(data[:kept])
            assert np.array_equal(pixels(tmp_path / "a.jpg"), whole)
            assert "without an end marker" in str(picture(tmp_path / "a.jpg").file.conversion)


def test_a_flipped_bit_in_a_png_is_found(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png", compress_level=0)
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    assert "checksum" in reason(tmp_path / "a.png")


def test_a_webp_that_ends_in_zeros(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.webp", quality=90)
    data = (tmp_path / "a.webp").read_bytes()
    (tmp_path / "a.webp").write_bytes(data[:-9000] + bytes(9000))
    assert reason(tmp_path / "a.webp") == "truncated: ends in zeros"


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp", "a.webp", "a.gif", "a.jp2", "a.avif", "a.pgm"])
def test_the_pixel_limit_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    Image.new("L", (40, 30)).save(tmp_path / name)
    assert picture(tmp_path / name, ImageConfig(max_pixels=1200)).rgb.size == (40, 30)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    assert reason(tmp_path / name, ImageConfig(max_pixels=1199)).startswith("larger than the limit of 0.001199 megapix")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "lzw.tif", "a.bmp", "a.pgm", "a.jp2", "a.avif"])
def test_pillows_own_limit_is_not_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    options = {"compression": "tiff_lzw"} if name == "lzw.tif" else {}
    Image.new("L", (40, 30), 77).save(tmp_path / name, **options)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert picture(tmp_path / name).rgb.size == (40, 30)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_the_limit_holds_for_every_page(tmp_path: Path) -> None:
    pages = [Image.new("L", size) for size in ((10, 10), (100, 100), (10, 10))]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    results = list(open_pages(Source("a", tmp_path / "a.tif"), ImageConfig(pages="all", max_pixels=1000)))
    assert [isinstance(r, Picture) for r in results] == [True, False, True]


def test_a_text_bomb_in_a_png(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("bomb", "0" * 20_000_000, zip=True)
    Image.fromarray(RGB).save(tmp_path / "a.png", pnginfo=info)
    assert reason(tmp_path / "a.png")


# --- line scans ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("name", ["a.tif", "a.bmp", "a.ppm", "a.tga", "inverted.tif", "turned.tif"])
def test_a_line_scan_is_read_in_stripes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, grey: bool) -> None:
    rng = np.random.default_rng(0)
    soft = np.kron(rng.integers(0, 256, (51, 23, 3)), np.ones((8, 8, 1))).astype(np.uint8)  # (408, 184, 3)
    values = soft[:403, :181, 0] if grey else soft[:403, :181]
    if name == "inverted.tif":
        inverted = (255 - soft[:403, :181, 0]).tobytes()
        write_tiff(tmp_path / name, [inverted], (181, 403), t258=8, t262=0)
        values = soft[:403, :181, 0]
    else:
        options = {"tiffinfo": {274: 6}} if name == "turned.tif" else {}
        Image.fromarray(values).save(tmp_path / name, **options)
    at_once = picture(tmp_path / name)
    assert "stripes" not in str(at_once.file.conversion)
    monkeypatch.setattr("vlmgate.images.stripes.FEWEST_PIXELS", 1000)
    monkeypatch.setattr("vlmgate.images.stripes._STRIPE", 6000)
    got = read(tmp_path / name, ImageConfig(least_side=45))
    assert isinstance(got, Picture), got
    assert "read in stripes, 4 times smaller" in str(got.file.conversion)
    assert (got.file.width, got.file.height) == at_once.rgb.size
    wanted = at_once.rgb.reduce(4) if name != "turned.tif" else at_once.rgb.rotate(90, expand=True).reduce(4).rotate(
        -90, expand=True
    )  # fmt: skip
    assert got.rgb.size == wanted.size
    assert np.abs(np.asarray(got.rgb).astype(int) - np.asarray(wanted)).max() <= 1
    assert isinstance(read(tmp_path / name, ImageConfig(least_side=45, image_memory=0.00001)), Unreadable)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20_000])
    assert reason(tmp_path / name, ImageConfig(least_side=45)).startswith("truncated")


def test_stripes_are_for_rows_that_lie_there_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmgate.images.stripes.FEWEST_PIXELS", 1000)
    for name, image in (
        ("a.png", Image.fromarray(RGB)),
        ("lzw.tif", Image.fromarray(RGB)),
        ("a.tif", Image.fromarray(RGB).convert("CMYK")),
        ("16.tif", Image.fromarray(RAMP_12)),
    ):
        image.save(tmp_path / name, **({"compression": "tiff_lzw"} if name == "lzw.tif" else {}))
        got = read(tmp_path / name, ImageConfig(least_side=8))
        assert isinstance(got, Picture) and "stripes" not in str(got.file.conversion)
        assert got.rgb.size == image.size
    Image.fromarray(RGB).save(tmp_path / "b.tif")
    assert picture(tmp_path / "b.tif").rgb.size == (32, 48)  # nothing is made smaller unless it is asked for


# --- large files and files that change -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "lzw.tif", "a.bmp", "a.ppm"])
def test_large_files_are_decoded_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    options = {"compression": "tiff_lzw"} if name == "lzw.tif" else {}
    Image.fromarray(RGB).save(tmp_path / name, **options)
    in_memory = picture(tmp_path / name)
    monkeypatch.setattr("vlmgate.images.pages.IN_MEMORY", 0)
    from_disk = picture(tmp_path / name)
    assert np.array_equal(np.asarray(from_disk.rgb), np.asarray(in_memory.rgb))
    assert from_disk.file == in_memory.file


def test_pages_of_a_large_tiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmgate.images.pages.IN_MEMORY", 0)
    first, *others = _frames()
    for compression in ("raw", "tiff_lzw"):
        first.save(tmp_path / "a.tif", save_all=True, append_images=others, compression=compression)
        pages = list(open_pages(Source("a.tif", tmp_path / "a.tif"), ALL))
        assert [p.rgb.getpixel((1, 1)) for p in pages if isinstance(p, Picture)] == [
            (255, 0, 0), (0, 255, 0), (0, 0, 255)
        ]  # fmt: skip


@pytest.mark.parametrize("in_memory", [0, 1 << 20])
def test_a_file_replaced_while_it_is_read_never_gets_the_wrong_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    path = tmp_path / "a.bmp"
    Image.fromarray(RGB).save(path)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr("vlmgate.images.pages.IN_MEMORY", in_memory)
    container = opening.Container

    def replace_first(*args: Any) -> Any:
        Image.fromarray(255 - RGB).save(tmp_path / "new.bmp")
        (tmp_path / "new.bmp").replace(path)
        return container(*args)

    monkeypatch.setattr(opening, "Container", replace_first)
    got = picture(path)
    assert got.file.sha256 == before
    assert np.array_equal(np.asarray(got.rgb), RGB)


def test_a_large_file_written_to_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bmp"
    Image.fromarray(RGB).save(path)
    monkeypatch.setattr("vlmgate.images.pages.IN_MEMORY", 0)
    container = opening.Container

    def write_first(*args: Any) -> Any:
        with path.open("ab") as file:
            file.write(b"more")
        return container(*args)

    monkeypatch.setattr(opening, "Container", write_first)
    assert reason(path) == "changed while it was being read"


# --- warnings --------------------------------------------------------------------------------------------------------


def _complaining_tiff(path: Path) -> Path:
    """A TIFF that Pillow opens, and warns of: a tag that should have one value has two."""
    return write_tiff(path, [RGB[..., 0].tobytes()], (32, 48), t258=8, t296=(2, 2, 2))


def test_pillows_warnings_become_notes(tmp_path: Path) -> None:
    path = _complaining_tiff(tmp_path / "a.tif")
    with pytest.warns(UserWarning, match="too many entries"), Image.open(path) as image:
        image.load()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        note = picture(path).file.conversion
    assert "Pillow: Metadata Warning, tag 296 had too many entries" in str(note)


def test_warnings_of_other_threads_are_left_alone(tmp_path: Path) -> None:
    path = _complaining_tiff(tmp_path / "a.tif")
    stop = threading.Event()
    notes: list[str | None] = []

    def decode() -> None:
        while not stop.is_set():
            notes.append(picture(path).file.conversion)

    threads = [threading.Thread(target=decode) for _ in range(3)]
    for thread in threads:
        thread.start()
    heard = 0
    for _ in range(300):
        try:
            warnings.warn("mine", UserWarning, stacklevel=1)
        except UserWarning:
            heard += 1
    stop.set()
    for thread in threads:
        thread.join()
    assert heard == 300
    assert len(set(notes)) == 1
