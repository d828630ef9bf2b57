"""One `vlmgate scan` of the sample images, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import INBOX

__all__ = ["INBOX", "Run", "scan_inbox"]


@dataclass(frozen=True)
class Run:
    """What one `vlmgate scan` left behind."""

    parquet: Path
    code: int
    stdout: str
    stderr: str
    seconds: float


def scan_inbox(out: Path, *options: str) -> Run:
    """Run the real command, with the built-in model, in a process of its own."""
    command = [sys.executable, "-m", "vlmgate", "scan", str(INBOX), "-o", str(out), *options]
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Run(out, done.returncode, done.stdout, done.stderr, time.monotonic() - begun)
