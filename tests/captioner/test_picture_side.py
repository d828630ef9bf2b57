"""Large JPEGs are decoded smaller where a model's processor throws the rest away, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.fakes import FakeCaptioner, SilentProgress, config_for
from vlmgate.captioner.location import picture_side
from vlmgate.config import ImageConfig, ModelConfig
from vlmgate.data import Picture, Source, Unreadable
from vlmgate.factory.world import VIEW_SIZE
from vlmgate.images import open_pages
from vlmgate.run.loop import scan

PLAIN = {"size": {"height": 384, "width": 336}, "do_resize": True, "image_mean": [0.5], "do_image_splitting": False}


def checkpoint(folder: Path, name: str, told: Any) -> ModelConfig:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    (folder / name).write_text(told if isinstance(told, str) else json.dumps(told))
    return ModelConfig(model=str(folder))


@pytest.mark.parametrize(
    ("told", "side"),
    [
        (PLAIN, 384),
        (PLAIN | {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}, 224),
        (PLAIN | {"size": 448}, 448),
        (PLAIN | {"do_image_splitting": True}, None),
        (PLAIN | {"max_pixels": 12_845_056}, None),
        (PLAIN | {"size": {"longest_edge": 1536}}, None),
        (PLAIN | {"size": {"height": 10**9, "width": 1}}, None),
        (PLAIN | {"size": {"height": True, "width": "384"}}, None),
        (PLAIN | {"do_resize": False}, None),
        ({}, None),
        ([], None),
        ("{", None),
    ],
)
def test_what_a_processor_wants_is_known_where_it_is_plain(tmp_path: Path, told: Any, side: int | None) -> None:
    assert picture_side(checkpoint(tmp_path / "m", "preprocessor_config.json", told)) == side
    if isinstance(told, dict):
        assert picture_side(checkpoint(tmp_path / "n", "processor_config.json", {"image_processor": told})) == side


def test_of_a_hub_model_nothing_is_known() -> None:
    assert picture_side(ModelConfig()) == VIEW_SIZE and picture_side(ModelConfig(model="owner/name")) is None


def photo(path: Path, size: tuple[int, int], **options: Any) -> Source:
    ramp = np.linspace(0, 255, size[0])[None, :, None] * np.linspace(1, 0.2, size[1])[:, None, None] * [1, 0.7, 0.4]
    Image.fromarray(ramp.astype(np.uint8)).save(path, **options)
    return Source(path.name, path)


def opened(source: Source, least_side: int) -> Picture:
    (page,) = open_pages(source, ImageConfig(least_side=least_side))
    assert isinstance(page, Picture), page
    return page


@pytest.mark.parametrize(
    ("least", "size"), [(0, (803, 601)), (100, (201, 151)), (150, (201, 151)), (151, (402, 301)), (301, (803, 601))]
)
def test_no_side_comes_out_shorter_than_it_may(tmp_path: Path, least: int, size: tuple[int, int]) -> None:
    page = opened(photo(tmp_path / "a.jpg", (803, 601)), least)
    assert page.rgb.size == size and (page.file.width, page.file.height) == (803, 601)


def test_turned_pictures_keep_their_size_upright_and_their_colours(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    source = photo(tmp_path / "a.jpg", (803, 601), exif=exif, quality=95)
    small, whole = opened(source, 100), opened(source, 0)
    assert small.rgb.size == (151, 201) and (small.file.width, small.file.height) == (601, 803)
    shrunk = np.asarray(whole.rgb.resize((151, 201), Image.Resampling.BOX)).astype(int)
    assert np.abs(np.asarray(small.rgb).astype(int) - shrunk).mean() < 1.5


@pytest.mark.parametrize("name", ["a.png", "progressive.jpg"])
def test_what_must_be_looked_at_whole_is_decoded_whole(tmp_path: Path, name: str) -> None:
    options = {"progressive": True} if name.endswith("jpg") else {}
    assert opened(photo(tmp_path / name, (803, 601), **options), 100).rgb.size == (803, 601)


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.99])
def test_a_truncated_jpeg_is_no_less_refused(tmp_path: Path, kept: float) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a.jpg"
    Image.fromarray(rng.integers(0, 256, (601, 803, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    cut = data[: int(len(data) * kept)].rstrip(b"\xff")
    for end in (
        b"",
        b"\xff\xd9",
        b"\xff\xd9" + bytes(len(data) - len(cut)),
        bytes(len(data) - len(cut) - 2) + b"\xff\xd9",
    ):
        path.write_bytes(cut + end)
        (page,) = open_pages(Source("a.jpg", path), ImageConfig(least_side=100))
        assert isinstance(page, Unreadable) and page.reason.startswith("truncated"), (kept, end[:4])


def test_a_scan_decodes_by_the_rule_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    photo(tmp_path / "in" / "a.jpg", (2200, 2100))
    seen: list[tuple[int, int]] = []

    class Looking(FakeCaptioner):
        def read(self, pictures: Any) -> Any:
            seen.extend(picture.rgb.size for picture in pictures)
            return super().read(pictures)

    result = scan(config_for(tmp_path / "in", tmp_path / "r.parquet"), SilentProgress(), load=Looking().load)
    assert seen == [(1100, 1050)] and (result.records[0].width, result.records[0].height) == (2200, 2100)
    assert result.provenance["image_config"]["least_side"] == 1024 == result.provenance["fingerprint"]["least_side"]
