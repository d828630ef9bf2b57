"""A copy of a folder resumes the journal of the first; a folder of other images never takes its place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.fakes import FakeCaptioner, SilentProgress, config_for, folder_of, picture_file
from vlmgate.errors import ResumeError
from vlmgate.images import find_images
from vlmgate.run.loop import scan
from vlmgate.run.moved import TRIED, same_images
from vlmgate.store.result import read_result

NAMES = [f"{i:02}.png" for i in range(20)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty images that were read, with the journal `r.journal.jsonl`."""
    folder = folder_of(tmp_path / "in", *NAMES)
    scan(config_for(folder, tmp_path / "r.parquet"), SilentProgress(), load=FakeCaptioner().load)
    return folder


def copied(folder: Path, other: Path, names: list[str], name: Callable[[str], str] = str) -> Path:
    other.mkdir()
    for one in names:
        shutil.copyfile(folder / one, other / name(one))
    return other


def known(tmp_path: Path, other: Path) -> tuple[int, int] | None:
    return same_images(tmp_path / "r.journal.jsonl", find_images(other).sources)


@pytest.mark.parametrize("shared", [1, 3, 6, 9])
def test_a_folder_that_shares_images_and_lacks_most_names_is_refused(folder: Path, shared: int) -> None:
    """Golden samples lie among the parts of every day; half of a small folder may be such."""
    tmp_path = folder.parent
    other = copied(folder, tmp_path / "there", NAMES[:shared])
    folder_of(other, *(f"new_{i}.png" for i in range(shared)))
    assert known(tmp_path, other) is None
    before = read_result(tmp_path / "r.parquet")
    fake = FakeCaptioner()
    with pytest.raises(ResumeError, match="folder"):
        scan(config_for(other, tmp_path / "r.parquet"), SilentProgress(), load=fake.load)
    assert not fake.read_names and read_result(tmp_path / "r.parquet") == before


def test_a_part_of_a_folder_is_no_copy_of_it(folder: Path) -> None:
    tmp_path = folder.parent
    assert known(tmp_path, copied(folder, tmp_path / "few", NAMES[:9])) is None
    assert known(tmp_path, copied(folder, tmp_path / "renamed", NAMES[:9], "x_{}".format)) is None
    assert known(tmp_path, copied(folder, tmp_path / "most", NAMES[:11])) == (11, 11)


def test_a_copy_that_grew_resumes(folder: Path) -> None:
    tmp_path = folder.parent
    other = copied(folder, tmp_path / "there", NAMES)
    more = [f"more_{i:02}.png" for i in range(12)]
    folder_of(other, *more)
    fake = FakeCaptioner()
    result = scan(config_for(other, tmp_path / "r.parquet"), SilentProgress(), load=fake.load)
    assert sorted(fake.read_names) == more and [row.file_name for row in result.records] == [*NAMES, *more]


def test_new_names_count_only_where_every_image_is_known(folder: Path) -> None:
    tmp_path = folder.parent
    whole = copied(folder, tmp_path / "renamed", NAMES, "x_{}".format)
    assert known(tmp_path, whole) == (10, 10) and len(find_images(whole).sources) > TRIED
    picture_file(whole / "x_00.png", salt="another")
    assert known(tmp_path, whole) is None


def test_frames_that_are_all_alike_are_no_copy(folder: Path) -> None:
    """Frames without a part are the same bytes every day."""
    tmp_path = folder.parent
    assert known(tmp_path, copied(folder, tmp_path / "one", NAMES[:1])) is None
    blank = tmp_path / "blank"
    blank.mkdir()
    for i in range(20):
        shutil.copyfile(folder / NAMES[0], blank / f"blank_{i:02}.png")
    assert known(tmp_path, blank) is None
