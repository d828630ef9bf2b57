"""The main job, as the README's first command runs it: the sample images and the built-in model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.captures import MARK, shown, without_times
from tests.support.documents import texts
from tests.support.inbox import INBOX, Run, scan_inbox
from vlmgate.config import ImageConfig
from vlmgate.data import Picture, Reason, Route
from vlmgate.images import find_images, read_ahead
from vlmgate.store.result import read_result


def test_every_image_has_a_row_and_the_broken_one_goes_to_a_person(inbox_run: Run) -> None:
    assert inbox_run.code == 3, inbox_run.stderr
    rows, provenance = read_result(inbox_run.parquet)
    walk = find_images(INBOX)
    assert [r.file_name for r in rows] == [s.file_name for s in walk.sources] and len(rows) >= 35
    assert provenance["complete"] and provenance["ignored"] == len(walk.ignored) >= 1
    broken = [r for r in rows if r.reason == Reason.UNREADABLE]
    assert len(broken) == 1 and broken[0].route == Route.HUMAN_REVIEW and "truncated" in str(broken[0].error)
    routes = {r.route for r in rows}
    assert routes == {Route.AUTO_ACCEPT, Route.HUMAN_REVIEW}
    assert all(r.captions and len(r.captions) == 8 for r in rows if r is not broken[0])


def test_header_table_and_log_say_what_happened(inbox_run: Run) -> None:
    assert "knows rendered sample parts only" in inbox_run.stderr
    assert re.search(r"auto-accepted +\d+", inbox_run.stdout) and re.search(r"routed to human +\d+", inbox_run.stdout)
    assert re.search(r"unreadable +1 ", inbox_run.stdout)
    log = inbox_run.parquet.with_suffix(".log").read_text(encoding="utf-8")
    assert "unreadable: " in log and "finished: " in log and "Traceback" not in log


def test_readme_and_manual_show_what_is_printed_today(inbox_run: Run) -> None:
    found = [
        m for text in texts().values() for m in MARK.finditer(text) if m["arguments"] == "scan sample_images/inbox"
    ]
    assert [m["kind"] for m in found] == ["table", "capture"]
    printed = inbox_run.stdout.replace(str(inbox_run.parquet), "inbox.parquet")
    for mark in found:
        now = without_times(shown(printed, mark["kind"]))
        assert without_times(mark["text"]) == now, "python -m tests.support.captures writes them anew"


def test_the_twelve_bit_tiff_is_not_white() -> None:
    sources = [s for s in find_images(INBOX).sources if s.file_name.endswith((".tif", ".tiff"))]
    pictures = [o.result for o in read_ahead(sources, ImageConfig())]
    deep = [p for p in pictures if isinstance(p, Picture) and p.file.mode.startswith("I")]
    assert deep
    for picture in deep:
        low, high = picture.rgb.convert("L").getextrema()
        assert low < 100 and high > 150
        assert picture.rgb.convert("L").histogram()[255] < 0.05 * picture.file.width * picture.file.height
        assert picture.file.conversion and "12" in picture.file.conversion


@pytest.mark.slow
def test_batch_size_changes_no_caption(inbox_run: Run, tmp_path: Path) -> None:
    one = scan_inbox(tmp_path / "one.parquet", "--batch-size", "1", "--dtype", "float32", "-q", "--format", "json")
    assert json.loads(one.stdout)["summary"]["images"] == len(read_result(inbox_run.parquet)[0])
    assert read_result(inbox_run.parquet)[1]["model"]["dtype"] == "float32"
    captions = [[(r.file_name, r.captions) for r in read_result(run.parquet)[0]] for run in (inbox_run, one)]
    assert captions[0] == captions[1]


OFFLINE = """
import socket, sys
def refuse(*arguments):
    raise AssertionError(f"the network was used: {arguments}")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
sys.argv = ["vlmgate", "scan", sys.argv[1], "-o", sys.argv[2], "-q"]
from vlmgate.cli import main
main()
"""


@pytest.mark.slow
def test_the_built_in_model_never_asks_the_network(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    image = next(s.path for s in find_images(INBOX).sources if s.file_name.endswith(".jpg"))
    (folder / image.name).write_bytes(image.read_bytes())
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    command = [sys.executable, "-c", OFFLINE, str(folder), str(tmp_path / "one.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "network was used" not in (tmp_path / "one.log").read_text(encoding="utf-8") + done.stderr
