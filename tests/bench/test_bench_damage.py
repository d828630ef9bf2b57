"""The bench of damage: its good files are good, and its damage is counted where it is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tifffile")

from PIL import Image

from tests.bench import damage
from vlmgate.images import find_images

PHOTOS = [Image.open(source.path).convert("RGB") for source in find_images(Path("sample_images/labelled")).sources[:9]]


def test_sixty_good_files_are_damaged_in_every_way(tmp_path: Path) -> None:
    files = list(damage.good_files(PHOTOS))
    assert len(files) == 60
    rng = np.random.default_rng(0)
    found = damage.mutate(files, 240, rng, tmp_path)
    assert {kind for _, kind in found["harmful"]} == set(damage.KINDS)
    assert all(found["passed"][key] <= number for key, number in found["harmful"].items())
    assert sum(found["passed"].values()) < sum(found["harmful"].values()) / 3


@pytest.mark.parametrize("kind", damage.KINDS)
def test_each_kind_changes_a_file_and_keeps_to_its_formats(kind: str) -> None:
    harm, formats = damage.KINDS[kind]
    data = next(data for format_, _, data in damage.good_files(PHOTOS) if format_.startswith(formats or "TIFF"))
    rng = np.random.default_rng(1)
    assert any(harm(data, rng) != data for _ in range(5))


def test_what_is_changed_is_counted_by_what_is_seen() -> None:
    grey = np.full((10, 10, 3), 100, np.uint8)
    other = grey.copy()
    other[:2] += 8
    assert damage.changed(other, grey) == 0
    other[:2, :, 1] += 1
    assert damage.changed(other, grey) == 0.2
    assert damage.changed(other[:5], grey) == 1


def test_false_alarms_are_files_that_are_good(tmp_path: Path) -> None:
    PHOTOS[0].save(tmp_path / "good.png")
    (tmp_path / "crash-1.png").write_bytes((tmp_path / "good.png").read_bytes()[:-200])
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:-200])
    assert damage.false_alarms(tmp_path) == (1, [])
