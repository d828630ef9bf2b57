"""Labels as plants keep them, and what is said of those that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import folder_of, picture_file

from vlmgate.calibrate.labels import Labels, read_labels
from vlmgate.errors import LabelError


def by_name(labels: Labels) -> dict[str, str]:
    return {name: label for (name, _), label in labels.by_name.items()}


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    folder_of(tmp_path, "good/a.png", "good/deep/b.png", "crack/c.png", "loose.png")
    (tmp_path / "crack" / "notes.txt").write_text("not an image")
    labels = read_labels(tmp_path)
    assert labels.kind == "class" and "sub-folder" in labels.form
    assert by_name(labels) == {"good/a.png": "good", "good/deep/b.png": "good", "crack/c.png": "crack"}
    assert labels.counts() == {"good": 2, "crack": 1}
    assert any("loose.png" in text for text in labels.ignored)
    assert any("notes.txt" in text for text in labels.ignored)


def test_mvtec_reads_test_alone_and_leaves_masks(tmp_path: Path) -> None:
    folder_of(tmp_path, "train/good/t.png", "test/good/a.png", "test/broken/b.png", "ground_truth/broken/b_mask.png")
    labels = read_labels(tmp_path)
    assert "MVTec" in labels.form and labels.folder == tmp_path / "test"
    assert by_name(labels) == {"good/a.png": "good", "broken/b.png": "broken"}
    assert "ground_truth/" in labels.ignored and "train/" in labels.ignored


def test_clear_and_ambiguous_are_about_ambiguity(tmp_path: Path) -> None:
    folder_of(tmp_path, "clear/a.png", "ambiguous/b.png", "other/c.png")
    labels = read_labels(tmp_path)
    assert labels.kind == "ambiguity"
    assert by_name(labels) == {"clear/a.png": "clear", "ambiguous/b.png": "ambiguous"}
    assert "other/" in labels.ignored


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    else:
        mark = "\t" if path.suffix == ".tsv" else ";"
        lines = [mark.join(rows[0])] + [mark.join(str(v) for v in row.values()) for row in rows]
        path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    return path


ROWS: list[dict[str, object]] = [
    {"file_name": "a.png", "label": "good", "width": 3},
    {"file_name": "b.png", "label": "dent", "width": 4},
    {"file_name": "c.png", "label": "", "width": 4},
]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_goes_before_folders(tmp_path: Path, suffix: str) -> None:
    folder_of(tmp_path, "a.png", "b.png", "c.png", "d.png", "x/e.png")
    write(tmp_path / f"metadata.{suffix}", ROWS)
    labels = read_labels(tmp_path)
    assert by_name(labels) == {"a.png": "good", "b.png": "dent"}
    assert any("without a label" in text and text.startswith("1 rows") is False for text in labels.ignored)
    assert any("1 rows without a label" in text for text in labels.ignored)


def test_metadata_of_splits_is_relative_to_each(tmp_path: Path) -> None:
    folder_of(tmp_path, "train/a.png", "test/a.png")
    write(tmp_path / "train" / "metadata.csv", [{"file_name": "a.png", "label": "good"}])
    write(tmp_path / "test" / "metadata.csv", [{"file_name": "a.png", "label": "bad"}])
    assert by_name(read_labels(tmp_path)) == {"train/a.png": "good", "test/a.png": "bad"}


def test_metadata_without_a_label_column_leaves_the_folders(tmp_path: Path) -> None:
    folder_of(tmp_path, "good/a.png", "bad/b.png")
    write(tmp_path / "metadata.csv", [{"file_name": "good/a.png", "width": 12}])
    labels = read_labels(tmp_path)
    assert labels.counts() == {"good": 1, "bad": 1}
    assert any("no label column" in text for text in labels.ignored)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_verdicts_of_a_spreadsheet(tmp_path: Path, suffix: str) -> None:
    rows: list[dict[str, object]] = [
        {"file_name": "a.png", "page": 1, "sha256": "AA", "verdict": "Correct", "reading": ""},
        {"file_name": "'=b.png", "page": 2, "sha256": "bb", "verdict": " wrong", "reading": "a dent"},
        {"file_name": "c.png", "page": 1, "sha256": "cc", "verdict": "unusable", "reading": ""},
        {"file_name": "d.png", "page": 1, "sha256": "dd", "verdict": "", "reading": ""},
    ]
    labels = read_labels(write(tmp_path / f"verdicts.{suffix}", rows))
    assert labels.kind == "verdict"
    assert labels.by_name[("=b.png", 2)] == "wrong"  # the mark that kept a spreadsheet from calculating is taken off
    assert labels.by_content == {("aa", 1): "correct", ("bb", 2): "wrong", ("cc", 1): "unusable"}
    assert labels.readings == {("=b.png", 2): "a dent"}


def test_an_unknown_verdict_names_row_and_word(tmp_path: Path) -> None:
    table = write(tmp_path / "v.csv", [{"file_name": "a.png", "verdict": "looks fine"}])
    with pytest.raises(LabelError, match=r"row 2 has the verdict 'looks fine'; known: correct, wrong, unusable"):
        read_labels(table)


def test_two_labels_for_one_image_drop_it(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"file_name": "a.png", "label": "x"},
        {"file_name": "a.png", "label": "y"},
        {"file_name": "b.png", "label": "y"},
    ]
    labels = read_labels(write(tmp_path / "l.csv", rows))
    assert by_name(labels) == {"b.png": "y"}
    assert any("two different labels" in text for text in labels.ignored)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "missing", "no such folder or table"),
        (lambda p: picture_file(p / "a.png"), "no table"),
        (lambda p: (p / "empty").mkdir() or p / "empty", "no labels found"),
        (lambda p: write(p / "x.csv", [{"file_name": "a", "colour": "red"}]), "--label-column"),
        (lambda p: write(p / "x.csv", [{"name": "a", "label": "red"}]), "column file_name"),
        (lambda p: write(p / "x.csv", [{"file_name": "a", "label": ""}]), "fill that column in"),
        (lambda p: write(p / "x.csv", [{"file_name": "a", "page": "one", "label": "b"}]), "no number"),
        (lambda p: _raw(p / "x.parquet", b"PAR1 not really"), "no parquet table"),
        (lambda p: _raw(p / "x.jsonl", b"{broken"), "no jsonl table"),
        (lambda p: _raw(p / "x.csv", b"\xff\xfe\x00"), "no csv table"),
    ],
    ids=["missing", "image", "empty", "no-label", "no-name", "blank", "page", "parquet", "jsonl", "csv"],
)
def test_what_cannot_be_used_is_said_in_one_line(tmp_path: Path, make: object, message: str) -> None:
    with pytest.raises(LabelError, match=message) as caught:
        read_labels(make(tmp_path))  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def _raw(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_column_of_another_name(tmp_path: Path) -> None:
    table = write(tmp_path / "l.csv", [{"file_name": "a.png", "befund": "Riss"}])
    assert by_name(read_labels(table, "befund")) == {"a.png": "Riss"}
