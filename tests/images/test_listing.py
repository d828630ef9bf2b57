"""A list of files on stdin: everything that it names has a row, whatever the names are."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.fakes import DISAGREE, FakeCaptioner, folder_of, let_it_read, picture_file
from vlmgate.cli import app
from vlmgate.errors import NoImagesError, UsageError
from vlmgate.images import find_listed, read_list
from vlmgate.store.result import read_result

runner = CliRunner()
posix = pytest.mark.skipif(sys.platform == "win32", reason="names that Windows does not have")


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCaptioner:
    captioner = FakeCaptioner()
    let_it_read(captioner, monkeypatch)
    monkeypatch.chdir(tmp_path)
    return captioner


def run(*arguments: object, given: bytes | str = b"", code: int = 0) -> tuple[str, str]:
    result = runner.invoke(app, [str(a) for a in arguments], input=given)
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    return result.stdout, result.stderr


def names_in(parquet: str) -> dict[str, tuple[str, str | None]]:
    return {row.file_name: (row.reason, row.error) for row in read_result(Path(parquet))[0]}


# --- the list ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "null", "expected"),
    [
        (b"a.png\nb c.png\n", False, ["a.png", "b c.png"]),
        (b"a.png\r\n\r\nb.png", False, ["a.png", "b.png"]),
        (b"\xef\xbb\xbfa.png\n", False, ["a.png"]),
        ("ä.png\r\nb.png\r\n".encode("utf-16"), False, ["ä.png", "b.png"]),
        (b"a\nb.png\0 c.png\0", True, ["a\nb.png", " c.png"]),
        (b"a.png", True, ["a.png"]),
        (b"\n \n", False, []),
    ],
)
def test_lists_as_other_programs_write_them(data: bytes, null: bool, expected: list[str]) -> None:
    assert [str(path) for path in read_list(data, null=null)] == expected


@pytest.mark.parametrize(("data", "null", "words"), [(b"a\0b", False, "add --null"), (b"a\nb\n", True, "no NUL")])
def test_a_list_that_is_ended_the_other_way_is_refused(data: bytes, null: bool, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_list(data, null=null)


def test_names_in_the_result_are_unique_and_lead_nowhere(tmp_path: Path) -> None:
    base = folder_of(tmp_path / "base", "a.png", "deep/b.png")
    elsewhere = picture_file(tmp_path / "else where" / "c.png")
    inside = base / str(elsewhere).lstrip("/")  # has the very name that the one elsewhere would get
    picture_file(inside)
    paths = [
        elsewhere,
        inside,
        Path("deep/../a.png"),
        Path("./deep//b.png"),
        Path("../else where/c.png"),
        base / "a.png",
    ]
    walk = find_listed(paths, base)
    stem = elsewhere.as_posix().lstrip("/")
    assert {s.file_name: s.path for s in walk.sources} == {
        "a.png": base / "a.png",
        "deep/b.png": base / "deep/b.png",
        stem: inside,
        f"{stem}~2": elsewhere,
    }
    assert len(walk.repeated) == 2 and not walk.unreadable
    for source in walk.sources:
        assert not source.file_name.startswith("/") and ".." not in source.file_name.split("/")


@posix
def test_a_link_followed_by_two_dots_leads_where_the_disk_says(tmp_path: Path) -> None:
    folder_of(tmp_path / "far" / "deep", "x.png")
    target = picture_file(tmp_path / "far" / "y.png")
    decoy = picture_file(tmp_path / "base" / "y.png")
    (tmp_path / "base" / "link").symlink_to(tmp_path / "far" / "deep")
    walk = find_listed([Path("link/../y.png"), Path("y.png")], decoy.parent)
    assert {source.path for source in walk.sources} == {target, decoy}


def test_an_empty_list_is_an_error() -> None:
    with pytest.raises(NoImagesError, match="names no file"):
        find_listed([], Path())


# --- the command ------------------------------------------------------------------------------------------------------


def test_everything_that_is_named_has_a_row(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "a.png", "b.png")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    (tmp_path / "folder").mkdir()
    given = "in/a.png\nin/none.png\nin/notes.txt\nfolder\nin/a.png\nin/./b.png\n" + "x" * 5000 + "\n"
    out, err = run("scan", "-", given=given, code=3)
    assert "Wrote listed.parquet (6 rows)." in out
    assert "the list names 1 file again, which has one row all the same: " in err
    found = names_in("listed.parquet")
    assert found["in/a.png"] == found["in/b.png"] == ("agreed", None)
    assert found["in/none.png"] == ("unreadable", "not found")
    assert found["folder"] == ("unreadable", "a folder, not a file")
    assert found["in/notes.txt"][0] == found["x" * 5000][0] == "unreadable"
    provenance = read_result(Path("listed.parquet"))[1]
    assert provenance["listed"]["entries"] == 7 and provenance["listed"]["repeated"] == 1


def test_the_same_list_resumes_and_a_grown_one_reads_what_is_new(tmp_path: Path, fake: FakeCaptioner) -> None:
    folder_of(tmp_path / "in", *(f"{i}.png" for i in range(5)))
    lines = [f"in/{i}.png" for i in range(5)]
    run("scan", "-", given="\n".join(lines[:3]))
    fake.history.clear()
    assert "Every image has been read before" in run("scan", "-", given="\n".join(reversed(lines[:3])))[1]
    assert fake.history == []
    run("scan", "-", given="\n".join(lines))
    assert sorted(fake.read_names) == lines[3:] and len(names_in("listed.parquet")) == 5
    (tmp_path / "in" / "4.png").unlink()
    run("scan", "-", given="\n".join(lines), code=3)
    assert names_in("listed.parquet")["in/4.png"] == ("unreadable", "not found")


@posix
def test_hostile_names_reach_result_and_terminal_unharmed(tmp_path: Path, fake: FakeCaptioner) -> None:
    fake.say = lambda _: DISAGREE
    names = [
        b"two\nlines.png",
        b"[bold]x[red].png",
        b"bell\x07\x1b[31m.png",
        b"caf\xe9.png",
        b"-rf.png",
        "\u202egnp.png".encode(),
    ]
    for name in names:
        picture_file(tmp_path / "plain.png", salt=repr(name)).rename(tmp_path / os.fsdecode(name))
    out, err = run("scan", "-", "-0", given=b"\0".join(names) + b"\0")
    assert not set("\x07\x1b\u202e") & set(out + err)
    assert set(names_in("listed.parquet")) == {
        "two\nlines.png",
        "[bold]x[red].png",
        "bell\x07\x1b[31m.png",
        r"caf\xe9.png",
        "-rf.png",
        "\u202egnp.png",
    }
    assert r"two\nlines.png" in run("show", "listed.parquet", "--routed")[0]


def test_people_see_the_pictures_of_a_list_wherever_they_lie(tmp_path: Path, fake: FakeCaptioner) -> None:
    fake.say = lambda _: DISAGREE
    work = tmp_path / "work"
    work.mkdir()
    os.chdir(work)
    picture_file(work / "in" / "a.png")
    far = picture_file(tmp_path / "far" / "b.png")
    run("scan", "-", given=f"in/a.png\n{far}\n")
    told = run("review", "listed.parquet")[0]
    assert "2 images" in told and "cannot be shown" not in told
    run("export", "listed.parquet", "--to", "imagefolder", "-o", "pictures")
    assert len(list((work / "pictures" / "train").glob("*.png"))) == 2
    far.write_bytes(b"replaced")
    run("export", "listed.parquet", "--to", "imagefolder", "-o", "fewer")
    assert len(list((work / "fewer" / "train").glob("*.png"))) == 1


def test_what_makes_no_sense_is_refused_in_one_line(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "a.png")
    for arguments, given, words in (
        (["scan", "in", "-0"], b"", "--null is for a list on stdin"),
        (["scan", "-"], b"", "names no file"),
        (["scan", "-"], b"in/a.png\0", "add --null"),
    ):
        _, err = run(*arguments, given=given, code=2)
        assert words in err.splitlines()[-1]
    out, _ = run("scan", "-", "--format", "json", "-q", given=b"in/a.png\n")
    assert json.loads(out)["output"] == "listed.parquet"
