"""What a person sees, at the widths and on the streams where they see it."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from tests.support.fakes import AGREE, DISAGREE, FakeCaptioner, SilentProgress, config_for, folder_of
from vlmgate.errors import plain
from vlmgate.gate.rules import make_gate
from vlmgate.report.summary import print_summary
from vlmgate.report.terminal import TerminalProgress, header_line
from vlmgate.run.control import Aside
from vlmgate.run.loop import scan
from vlmgate.run.outcome import ScanResult


class Listening(SilentProgress):
    """Takes a message only once somebody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = threading.Event()

    def message(self, text: str) -> None:
        self.reads.wait(60)
        super().message(text)


def test_a_terminal_that_nobody_reads_holds_up_nothing(tmp_path: Path) -> None:
    listening = Listening()
    folder = folder_of(tmp_path / "in", "a.png", "b.png")
    with Aside(listening, patience=0.1) as progress:
        done = scan(config_for(folder, tmp_path / "r.parquet"), progress, load=FakeCaptioner().load)
    assert len(done.decided) == 2 and (tmp_path / "r.parquet").exists() and listening.messages == []
    listening.reads.set()
    with Aside(listening, patience=60) as progress:
        for i in range(100):
            progress.message(str(i))
    assert listening.messages[-100:] == [str(i) for i in range(100)], "in order, and whole at the end"


def test_a_terminal_that_fails_in_its_thread_holds_up_nothing() -> None:
    class Broken(SilentProgress):
        def message(self, text: str) -> None:
            raise SystemExit(1)

    with Aside(Broken(), patience=60) as progress:
        progress.message("one")
        progress.message("two")
        progress.stop()


@pytest.fixture
def result(tmp_path: Path) -> ScanResult:
    folder = folder_of(tmp_path / "in", *(f"part_{i}.png" for i in range(9)), "x" * 150 + ".png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    fake = FakeCaptioner(lambda name: DISAGREE if "3" in name else AGREE)
    return scan(
        config_for(folder, tmp_path / "r.parquet"), TerminalProgress(Console(file=io.StringIO())), load=fake.load
    )


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_table_keeps_its_figures_at_any_width(result: ScanResult, width: int) -> None:
    out = io.StringIO()
    print_summary(result.records, result.provenance, result.outputs.parquet, Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    (accepted,) = [line for line in lines if line.startswith("auto-accepted")]
    assert accepted.split() == ["auto-accepted", "9", "81.8%", "1.00"]
    (routed,) = [line for line in lines if line.startswith("routed to human")]
    assert routed.split() == ["routed", "to", "human", "2", "18.2%", "4.00"]
    assert any(line.split() == ["unreadable", "1", "9.1%", "–"] for line in lines)
    assert "\x1b" not in out.getvalue()


def test_piped_progress_is_one_plain_line_a_minute() -> None:
    err = io.StringIO()
    progress = TerminalProgress(Console(file=err), every=0.0)
    progress.start(total=100, done=20)
    progress.advance(4)
    progress.advance(4)
    progress.stop()
    lines = err.getvalue().splitlines()
    assert len(lines) == 2 and lines[1].startswith("28 of 100 files, ") and "min left" in lines[1]
    silent = io.StringIO()
    progress = TerminalProgress(Console(file=silent), every=60.0)
    progress.start(total=100, done=0)
    progress.advance(4)
    assert silent.getvalue() == ""


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    err = io.StringIO()
    progress = TerminalProgress(Console(file=err, force_terminal=True, width=100))
    progress.start(total=10, done=2)
    progress.advance(3)
    progress.stop()
    assert "5/10" in err.getvalue()


def test_plain_text_keeps_letters_and_escapes_what_steers() -> None:
    assert plain("Teil Ä 部品 قطعة 🔩 – ok") == "Teil Ä 部品 قطعة 🔩 – ok"
    assert plain("a\x1b[2J\r\n\t\u202e\u200b\u2028\x85\x7f") == r"a\x1b[2J\r\n\t\u202e\u200b\u2028\x85\x7f"
    assert plain("\udcff") == r"\udcff"


def test_the_header_names_model_device_and_limit() -> None:
    model = {"model": "/models/Smol[VLM]", "revision": "7e3c2a1ffff", "device": "cuda:0", "dtype": "bfloat16"}
    line = header_line(model, make_gate(num_samples=8, threshold=1.8), 8)
    assert line.endswith("Smol[VLM]@7e3c2a1 · cuda:0 bfloat16 · 8 samples · vendi_score ≤ 1.8")
    assert "uncalibrated" in header_line(None, make_gate(num_samples=8), 8)
    assert "10% of images" in header_line(None, make_gate(num_samples=8, review_budget="10%"), 8)


@pytest.mark.parametrize("page", ["cp1252", "cp437", "cp932", "ascii"])
def test_a_code_page_without_our_signs_shows_them_in_letters(result: ScanResult, page: str) -> None:
    """Windows consoles and pipes; the figures must be read, and nothing may be raised."""
    environment = os.environ | {"PYTHONIOENCODING": page, "COLUMNS": "80"}
    command = [sys.executable, "-m", "vlmgate", "show", str(result.outputs.parquet)]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    text = done.stdout.decode(page)
    assert "\\u" not in text and "auto-accepted" in text
    assert "vendi_score <= 1.25" in text or "vendi_score ≤ 1.25" in text
    assert done.stderr == b""


def test_colours_are_for_terminals_that_want_them(result: ScanResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    told = []
    for wanted in (True, False):
        if not wanted:
            monkeypatch.setenv("NO_COLOR", "1")
        out = io.StringIO()
        console = Console(file=out, force_terminal=True, width=80)
        print_summary(result.records, result.provenance, result.outputs.parquet, console)
        told.append(out.getvalue())
    assert "\x1b[1;32m" in told[0] and not re.search(r"\x1b\[[0-9;]*3[0-7]", told[1])
