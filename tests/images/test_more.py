"""Formats that take a package of their own: read with it, refused with the name of the extra without it."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vlmgate.config import ImageConfig
from vlmgate.data import Picture, Source, Unreadable
from vlmgate.images import open_pages

tifffile = pytest.importorskip("tifffile")
imagecodecs = pytest.importorskip("imagecodecs")
pillow_heif = pytest.importorskip("pillow_heif")
pydicom = pytest.importorskip("pydicom")
rawpy = pytest.importorskip("rawpy")

Values = np.ndarray[Any, Any]


def photo(side: int = 96) -> Values:
    rng = np.random.default_rng(5)
    noise = Image.fromarray(rng.integers(0, 256, (side, side + 32, 3), dtype=np.uint8))
    soft = np.asarray(noise.filter(ImageFilter.GaussianBlur(5))).astype(int)
    wide = (soft - soft.min()) * 255 // (soft.max() - soft.min())
    return wide.astype(np.uint8)


GREY = photo()[..., 1]


def results(tmp_path: Path, data: bytes, name: str = "a", pages: str = "first") -> list[Picture | Unreadable]:
    (tmp_path / name).write_bytes(data)
    return list(open_pages(Source(name, tmp_path / name), ImageConfig(pages=pages)))  # type: ignore[arg-type]  # str


def picture(tmp_path: Path, data: bytes, name: str = "a") -> Picture:
    (result,) = results(tmp_path, data, name)
    assert isinstance(result, Picture), result
    return result


def reason(tmp_path: Path, data: bytes, name: str = "a") -> str:
    (result,) = results(tmp_path, data, name)
    assert isinstance(result, Unreadable), result
    return result.reason


def tiff(values: Values, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def close(got: Picture, wanted: Values, within: int = 3) -> bool:
    """Say whether a picture shows these values, stretched to the whole range or not."""
    shown = np.asarray(got.rgb).astype(int)
    shown = shown if wanted.ndim == 3 else shown[..., 0]
    return bool(shown.shape == wanted.shape and np.abs(shown - wanted).max() <= within)


# --- TIFF ------------------------------------------------------------------------------------------------------------

DEEP = (photo().astype(np.uint16) * 257).astype(np.uint16)
TIFFS: dict[str, tuple[Callable[[], bytes], Values, int]] = {  # file, what it shows, and how near
    "float64": (lambda: tiff(GREY / 255.0), GREY, 1),
    "float16": (lambda: tiff((GREY / 255.0).astype(np.float16)), GREY, 1),
    "float RGB": (lambda: tiff((photo() / 255.0).astype(np.float32), photometric="rgb"), photo(), 1),
    "16-bit planes": (
        lambda: tiff(DEEP.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"), photo(), 1
    ),
    "grey and alpha": (
        lambda: tiff(
            np.dstack([DEEP[..., 1], np.full_like(DEEP[..., 1], 65535)]), photometric="minisblack",
            planarconfig="contig", extrasamples=["unassalpha"],
        ), GREY, 1,
    ),
    "big-endian BigTIFF": (lambda: tiff(photo(), byteorder=">", bigtiff=True, photometric="rgb"), photo(), 0),
    "10-bit": (lambda: packed(10), GREY, 1),
    "14-bit": (lambda: packed(14), GREY, 1),
    "JPEG 2000": (lambda: tiff(photo(), compression="jpeg2000", photometric="rgb"), photo(), 1),
    "JPEG XL": (lambda: tiff(photo(), compression="jpegxl", photometric="rgb"), photo(), 12),
    "WebP": (
        lambda: tiff(photo(), compression="webp", compressionargs={"lossless": True}, photometric="rgb"), photo(), 0
    ),
    "LERC": (lambda: tiff(photo(), compression="lerc", photometric="rgb"), photo(), 0),
    "Zstandard, in tiles": (lambda: tiff(photo(), compression="zstd", tile=(32, 32), photometric="rgb"), photo(), 0),
    "12-bit RGB": (lambda: packed(12, colour=True), photo(), 1),
    "64-bit": (lambda: tiff(DEEP[..., 1].astype(np.uint64)), GREY, 1),
}  # fmt: skip


def packed(bits: int, *, colour: bool = False) -> bytes:
    """A TIFF whose values lie close together, each of so many bits."""
    shown = photo() if colour else GREY
    values = np.rint(shown.astype(float) * (2**bits - 1) / 255).astype(np.uint16)
    rows = [imagecodecs.packints_encode(np.ascontiguousarray(row.ravel()), bits) for row in values]
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(
            iter(rows), shape=values.shape, dtype=np.uint16, bitspersample=bits, rowsperstrip=1, compression=1,
            photometric="rgb" if colour else "minisblack",
        )  # fmt: skip
    return buffer.getvalue()


@pytest.mark.parametrize("name", TIFFS)
def test_tiffs_that_pillow_cannot_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        data = TIFFS[name][0]()
    except (ValueError, NotImplementedError) as error:  # the writer may lack what the reader has
        pytest.skip(str(error))
    _, wanted, within = TIFFS[name]
    assert close(picture(tmp_path, data), wanted, within)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    if name != "Zstandard, in tiles":
        assert "needs the extra 'tiff': pip install 'vlmgate[tiff]'" in reason(tmp_path, data)


KINDS_OF_VALUES: dict[str, tuple[Values, Values]] = {  # as stored, as shown
    "uint8": (GREY, GREY),
    "RGB": (photo(), photo()),
    "uint16": (DEEP[..., 1], GREY),
    "RGB of 16 bits": (DEEP, photo()),
    "int16": (GREY.astype(np.int16) * 64, GREY * 0.996),
    "uint32": (GREY.astype(np.uint32) * 16843009, GREY),
    "int32": (GREY.astype(np.int32) * 65793, GREY),
    "float32": ((GREY / 255).astype(np.float32), GREY),
    "one bit": (GREY > 128, (GREY > 128) * 255),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("name", KINDS_OF_VALUES)
def test_either_byte_order_shows_the_same(tmp_path: Path, name: str, compression: str | None, order: str) -> None:
    """Pillow swaps the bytes of some compressed values twice, and noise is what it shows."""
    stored, shown = KINDS_OF_VALUES[name]
    layouts: list[dict[str, Any]] = [{}, {"rowsperstrip": 5}, {"tile": (32, 16)}, {"bigtiff": True}]
    if compression not in (None, "packbits") and name != "one bit":
        layouts.append({"predictor": True})
    for layout in layouts:
        if name == "one bit" and "tile" in layout and compression is not None:
            continue
        kind = "rgb" if stored.ndim == 3 else "minisblack"
        data = tiff(stored, compression=compression, byteorder=order, photometric=kind, **layout)
        assert close(picture(tmp_path, data), shown, 1), layout


def test_strips_are_missed_in_these_too(tmp_path: Path) -> None:
    data = tiff(GREY / 255.0, rowsperstrip=8)
    for kept in (0.3, 0.8):
        assert reason(tmp_path, data[: int(len(data) * kept)]).startswith("truncated")


def test_a_page_that_pillow_cannot_read_among_others(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for values in (GREY / 255.0, photo(), (GREY / 255.0).astype(np.float16), GREY):
            writer.write(values, photometric="rgb" if values.ndim == 3 else "minisblack")
    found = results(tmp_path, buffer.getvalue(), pages="all")
    for result, wanted in zip(found, (GREY, photo(), GREY, GREY), strict=True):
        assert isinstance(result, Picture) and close(result, wanted, 1)
    assert [result.file.page for result in found if isinstance(result, Picture)] == [1, 2, 3, 4]


def test_turned_inverted_and_masked(tmp_path: Path) -> None:
    turned = picture(tmp_path, tiff(GREY / 255.0, extratags=[(274, "H", 1, 6, True)]))
    assert close(turned, np.rot90(GREY, -1), 1)
    assert close(picture(tmp_path, tiff(GREY / 255.0, photometric="miniswhite")), 255 - GREY.astype(int), 1)
    marked = (GREY / 255.0).copy()
    marked[:5, :5] = -77
    got = picture(tmp_path, tiff(marked, extratags=[(42113, "s", 0, "-77", True)]))
    assert "no data (-77)" in str(got.file.conversion)
    assert np.asarray(got.rgb)[:5, :5].max() == 0


def fine() -> Values:
    """A picture whose compressed tiles are some thousand bytes long."""
    large = np.asarray(Image.fromarray(photo(240)).resize((512, 512))).astype(int)
    return np.clip(large + np.random.default_rng(1).integers(-8, 9, large.shape), 0, 255).astype(np.uint8)


def without_half(data: bytes, at: int, length: int, begin: float) -> bytes:
    """Put zeros into half of the bytes of a piece."""
    first, last = at + int(length * begin), at + int(length * (begin + 0.5))
    return data[:first] + bytes(last - first) + data[last:]


@pytest.mark.parametrize("begin", [0.25, 0.4, 0.5])
@pytest.mark.parametrize(
    "options", [{"compression": "jpeg2000"}, {"compression": "webp"}, {"compression": "webp", "lossless": True}]
)
def test_half_of_a_tile_became_zeros(tmp_path: Path, options: dict[str, Any], begin: float) -> None:
    more = {"compressionargs": {"lossless": True}} if "lossless" in options else {}
    data = tiff(fine(), compression=options["compression"], photometric="rgb", tile=(256, 256), **more)
    picture(tmp_path, data)
    flat = np.zeros((512, 512, 3), np.uint8)
    picture(tmp_path, tiff(flat, compression=options["compression"], photometric="rgb", tile=(256, 256), **more))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        places = list(zip(file.pages[0].dataoffsets, file.pages[0].databytecounts, strict=True))
    for at, length in (places[0], places[-1]):
        assert reason(tmp_path, without_half(data, at, length, begin))


def test_jpeg_xr_in_tiff_is_refused(tmp_path: Path) -> None:
    try:
        data = tiff(fine(), compression="jpegxr", photometric="rgb")
    except (ValueError, NotImplementedError) as error:
        pytest.skip(str(error))
    assert reason(tmp_path, data) == "TIFF with JPEG XR cannot be checked for damage; convert it to PNG"


def test_memory_is_counted_for_every_channel(tmp_path: Path) -> None:
    channels = np.zeros((600, 600, 100), np.float32)
    data = tiff(channels, compression="zlib", photometric="minisblack", planarconfig="contig", metadata=None)
    assert len(data) < 1_000_000
    (tmp_path / "a").write_bytes(data)
    (refused,) = open_pages(Source("a", tmp_path / "a"), ImageConfig(image_memory=0.25))
    assert isinstance(refused, Unreadable)
    assert refused.reason.startswith("needs more memory than images may take: 0.3 GB to decode, of 0.25")
    (read,) = open_pages(Source("a", tmp_path / "a"), ImageConfig(image_memory=0.4))
    assert "0.3 GB" not in str(read)


# --- HEIC ------------------------------------------------------------------------------------------------------------


def heic(values: Values, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(values)).save(buffer, quality=90, **options)
    return buffer.getvalue()


def test_heic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic(photo())
    for name in ("a.heic", "a.jpg"):
        got = picture(tmp_path, data, name)
        assert np.abs(np.asarray(got.rgb).astype(int) - photo()).mean() < 6
    for broken in (data[: len(data) // 2], data[:-40], data[: len(data) // 2] + bytes(len(data) - len(data) // 2)):
        assert reason(tmp_path, broken)
    middle = len(data) * 2 // 3
    assert "zeros" in reason(tmp_path, data[:middle] + bytes(128) + data[middle + 128 :])
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert reason(tmp_path, data) == (
        "HEIF needs the extra 'heic': pip install 'vlmgate[heic]', or convert it to PNG or TIFF"
    )


# --- DICOM -----------------------------------------------------------------------------------------------------------


def dicom(values: Values, **tags: Any) -> bytes:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    bits = values.dtype.itemsize * 8
    data.Rows, data.Columns = values.shape[-2:] if values.shape[-1] != 3 else values.shape[-3:-1]
    data.SamplesPerPixel = 3 if values.shape[-1] == 3 else 1
    data.PhotometricInterpretation = "RGB" if values.shape[-1] == 3 else "MONOCHROME2"
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.BitsAllocated = data.BitsStored = bits
    data.HighBit = bits - 1
    if values.shape[-1] == 3:
        data.PlanarConfiguration = 0
    elif values.ndim == 3:
        data.NumberOfFrames = len(values)
    data.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_dicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert close(picture(tmp_path, dicom(GREY)), GREY, 0)
    assert close(picture(tmp_path, dicom(photo())), photo(), 0)
    assert close(picture(tmp_path, dicom(DEEP[..., 1])), GREY, 1)
    assert close(picture(tmp_path, dicom(GREY, PhotometricInterpretation="MONOCHROME1")), 255 - GREY.astype(int), 0)
    units = dicom((GREY.astype(np.int16) * 10), RescaleSlope="1", RescaleIntercept="-1024")
    stretched = (GREY.astype(float) - GREY.min()) * 255 / np.ptp(GREY)
    assert close(picture(tmp_path, units), stretched, 2)
    data = dicom(np.stack([GREY, 255 - GREY]))
    first, second = results(tmp_path, data, pages="all")
    assert isinstance(first, Picture) and isinstance(second, Picture)
    assert close(first, GREY, 0) and close(second, 255 - GREY.astype(int), 0)
    assert reason(tmp_path, data[:-500])
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert "needs the extra 'dicom'" in reason(tmp_path, data)


@pytest.mark.parametrize("begin", [0.25, 0.4, 0.5])
def test_half_of_a_dicom_frame_became_zeros(tmp_path: Path, begin: float) -> None:
    from pydicom import dcmread
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEG2000Lossless

    def packed_in(frames: list[bytes], shape: tuple[int, ...]) -> bytes:
        data = dcmread(io.BytesIO(dicom(np.zeros((2, *shape), np.uint8))))
        data.file_meta.TransferSyntaxUID = JPEG2000Lossless
        data.PixelData = encapsulate(frames)
        data["PixelData"].is_undefined_length = True
        buffer = io.BytesIO()
        data.save_as(buffer)
        return buffer.getvalue()

    grey = fine()[..., 1]
    whole = imagecodecs.jpeg2k_encode(grey, codecformat="j2k", reversible=True, level=0)
    blank = imagecodecs.jpeg2k_encode(np.zeros_like(grey), codecformat="j2k", reversible=True, level=0)
    first, second = results(tmp_path, packed_in([blank, whole], grey.shape), pages="all")
    assert isinstance(first, Picture) and isinstance(second, Picture), (first, second)
    assert close(second, grey, 0)
    broken = without_half(whole, 0, len(whole), begin)
    first, second = results(tmp_path, packed_in([whole, broken], grey.shape), pages="all")
    assert isinstance(first, Picture) and isinstance(second, Unreadable)
    assert second.reason in ("truncated", "a block of zeros in the image data")


# --- camera raw ------------------------------------------------------------------------------------------------------


def dng() -> bytes:
    """A mosaic of 16 bits, as LibRaw reads it."""
    high = np.kron(GREY, np.ones((2, 2), np.uint8)).astype(np.uint16) * 200
    rational = (10000, 10000)
    tags = [
        (50706, "B", 4, bytes((1, 4, 0, 0)), True),
        (33421, "H", 2, (2, 2), True),
        (33422, "B", 4, bytes((0, 1, 1, 2)), True),
        (50708, "s", 0, "test", True),
        (50717, "I", 1, 65535, True),
        (50721, "2i", 9, sum(((10000 * (i % 4 == 0), 10000) for i in range(9)), ()), True),
        (50728, "2I", 3, rational * 3, True),
        (271, "s", 0, "test", True),
        (272, "s", 0, "test", True),
    ]
    return tiff(high, photometric=32803, extratags=tags)


@pytest.mark.parametrize("name", ["a.dng", "a.tif"])
def test_camera_raw_is_developed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    got = picture(tmp_path, dng(), name)
    assert got.rgb.size == (2 * GREY.shape[1], 2 * GREY.shape[0])
    small = np.asarray(got.rgb.convert("L").resize(GREY.shape[::-1], Image.Resampling.BOX)).astype(int)
    assert np.corrcoef(small.ravel(), GREY.ravel())[0, 1] > 0.97
    assert "developed by LibRaw" in str(got.file.conversion)
    assert reason(tmp_path, dng()[:9000], name)
    monkeypatch.setitem(sys.modules, "rawpy", None)
    assert "needs the extra 'raw'" in reason(tmp_path, dng(), name)


# --- JPEG XL ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(96, 128), (8, 8), (300, 400), (300, 300), (700, 9), (256, 512)])
def test_jpeg_xl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]) -> None:
    values = np.asarray(Image.fromarray(photo()).resize(shape[::-1]))
    for boxes in (False, True):
        data = imagecodecs.jpegxl_encode(values, lossless=True, usecontainer=boxes)
        assert close(picture(tmp_path, data), values, 0)
    assert reason(tmp_path, data[: len(data) // 2])
    (tmp_path / "a").write_bytes(data)
    (refused,) = open_pages(Source("a", tmp_path / "a"), ImageConfig(max_pixels=shape[0] * shape[1] - 1))
    assert isinstance(refused, Unreadable) and "larger than the limit" in refused.reason
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    assert "needs the extra 'jxl'" in reason(tmp_path, data)


# --- BMP -------------------------------------------------------------------------------------------------------------


def test_bmp_of_5_6_5_bits(tmp_path: Path) -> None:
    wide = photo().astype(np.uint16)
    packed = wide[..., 0] >> 3 << 11 | wide[..., 1] >> 2 << 5 | wide[..., 2] >> 3
    body = packed[::-1].astype("<u2").tobytes()
    height, width = packed.shape
    head = (40).to_bytes(4, "little") + width.to_bytes(4, "little") + height.to_bytes(4, "little")
    head += (1).to_bytes(2, "little") + (16).to_bytes(2, "little") + (3).to_bytes(4, "little") + bytes(20)
    masks = b"".join(mask.to_bytes(4, "little") for mask in (0xF800, 0x07E0, 0x001F))
    data = b"BM" + (14 + 52 + len(body)).to_bytes(4, "little") + bytes(4) + (66).to_bytes(4, "little")
    assert close(picture(tmp_path, data + head + masks + body), photo(), 8)
