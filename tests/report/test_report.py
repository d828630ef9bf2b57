"""What a person sees, at the widths and on the streams where they see it."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.support.fakes import AGREE, DISAGREE, FakeCaptioner, SilentProgress, config_for, folder_of
from vlmgate.data import Reason, Record, Route
from vlmgate.errors import plain
from vlmgate.gate.rules import make_gate
from vlmgate.images import NO_END
from vlmgate.report.image import print_record
from vlmgate.report.summary import accepted_readings, print_routed, print_summary, summarise, summary_json
from vlmgate.report.terminal import TerminalProgress, header_line
from vlmgate.run.control import Aside
from vlmgate.run.loop import scan
from vlmgate.run.outcome import ScanResult
from vlmgate.scores.findings import load_vocabulary


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
    assert routed.split() == ["routed", "to", "human", "2", "18.2%", "3.75"]
    assert any(line.split() == ["unreadable", "1", "9.1%", "–"] for line in lines)
    assert "\x1b" not in out.getvalue()


def test_why_images_could_not_be_read_is_counted(result: ScanResult) -> None:
    reasons = ["truncated: 3 of 9 strips are not listed", "truncated", "not an image", "truncated: ends in zeros"]
    reasons += ["HEIF needs the extra 'heic': pip install 'vlmgate[heic]', or convert it to PNG or TIFF"] * 2
    broken = next(record for record in result.records if record.reason == Reason.UNREADABLE)
    records = [replace(broken, file_name=f"{i}.jpg", error=reason) for i, reason in enumerate(reasons)]
    assert summarise(records)["unreadable_reasons"] == {
        "truncated": 3,
        "HEIF needs the extra 'heic'": 2,
        "not an image": 1,
    }
    told = " ".join(lines_of(records, result.provenance, 200))
    assert "6 images could not be read (3 truncated, 2 HEIF needs the extra 'heic', 1 not an image), first:" in told
    assert "1 image could not be read, first: broken.jpg (truncated)" in " ".join(
        lines_of(result.records, result.provenance, 200)
    )


def test_jpegs_without_an_end_marker_are_told(result: ScanResult) -> None:
    records = [replace(one_of(result), conversion=NO_END), one_of(result)]
    assert "1 JPEG without an end marker, though all of the picture is there, e.g." in " ".join(
        lines_of(records, result.provenance, 200)
    )


def one_of(result: ScanResult) -> Record:
    """Return an image that was accepted."""
    return next(record for record in result.records if record.route == Route.AUTO_ACCEPT)


def lines_of(records: Sequence[Record], provenance: Mapping[str, Any], width: int = 100) -> list[str]:
    out = io.StringIO()
    print_summary(records, provenance, Path("r.parquet"), Console(file=out, width=width))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80])
def test_long_reasons_wrap_and_figures_stay_whole(result: ScanResult, width: int) -> None:
    why = replace(one_of(result), route=Route.HUMAN_REVIEW, reason=Reason.NO_CLAIM)
    far = replace(why, reason=Reason.BEYOND_LIMIT, decided_by="answer_probability")
    lines = lines_of([*[why] * 1234, far], result.provenance, width)
    assert [line.split()[-3:] for line in lines if "routed to human" in line] == [["1,235", "100.0%", "1.00"]]
    start = next(i for i, line in enumerate(lines) if line.startswith("  says"))
    assert lines[start].split()[-3:] == ["1,234", "99.9%", "1.00"]
    rows = lines[start : next(i for i in range(start, len(lines)) if not lines[i].strip())]
    assert all(line.startswith("  ") for line in rows), "what is wrapped stays indented"
    told = "".join(re.sub(r" +[\d,.]+ +[\d.]+% +[\d.]+$", "", line) for line in rows)
    assert "".join(told.split()) == "saysnothingoftheconditionanswer_probabilitybeyondlimit"


def test_the_list_of_the_routed_is_aligned(result: ScanResult) -> None:
    routed = [replace(one_of(result), route=Route.HUMAN_REVIEW, file_name=f"part_{i}.png") for i in range(3)]
    reasons = (Reason.NO_CLAIM, Reason.CUT_OFF, Reason.CONTRADICTED)
    rows = [replace(one, reason=reason, vendi_score=2.0) for one, reason in zip(routed, reasons, strict=True)]
    out = io.StringIO()
    print_routed(rows, result.provenance, Console(file=out, width=60))
    lines = out.getvalue().splitlines()
    assert lines[0] == "   2.000  says nothing of the condition  part_0.png"
    assert {line.index("part_") for line in lines} == {41}


HELD_BACK = [
    ("cut_off", None, "caption cut off (3 of 4). A larger --max-new-tokens (now 192) lets captions end."),
    (
        "no_claim",
        None,
        "says nothing of the condition (3 of 4). Ask a question with --choices, or name what your",
    ),
    ("unknown_language", None, "language not known (3 of 4). Which languages are known, and what else helps: see `vlm"),
    ("contradicted", "contradiction", "contradicted (3 of 4). Which limit is safe, only labelled images can say: see"),
    ("disagreed", None, "disagreed (3 of 4). Which limit is safe, only labelled images can say: see `vlmgate help"),
    ("beyond_limit", "support", "support beyond limit (3 of 4). Which limit is safe, only labelled images can say"),
    (
        "beyond_limit",
        "novelty",
        "novelty beyond limit (3 of 4). They are unlike the images that the model is meant",
    ),
    ("beyond_limit", "sharpness", "sharpness beyond limit (3 of 4). Look at the camera, the light and the focus."),
    ("no_score", "novelty", "no score: novelty (3 of 4)."),
    ("unreadable", None, "unreadable (3 of 4)."),
]


@pytest.mark.parametrize(("reason", "column", "line"), HELD_BACK)
def test_one_line_says_what_held_back_most_and_what_helps(
    result: ScanResult, reason: str, column: str | None, line: str
) -> None:
    told, figure = held_back(result, reason, column)
    assert told.startswith(f"Most were held back because: {line}")
    assert figure == {"reason": f"{reason}:{column}" if column and "_" in reason else reason, "images": 3, "of": 4}
    assert "--review-budget" not in told and "--limit" not in told and "--threshold" not in told


def held_back(result: ScanResult, reason: str, column: str | None, **gate: object) -> tuple[str, dict[str, Any] | None]:
    """Return the line and the figure of a summary of four routed images, three of them for one reason."""
    row = replace(one_of(result), route=Route.HUMAN_REVIEW, reason=Reason(reason), decided_by=column)
    other = replace(row, reason=Reason.EMPTY_CAPTION, decided_by=None)
    waiting = replace(row, reason=Reason.NOT_READ, decided_by=None)
    rows = [row] * 3 + [other] + [waiting] * 9
    provenance = result.provenance | {"gate": result.provenance["gate"] | gate}
    told = [line for line in lines_of(rows, provenance) if "held back" in line.lower()]
    figure = json.loads(summary_json(rows, provenance, Path("r.parquet"), 0, None))["summary"]["held_back"]
    return " ".join(told), figure


def test_a_calibrated_limit_is_not_to_be_changed_and_a_budget_routes_what_it_was_asked_to(result: ScanResult) -> None:
    assert held_back(result, "disagreed", None, origin="gate.toml")[0].endswith("disagreed (3 of 4).")
    cut = held_back(result, "cut_off", None, origin="gate.toml")[0]
    assert cut.endswith("lets captions end. Then calibrate again: a gate holds for its own settings alone.")
    told, figure = held_back(result, "most_uncertain", None)
    assert told == "" and figure == {"reason": "most_uncertain", "images": 3, "of": 4}


def test_nothing_is_proposed_that_loosens_where_none_or_all_were_accepted(result: ScanResult) -> None:
    row = one_of(result)
    everything = "\n".join(lines_of([row] * 12, result.provenance))
    assert (
        "All of the images were accepted, so this limit does not separate them. Look at some: vlmgate rev" in everything
    )
    assert "held back" not in everything and "--review-budget 10%" not in everything
    routed = replace(row, route=Route.HUMAN_REVIEW, reason=Reason.DISAGREED)
    nothing = "\n".join(lines_of([routed] * 12, result.provenance))
    assert "Most were held back because: disagreed (12 of 12)." in nothing and "--review-budget 10%" not in nothing
    assert summarise([row])["held_back"] is None


def test_a_cause_of_less_than_half_is_not_called_most(result: ScanResult) -> None:
    row = replace(one_of(result), route=Route.HUMAN_REVIEW)
    rows = [replace(row, reason=reason) for reason in (Reason.REFUSED, Reason.REFUSED, Reason.CUT_OFF, Reason.NO_CLAIM)]
    lines = lines_of(rows, result.provenance)
    assert (
        "Held back most often because: refused (2 of 4). `vlmgate show` prints what was said; another prompt"
        in " ".join(lines)
    )
    assert "1 image with captions cut off at 192 tokens; --max-new-tokens lets them end." in lines


def test_what_was_accepted_is_counted_by_claims_or_by_words(result: ScanResult) -> None:
    said = ("no scratch", "A washer without any scratch.", "a dent", "a grey part", "the grey part", "perhaps a dent")
    row = one_of(result)
    rows = [replace(row, caption=text) for text in said]
    assert accepted_readings(rows, load_vocabulary()) == [
        ("a grey part", 2),
        ("no scratch", 2),
        ("dent", 1),
        ("perhaps a dent", 1),
    ]
    assert accepted_readings(rows)[0] == ("a grey part", 2) and ("no scratch", 1) in accepted_readings(rows, most=9)
    assert "       2  no scratch" in lines_of(rows, result.provenance)
    by_words = result.provenance | {"kernel": "words"}
    assert "       2  no scratch" not in lines_of(rows, by_words) and "       2  a grey part" in lines_of(
        rows, by_words
    )


def test_show_names_the_claim_that_captions_contradict_each_other_on(result: ScanResult) -> None:
    captions = ("a scratch",) * 5 + ("no scratch",) * 2 + ("[b]perhaps[/b] a scratch \x1b[2J",)
    row = replace(
        one_of(result),
        route=Route.HUMAN_REVIEW,
        reason=Reason.CONTRADICTED,
        captions=captions,
        caption_finishes=("stop",) * 8,
        decided_by="contradiction",
        contradiction=0.25,
        threshold=0.0,
    )
    claims = "Claims: 5 of 8 scratch · 2 of 8 no scratch · 1 of 8 perhaps scratch"
    for kernel in ("findings", "words"):
        out = io.StringIO()
        print_record(row, result.provenance | {"kernel": kernel}, Console(file=out, width=60))
        lines = out.getvalue().splitlines()
        assert (
            "routed to human: one reading asserts what another denies: 5 of 8 say scratch, 2 of 8 deny it "
            "(contradiction 0.250, limit 0.000)" in lines
        )
        assert (claims in lines) == (kernel == "findings") and "\x1b" not in out.getvalue()
        assert any(one.startswith("They differ on: ") for one in lines) == (kernel == "words")


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
