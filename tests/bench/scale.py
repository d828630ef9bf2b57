"""Whether a scan of many small files stays as fast and as small as of few, and how fast it resumes.

    python -m tests.bench.scale [--sizes 10000,100000] [--samples 8] [--json FILE]

Folders of so many small images (one PNG, its last bytes numbered), read by a captioner that makes its captions up, in a
process of its own: what is left is the walk, decoding, scoring, journal and result. Images a second are by the clock,
and by the time that the process kept processors busy, which other work on the machine lengthens less. Memory is the
resident size while images are read, after a tenth of them and at the end. A second run of the same command finds
everything read: `resume_seconds` pass until it knows what is missing, `rerun_seconds` until the result is written anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench._timing import table, write

_ROOT = Path(__file__).parent.parent.parent
_CHILD = """
import json, random, sys, time
from collections import deque
from pathlib import Path
sys.path[:0] = [{root!r}]
from tests.support.fakes import FakeCaptioner, SilentProgress, config_for
from vlmgate.run.loop import scan

PARTS, DEFECTS = ("washer", "gear", "plate", "nut"), ("a dent", "a crack", "two scratches", "no defects", "rust")
PLACES = ("at the upper left", "in the middle", "near the rim", "on the lower right side")
FEATURES = tuple(i / 384 for i in range(384))

def say(name):
    draw = random.Random(name)
    return [f"A steel {{draw.choice(PARTS)}} with {{draw.choice(DEFECTS)}} {{draw.choice(PLACES)}}." for _ in range(8)]

def resident():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1e3
    return 0.0

class Progress(SilentProgress):
    def start(self, total, done):
        super().start(total, done)
        self.marks = [(done, time.perf_counter(), resident(), time.process_time())]
        self.resumed = time.perf_counter() - begun

    def advance(self, images):
        super().advance(images)
        if self.advanced >= len(self.marks) * self.total / 10:
            self.marks.append((self.advanced, time.perf_counter(), resident(), time.process_time()))

begun = time.perf_counter()
progress = Progress()
config = config_for(Path(sys.argv[1]), Path(sys.argv[2]), batch_size=8, num_samples=int(sys.argv[3]), threshold=2.0)
captioner = FakeCaptioner(say, features=lambda name: FEATURES)
captioner.history = deque(maxlen=1)  # its own memory is not what is measured
result = scan(config, progress, load=captioner.load)
assert result.error is None and len(result.records) == int(sys.argv[4])
told = {{"marks": progress.marks, "time": result.provenance["time"], "end": resident()}}
print(json.dumps(told | {{"seconds": time.perf_counter() - begun, "resumed": progress.resumed}}))
"""


def fill(folder: Path, images: int) -> Path:
    """Write so many small PNG files, no two alike, a thousand to a folder."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0))
    for i in range(images):
        if i % 1000 == 0:
            (folder / f"{i // 1000:03d}").mkdir(parents=True)
        rows = b"".join(b"\0" + struct.pack(">I", i) + bytes(range(44)) for _ in range(16))
        (folder / f"{i // 1000:03d}" / f"part_{i:06d}.png").write_bytes(
            head + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
        )
    return folder


def measure(images: int, samples: int) -> dict[str, Any]:
    """Scan so many images, then once more."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = fill(Path(scratch) / "in", images), Path(scratch) / "r.parquet"
        first, again = _run(folder, out, samples, images), _run(folder, out, samples, images)
        journal = out.with_suffix(".journal.jsonl").stat().st_size
    marks = first["marks"]
    rates, busy = ([(b[0] - a[0]) / (b[i] - a[i]) for a, b in itertools.pairwise(marks[1:])] for i in (1, 3))
    return {
        "images": images,
        "images_per_second": images / first["time"]["seconds"],
        "first_tenths": sum(rates[:3]) / len(rates[:3]),
        "last_tenths": sum(rates[-3:]) / len(rates[-3:]),
        "first_tenths_by_cpu": sum(busy[:3]) / len(busy[:3]),
        "last_tenths_by_cpu": sum(busy[-3:]) / len(busy[-3:]),
        "scan_seconds": first["seconds"],
        "finish_seconds": first["seconds"] - (marks[-1][1] - marks[0][1]),
        "megabytes_early": marks[1][2],
        "megabytes_late": marks[-1][2],
        "bytes_an_image": (marks[-1][2] - marks[1][2]) * 1e6 / (marks[-1][0] - marks[1][0]),
        "resume_seconds": again["resumed"],
        "rerun_seconds": again["seconds"],
        "journal_megabytes": journal / 1e6,
    }


def _run(folder: Path, out: Path, samples: int, images: int) -> dict[str, Any]:
    code = _CHILD.format(root=str(_ROOT))
    command = [sys.executable, "-c", code, str(folder), str(out), str(samples), str(images)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="10000,100000", help="numbers of images, separated by commas")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    found = [measure(int(size), options.samples) for size in options.sizes.split(",")]
    head = ["", *(f"{one['images']:,}" for one in found)]
    print(table(head, [[name, *(f"{one[name]:,.1f}" for one in found)] for name in found[0]]))
    write(options.json, "scale", vars(options), {str(one["images"]): one for one in found})


if __name__ == "__main__":
    main()
