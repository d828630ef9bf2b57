"""Write into README and manual what the commands that they show print today: `python -m tests.support.captures`.

A block under the mark `<!-- capture: ARGUMENTS -->` is replaced by what `vlmgate ARGUMENTS` prints, at 100 columns,
without the lines of `LEFT_OUT`; under `<!-- table: ARGUMENTS -->` by the table in it alone. `tests/story/test_inbox.py`
says where they have fallen behind.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from tests.support.documents import texts
from tests.support.paths import ROOT

MARK = re.compile(
    r"(?P<mark><!-- (?P<kind>capture|table): (?P<arguments>.*?) -->\n```text\n)(?P<text>.*?)(?P<end>```\n)", re.DOTALL
)
LEFT_OUT = re.compile(r"^(The built-in model knows|The limits are the built-in).*\n", re.MULTILINE)  # said beside it
# What is another on every machine.
TIMES = re.compile(r"^The model took .*$", re.MULTILINE)


def shown(stdout: str, kind: str = "capture") -> str:
    """Return what is shown of an output: all of it, or its table, which stands between the first two empty lines."""
    text = LEFT_OUT.sub("", stdout.rstrip() + "\n")
    return text.split("\n\n")[1] + "\n" if kind == "table" else text


def without_times(text: str) -> str:
    """Return a text without what differs from machine to machine."""
    return TIMES.sub("The model took …", text)


def captured(arguments: str, folder: Path) -> str:
    """Run a command as it is shown, in a folder where `sample_images` lies, and return what it prints."""
    samples = folder / "sample_images"
    if not samples.exists():  # a copy, for `calibrate` remembers next to the labels what was tried on them
        shutil.copytree(ROOT / "sample_images", samples, ignore=shutil.ignore_patterns(".vlmgate_*"))
    environment = os.environ | {"COLUMNS": "100", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "vlmgate", *arguments.split()]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(f"vlmgate {arguments}: ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def main() -> None:
    """Run from the command line."""
    with tempfile.TemporaryDirectory() as folder:
        printed = cache(lambda arguments: captured(arguments, Path(folder)))
        for path, text in texts().items():
            new = MARK.sub(lambda m: m["mark"] + shown(printed(m["arguments"]), m["kind"]) + m["end"], text)
            if MARK.search(text):
                print(f"{path.name}: {'changed' if new != text else 'as before'}")
            path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
