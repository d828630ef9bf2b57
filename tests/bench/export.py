"""Rows a second and peak memory of an export.

    python -m tests.bench.export [--rows 1000000] [--to csv] [--samples 8] [--row-groups 0] [--json FILE]

A made-up result of so many rows is written to a temporary folder and exported by the real command in a process of its
own, which tells its greatest resident size. `--row-groups 1` writes the rows as one row group, as a scan does
with up to a million; that takes as much memory here as the rows do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlmgate.config import SamplingConfig
from vlmgate.store.result import METADATA_KEY, SCHEMA_VERSION, schema

SCHEMA = 1  # of the JSON
FEATURES = 384  # numbers a row, as many as the built-in model shows
_AT_ONCE = 10_000  # rows


@dataclass(frozen=True, slots=True)
class Measured:
    """What one export took."""

    target: str
    rows: int
    samples: int
    row_groups: int
    input_bytes: int
    output_bytes: int
    seconds: float
    rows_per_second: float
    peak_megabytes: float  # greatest resident size of the exporting process


def main(arguments: list[str] | None = None) -> None:
    """Write the rows, export them, print the figures."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "made_up.parquet"
        groups = write_rows(made, options.rows, options.samples, one_group=options.row_groups == 1)
        measured = measure(made, options.to, options.rows, options.samples, groups)
    print("| target | rows | row groups | seconds | rows/s | peak RSS, MB | output, MB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    print(
        f"| {measured.target} | {measured.rows:,} | {measured.row_groups:,} | {measured.seconds:.1f} | "
        f"{measured.rows_per_second:,.0f} | {measured.peak_megabytes:,.0f} | {measured.output_bytes / 1e6:,.0f} |"
    )
    told = json.dumps({"schema_version": SCHEMA, **asdict(measured)})
    print(told)
    if options.json:
        options.json.write_text(told + "\n", encoding="utf-8")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--to", default="csv")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--row-groups", type=int, choices=(0, 1), default=0, help="0 = one for every 10,000 rows")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def write_rows(path: Path, rows: int, samples: int, *, one_group: bool = False) -> int:
    """Write a made-up result; return the number of its row groups."""
    sampling = asdict(SamplingConfig(num_samples=samples))
    told = {"schema_version": SCHEMA_VERSION, "run_id": "bench", "model": {"model": "made up"}, "sampling": sampling}
    told |= {"gate": {}, "image_config": {}, "fingerprint": {}, "kernel": "words", "folder": "/made/up"}
    made = schema().with_metadata({METADATA_KEY: json.dumps(told).encode()})
    batches = _batches(made, rows, samples)
    with pq.ParquetWriter(path, made, compression="zstd") as writer:
        if one_group:
            writer.write_table(pa.Table.from_batches(list(batches), made), row_group_size=max(1, rows))
        else:
            for batch in batches:
                writer.write_batch(batch)
    return int(pq.ParquetFile(path).metadata.num_row_groups)


def _batches(made: pa.Schema, rows: int, samples: int) -> Iterator[pa.RecordBatch]:
    random = np.random.default_rng(0)
    parts = [f"a {m} {p} with {d}" for m in ("steel", "brass") for p in ("gear", "plate") for d in ("a dent", "none")]
    for start in range(0, rows, _AT_ONCE):
        n = min(_AT_ONCE, rows - start)
        said = [f"{parts[k]}, seen at {number}" for k, number in zip(random.integers(0, 8, n), range(n), strict=True)]
        features = random.normal(size=n * FEATURES).astype(np.float16).astype(np.float32)
        texts = {
            "file_name": [f"line{i % 7}/part_{start + i:07d}.jpg" for i in range(n)],
            "sha256": [f"{start + i:064x}" for i in range(n)],
            "captions": [[f"{one} ({k})" for k in range(samples)] for one in said],
            "caption": said,
            "route": ["human_review" if i % 5 == 0 else "auto_accept" for i in range(n)],
            "reason": ["disagreed" if i % 5 == 0 else "agreed" for i in range(n)],
            "vision_features": pa.ListArray.from_arrays(
                pa.array(np.arange(0, n * FEATURES + 1, FEATURES, dtype=np.int32)), pa.array(features)
            ),
        }
        columns = []
        for field in made:
            if field.name in texts:
                columns.append(pa.array(texts[field.name], field.type))
            elif pa.types.is_floating(field.type):
                columns.append(pa.array(random.random(n).round(6), field.type))
            elif pa.types.is_integer(field.type):
                columns.append(pa.array(np.ones(n, np.int32), field.type))
            else:
                columns.append(pa.nulls(n, field.type))
        yield pa.RecordBatch.from_arrays(columns, schema=made)


# Run in the exporting process. The greatest resident size that the system tells a parent of its child is no use: it is
# handed on from the parent, this script, through fork and exec.
_CHILD = """
import sys
from vlmgate.cli import main
try:
    main()
finally:
    try:
        with open("/proc/self/status") as status:
            peak = next(int(line.split()[1]) / 1000 for line in status if line.startswith("VmHWM"))
    except OSError:
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    print(peak)
"""


def measure(made: Path, target: str, rows: int, samples: int, groups: int) -> Measured:
    """Export in a process of its own; return its time and its greatest resident size."""
    out = made.with_name(f"out.{target}")
    command = [sys.executable, "-c", _CHILD, "export", str(made), "--to", target, "-o", str(out), "--quiet"]
    begun = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"the export ended with exit code {done.returncode}.")
    return Measured(
        target=target,
        rows=rows,
        samples=samples,
        row_groups=groups,
        input_bytes=made.stat().st_size,
        output_bytes=out.stat().st_size,
        seconds=round(seconds, 3),
        rows_per_second=round(rows / seconds, 1),
        peak_megabytes=round(float(done.stdout), 1),
    )


if __name__ == "__main__":
    main()
