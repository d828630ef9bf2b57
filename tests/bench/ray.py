"""Images a second of two Ray workers, of two shards and of one single-threaded process, on the built-in model.

    python -m tests.bench.ray [--images 208] [--rounds 5] [--json FILE]

Four ways to scan the same images, with empty outputs: "one process" reads by itself with one thread, "two shards" are
two such processes at the same time with half of the images each, "one worker" and "two workers" are Ray's, which gives
every worker one thread. Every way is run once a round, in turn, so that a busy machine slows all of them; medians and
their ratios count. Two figures for each: images a
second from the first batch after every model is loaded to the end, and the whole run with all its starting and loading,
which weighs less the longer a run is.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
IMAGES = ROOT / "sample_images" / "labelled"
WAYS = {"one process": 0, "two shards": 0, "one worker": 1, "two workers": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=208)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=4, metavar=("FOLDER", "OUT", "WORKERS", "SHARD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        folder, out, workers, shard = arguments.one
        print(json.dumps(one(Path(folder), Path(out), int(workers), shard)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        folder.mkdir()
        for path in sorted(IMAGES.rglob("*.jpg"))[: arguments.images]:
            shutil.copy(path, folder / f"{path.parent.name}_{path.name}")
        images = len(list(folder.iterdir()))
        runs: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for round_ in range(arguments.rounds):
            for way, workers in WAYS.items():
                out = Path(name) / f"{round_}_{way.replace(' ', '_')}.parquet"
                rate, whole = run(folder, out, workers, 2 if way == "two shards" else 1)
                runs[way].append((rate, whole))
                print(f"round {round_ + 1}, {way}: {rate:.2f} images/s, {whole:.1f} s in all", file=sys.stderr)
    report(images, runs, arguments.json)


def run(folder: Path, out: Path, workers: int, shards: int) -> tuple[float, float]:
    """Return images a second with all models loaded, the sum of all shards, and seconds of the whole."""
    command = [sys.executable, "-m", "tests.bench.ray", "--one", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    begun = time.perf_counter()
    processes = [
        subprocess.Popen(
            [*command, str(out.with_stem(f"{out.stem}_{i}")), str(workers), f"{i}/{shards}" if shards > 1 else ""],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for i in range(1, shards + 1)
    ]
    told = [process.communicate()[0] for process in processes]
    return sum(float(json.loads(text)) for text in told), time.perf_counter() - begun


class Clock(logging.Handler):
    """Notes when how many images were through, and when the last model was loaded."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.moments: list[tuple[float, int]] = []
        self.loaded = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(("model loaded", "model {")):
            self.loaded = time.perf_counter()

    def advance(self, images: int) -> None:
        self.moments.append((time.perf_counter(), images))

    def header(self, *_: object) -> None: ...
    def message(self, text: str) -> None: ...
    def start(self, total: int, done: int) -> None: ...
    def stop(self) -> None: ...

    def rate(self) -> float:
        """Return images a second from the first batch after all models were loaded."""
        after = [moment for moment in self.moments if moment[0] > self.loaded and moment[1]]
        return sum(images for _, images in after[1:]) / (after[-1][0] - after[0][0])


def one(folder: Path, out: Path, workers: int, shard: str) -> float:
    """Scan; return images a second."""
    from vlmgate.config import ClusterConfig, SamplingConfig, ScanConfig, Shard
    from vlmgate.run.loop import scan

    clock = Clock()
    logging.getLogger("vlmgate").addHandler(clock)
    cluster = ClusterConfig("local", workers) if workers else None
    share = Shard.parse(shard) if shard else None
    result = scan(ScanConfig(folder, out, sampling=SamplingConfig(), cluster=cluster, shard=share), clock)
    assert result.error is None and result.provenance["complete"]
    return clock.rate()


def report(images: int, runs: dict[str, list[tuple[float, float]]], path: Path | None) -> None:
    """Print the table and write the JSON."""
    rates = {way: [rate for rate, _ in several] for way, several in runs.items()}
    wholes = {way: [whole for _, whole in several] for way, several in runs.items()}
    base = "one process"
    rows: list[dict[str, Any]] = []
    for way in WAYS:
        ratios = [a / b for a, b in zip(rates[way], rates[base], strict=True)]
        rows.append(
            {
                "way": way,
                "images_per_second": statistics.median(rates[way]),
                "least": min(rates[way]),
                "most": max(rates[way]),
                "ratio_to_one_process": statistics.median(ratios),
                "whole_seconds": statistics.median(wholes[way]),
            }
        )
    print(f"{images} images, {len(rates[base])} rounds, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'':<12} {'images/s':>9} {'least-most':>13} {'ratio':>6} {'whole run':>10}")
    for row in rows:
        spread = f"{row['least']:.2f}-{row['most']:.2f}"
        print(
            f"{row['way']:<12} {row['images_per_second']:>9.2f} {spread:>13} {row['ratio_to_one_process']:>6.2f} "
            f"{row['whole_seconds']:>8.1f} s"
        )
    if path is not None:
        path.write_text(json.dumps({"schema_version": 1, "images": images, "ways": rows}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
