"""`vlmgate export` and `scan --format csv` as they are typed: pipes, places, options, and what goes wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_cli import fake, run  # noqa: F401 - the fixture lets every command read with a fake
from tests.support.documents import only
from tests.support.fakes import DISAGREE, folder_of
from tests.support.results import result_of, row
from vlmgate.data import Route
from vlmgate.store.result import read_result


@pytest.fixture
def result(tmp_path: Path) -> Path:
    rows = [row("a.png", caption="x", captions=("x", "y")), row("b.png", route=Route.AUTO_ACCEPT, caption="=1+1")]
    return result_of(tmp_path / "r.parquet", rows, folder=str(tmp_path / "gone"))


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vlmgate", *map(str, arguments)]


def test_rows_go_to_stdout_and_messages_to_stderr(result: Path) -> None:
    out, err = run("export", "r.parquet", "--to", "csv")
    assert [one["file_name"] for one in csv.DictReader(io.StringIO(out))] == ["a.png", "b.png"]
    assert err == (
        "1 cell would be run by a spreadsheet as a formula; to open this in one, use --to excel-csv or xlsx.\n"
    )
    assert run("export", "r.parquet", "--to", "csv", "-q") == (out, "")
    assert run("export", "r.parquet", "--to", "csv", "-o", "-", "-q")[0] == out
    assert json.loads(run("export", "r.parquet", "--to", "jsonl", "--only", "accepted")[0])["file_name"] == "b.png"


def test_a_file_appears_whole_and_is_not_replaced_unasked(result: Path, tmp_path: Path) -> None:
    _, err = run("export", "r.parquet", "--to", "xlsx")
    assert err == "Wrote r.xlsx from 2 rows.\n"
    run("export", "r.parquet", "--to", "tsv", "-o", "sheet.tsv", "--only", "routed")
    before = (tmp_path / "sheet.tsv").read_bytes()
    _, err = run("export", "r.parquet", "--to", "csv", "-o", "sheet.tsv", code=2)
    assert "sheet.tsv: is there already, perhaps with verdicts in it" in err
    assert (tmp_path / "sheet.tsv").read_bytes() == before
    run("export", "r.parquet", "--to", "csv", "-o", "sheet.tsv", "--overwrite")
    assert (tmp_path / "sheet.tsv").read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.parquet", "r.xlsx", "sheet.tsv"]


def test_what_fails_in_the_middle_leaves_the_former_file(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "o.csv").write_text("mine")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vlmgate.export.output.os.fsync", full)
    _, err = run("export", "r.parquet", "--to", "csv", "-o", "o.csv", "--overwrite", code=1)
    assert err.count("\n") == 1 and "o.csv: cannot be written (No space left on device)" in err
    assert (tmp_path / "o.csv").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.csv", "r.parquet"]


def test_a_damaged_result_is_one_line(result: Path, tmp_path: Path) -> None:
    data = bytearray(result.read_bytes())
    data[10:60] = bytes(50)
    result.write_bytes(data)
    _, err = run("export", "r.parquet", "--to", "csv", "-o", "o.csv", code=1)
    assert err.count("\n") == 1 and "r.parquet: cannot be read" in err and not (tmp_path / "o.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "csv", "--columns", "agrement"], "there is no column 'agrement'; did you mean 'agreement'?"),
        (["--to", "csv", "--columns", "page,page"], "'page' stands there twice"),
        (["--to", "jsonl", "--columns", "verdict"], "'verdict' in this format; csv, excel-csv, tsv and xlsx have it"),
        (["--to", "csv", "--thumbnails"], "--thumbnails goes with --to xlsx only"),
        (["--to", "csv", "--image-root", "x"], "--image-root goes with --to label-studio only"),
        (["--to", "xlsx", "--link"], "--link goes with --to imagefolder only"),
        (["--to", "coco", "--images", "."], "--images goes with --to xlsx or imagefolder only"),
        (["--to", "xlsx", "--images", "."], "add --thumbnails"),
        (["--to", "xlsx", "--thumbnails"], "the images are not there any more; name their folder with --images"),
        (["--to", "imagefolder", "-o", "-"], "give -o FOLDER"),
        (["--to", "csv", "-o", "no/o.csv"], "no: no such folder"),
        (["--to", "csv", "-o", "."], ".: is a folder"),
        (["--to", "csv", "-o", "r.parquet", "--overwrite"], "is the result itself"),
        (["--to", "excel"], "'excel'"),
    ],
)
def test_usage_errors_are_told_and_nothing_is_written(
    result: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    before = result.read_bytes()
    out, err = run("export", "r.parquet", *arguments, code=2)
    assert out == "" and words in err
    assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"] and result.read_bytes() == before


def test_a_file_that_is_no_result_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "mine.parquet").write_bytes(b"PAR1 nothing")
    for name in ("mine.parquet", "none.parquet"):
        assert run("export", name, "--to", "csv", code=1)[1].count("\n") == 1


def test_without_xlsxwriter_one_line_says_what_to_install(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xlsxwriter", None)
    _, err = run("export", "r.parquet", "--to", "xlsx", code=2)
    assert err.count("\n") == 1 and "pip install 'vlmgate[xlsx]'" in err


def test_a_closed_pipe_is_fine(tmp_path: Path) -> None:
    result_of(tmp_path / "big.parquet", [row(f"{number}.png", caption="word " * 20) for number in range(20_000)])
    exporting = subprocess.Popen(
        command("export", "big.parquet", "--to", "csv"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert exporting.stdout is not None and exporting.stderr is not None
    assert exporting.stdout.readline().startswith(b"file_name,")
    exporting.stdout.close()
    assert exporting.stderr.read() == b"" and exporting.wait() == 0
    exporting.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("target", ["csv", "xlsx", "label-studio"])
@pytest.mark.parametrize("out", ["-", "/dev/full"])
def test_a_full_disk_is_no_success(result: Path, target: str, out: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command("export", "r.parquet", "--to", target, "-o", out, "-q"),
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    told = done.stderr.decode()
    assert done.returncode == 1 and told.count("\n") == 1 and "cannot be written (No space left on device)" in told


def test_bytes_go_through_a_pipe_whatever_the_terminal_speaks(result: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result_of(result, [row("a.png", caption="Ä 部品 🔩\r\n")])
    for target in ("csv", "xlsx"):
        done = subprocess.run(
            command("export", "r.parquet", "--to", target, "-o", "-"), capture_output=True, check=True, env=environment
        )
        assert "Ä 部品 🔩\r\n".encode() in done.stdout if target == "csv" else done.stdout.startswith(b"PK")


def test_on_a_terminal_control_characters_are_shown_and_workbooks_refused(result: Path, tmp_path: Path) -> None:
    result_of(result, [row("evil\x1b[31m\u202egnp.png", caption="a\tb")])
    shown: dict[str, bytes] = {}
    for target in ("csv", "xlsx"):
        master, slave = pty.openpty()
        done = subprocess.run(
            command("export", "r.parquet", "--to", target, "-o", "-"), stdout=slave, stderr=subprocess.PIPE, check=False
        )
        os.close(slave)
        shown[target] = done.stderr if target == "xlsx" else os.read(master, 100_000)
        os.close(master)
    assert b"\x1b" not in shown["csv"] and b"evil\\x1b[31m\\u202egnp.png,1," in shown["csv"]
    assert b"give -o FILE, or pipe it" in shown["xlsx"]


def test_a_pipe_with_a_name_is_written_and_stays_one(result: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    exporting = subprocess.Popen(command("export", "r.parquet", "--to", "csv", "-o", "pipe", "-q"))
    assert (tmp_path / "pipe").read_bytes().startswith(b"file_name,")
    assert exporting.wait() == 0 and (tmp_path / "pipe").is_fifo()


# --- scan --format csv ------------------------------------------------------------------------------------------------


def test_scan_streams_the_same_rows_as_export(tmp_path: Path) -> None:
    folder_of(tmp_path / "images", "part_1.png", "part_3.png")
    out, _ = run("scan", "images", "--format", "csv", "-o", "-", "-k", 4)
    assert len(read_result(tmp_path / "images.parquet")[0]) == 2
    assert out == run("export", "images.parquet", "--to", "csv")[0]
    assert [one["route"] for one in csv.DictReader(io.StringIO(out))] == ["auto_accept", "human_review"]
    assert run("scan", "images", "--format", "csv", "-o", "mine.parquet", "-k", 4)[0] == out
    assert (tmp_path / "mine.parquet").is_file() and not (tmp_path / "-").exists()


def test_scan_to_stdout_wants_a_format_for_it(tmp_path: Path) -> None:
    folder_of(tmp_path / "images", "part_1.png")
    assert "say --format csv with it" in run("scan", "images", "-o", "-", code=2)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_scan_tells_of_what_it_could_not_read_beside_the_rows(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images", "a.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    out, _ = run("scan", "images", "--format", "csv", "-o", "-", code=3)
    assert [one["reason"] for one in csv.DictReader(io.StringIO(out))] == ["agreed", "unreadable"]


# --- the lines of the manual ------------------------------------------------------------------------------------------


def test_the_pandas_and_duckdb_lines_of_the_manual_run(tmp_path: Path) -> None:
    pytest.importorskip("duckdb"), pytest.importorskip("pandas")
    lines = only("python lines")
    assert "duckdb.sql" in lines and "pd.read_parquet" in lines
    folder = folder_of(tmp_path / "images", "part_1.png", "part_2.png", "part_3.png")
    run("scan", folder, "-k", 4)
    run("export", "images.parquet", "--to", "csv", "-o", "images.csv")
    known: dict[str, Any] = {}
    exec(lines, known)
    assert known["routed"]["file_name"].tolist() == ["part_3.png"]
    assert known["reasons"].to_dict("list") == {"reason": ["agreed", "disagreed"], "images": [2, 1]}
    assert known["said"]["caption"].tolist() == list(DISAGREE[:4])
    assert known["sheet"]["file_name"].tolist() == ["part_1.png", "part_2.png", "part_3.png"]
