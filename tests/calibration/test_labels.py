"""Labels as plants keep them, and what is said of those that cannot be used."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.fakes import folder_of, picture_file
from tests.support.results import row
from vlmgate.calibration.labels import Labels, read_labels
from vlmgate.calibration.readings import join
from vlmgate.errors import LabelError
from vlmgate.export import sheet as tables


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
        (lambda p: _raw(p / "x.csv", b"\xff\xfe\x00"), "not UTF-8"),
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


# --- folders of splits, and odd names of classes ----------------------------------------------------------------------


def test_splits_have_their_classes_one_level_down(tmp_path: Path) -> None:
    folder_of(tmp_path, "train/good/a.png", "train/crack/b.png", "val/good/deep/c.png", "val/crack/d.png", "val/e.png")
    (tmp_path / "notes").mkdir()
    labels = read_labels(tmp_path)
    assert labels.kind == "class" and labels.folder == tmp_path
    assert labels.form == "splits train/, val/ with a sub-folder for each class"
    assert by_name(labels) == {
        "train/good/a.png": "good",
        "train/crack/b.png": "crack",
        "val/good/deep/c.png": "good",
        "val/crack/d.png": "crack",
    }
    assert any("1 images in no class folder, first: val/e.png" in text for text in labels.ignored)


@pytest.mark.parametrize(
    ("files", "form", "counts"),
    [
        (("Train/ok/a.png", "Test/nok/b.png"), "splits Test/, Train/", {"ok": 1, "nok": 1}),
        (("train/good/a.png", "train/dent/b.png", "test/good/c.png"), "splits test/, train/", {"good": 2, "dent": 1}),
        (("test/ok/a.png", "test/nok/b.png"), "splits test/", {"ok": 1, "nok": 1}),
        (("test/good/a.png", "test/dent/b.png"), "MVTec AD", {"good": 1, "dent": 1}),
        (("train/good/a.png", "test/good/b.png", "test/dent/c.png"), "MVTec AD", {"good": 1, "dent": 1}),
        (("train/good/a.png", "train/dent/b.png", "tram/c.png"), "a sub-folder", {"train": 2, "tram": 1}),
        (("train/a.png", "valid/b.png"), "a sub-folder", {"train": 1, "valid": 1}),
        (("0/a.png", "1/b.png", "10/c.png", "1/d.png"), "a sub-folder", {"1": 2, "0": 1, "10": 1}),
        (("OK/a.png", "NOK/b.png", "OK/c.png"), "a sub-folder", {"OK": 2, "NOK": 1}),
    ],
    ids=["case", "not-mvtec", "test", "mvtec-test", "mvtec", "a-class", "classes", "numbers", "ok-nok"],
)
def test_what_a_folder_is_taken_for(tmp_path: Path, files: list[str], form: str, counts: dict[str, int]) -> None:
    folder_of(tmp_path, *files)
    labels = read_labels(tmp_path)
    assert labels.form.startswith(form) and labels.kind == "class"
    assert labels.counts() == counts and len(labels) == sum(counts.values())


# --- names as other systems write them --------------------------------------------------------------------------------


def table_of(path: Path, *lines: str) -> Labels:
    path.write_text("\n".join(["file_name,label", *lines]), encoding="utf-8")
    return read_labels(path)


def test_names_of_windows_and_of_find_are_names_of_images(tmp_path: Path) -> None:
    labels = table_of(
        tmp_path / "l.csv", r"none\a.png,none", "./none/b.png,none", r".\dent\c.png,dent", "dent//d.png,dent"
    )
    assert by_name(labels) == {"none/a.png": "none", "none/b.png": "none", "dent/c.png": "dent", "dent/d.png": "dent"}
    assert len(labels) == 4 and labels.counts() == {"none": 2, "dent": 2}


def test_one_image_under_two_spellings_is_one(tmp_path: Path) -> None:
    labels = table_of(tmp_path / "l.csv", "a.png,x", "./a.png,x", "b.png,x", "./b.png,y")
    assert by_name(labels) == {"a.png": "x"} and len(labels) == 1
    assert labels.ignored == ("1 images with two different labels, first: b.png",)


def test_a_backslash_gives_way_to_a_row_that_has_the_name(tmp_path: Path) -> None:
    labels = table_of(tmp_path / "l.csv", "s/a.png,x", r"s\a.png,y", r"t\b.png,x", r"t\.\b.png,y")
    assert by_name(labels) == {"s/a.png": "x", r"s\a.png": "y", r"t\b.png": "x", r"t\.\b.png": "y"}


def test_images_tell_whether_a_backslash_parts_folders(tmp_path: Path) -> None:
    labels = table_of(tmp_path / "l.csv", r"s\a.png,x", r"s\b.png,y")
    records = [
        row(name, sha256=name, captions=("a", "b"), answers=("x", "y"), reason="agreed")
        for name in (r"s\a.png", "s/a.png", "s/b.png")
    ]
    provenance = {"folder": "scanned", "sampling": {"choices": ["x", "y"], "prompt": "p", "num_samples": 2}}
    labelled = join(records, provenance, labels)
    assert {r.file_name: label for r, label in zip(labelled.records, labelled.labels, strict=True)} == {
        r"s\a.png": "x",  # an image is called so, and s/a.png is another one
        "s/b.png": "y",
    }
    assert labelled.notes[0] == "1 images of the result without a label"


def test_a_reading_is_found_under_either_name(tmp_path: Path) -> None:
    table = write(tmp_path / "v.csv", [{"file_name": r"s\a.png", "verdict": "wrong", "reading": "a dent"}])
    labels = read_labels(table)
    assert labels.by_name == {("s/a.png", 1): "wrong"}
    assert labels.readings == {("s/a.png", 1): "a dent", (r"s\a.png", 1): "a dent"}


@pytest.mark.skipif(Path(r"a\b").name == "b", reason="a backslash parts folders here")
def test_metadata_knows_its_images(tmp_path: Path) -> None:
    folder_of(tmp_path, r"train/x\a.png", "train/x/b.png")
    rows: list[dict[str, object]] = [
        {"file_name": r"x\a.png", "label": "good"},
        {"file_name": r"x\b.png", "label": "bad"},
    ]
    write(tmp_path / "train" / "metadata.csv", rows)
    labels = read_labels(tmp_path)
    assert by_name(labels) == {r"train/x\a.png": "good", "train/x/b.png": "bad"} and not labels.ignored


# --- what spreadsheets save -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("mark", ["\t", ";"])
def test_utf_16_is_known_by_its_mark(tmp_path: Path, encoding: str, mark: str) -> None:
    text = "\ufeff" + "\r\n".join([f"file_name{mark}label", f"ä.png{mark}Lötfehler", f"b.png{mark}gut"])
    labels = read_labels(_raw(tmp_path / "l.csv", text.encode(encoding)))
    assert by_name(labels) == {"ä.png": "Lötfehler", "b.png": "gut"}


def test_another_encoding_is_told_apart_from_a_broken_table(tmp_path: Path) -> None:
    table = _raw(tmp_path / "l.csv", "file_name,label\nä.png,gut".encode("cp1252"))
    with pytest.raises(LabelError) as caught:
        read_labels(table)
    assert str(caught.value) == f"{table}: is not UTF-8; save it as 'CSV UTF-8' in Excel."
    lines = _raw(tmp_path / "l.jsonl", '{"file_name": "ä.png", "label": "gut"}'.encode("cp1252"))
    with pytest.raises(LabelError, match="is not UTF-8; save it as UTF-8"):
        read_labels(lines)


def test_tsv_has_tabs_whatever_its_header_says(tmp_path: Path) -> None:
    table = _raw(tmp_path / "l.tsv", b"file_name\tlabel\twidth, height, depth\na.png\tgood, new\t1, 2, 3\n")
    assert by_name(read_labels(table)) == {"a.png": "good, new"}


def workbook(path: Path, *lines: tuple[object, ...]) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for number, line in enumerate(lines, start=1):
        for column, value in enumerate(line, start=1):
            if value is not None:
                book.active.cell(number, column, value)
    book.save(path)
    return path


def altered(path: Path, old: str, new: str) -> Path:
    """Replace a text in the first sheet of a workbook."""
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    name = "xl/worksheets/sheet1.xml"
    assert old.encode() in held[name]
    held[name] = held[name].replace(old.encode(), new.encode(), 1)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in held.items():
            archive.writestr(name, content)
    return path


HEADER = ("file_name", "label")


def test_a_workbook_is_as_large_as_its_rows_whatever_it_says(tmp_path: Path) -> None:
    path = workbook(tmp_path / "l.xlsx", HEADER, ("a.png", "good"), (None, None), ("b.png", 7))
    labels = read_labels(altered(path, '"A1:B4"', '"A1:XFD1048576"'))
    assert by_name(labels) == {"a.png": "good", "b.png": "7"}


def test_a_row_that_says_it_is_the_billionth_is_not_waited_for(tmp_path: Path) -> None:
    path = workbook(tmp_path / "l.xlsx", HEADER, ("a.png", "good"), ("b.png", "bad"))
    labels = read_labels(altered(path, '<row r="3"', '<row r="1000000000"'))
    assert by_name(labels) == {"a.png": "good"}


def test_a_sheet_goes_on_after_fewer_blank_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tables, "BLANK_ROWS", 3)
    lines = [HEADER, ("a.png", "x"), (None,), (None,), ("b.png", "x"), (None,), (None,), (None,), ("c.png", "x")]
    assert list(by_name(read_labels(workbook(tmp_path / "l.xlsx", *lines)))) == ["a.png", "b.png"]


def test_a_workbook_that_unpacks_to_too_much_is_not_unpacked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = workbook(tmp_path / "l.xlsx", HEADER, ("a.png", "good"))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/media/zeros.bin", bytes(2_000_000))
    monkeypatch.setattr(tables, "UNPACKED_BYTES", 1_000_000)
    with pytest.raises(LabelError, match=r"l\.xlsx: unpacks to 2 MB, and at most 1 MB are read") as caught:
        read_labels(path)
    assert "\n" not in str(caught.value)


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<sheetData>", "<sheetData><row r='x'>"),
        ("</worksheet>", ""),
        ('<c r="A2"', '<c r="!!"'),
        ('t="inlineStr"', 't="n"'),
        ("<worksheet", f'<!DOCTYPE w [<!ENTITY l0 "ha">{LAUGHS}]><worksheet a="&l9;"'),
        ("<worksheet", '<!DOCTYPE w [<!ENTITY x SYSTEM "file:///etc/passwd">]><worksheet a="&x;"'),
        ("<sheetData>", "<sheetData><row r='1'><c r='A1'><v>" + "9" * 5000 + "</v></c></row>"),
        ("<sheetData>", "<sheetData>" + "<a>" * 100_000),
    ],
    ids=["row", "cut", "cell", "type", "laughs", "entity", "number", "deep"],
)
def test_a_hostile_sheet_is_labels_or_one_line(tmp_path: Path, old: str, new: str) -> None:
    path = workbook(tmp_path / "l.xlsx", HEADER, ("a.png", "good"))
    with zipfile.ZipFile(path) as archive:
        there = old in archive.read("xl/worksheets/sheet1.xml").decode()
    if not there:
        pytest.skip("this openpyxl writes texts elsewhere")
    try:
        assert by_name(read_labels(altered(path, old, new))) == {"a.png": "good"}
    except LabelError as error:
        assert "\n" not in str(error) and len(str(error)) < 400


def test_every_part_of_a_workbook_may_be_broken(tmp_path: Path) -> None:
    path = workbook(tmp_path / "l.xlsx", HEADER, ("a.png", "good"))
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    for broken in held:
        for content in (b"", b"<", b"<x/>", b"\x00\xff", held[broken][: len(held[broken]) // 2]):
            with zipfile.ZipFile(path, "w") as archive:
                for name, whole in held.items():
                    archive.writestr(name, content if name == broken else whole)
            try:
                assert by_name(read_labels(path)) == {"a.png": "good"}, broken
            except LabelError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet", "xlsx", "json"])
def test_tables_of_every_kind_have_a_most_of_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, suffix: str) -> None:
    rows: list[dict[str, object]] = [{"file_name": f"{i}.png", "verdict": "wrong"} for i in range(4)]
    path = tmp_path / f"l.{suffix}"
    if suffix == "xlsx":
        workbook(path, ("file_name", "verdict"), *(tuple(one.values()) for one in rows))
    elif suffix == "json":
        path.write_text(json.dumps([task("wrong", name=f"{i}.png") for i in range(4)]), encoding="utf-8")
    else:
        write(path, rows)
    monkeypatch.setattr(tables, "MOST_ROWS", 4)
    assert len(read_labels(path)) == 4
    monkeypatch.setattr(tables, "MOST_ROWS", 3)
    with pytest.raises(LabelError, match=rf"l\.{suffix}: has more than 3 rows; split it\.$"):
        read_labels(path)


# --- JSON of strangers ------------------------------------------------------------------------------------------------


def task(verdict: Any, name: Any = "a.png", **more: Any) -> dict[str, Any]:
    result = [{"from_name": "verdict", "type": "choices", "value": {"choices": [verdict]}}]
    return {"data": {"file_name": name, **more}, "annotations": [{"result": result}]}


@pytest.mark.parametrize(
    ("tree", "why"),
    [
        ({"file_name": "a.png", "label": "good"}, "it holds no list of tasks"),
        ([{"file_name": "a.png", "label": "good"}], "task 1 has no data with a file_name"),
        ([task("wrong"), {"data": {"image": "/data/a.png"}}], "task 2 has no data with a file_name"),
        (["a.png"], "task 1 has no data with a file_name"),
        ([task("wrong", name=["a.png"])], "task 1 has no data with a file_name"),
        ([task({"not": "a text"})], "task 1: its verdict is no text"),
        ([{"data": {"file_name": "a"}, "annotations": "none"}], "task 1: 'annotations' is no list of objects"),
        ([{"data": {"file_name": "a"}, "annotations": [{"result": [3]}]}], "task 1: 'result' is no list of objects"),
        (
            [{"data": {"file_name": "a"}, "annotations": [{"result": [{"from_name": "verdict"}]}]}],
            "task 1: a result has no value",
        ),
    ],
    ids=["object", "rows", "other", "texts", "name", "verdict", "annotations", "result", "value"],
)
def test_json_that_is_no_export_of_label_studio_is_told(tmp_path: Path, tree: object, why: str) -> None:
    path = tmp_path / "l.json"
    path.write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(LabelError) as caught:
        read_labels(path)
    assert str(caught.value) == (
        f"{path}: is no JSON export of Label Studio ({why}); give other labels as CSV or JSON lines."
    )


def test_relations_and_other_results_are_of_no_matter(tmp_path: Path) -> None:
    one = task("wrong")
    results: list[dict[str, Any]] = one["annotations"][0]["result"]
    results += [
        {"type": "relation", "from_id": "x", "to_id": "y"},
        {"from_name": "box", "type": "rectanglelabels", "value": {"x": 1.5}},
        {"from_name": "answer", "type": "textarea", "value": {"text": "dent"}},
    ]
    (tmp_path / "l.json").write_text(json.dumps([one, {"data": {"file_name": "b"}, "annotations": None}]))
    labels = read_labels(tmp_path / "l.json")
    assert by_name(labels) == {"a.png": "wrong"} and labels.readings == {("a.png", 1): "dent"}


ODD: list[Any] = [
    None,
    True,
    -1,
    1e308,
    float("nan"),
    "",
    "x\ny\x1b[31m",
    "\ud800",
    "long" * 250_000,
    [],
    [[]],
    {},
    {"a": 1},
]


def spoiled(tree: Any, odd: Any) -> list[Any]:
    """Return the tree once for each of its places, with something odd there."""
    made = [odd]
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        for other in spoiled(value, odd):
            copied = tree.copy()
            copied[key] = other
            made.append(copied)
    return made


def labels_or_one_line(path: Path) -> None:
    try:
        assert len(read_labels(path)) >= 1
    except LabelError as error:
        assert "\n" not in str(error) and len(str(error)) < 500


def test_odd_things_anywhere_in_an_export_raise_nothing_else(tmp_path: Path) -> None:
    tree = [task("wrong", page=1, sha256="aa")]
    for odd in ODD:
        for other in spoiled(tree, odd):
            (tmp_path / "l.json").write_text(json.dumps(other), encoding="utf-8")
            labels_or_one_line(tmp_path / "l.json")


def test_odd_things_anywhere_in_json_lines_raise_nothing_else(tmp_path: Path) -> None:
    for odd in ODD:
        for other in spoiled({"file_name": "a.png", "page": 1, "sha256": "aa", "label": "x", "reading": "y"}, odd):
            (tmp_path / "l.jsonl").write_text(json.dumps(other), encoding="utf-8")
            labels_or_one_line(tmp_path / "l.jsonl")


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize(
    "content", ["[" * 200_000, '{"a":' * 200_000, "9" * 5000, ""], ids=["lists", "objects", "digits", "none"]
)
def test_json_too_deep_or_too_long_is_one_line(tmp_path: Path, suffix: str, content: str) -> None:
    path = _raw(tmp_path / f"l.{suffix}", content.encode())
    with pytest.raises(LabelError) as caught:
        read_labels(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("column", ["file_name", "label", "page", "sha256", "reading"])
def test_a_list_where_a_text_belongs_names_row_and_column(tmp_path: Path, column: str) -> None:
    good: dict[str, object] = {"file_name": "a.png", "label": "x", "box": [1, 2, 3, 4]}
    table = write(tmp_path / "l.jsonl", [good, good | {column: ["x", "y"]}])
    with pytest.raises(LabelError, match=f"row 2 has a list or an object as {column}; it takes one text there"):
        read_labels(table)
    assert by_name(read_labels(write(tmp_path / "l.jsonl", [good]))) == {"a.png": "x"}
