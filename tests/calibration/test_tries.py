"""What earlier tries leave of a promise, without a model."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.support.results import row
from vlmgate.calibration.choose import design_part
from vlmgate.calibration.labels import Labels
from vlmgate.calibration.readings import Labelled
from vlmgate.calibration.tries import Tried, look_back, remember, wait
from vlmgate.config import CalibrateConfig, SamplingConfig
from vlmgate.errors import OutputError
from vlmgate.store.result import TRIES_FILE

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
    labels, config, result = at(folder)
    return look_back(labelled, labels, PROVENANCE, config, result)


def test_no_part_is_in_both_halves_where_some_of_its_images_are_new(tmp_path: Path) -> None:
    labels, config, result = at(tmp_path)
    remember(look(read(range(200)), tmp_path), labels, config, result)
    both = read(range(400), tuple([*range(200), *range(200)]))  # of each part one more image
    tried = look(both, tmp_path)
    assert tried.holds and tried.touched.all()
    design = ~tried.usable | (design_part(both) & tried.touched)
    assert not set(both.part_of[design].tolist()) & set(both.part_of[~design].tolist())


def test_a_record_that_is_no_plain_file_is_neither_read_nor_written(tmp_path: Path) -> None:
    at(tmp_path)
    record, other = tmp_path / "labels" / TRIES_FILE, tmp_path / "precious.txt"
    other.write_text("precious")
    record.symlink_to(other)
    with pytest.raises(OutputError, match="cannot be read"):
        look(read(range(9)), tmp_path)
    record.unlink()
    labels, config, result = at(tmp_path)
    tried = look(read(range(9)), tmp_path)
    record.symlink_to(other)  # in between
    assert "cannot be written" in str(remember(tried, labels, config, result)) and other.read_text() == "precious"
    record.unlink()
    os.mkfifo(record)
    with pytest.raises(OutputError, match="no plain file"):
        look(read(range(9)), tmp_path)


@pytest.mark.parametrize("declared", [float("inf"), 10**400, 0, "x", None])
def test_a_damaged_line_is_named(tmp_path: Path, declared: object) -> None:
    at(tmp_path)
    lines = [{"identity": "a", "declared": 1, "images": []}, {"identity": "b", "declared": declared, "images": []}]
    (tmp_path / "labels" / TRIES_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    tried = look(read(range(9)), tmp_path)
    assert not tried.holds and "line 2 of" in tried.notes[0] and "is damaged" in tried.notes[0]


def test_of_two_at_once_only_one_is_the_first(tmp_path: Path) -> None:
    labels, config, result = at(tmp_path)
    mine, other = look(read(range(100)), tmp_path), look(read(range(50, 150)), tmp_path)
    again = look(read(range(100)), tmp_path)  # the identical command is no other try
    apart = look(read(range(150, 200)), tmp_path)
    assert (mine.number, other.number) == (1, 1)
    remember(mine, labels, config, result)
    remember(again, labels, config, result)
    remember(apart, labels, config, result)
    with pytest.raises(OutputError, match="at the same time"):
        remember(other, labels, config, result)
    assert look(read(range(50, 150)), tmp_path).number == 2 and look(read(range(100)), tmp_path).number == 1


def test_a_part_and_a_copy_of_the_labels_are_no_new_set(tmp_path: Path) -> None:
    labels, config, result = at(tmp_path)
    remember(look(read(range(100)), tmp_path), labels, config, result)
    copy = replace(labels, source=tmp_path / "copy")
    copy.source.mkdir()
    assert look_back(read(range(50)), copy, PROVENANCE, config, result).number == 2, "it lies at the readings"
    below = replace(labels, source=tmp_path / "labels" / "test" / "more")
    below.source.mkdir(parents=True)
    away = tmp_path / "away"
    away.mkdir()
    elsewhere = replace(config, out=away / "gate.toml")
    tried = look_back(read(range(50)), below, PROVENANCE, elsewhere, away / "gate.parquet")
    assert tried.number == 2, "it lies above the labels"
    remember(tried, below, elsewhere, away / "gate.parquet")
    assert look(read(range(100)), tmp_path).number == 1, "the first stays the first"


def test_too_few_new_images_wait_until_there_are_enough(tmp_path: Path) -> None:
    """Twenty, twenty more: the first lot is not used up, and the command on the old ones stays the first."""
    labels, config, result = at(tmp_path)
    config = replace(config, tries=1)
    about = labels, PROVENANCE, config, result
    for options in (config, replace(config, confidence=0.9)):
        remember(look_back(read(range(100)), labels, PROVENANCE, options, result), labels, options, result)
    few = read(range(120))
    rest, tried = wait(look_back(few, *about), few, *about)
    assert len(rest.records) == 100 and tried.again and tried.holds and tried.number == 1
    assert "20 new images are kept until there are" in tried.notes[-1]
    third = labels, PROVENANCE, replace(config, score="cocoa"), result
    rest, tried = wait(look_back(few, *third), few, *third)
    assert not tried.holds and tried.number == 3 and tried.fresh == 20
    remember(tried, labels, third[2], result)
    many = read(range(100 + tried.enough))
    assert tried.enough > 20
    rest, tried = wait(look_back(many, *third), many, *third)
    assert tried.holds and len(rest.records) == len(many.records) and int((~tried.touched).sum()) == tried.enough
