"""What a disk keeps for itself is no part: thumbnails, snapshots and bins are left out, counted, and told."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.fakes import FakeCaptioner, folder_of, let_it_read, picture_file
from vlmgate.cli import app
from vlmgate.images import find_images, patterns_of
from vlmgate.images.names import USUAL, Exclusion
from vlmgate.store.result import read_result

runner = CliRunner()
PARTS = [f"part_{i}.png" for i in range(4)]
HIDDEN = ("@eaDir/part_0.png/SYNOPHOTO_THUMB_XL.png", ".snapshot/hourly.1/part_0.png", "#recycle/part_9.png")


@pytest.fixture
def nas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images, as a network disk keeps them."""
    monkeypatch.chdir(tmp_path)
    folder = folder_of(tmp_path / "nas", *PARTS, *HIDDEN, ".thumbnails/x.png", ".Trash-1000/files/y.png")
    folder_of(folder / "line2", "@eaDir/z.png/SYNOPHOTO_THUMB_M.png")
    for name in PARTS:
        copy = folder / ".snapshot" / "hourly.1" / name
        copy.write_bytes((folder / name).read_bytes())
    (folder / ".DS_Store").write_bytes(b"Bud1")
    (folder / "._part_0.png").write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    return folder


def test_by_default_only_the_parts_are_read(nas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_it_read(FakeCaptioner(), monkeypatch)
    told = runner.invoke(app, ["scan", "nas", "-k", "4"])
    assert told.exit_code == 0
    rows, provenance = read_result(Path("nas.parquet"))
    assert [row.file_name for row in rows] == PARTS and not any(row.duplicate_of for row in rows)
    counts = {"#recycle": 1, ".DS_Store": 1, ".Trash-*": 1, "._*": 1, ".snapshot": 1, ".thumbnails": 1, "@eaDir": 2}
    assert provenance["excluded"] == counts and provenance["exclude"] == [] and provenance["ignored"] == 0
    assert "8 files or folders were left out because of their names (#recycle: 1, .DS_Store: 1" in told.stdout


@pytest.mark.parametrize("how", ["exclude", "list"])
def test_an_original_is_never_the_copy_of_a_snapshot(nas: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    let_it_read(FakeCaptioner(), monkeypatch)
    if how == "exclude":
        told = runner.invoke(app, ["scan", "nas", "-k", "4", "--exclude", "none", "-o", "r.parquet"])
    else:
        paths = "\n".join(str(path) for path in sorted(nas.rglob("*.png")) if path.is_file())
        told = runner.invoke(app, ["scan", "-", "-k", "4", "-o", "r.parquet"], input=paths)
    assert told.exit_code in (0, 3)
    rows, _ = read_result(Path("r.parquet"))
    by_name = {row.file_name.removeprefix("nas/"): row.duplicate_of for row in rows}
    assert all(by_name[name] is None for name in PARTS)
    copy = by_name[".snapshot/hourly.1/part_1.png"]
    assert copy is not None and copy.removeprefix("nas/") == "part_1.png"
    assert len(rows) > len(PARTS) + 4


def test_one_name_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    let_it_read(FakeCaptioner(), monkeypatch)
    folder_of(tmp_path / "in", "a.png", "._b.png")
    told = runner.invoke(app, ["scan", "in", "-k", "4"])
    assert "1 file or folder was left out because of its name (._*); see --exclude." in told.stdout


@pytest.mark.parametrize(("given", "idle"), [(["prat_3*", "part_1*"], "'prat_3*'"), (["./a/", "b"], "'a', 'b'")])
def test_a_pattern_that_leaves_nothing_out_is_told(
    nas: Path, given: list[str], idle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_it_read(FakeCaptioner(), monkeypatch)
    options = [word for pattern in given for word in ("--exclude", pattern)]
    told = runner.invoke(app, ["scan", "nas", "-k", "4", *options, "-o", "r.parquet"])
    assert told.exit_code == 0 and f"--exclude leaves out nothing of this name: {idle}." in told.stderr
    once = runner.invoke(
        app, ["scan", "nas", "-k", "4", "--exclude", "part_3*", "--exclude", "none", "-o", "s.parquet"]
    )
    assert "leaves out nothing" not in once.stderr


@pytest.mark.parametrize("given", [["part_3*"], ["none", "part_3*"]])
def test_a_list_of_files_takes_no_patterns(nas: Path, given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    let_it_read(FakeCaptioner(), monkeypatch)
    names = "\n".join(f"nas/{name}" for name in PARTS)
    options = [word for pattern in given for word in ("--exclude", pattern)]
    told = runner.invoke(app, ["scan", "-", "-k", "4", *options, "-o", "r.parquet"], input=names)
    assert told.exit_code == 2 and "'part_3*' is for a folder" in told.stderr and not Path("r.parquet").exists()
    told = runner.invoke(app, ["scan", "-", "-k", "4", "--exclude", "none", "-o", "r.parquet"], input=names)
    assert told.exit_code == 0, "the usual names of a list are read anyway"


def test_own_patterns_come_beside_the_usual_ones(nas: Path) -> None:
    picture_file(nas / "line2" / "a.tmp.png")
    picture_file(nas / "line2" / "keep.png")
    picture_file(nas / "old" / "b.png")
    walk = find_images(nas, patterns_of(("*.tmp.png", "old/")))
    assert [source.file_name for source in walk.sources] == ["line2/keep.png", *PARTS]
    assert walk.excluded["*.tmp.png"] == 1 and walk.excluded["old"] == 1 and walk.excluded["@eaDir"] == 2


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("line2/*", ["a.png", "line2.png"]),
        ("line2", ["a.png", "line2.png"]),
        ("*/b.png", ["a.png", "line2.png", "line2/c.png", "line2/deep/d.png"]),
        ("deep", ["a.png", "line2.png", "line2/b.png", "line2/c.png"]),
        ("*.png", []),
        ("./line2/", ["a.png", "line2.png"]),
        ("a.png", ["line2.png", "line2/b.png", "line2/c.png", "line2/deep/d.png"]),
        ("b", ["a.png", "line2.png", "line2/b.png", "line2/c.png", "line2/deep/d.png"]),
        ("l*/c*", ["a.png", "line2.png", "line2/b.png", "line2/deep/d.png"]),
        ("line2/d*.png", ["a.png", "line2.png", "line2/b.png", "line2/c.png"]),
        ("[ab].png", ["line2.png", "line2/c.png", "line2/deep/d.png"]),
        ("LINE2", ["a.png", "line2.png", "line2/b.png", "line2/c.png", "line2/deep/d.png"]),
        ("[", ["a.png", "line2.png", "line2/b.png", "line2/c.png", "line2/deep/d.png"]),
    ],
)
def test_a_pattern_is_of_a_name_or_of_a_path(pattern: str, left: list[str], tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png", "line2.png", "line2/b.png", "line2/c.png", "line2/deep/d.png")
    assert [source.file_name for source in find_images(tmp_path, patterns_of((pattern,))).sources] == left


def test_several_patterns_are_each_their_own(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png", "a.png.png", "b.png", "x/a.jpg.png", "x/c.png")
    walk = find_images(tmp_path, ("a.png", "x/c*", "b?png"))
    assert [source.file_name for source in walk.sources] == ["a.png.png", "x/a.jpg.png"]
    assert walk.excluded == {"a.png": 1, "b?png": 1, "x/c*": 1}
    assert len(find_images(tmp_path, ()).sources) == 5


def test_a_pattern_is_compared_in_composed_form(tmp_path: Path) -> None:
    folder_of(tmp_path, unicodedata.normalize("NFD", "geprüft/a.png"), "b.png")
    assert [source.file_name for source in find_images(tmp_path, ("geprüft",)).sources] == ["b.png"]


def test_what_is_walked_is_never_left_out_itself(nas: Path) -> None:
    assert len(find_images(nas / ".snapshot").sources) == 4, "whoever names it wants it"
    (file,) = find_images(nas / ".snapshot" / "hourly.1" / "part_0.png").sources
    assert file.file_name == "part_0.png"


@pytest.mark.parametrize(
    "name", ["eaDir", "recycle", "snapshot.png", "my.snapshot", ".Trash", "a._b.png", "thumbnails"]
)
def test_names_that_only_look_like_them_are_read(name: str) -> None:
    assert not Exclusion(USUAL).holds(f"line2/{name}")


def test_a_folder_that_holds_nothing_else_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "in", "@eaDir/a.png", "b/.snapshot/c.png")
    told = runner.invoke(app, ["scan", "in"])
    assert told.exit_code == 2 and "0 other files; 2 left out by name: .snapshot, @eaDir" in told.stderr


def test_review_and_export_find_what_was_scanned(nas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_it_read(FakeCaptioner(), monkeypatch)
    assert runner.invoke(app, ["scan", "nas", "-k", "4", "--exclude", "part_3*", "-o", "r.parquet"]).exit_code == 0
    done = runner.invoke(app, ["export", "r.parquet", "--to", "imagefolder", "-o", "copies"])
    assert done.exit_code == 0 and len([*Path("copies/train").glob("*.png")]) == 3


def test_shards_are_merged_with_the_same_names_left_out(nas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_it_read(FakeCaptioner(), monkeypatch)
    for shard in (1, 2):
        done = runner.invoke(app, ["scan", "nas", "-k", "4", "--exclude", "part_3*", "--shard", f"{shard}/2"])
        assert done.exit_code == 0, done.stderr
    done = runner.invoke(app, ["merge", "nas.1-of-2.parquet", "nas.2-of-2.parquet", "-o", "r.parquet"])
    assert done.exit_code == 0, done.stderr
    rows, provenance = read_result(Path("r.parquet"))
    assert [row.file_name for row in rows] == PARTS[:3] and provenance["excluded"]["part_3*"] == 1
    assert provenance["exclude"] == ["part_3*"]
