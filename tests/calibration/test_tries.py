"""What earlier tries leave of a promise, without a model."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

from tests.support.results import row
from vlmgate.calibration.choose import design_part
from vlmgate.calibration.labels import Labels
from vlmgate.calibration.readings import Labelled
from vlmgate.calibration.tries import Tried, look_back, remember
from vlmgate.config import CalibrateConfig, SamplingConfig

PROVENANCE = {"fingerprint": {}, "sampling": asdict(SamplingConfig())}


def read(numbers: range, parts: tuple[int, ...] = ()) -> Labelled:
    """Return images that all read alike, a part each unless `parts` says otherwise."""
    names = [f"{i:03d}.png" for i in numbers]
    return Labelled(
        kind="class",
        records=tuple(row(name, sha256=hashlib.sha256(name.encode()).hexdigest()) for name in names),
        labels=("ok",) * len(names),
        choices=("ok", "dent"),
        good="ok",
        prompt="",
        terms=None,
        num_samples=2,
        views=1,
        truths=("ok",) * len(names),
        novelties=(None,) * len(names),
        parts=parts,
    )


def at(folder: Path) -> tuple[Labels, CalibrateConfig, Path]:
    """Return labels in a folder, what is asked, and the place of the readings."""
    (folder / "labels").mkdir(exist_ok=True)
    config = CalibrateConfig(source=folder / "labels", out=folder / "gate.toml", tries=2)
    return Labels("class", "folders", folder / "labels", folder / "labels"), config, folder / "gate.parquet"


def look(labelled: Labelled, folder: Path) -> Tried:
    labels, config, _ = at(folder)
    return look_back(labelled, labels, PROVENANCE, config)


def test_no_part_is_in_both_halves_where_some_of_its_images_are_new(tmp_path: Path) -> None:
    labels, config, _ = at(tmp_path)
    remember(look(read(range(200)), tmp_path), labels, config)
    both = read(range(400), tuple([*range(200), *range(200)]))  # of each part one more image
    tried = look(both, tmp_path)
    assert tried.holds and tried.touched.all()
    design = ~tried.usable | (design_part(both) & tried.touched)
    assert not set(both.part_of[design].tolist()) & set(both.part_of[~design].tolist())
