"""Pictures of more than 8 bits: neither one pixel nor a mark for "no data" decides how the others look."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlmgate.config import ImageConfig
from vlmgate.data import Picture, Source, Unreadable
from vlmgate.images import open_pages
from vlmgate.images.depth import Span, alpha_to_8_bits, to_8_bits

Values = np.ndarray[Any, Any]
SIDE = 160


def scene() -> Values:
    """A soft scene with a scratch, (H, W), in [0, 1]."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    grey = 0.35 + 0.3 * np.sin(5 * x) * np.cos(4 * y) + np.random.default_rng(1).normal(0, 0.02, x.shape)
    grey[np.abs(y - x) < 0.02] = 0.9
    return np.clip(grey, 0, 1)


def save(path: Path, values: Values, **options: Any) -> Path:
    Image.fromarray(values).save(path, **options)
    return path


def read(path: Path) -> Picture | Unreadable:
    (result,) = open_pages(Source(path.name, path), ImageConfig())
    return result


def grey(path: Path) -> Values:
    result = read(path)
    assert isinstance(result, Picture), result
    return np.asarray(result.rgb)[..., 0].astype(int)


def words(path: Path) -> str:
    result = read(path)
    assert isinstance(result, Picture), result
    return str(result.file.conversion)


def marked(values: Values, mark: float, side: int = 20) -> Values:
    values = values.copy()
    values[:side, :side] = mark
    return values


def looks_like(got: Values, wanted: Values, skip: int = 20) -> bool:
    """Say whether a picture shows the scene with the contrast that it has, marks left out."""
    inside = np.s_[skip:, skip:]
    spread = np.ptp(np.percentile(got[inside], (2, 98)))
    return bool(np.corrcoef(got[inside].ravel(), wanted[inside].ravel())[0, 1] > 0.98 and spread > 100)


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
@pytest.mark.parametrize("value", [65535, 30000, 6000])
def test_a_hot_pixel_leaves_the_others_alone(tmp_path: Path, name: str, value: int) -> None:
    values = (scene() * 4000).astype(np.uint16)
    before = grey(save(tmp_path / name, values))
    values[5, 5] = value
    after = grey(save(tmp_path / name, values))
    assert after[5, 5] == 255
    after[5, 5] = before[5, 5]
    assert np.array_equal(after, before)


def test_a_pixel_does_not_make_a_picture_four_times_as_dark(tmp_path: Path) -> None:
    values = (scene() * 850).astype(np.uint16)
    before = grey(save(tmp_path / "a.tif", values))
    values[7, 9] = 1100
    assert np.abs(grey(save(tmp_path / "a.tif", values)) - before).max() <= 255 - before[7, 9]
    assert "1 single pixels beyond it" in words(tmp_path / "a.tif")


MARKS: list[tuple[str, Callable[[], Values], float]] = [
    *((f"float {mark:g}", lambda: (scene() * 2).astype(np.float32), mark) for mark in (-9999.0, -99999.0)),
    *((f"float {mark:g}", lambda: (scene() * 2).astype(np.float32), mark) for mark in (-3.4028235e38, 3.4028235e38)),
    *((f"float {mark:g}", lambda: (scene() * 2).astype(np.float32), mark) for mark in (1e30, np.nan, -np.inf)),
    *((f"int32 {mark}", lambda: (scene() * 2000).astype(np.int32), mark) for mark in (-(2**31), 2**31 - 1, -9999)),
    ("height in millimetres", lambda: (scene() * 2500 + 500).astype(np.int32), -32768),
    ("uint16", lambda: (scene() * 4000).astype(np.uint16), 65535),
]


@pytest.mark.parametrize(("made", "mark"), [pytest.param(made, mark, id=name) for name, made, mark in MARKS])
def test_marks_for_no_data_do_not_decide(tmp_path: Path, made: Callable[[], Values], mark: float) -> None:
    values = made()
    plain, with_marks = (grey(save(tmp_path / "a.tif", one)) for one in (values, marked(values, mark)))
    assert looks_like(plain, scene()) and looks_like(with_marks, scene())
    assert set(np.unique(with_marks[:20, :20])) <= {0, 255}
    assert np.abs(with_marks - plain)[20:, 20:].max() <= 3
    assert "400 pixels" in words(tmp_path / "a.tif")


@pytest.mark.parametrize("mark", [5.5, 0.0, -1.0])
def test_the_file_may_say_what_stands_for_no_data(tmp_path: Path, mark: float) -> None:
    values = (scene() * 3 + 10).astype(np.float32)
    save(tmp_path / "a.tif", marked(values, mark), tiffinfo={42113: f"{mark:g}"})
    assert looks_like(grey(tmp_path / "a.tif"), scene())
    assert grey(tmp_path / "a.tif")[:20, :20].max() == 0
    assert f"marked as no data ({mark:g})" in words(tmp_path / "a.tif")


def test_a_value_near_the_others_is_no_mark(tmp_path: Path) -> None:
    heights = marked((scene() * 4000 - 11000).astype(np.int32), -9999)
    assert "no data" not in words(save(tmp_path / "a.tif", heights))
    assert grey(tmp_path / "a.tif")[0, 0] > 0


@pytest.mark.parametrize(
    "values",
    [
        (scene() * 10 + 20).astype(np.float32),  # degrees
        (scene() * 10 + 293).astype(np.float32),  # kelvin
        (scene() * 4000 + 28000).astype(np.uint16),  # hundredths of a kelvin
        (scene() * 120 + 29280).astype(np.uint16),
        (scene() * 1e-3).astype(np.float32),
        (scene() * 40 - 20).astype(np.float32),
        (scene() * 1e6 + 5e6).astype(np.int32),
    ],
    ids=lambda values: f"{values.dtype} {values.min():g} to {values.max():g}",
)
def test_temperatures_and_heights_keep_their_contrast(tmp_path: Path, values: Values) -> None:
    assert looks_like(grey(save(tmp_path / "a.tif", values)), scene())


def test_a_picture_that_would_lose_its_contrast_is_refused(tmp_path: Path) -> None:
    values = (scene() * 60 + 100).astype(np.uint16)
    save(tmp_path / "a.tif", values, tiffinfo={281: 4095})  # the file itself says that 4095 is white
    result = read(tmp_path / "a.tif")
    assert isinstance(result, Unreadable)
    assert "would come out as" in result.reason and "grey levels" in result.reason
    few = (np.round(scene() * 9) * 6 + 100).astype(np.uint16)  # has no more to lose
    assert isinstance(read(save(tmp_path / "b.tif", few, tiffinfo={281: 4095})), Picture)


# --- pictures of one camera ------------------------------------------------------------------------------------------


def test_pictures_of_one_camera_share_their_range(tmp_path: Path) -> None:
    bright, dark = (scene() * 1500).astype(np.uint16), (scene() * 900).astype(np.uint16)
    save(tmp_path / "a.tif", bright)
    save(tmp_path / "b.tif", dark)
    assert np.array_equal(grey(tmp_path / "a.tif"), np.rint(bright * (255 / 4095)))
    assert np.array_equal(grey(tmp_path / "b.tif"), np.rint(dark * (255 / 4095)))
    assert "range of the pictures beside it" in words(tmp_path / "b.tif")
    assert "range of" not in words(tmp_path / "a.tif")
    alone = tmp_path / "alone"
    alone.mkdir()
    assert np.array_equal(grey(save(alone / "b.tif", dark)), np.rint(dark * (255 / 1023)))


def test_temperatures_share_their_range_too(tmp_path: Path) -> None:
    for name, warmer in (("a.tif", 0), ("b.tif", 8)):
        save(tmp_path / name, (scene() * 10 + 20 + warmer).astype(np.float32))
    assert np.median(grey(tmp_path / "b.tif") - grey(tmp_path / "a.tif")) > 60


@pytest.mark.parametrize("other", ["size", "model", "format", "folder", "kind", "broken"])
def test_pictures_of_another_camera_do_not_count(tmp_path: Path, other: str) -> None:
    dark, bright = (scene() * 900).astype(np.uint16), (scene() * 65000).astype(np.uint16)
    (tmp_path / "in").mkdir()
    beside = {
        "size": lambda: save(tmp_path / "a.tif", bright[:-1]),
        "model": lambda: save(tmp_path / "a.tif", bright, tiffinfo={272: "another"}),
        "format": lambda: save(tmp_path / "a.png", bright),
        "folder": lambda: save(tmp_path / "in" / "a.tif", bright),
        "kind": lambda: save(tmp_path / "a.tif", bright.astype(np.float32)),
        "broken": lambda: (tmp_path / "a.tif").write_bytes(save(tmp_path / "b.tif", bright).read_bytes()[:-4000]),
    }
    beside[other]()
    assert np.array_equal(grey(save(tmp_path / "b.tif", dark)), np.rint(dark * (255 / 1023)))


def test_a_picture_that_the_range_of_others_would_hide_has_its_own(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", (scene() * 5000).astype(np.float32))
    assert looks_like(grey(save(tmp_path / "b.tif", (scene() * 10 + 20).astype(np.float32))), scene())
    assert "range of" not in words(tmp_path / "b.tif")


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_signed_8_bit_values_do_not_wrap(tmp_path: Path) -> None:
    signed = np.arange(-128, 128, dtype=np.int8).reshape(16, 16)
    Image.fromarray(signed.view(np.uint8)).save(tmp_path / "a.tif", tiffinfo={339: 2})
    assert np.array_equal(grey(tmp_path / "a.tif").ravel(), np.arange(256))
    assert "signed" in words(tmp_path / "a.tif")


def test_odd_pixels_at_both_ends_of_colours() -> None:
    values = (np.repeat(scene()[..., None], 3, axis=2) * 3000 + 500).astype(np.uint16)
    wanted, _ = to_8_bits(values)
    values[3, 3], values[9, 9] = 65535, 0
    got, said = to_8_bits(values)
    assert "12-bit colour" in said
    assert (got != wanted).any(axis=2).sum() == 2


def test_the_range_of_a_camera_is_asked_for_once_and_used() -> None:
    asked = []

    def shared(span: Span) -> Span:
        asked.append(span)
        return Span(0, 4000)

    values = np.arange(1000, dtype=np.uint16).reshape(20, 50)
    assert to_8_bits(values, shared=shared)[0].max() == round(999 * 255 / 4095)
    assert asked == [Span(0, 999)]
    to_8_bits(values, 1023, shared=shared)
    assert len(asked) == 1  # what the file declares goes before


@pytest.mark.parametrize(("most", "wanted"), [(65535, 255), (4095, 255), (255, 255), (32768, 128)])
def test_transparency_keeps_its_depth(most: int, wanted: int) -> None:
    assert alpha_to_8_bits(np.array([[0, most]], np.uint16)).tolist() == [[0, wanted]]
