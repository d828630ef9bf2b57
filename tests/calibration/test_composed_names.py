"""A file that macOS copied is "é" in two characters, a table's in one: they are one name."""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.fakes import FakeCaptioner, folder_of, let_it_read
from vlmgate.calibration.labels import read_labels
from vlmgate.cli import app
from vlmgate.images import composed, find_listed, spelt_as
from vlmgate.store.result import read_result

runner = CliRunner()
NAMES = [f"prüfung_é{i:02}.png" for i in range(40)]


def nfd(name: str) -> str:
    return unicodedata.normalize("NFD", name)


def table(path: Path, rows: list[tuple[str, str]], header: tuple[str, str] = ("file_name", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A model that finds a crack in every second of the files."""

    def finds(name: str) -> bool:
        return int(name.removesuffix(".png")[-2:]) % 2 == 1

    captioner = FakeCaptioner(
        say=lambda name: ["a part with a crack" if finds(name) else "a part without a crack"],
        answer=lambda name: ["crack" if finds(name) else "good"],
    )
    let_it_read(captioner, monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("of_files", [nfd, composed])
def test_labels_are_matched_in_either_form(reading: Path, of_files: object) -> None:
    spell, other = (nfd, composed) if of_files is nfd else (composed, nfd)
    folder_of(reading / "im", *map(spell, NAMES))
    labels = [(other(name), "crack" if i % 2 else "good") for i, name in enumerate(NAMES)]
    table(reading / "labels.csv", labels)
    done = runner.invoke(app, ["calibrate", "im", "--labels", "labels.csv", "-k", "4", "-o", "g.toml"])
    assert "no image found" not in done.stderr and "none of its" not in done.stderr
    rows, _ = read_result(reading / "g.parquet")
    assert {row.file_name for row in rows} == {*map(spell, NAMES)}


def test_a_metadata_table_in_the_folder_is_matched(reading: Path) -> None:
    folder_of(reading / "im", *map(nfd, NAMES))
    table(reading / "im" / "metadata.csv", [(name, "crack" if i % 2 else "good") for i, name in enumerate(NAMES)])
    labels = read_labels(reading / "im")
    assert {name for name, _ in labels.by_name} == {*map(nfd, NAMES)} and not labels.ignored


def test_a_class_folder_has_the_name_that_a_model_answers_with(reading: Path) -> None:
    folder_of(reading / "im", f"{nfd('beschädigt')}/a.png", "gut/b.png")
    assert {*read_labels(reading / "im").by_name.values()} == {"beschädigt", "gut"}


def test_verdicts_and_show_find_the_image(reading: Path) -> None:
    folder_of(reading / "im", *map(nfd, NAMES[:4]))
    assert runner.invoke(app, ["scan", "im", "-k", "4", "-o", "r.parquet"]).exit_code == 0
    verdicts = table(reading / "v.csv", [(name, "correct") for name in NAMES[:4]], ("file_name", "verdict"))
    told = runner.invoke(app, ["info", "r.parquet", "--verdicts", str(verdicts)])
    assert "4 were judged" in told.stdout
    for name in (NAMES[1], NAMES[1][3:]):
        assert runner.invoke(app, ["show", "r.parquet", name]).exit_code == 0


def test_a_list_finds_what_reads_alike(reading: Path) -> None:
    folder_of(reading / nfd("öl"), *map(nfd, NAMES[:2]))
    walk = find_listed([Path("öl") / NAMES[0], Path("öl") / NAMES[1], Path("öl") / "ä.png"], reading)
    names = [source.file_name for source in walk.sources]
    assert names == [nfd(f"öl/{name}") for name in NAMES[:2]], "as they are on the disk, where they are found again"
    assert all(source.path.is_file() for source in walk.sources)
    assert [(one.file_name, one.reason) for one in walk.unreadable] == [(f"{nfd('öl')}/ä.png", "not found")]


def test_a_name_that_may_be_two_is_none(reading: Path) -> None:
    there = {nfd("é.png"), "a.png", "e\u0301.jpg", "é.jpg", "\u212b\u0323.png", "\u00c5\u0323.png"}
    assert spelt_as(["é.png", "é.jpg", "a.png", "b.png"], there) == {"é.png": nfd("é.png")}
    assert spelt_as([composed("\u212b\u0323.png")], there) == {}, "two read alike"


def test_labels_of_other_images_are_told_with_both_names(reading: Path) -> None:
    folder_of(reading / "im", "a.png", "b.png")
    labels = table(reading / "labels.csv", [("x.png", "crack"), ("y.png", "good")])
    told = runner.invoke(app, ["calibrate", "im", "--labels", str(labels), "-k", "4"])
    assert told.exit_code == 2 and "0 other files" not in told.stderr
    assert (
        "none of the 2 files that are asked for is among its 2 images: 'x.png' is asked for, 'a.png' is there"
        in told.stderr
    )
