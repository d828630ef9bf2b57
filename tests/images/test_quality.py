"""Figures of a picture's quality: each moves with what it is named for, and none can lose an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.support.fakes import picture_file
from vlmgate.config import ImageConfig
from vlmgate.data import Picture, Quality, Source
from vlmgate.images import open_pages
from vlmgate.images.quality import measure


def part(size: int = 600) -> Image.Image:
    """A bright disc with a scratch, on grey."""
    y, x = np.mgrid[0:size, 0:size] / size
    grey = np.where((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1, 180.0, 90.0)
    grey[np.abs(y - x) < 0.004] = 40
    return Image.fromarray(np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2))


def measured(image: Image.Image) -> Quality:
    found = measure(image)
    assert found is not None
    return found


def noisy(image: Image.Image, sigma: float) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, sigma, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def darker(image: Image.Image) -> Image.Image:
    return image.point(lambda value: int(value * 0.02))


def brighter(image: Image.Image) -> Image.Image:
    return image.point(lambda value: min(255, value * 2))


def blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(4))


def flatter(image: Image.Image) -> Image.Image:
    return image.point(lambda value: int(128 + 0.2 * (value - 128)))


@pytest.mark.parametrize(
    ("harm", "name", "sign"),
    [
        (blurred, "sharpness", -1),
        (darker, "exposure", -1),
        (darker, "clipped_dark", +1),
        (brighter, "exposure", +1),
        (brighter, "clipped_bright", +1),
        (flatter, "contrast", -1),
        (lambda image: noisy(image, 10), "noise", +1),
    ],
)
def test_each_figure_moves_with_what_it_is_named_for(
    harm: Callable[[Image.Image], Image.Image], name: str, sign: int
) -> None:
    before, after = getattr(measured(part()), name), getattr(measured(harm(part())), name)
    assert sign * (after - before) > 0.5 * abs(before)


@pytest.mark.parametrize("sigma", [2.0, 5.0, 10.0])
def test_the_noise_is_told_in_grey_levels(sigma: float) -> None:
    grey = noisy(Image.new("RGB", (900, 900), (128, 128, 128)), sigma)
    luma_sigma = sigma * np.sqrt(0.299**2 + 0.587**2 + 0.114**2)  # three independent channels
    assert measured(grey).noise == pytest.approx(luma_sigma, rel=0.1)
    assert measured(Image.new("RGB", (900, 900), (128, 128, 128))).noise == 0


def test_sharpness_compares_across_resolutions() -> None:
    values = [measured(part(size)).sharpness for size in (800, 1200, 2400)]
    assert max(values) < 1.3 * min(values)  # type: ignore[type-var, operator]


def test_known_values() -> None:
    halves = Image.new("RGB", (100, 100), "white")
    halves.paste((0, 0, 0), (0, 0, 50, 100))
    found = measured(halves)
    assert (found.exposure, found.contrast, found.clipped_dark, found.clipped_bright) == (0.5, 0.5, 0.5, 0.5)
    checks = Image.fromarray(np.uint8(np.indices((50, 50)).sum(axis=0) % 2 * 255))
    assert measured(checks.convert("RGB")).sharpness == pytest.approx(1020**2)


@pytest.mark.parametrize("size", [(1, 1), (2, 900), (20_000, 3), (5000, 4000)])
def test_pictures_of_any_shape(size: tuple[int, int]) -> None:
    found = measured(Image.new("RGB", size, (10, 20, 30)))
    assert found.exposure == pytest.approx(0.0711, abs=0.005)
    assert all(value is None or 0 <= value < 1 for value in astuple(found)[:-1])
    assert found.flat_rows == (None if min(size) < 3 else 1)


def test_rows_that_a_broken_copy_left_flat_are_counted() -> None:
    whole = noisy(part(), 3)
    assert measured(whole).flat_rows == 0
    for harm in (Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_90, Image.Transpose.TRANSVERSE):
        broken = whole.copy()
        broken.paste((7, 0, 200), (0, 450, 600, 600))
        assert measured(broken.transpose(harm)).flat_rows == 0.25


def test_an_image_that_cannot_be_measured_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture_file(tmp_path / "a.png")
    (page,) = open_pages(Source("a.png", path), ImageConfig())
    assert isinstance(page, Picture) and page.quality is not None and page.quality == measure(page.rgb)

    def broken(_luma: object) -> float:
        raise MemoryError

    monkeypatch.setattr("vlmgate.images.quality.noise", broken)
    (page,) = open_pages(Source("a.png", path), ImageConfig())
    assert isinstance(page, Picture) and page.quality is None
