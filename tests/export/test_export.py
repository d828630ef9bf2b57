"""What goes into an export comes out of it: every format, read back by what reads it, with text that breaks things."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.hostile import FORMULAS, LONG, STRINGS
from tests.support.results import result_of, row
from vlmgate.data import Record, Route
from vlmgate.errors import UsageError
from vlmgate.export import Only, Target
from vlmgate.export.export import Exported, export, writer_of
from vlmgate.export.rows import Writer
from vlmgate.export.sheet import read_sheet
from vlmgate.export.targets import FILL_IN, Options
from vlmgate.export.text_formats import CELL_CHARACTERS, defused, fitted, joined, split, undefused, visible


@pytest.fixture(autouse=True)
def cells_of_any_length() -> None:
    csv.field_size_limit(1 << 30)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result whose every row has one hostile text as its file name, its captions and its other texts."""
    return result_of(tmp_path_factory.mktemp("hostile") / "r.parquet", hostile_rows())


def hostile_rows() -> list[Record]:
    return [
        row(
            text,
            sha256=f"{number:064x}",
            caption=text,
            captions=(text, "a plain one", text[::-1]),
            answer=text,
            error=text,
            width=12,
            height=9,
            agreement=number / len(STRINGS),
            vendi_score=1.25,
            caption_logprobs=(-0.5, None, -1e-9),
            route=Route.AUTO_ACCEPT if number % 3 == 0 else Route.HUMAN_REVIEW,
        )
        for number, text in enumerate(STRINGS)
    ]


def exported(source: Path, target: Target, out: Path, **options: Any) -> tuple[bytes, Exported]:
    done = export(source, target, out, Options(**options))
    return out.read_bytes(), done


def table_of(data: bytes, separator: str = ",") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline=""), delimiter=separator))


def the_captions(text: str) -> list[str]:
    return [text, "a plain one", text[::-1]]


def test_there_are_enough_hostile_texts_and_each_once() -> None:
    assert len(STRINGS) >= 60 and len(set(STRINGS)) == len(STRINGS)


def test_every_format_has_a_writer_that_says_what_it_writes() -> None:
    for target in Target:
        writer = writer_of(target)
        assert issubclass(writer, Writer) and set(writer.usual) <= {*Record.__dataclass_fields__, *FILL_IN}


# --- for programs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "separator"), [(Target.CSV, ","), (Target.TSV, "\t")])
def test_text_for_programs_is_exactly_what_is_stored(
    hostile: Path, tmp_path: Path, target: Target, separator: str
) -> None:
    data, done = exported(hostile, target, tmp_path / "o")
    rows = table_of(data, separator)
    assert [one["file_name"] for one in rows] == list(STRINGS)
    assert [one["caption"] for one in rows] == list(STRINGS)
    assert [split(one["captions"]) for one in rows] == [the_captions(text) for text in STRINGS]
    assert {one["verdict"] for one in rows} == {""} and rows[0]["vendi_score"] == "1.25"
    assert not data.startswith(b"\xef\xbb\xbf") and b"\r\n" not in data.splitlines(keepends=True)[0]
    assert done.rows == len(STRINGS) and "would be run by a spreadsheet" in done.notes[0]


def test_pandas_and_duckdb_read_the_csv_as_it_was(hostile: Path, tmp_path: Path) -> None:
    duckdb, pandas = pytest.importorskip("duckdb"), pytest.importorskip("pandas")
    export(hostile, Target.CSV, tmp_path / "o.csv", Options(columns="sha256,caption,captions"))
    frame = pandas.read_csv(tmp_path / "o.csv", keep_default_na=False, dtype=str)
    assert [split(text) for text in frame["captions"]] == [the_captions(text) for text in STRINGS]
    assert frame["caption"].tolist() == list(STRINGS)
    found = duckdb.sql(
        f"SELECT sha256, caption FROM read_csv('{tmp_path}/o.csv', header = true, all_varchar = true, delim = ',', "
        "quote = '\"', escape = '\"', new_line = '\\n')"
    ).fetchall()
    assert [sha256 for sha256, _ in found] == [f"{number:064x}" for number in range(len(STRINGS))]
    assert [text or "" for _, text in found] == list(STRINGS)


def test_json_lines_are_whole_rows_without_features(hostile: Path, tmp_path: Path) -> None:
    data, _ = exported(hostile, Target.JSONL, tmp_path / "o")
    lines = data.decode().splitlines()
    assert len(lines) == len(STRINGS), "nothing within a row ends a line, for any reader"
    for record, line in zip(hostile_rows(), lines, strict=True):
        told = json.loads(line)
        assert list(told) == [name for name in Record.__dataclass_fields__ if name != "vision_features"]
        assert told == {n: list(v) if isinstance(v := getattr(record, n), tuple) else v for n in told}


def test_coco_holds_every_image_and_caption(hostile: Path, tmp_path: Path) -> None:
    data, _ = exported(hostile, Target.COCO, tmp_path / "o")
    told = json.loads(data)
    assert [image["file_name"] for image in told["images"]] == list(STRINGS)
    assert {(image["width"], image["height"]) for image in told["images"]} == {(12, 9)}
    said: dict[int, list[str]] = {}
    for one in told["annotations"]:
        said.setdefault(one["image_id"], []).append(one["caption"])
    assert [said[image["id"]] for image in told["images"]] == [the_captions(text) for text in STRINGS]
    assert len({one["id"] for one in told["annotations"]}) == 3 * len(STRINGS)


def test_coco_leaves_out_what_was_not_opened_and_says_so(tmp_path: Path) -> None:
    rows = [row("broken.png"), row("a.png", width=1, height=1, captions=("x",), caption="x")]
    data, done = exported(result_of(tmp_path / "r.parquet", rows), Target.COCO, tmp_path / "o")
    told = json.loads(data)
    assert [image["file_name"] for image in told["images"]] == ["a.png"]
    assert told["annotations"] == [{"id": 1, "image_id": 1, "caption": "x"}]
    assert done.notes == ("1 image that could not be opened left out: COCO wants a width and a height.",)


@pytest.mark.parametrize("target", [Target.CSV, Target.JSONL, Target.COCO, Target.LABEL_STUDIO, Target.XLSX])
def test_an_empty_result_is_a_valid_file(tmp_path: Path, target: Target) -> None:
    data, done = exported(result_of(tmp_path / "r.parquet", []), target, tmp_path / "o.json")
    assert done.rows == 0 and done.notes == ()
    assert {
        Target.CSV: lambda: table_of(data) == [] and data.startswith(b"file_name,"),
        Target.JSONL: lambda: data == b"",
        Target.COCO: lambda: json.loads(data)["images"] == [],
        Target.LABEL_STUDIO: lambda: json.loads(data) == [],
        Target.XLSX: lambda: workbook(data) == [],
    }[target]()


# --- for spreadsheets -------------------------------------------------------------------------------------------------


def in_a_cell(text: str) -> str:
    return fitted(visible(text))[0]


def test_nothing_in_a_csv_for_excel_is_run_and_all_comes_back(hostile: Path, tmp_path: Path) -> None:
    data, done = exported(hostile, Target.EXCEL_CSV, tmp_path / "o")
    assert data.startswith(b"\xef\xbb\xbf") and data.endswith(b"\r\n")
    rows = table_of(data[3:])
    for text, found in zip(STRINGS, rows, strict=True):
        for name in ("file_name", "caption", "error"):
            assert not re.match(r"\s*[=+\-@＝＋－＠\t\r\n]", found[name])
            assert len(found[name].encode("utf-16-le")) <= 2 * CELL_CHARACTERS
            if text not in LONG:
                assert undefused(found[name]) == visible(text)
    assert "cut at Excel's 32,767 characters" in done.notes[0]
    assert [one["sha256"] for one in rows] == [f"{number:064x}" for number in range(len(STRINGS))]


def test_nothing_is_run_where_excel_looks_for_other_separators(hostile: Path, tmp_path: Path) -> None:
    data, _ = exported(hostile, Target.EXCEL_CSV, tmp_path / "o", columns="sha256,caption")
    for separator in (";", "\t"):
        for cells in csv.reader(io.StringIO(data[3:].decode(), newline=""), delimiter=separator):
            assert not [cell for cell in cells[1:] if re.match(r"[ \u00a0\u200b\ufeff]*[=+\-@]", cell)]


@given(st.text(st.sampled_from("=+-@＝'\t\n\r; a\u00a0\ufeff,"), max_size=12))
def test_what_defuses_a_formula_can_be_undone(text: str) -> None:
    safe = defused(text)
    assert undefused(safe) == text
    assert not re.match(r"[\s\ufeff]*[=+\-@＝]|[\t\n\r]", safe)


def test_the_known_formulas_are_defused_and_plain_text_is_left_alone() -> None:
    for text in FORMULAS[:19]:
        assert defused(text) != text, text
    for text in ("a scratch", "part_1.png", "1 - 2 = -1", "it's", "a,=1", "", "no-defect", "line2/a.png"):
        assert defused(text) == text


@given(st.lists(st.text(st.sampled_from("a| \\n\n"), max_size=6), min_size=1, max_size=4))
def test_lists_in_cells_come_apart_again(entries: list[str]) -> None:
    assert split(joined(entries)) == entries


def test_what_is_cut_says_so_and_counts_as_excel_counts() -> None:
    assert fitted("x" * CELL_CHARACTERS) == ("x" * CELL_CHARACTERS, False)
    for text in ("x" * (CELL_CHARACTERS + 1), "🔩" * 20_000):
        short, cut = fitted(text)
        assert cut and short.endswith(f" … [cut: {len(text):,} characters]") and text.startswith(short[:1000])
        assert CELL_CHARACTERS - 1 <= len(short.encode("utf-16-le")) // 2 <= CELL_CHARACTERS


def workbook(data: bytes) -> list[dict[str, Any]]:
    openpyxl = pytest.importorskip("openpyxl")
    sheet = openpyxl.load_workbook(io.BytesIO(data)).worksheets[0]
    header, *rows = [[cell.value for cell in line] for line in sheet.iter_rows()]
    assert not [cell for line in sheet.iter_rows() for cell in line if cell.data_type == "f" or cell.hyperlink]
    return [dict(zip(header, map(as_excel_reads, cells), strict=True)) for cells in rows]


def as_excel_reads(value: Any) -> Any:
    """Undo the format's own escape, by which "_x0041_" is written "_x005F_x0041_"; openpyxl leaves that to others."""
    return value.replace("_x005F_", "_") if isinstance(value, str) else value


def test_a_workbook_holds_every_text_as_text(hostile: Path, tmp_path: Path) -> None:
    data, done = exported(hostile, Target.XLSX, tmp_path / "o")
    for text, found in zip(STRINGS, workbook(data), strict=True):
        for name in ("file_name", "caption", "answer", "error"):
            assert (found[name] or "") == in_a_cell(text)
        assert (found["page"], found["vendi_score"], found["verdict"]) == (1, 1.25, None)
    assert re.fullmatch(r"\d+ cells cut at Excel's 32,767 characters\.", done.notes[0])


def test_what_a_workbook_cannot_hold_can_be_seen() -> None:
    assert visible("a\0b\x1b[31m\r\n\t\ufffe_x0041_ 🔩\u202e") == "a\\x00b\\x1b[31m\\r\n\t\\ufffe_x0041_ 🔩\u202e"


def test_the_sheet_is_laid_out_for_a_person(hostile: Path, tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    export(hostile, Target.XLSX, tmp_path / "o.xlsx")
    sheet = openpyxl.load_workbook(tmp_path / "o.xlsx").worksheets[0]
    header = [cell.value for cell in sheet[1]]
    verdict = sheet.cell(1, header.index("verdict") + 1).column_letter
    last = len(STRINGS) + 1
    assert sheet.freeze_panes == "B2" and sheet.auto_filter.ref == f"A1:AA{last}" and len(header) == 27
    scores = header[header.index("answer_probability") : header.index("novelty")]
    assert scores == ["answer_probability", "vendi_score", "agreement", "support", "verdict_share", "contradiction"]
    (rule,) = sheet.data_validations.dataValidation
    assert rule.type == "list" and rule.formula1 == '"correct,wrong,unusable"'
    assert str(rule.sqref) == f"{verdict}2:{verdict}{last}"
    assert sheet.column_dimensions["A"].width > 30


@pytest.mark.parametrize("target", [Target.XLSX, Target.EXCEL_CSV])
def test_more_rows_than_a_sheet_has_are_refused_in_one_line(
    tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmgate.export.text_formats.SHEET_ROWS", 3)
    rows = [row("a", route=Route.AUTO_ACCEPT), row("b"), row("c", route=Route.AUTO_ACCEPT)]
    source = result_of(tmp_path / "r.parquet", rows)
    with pytest.raises(UsageError, match="3 rows, and a sheet of Excel holds 2 and a header; use --only routed"):
        export(source, target, tmp_path / "o")
    assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"]
    assert export(source, target, tmp_path / "o", Options(only=Only.ROUTED)).rows == 1


# --- back from a person -----------------------------------------------------------------------------------------------


def filled_in(source: Path, target: Target, out: Path) -> None:
    """Write a sheet and let somebody give every third row a verdict."""
    export(source, target, out)
    if target is Target.XLSX:
        openpyxl = pytest.importorskip("openpyxl")
        book = openpyxl.load_workbook(out)
        sheet = book.worksheets[0]
        column = [cell.value for cell in sheet[1]].index("verdict") + 1
        for line in range(2, sheet.max_row + 1, 3):
            sheet.cell(line, column).value = " Wrong "
        book.save(out)
        return
    separator = "\t" if target is Target.TSV else ","
    rows = list(csv.reader(io.StringIO(out.read_bytes().decode("utf-8-sig"), newline=""), delimiter=separator))
    for cells in rows[1::3]:
        cells[rows[0].index("verdict")] = "wrong"
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=";" if target is Target.EXCEL_CSV else separator).writerows(rows)
    out.write_bytes(text.getvalue().encode("utf-8-sig"))


@pytest.mark.parametrize("target", [Target.CSV, Target.EXCEL_CSV, Target.TSV, Target.XLSX])
def test_a_sheet_that_was_filled_in_finds_its_rows_again(tmp_path: Path, target: Target) -> None:
    texts = [text for text in STRINGS if text][: len(STRINGS) // 3 * 3]
    rows = [row(text, sha256=f"{number:064x}", page=1 + number % 2) for number, text in enumerate(texts)]
    source = result_of(tmp_path / "r.parquet", rows)
    out = tmp_path / ("o.xlsx" if target is Target.XLSX else "o.csv")
    filled_in(source, target, out)
    found = read_sheet(out)
    assert [(one.sha256, one.page, one.verdict) for one in found] == [(r.sha256, r.page, "wrong") for r in rows[::3]]
    for one, text in zip(found, texts[::3], strict=True):
        if name_comes_back(text, target):
            assert one.file_name == text
    assert sum(name_comes_back(text, target) for text in texts) > 0.8 * len(texts)


def name_comes_back(text: str, target: Target) -> bool:
    """Say whether a name is one that a sheet can bring back; for all others there are sha256 and page."""
    if target in (Target.CSV, Target.TSV):
        return undefused(text) == text
    return in_a_cell(text) == text and (target is Target.EXCEL_CSV or (undefused(text) == text and "_x0" not in text))


def test_verdicts_of_the_review_page_are_read(tmp_path: Path) -> None:
    page = tmp_path / "verdicts.csv"
    page.write_text(
        "file_name,page,sha256,verdict,reading,note,at\n"
        "a.png,2,AB12,wrong,a dent,look again,2026-11-25T10:00:00Z\nb.png,,,correct,,,\nc.png,1,,,,,\n"
    )
    first, second = read_sheet(page)
    assert (first.file_name, first.page, first.sha256, first.verdict) == ("a.png", 2, "ab12", "wrong")
    assert (first.reading, first.note) == ("a dent", "look again")
    assert (second.page, second.sha256, second.verdict, second.reading) == (1, None, "correct", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file_name,page\na,1\n", "has no column verdict"),
        ("", "has no column file_name and no column verdict"),
        ("file_name,verdict\na,\nb,maybe\n", "row 3: the verdict 'maybe' is none of correct, wrong, unusable"),
        ("file_name,page,verdict\na,two,wrong\n", "row 2: page is 'two'"),
        ("file_name,verdict\n,wrong\n", "row 2: has a verdict and no file_name"),
        ("file_name,verdict\nü,wrong\n", "save it as CSV in UTF-8"),
    ],
)
def test_a_sheet_that_cannot_be_used_is_told_by_row(tmp_path: Path, text: str, words: str) -> None:
    sheet = tmp_path / "s.csv"
    sheet.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=words):
        read_sheet(sheet)


def test_a_workbook_that_is_none_and_a_file_that_is_not_there_are_told(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    (tmp_path / "s.xlsx").write_bytes(b"PK no")
    for name, words in {"s.xlsx": "is no workbook", "t.xlsx": "no such file", "t.csv": "no such file"}.items():
        with pytest.raises(UsageError, match=words):
            read_sheet(tmp_path / name)


def names_in(data: bytes) -> Sequence[str]:
    return [one["file_name"] for one in table_of(data)]


def test_only_the_routed_or_the_accepted(hostile: Path, tmp_path: Path) -> None:
    accepted, _ = exported(hostile, Target.CSV, tmp_path / "a", only=Only.ACCEPTED)
    routed, done = exported(hostile, Target.CSV, tmp_path / "r", only=Only.ROUTED)
    assert names_in(accepted) == list(STRINGS[::3])
    assert sorted([*names_in(accepted), *names_in(routed)]) == sorted(STRINGS)
    assert done.rows == len(names_in(routed))


def test_columns_are_picked_and_ordered(hostile: Path, tmp_path: Path) -> None:
    data, _ = exported(hostile, Target.CSV, tmp_path / "o", columns="agreement, file_name,note,caption_logprobs")
    header, first = list(csv.reader(io.StringIO(data.decode(), newline="")))[:2]
    assert header == ["agreement", "file_name", "note", "caption_logprobs"]
    assert first == ["0.0", STRINGS[0], "", "-0.5 |  | -1e-09"]


def test_a_row_of_nothing_is_still_a_row(tmp_path: Path) -> None:
    source = result_of(tmp_path / "r.parquet", [row("a"), row("b", caption="x"), row("c", caption="")])
    data, _ = exported(source, Target.CSV, tmp_path / "o", columns="caption")
    assert data == b'caption\n""\nx\n""\n'
