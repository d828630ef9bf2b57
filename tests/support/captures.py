"""Write into README.md what the commands that it shows print today: `python -m tests.support.captures`.

A block that begins with the mark `<!-- capture: ARGUMENTS -->` is replaced by what `vlmgate ARGUMENTS` prints, at 100
columns, without the lines of the list below. `tests/story/test_inbox.py` says where README.md has fallen behind.

Knows marks and commands; knows nothing of what they do.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.paths import README, ROOT

MARK = re.compile(r"(?P<mark><!-- capture: (?P<arguments>.*?) -->\n```text\n)(?P<text>.*?)(?P<end>```\n)", re.DOTALL)
LEFT_OUT = re.compile(r"^(The built-in model knows|The limits are the built-in).*\n", re.MULTILINE)  # said beside it
# What is another on every machine.
TIMES = re.compile(r"^The model took .*$", re.MULTILINE)


def shown(stdout: str) -> str:
    """Return what README.md shows of an output."""
    return LEFT_OUT.sub("", stdout.rstrip() + "\n")


def without_times(text: str) -> str:
    """Return a text without what differs from machine to machine."""
    return TIMES.sub("The model took …", text)


def captured(arguments: str, folder: Path) -> str:
    """Run a command as README.md shows it, in a folder where `sample_images` lies, and return what it prints."""
    link = folder / "sample_images"
    if not link.exists():
        link.symlink_to(ROOT / "sample_images", target_is_directory=True)
    environment = os.environ | {"COLUMNS": "100", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "vlmgate", *arguments.split()]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(f"vlmgate {arguments}: ended with {done.returncode}: {done.stderr.strip()}")
    return shown(done.stdout)


def main() -> None:
    """Run from the command line."""
    with tempfile.TemporaryDirectory() as folder:
        text = README.read_text(encoding="utf-8")
        new = MARK.sub(lambda m: m["mark"] + captured(m["arguments"], Path(folder)) + m["end"], text)
    README.write_text(new, encoding="utf-8")
    print(f"{len(MARK.findall(text))} captures, {'changed' if new != text else 'as before'}")


if __name__ == "__main__":
    main()
