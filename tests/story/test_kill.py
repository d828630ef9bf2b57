"""Pull the plug: `kill -9` at random moments costs nothing but time."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.fakes import FakeCaptioner, SilentProgress, config_for, folder_of
from tests.support.inbox import INBOX, Run
from tests.support.paths import ROOT
from vlmgate.data import Record
from vlmgate.run.loop import scan
from vlmgate.store.result import read_result

# A scan in a process of its own, slow enough to be hit anywhere, without a model.
SLOW_SCAN = """
import sys, time
from pathlib import Path

import pytest
sys.path.insert(0, {root!r})
from tests.support.fakes import FakeCaptioner, SilentProgress, config_for
from vlmgate.run.loop import scan

class Slow(FakeCaptioner):
    def read(self, pictures):
        time.sleep(0.03)
        return super().read(pictures)

scan(config_for(Path(sys.argv[1]), Path(sys.argv[2])), SilentProgress(), load=Slow(lambda name: (name, "a dent")).load)
"""

# The same through the command line, for what it tells the shell.
SLOW_COMMAND = """
import sys, time
sys.path.insert(0, {root!r})
import vlmgate.run.loop
from tests.support.fakes import FakeCaptioner

class Slow(FakeCaptioner):
    def read(self, pictures):
        time.sleep(0.2)
        return super().read(pictures)

vlmgate.run.loop.scan.__kwdefaults__["load"] = Slow().load
sys.argv = ["vlmgate", "scan", sys.argv[1], "-o", sys.argv[2]]
from vlmgate.cli import main
main()
"""


def timeless(path: Path) -> list[Record]:
    return [replace(r, seconds=None) for r in read_result(path)[0]]


def run_and_kill(command: list[str], moments: list[float]) -> int:
    """Start the command once for each moment (seconds) and kill it then; return how many it hit alive."""
    killed = 0
    for moment in moments:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
    return killed


@pytest.mark.slow
def test_killed_many_times_the_result_is_that_of_one_run(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", *(f"part_{i:03d}.png" for i in range(90)))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "copy.png").write_bytes((folder / "part_007.png").read_bytes())
    code = SLOW_SCAN.format(root=str(ROOT))
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "killed.parquet")]
    chance = random.Random(20261123)
    begun = time.monotonic()
    subprocess.run([*command[:-1], str(tmp_path / "whole.parquet")], check=True)
    whole = time.monotonic() - begun
    assert run_and_kill(command, [chance.uniform(0.3, 0.8) * whole for _ in range(6)]) >= 1
    subprocess.run(command, check=True)
    assert timeless(tmp_path / "killed.parquet") == timeless(tmp_path / "whole.parquet")
    fake = FakeCaptioner()
    scan(config_for(folder, tmp_path / "killed.parquet"), SilentProgress(), load=fake.load)
    assert not fake.history, "a finished run was read again"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_shell_is_told_which_signal_ended_the_run(tmp_path: Path, signum: int, code: int) -> None:
    folder = folder_of(tmp_path / "in", *(f"part_{i:03d}.png" for i in range(200)))
    out = tmp_path / "r.parquet"
    command = [sys.executable, "-c", SLOW_COMMAND.format(root=str(ROOT)), str(folder), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    journal = out.with_suffix(".journal.jsonl")
    while process.poll() is None and (not journal.exists() or journal.stat().st_size < 3000):
        time.sleep(0.02)
    process.send_signal(signum)
    printed, told = process.communicate(timeout=30)
    assert process.returncode == code, told
    rows, provenance = read_result(out)
    assert len(rows) == 200 and provenance["complete"] is False and "Not complete: " in printed
    assert "Traceback" not in told


@pytest.mark.slow
def test_the_real_command_killed_three_times_gives_the_same_parquet(inbox_run: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vlmgate", "scan", str(INBOX), "-q", "-o", str(tmp_path / "killed.parquet")]
    journal = tmp_path / "killed.journal.jsonl"
    chance = random.Random(7)
    for lines in sorted(chance.sample(range(2, 30), 3)):  # of 41 when all is read
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < lines):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert timeless(tmp_path / "killed.parquet") == timeless(inbox_run.parquet)
