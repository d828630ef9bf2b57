"""How long it takes until something is seen: `vlmgate --help`, and `vlmgate scan` until its first batch is read.

    python -m tests.bench.startup [--rounds 5] [--json FILE]

Each in a process of its own, in turn. The first batch of a scan of the sample images counts as read once its line in
the journal is on the disk; loading torch, transformers and the built-in model is in it, and told apart.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench._timing import interleaved, spread, table, write

INBOX = Path(__file__).parent.parent.parent / "sample_images" / "inbox"
_VLMGATE = [sys.executable, "-m", "vlmgate"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.startup", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    ways = {
        "python -c pass": lambda: _run([sys.executable, "-c", "pass"]),
        "vlmgate --help": lambda: _run([*_VLMGATE, "--help"]),
        "import torch, transformers": lambda: _run([sys.executable, "-c", "import torch, transformers"]),
        "scan, first batch": _first_batch,
    }
    taken = interleaved(ways, options.rounds)
    print(table(["", "seconds"], [[name, spread(values)] for name, values in taken.items()]))
    write(options.json, "startup", vars(options), {"seconds": taken})


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _first_batch() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "r.parquet"
        process = subprocess.Popen([*_VLMGATE, "scan", str(INBOX), "-q", "-o", str(out)], stdout=subprocess.DEVNULL)
        journal = out.with_suffix(".journal.jsonl")
        while process.poll() is None and not (journal.exists() and b'"reading"' in journal.read_bytes()):
            time.sleep(0.01)
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
