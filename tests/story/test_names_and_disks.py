"""Names that are too long, disks that are full: the run goes on, or one line says what to do."""

from __future__ import annotations

import errno
import io
import logging
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import vlmgate
from tests.support.fakes import FakeCaptioner, folder_of, let_it_read
from vlmgate.cli import app
from vlmgate.config.scan import MOST_NAME, default_output
from vlmgate.errors import OutputError
from vlmgate.run.plan import logging_to
from vlmgate.store.result import read_result

runner = CliRunner()


@pytest.mark.parametrize("name", ["n" * 240, "ü" * 120, "n" * 255, "検" * 80, "n" * 233, "n" * 234])
@pytest.mark.parametrize("shard", [(), ("--shard", "1/2")])
def test_a_folder_of_a_long_name_is_read_and_resumed(
    name: str, shard: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = FakeCaptioner()
    let_it_read(captioner, monkeypatch)
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / name, "a.png", "b.png", "c.png", "d.png")
    assert runner.invoke(app, ["scan", name, "-k", "2", *shard]).exit_code == 0
    (result,) = tmp_path.glob("*.parquet")
    assert len(read_result(result)[0]) in (range(1, 4) if shard else (4,))
    captioner.history.clear()
    assert runner.invoke(app, ["scan", name, "-k", "2", *shard]).exit_code == 0
    assert not captioner.history and len([*tmp_path.glob("*.parquet")]) == 1


def test_long_names_that_begin_alike_have_two_results(tmp_path: Path) -> None:
    one, other, short = (tmp_path / name for name in ("n" * 240, "n" * 241, "n" * MOST_NAME))
    for folder in (one, other, short):
        folder.mkdir()
    assert default_output(one) != default_output(other)
    assert default_output(short) == Path(f"{short.name}.parquet"), "as ever, where there is room"
    assert len(default_output(one, ".1-of-2").stem.encode()) <= MOST_NAME


@pytest.mark.parametrize(
    "command",
    [
        ("scan", "in", "-o", "LONG.parquet"),
        ("scan", "in", "--model", "./LONG"),
        ("calibrate", "in", "--labels", "LONG"),
        ("rescore", "r.parquet", "--threshold", "1.5", "-o", "LONG.parquet"),
        ("merge", "r.parquet", "-o", "LONG.parquet"),
        ("review", "r.parquet", "-o", "LONG"),
        ("export", "r.parquet", "--to", "csv", "-o", "LONG"),
        ("export", "r.parquet", "--to", "imagefolder", "-o", "LONG"),
        ("info", "LONG"),
    ],
)
def test_a_name_that_no_disk_takes_is_told_in_one_line(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_it_read(FakeCaptioner(), monkeypatch)
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "in", "a.png", "b.png")
    assert runner.invoke(app, ["scan", "in", "-o", "r.parquet", "-k", "4"]).exit_code == 0
    done = runner.invoke(app, [part.replace("LONG", "l" * 300) for part in command])
    assert done.exit_code in (1, 2) and "internal error" not in done.stderr
    complaint = [line for line in done.stderr.splitlines() if line.startswith("vlmgate: error: ")]
    assert len(complaint) == 1 and done.stderr.endswith(f"{complaint[0]}\n")


def test_python_gets_an_error_of_vlmgate(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "a.png")
    with pytest.raises(OutputError, match=r"cannot be written \(File name too long\)"):
        vlmgate.scan(tmp_path / "in", out=tmp_path / f"{'l' * 240}.parquet")


class FullDisk(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_on_a_full_disk_prints_no_stack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [*logging.getLogger().handlers]
    with logging_to(tmp_path / "r.log"):
        (handler,) = (one for one in logging.getLogger().handlers if one not in before)
        assert isinstance(handler, logging.FileHandler)
        whole: Any = handler.stream
        handler.setStream(FullDisk())
        logging.getLogger("vlmgate.run").info("finished")
        handler.setStream(whole)
        logging.getLogger("vlmgate.run").info("there is room again")
    assert "there is room again" in (tmp_path / "r.log").read_text()
    assert "Traceback" not in capsys.readouterr().err


def test_a_log_that_cannot_be_opened_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_it_read(FakeCaptioner(), monkeypatch)
    folder_of(tmp_path / "in", "a.png")

    def refuse(self: object, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(logging.FileHandler, "__init__", refuse)
    done = runner.invoke(app, ["scan", str(tmp_path / "in"), "-o", str(tmp_path / "r.parquet")])
    assert done.exit_code == 2 and "r.log: cannot be written (Permission denied); give another -o." in done.stderr
