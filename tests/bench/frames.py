"""Is a promise kept where the labels hold several frames of each part?

    python -m tests.bench.frames --cache FOLDER --parts 400 --calibrations 1000 --json FILE

Draws parts as `sample_images/labelled` has them, makes ten frames of each (a flicker of 0.4 %, sensor noise of one grey
level), and reads all of them once, through the product's own command. Each calibration then draws parts from that pool,
with replacement, and chooses and certifies with the product's own functions: score, number of samples, thresholds. The
truth is what the gate does to the whole pool. Promises are counted as broken by images and by parts; beside them stands
what comes of counting every frame as a trial. What was read stays in the cache, so a bench that was stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from tests.bench.promise import calibrated, draw
from vlmgate.calibration.choose import choose_score, compare_counts, design_part, promise
from vlmgate.calibration.labels import read_labels
from vlmgate.calibration.readings import Evidence, Labelled, evidence, join
from vlmgate.store.result import read_result

FRAMES = 10
SEED = 9000
COUNTS = (4, 16)  # samples to choose from; more take the bench longer and show nothing else
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Pool:
    """All frames that were read: N images of P parts."""

    labelled: Labelled
    evidence: tuple[Evidence, ...]  # by number of samples, rising
    part: np.ndarray[Any, Any]  # (N,) from 0
    frame: np.ndarray[Any, Any]  # (N,) from 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of many calibrations."""

    frames: int  # of each part
    parts: int  # in each calibration
    target: float
    counted: str  # what was one trial: part or frame
    calibrations: int
    promised: int
    broken_by_image: int
    broken_by_part: int
    coverage: float  # mean, of those that promised

    @property
    def rate(self) -> float:
        """Return how often a promise was made and did not hold, by the worse of the two ways to count."""
        return max(self.broken_by_image, self.broken_by_part) / self.calibrations


def burst(folder: Path, parts: int, frames: int = FRAMES) -> Path:
    """Make frames of freshly drawn parts, and a table of their labels; return their folder."""
    once, out = folder / f"once_{parts}", folder / f"burst_{parts}_{frames}"
    labels = draw(once, SEED, parts)
    out.mkdir(exist_ok=True)
    with (out / "metadata.csv").open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["file_name", "label"])
        for i, (name, label) in enumerate(labels.items()):
            whole = np.asarray(Image.open(once / name).convert("RGB")).astype(float)
            rng = np.random.default_rng((SEED, i))
            for k in range(frames):
                flicker = 1 + 0.004 * (2 * k / max(1, frames - 1) - 1)
                pixels = np.clip(np.rint(whole * flicker + rng.normal(0, 1.0, whole.shape)), 0, 255).astype(np.uint8)
                frame = f"part{i:04d}_frame{k}.png"
                writer.writerow([frame, label])
                if not (out / frame).exists():
                    Image.fromarray(pixels).save(out / frame, compress_level=1)
    return out


def pool_of(labelled: Labelled) -> Pool:
    """Score what was read, for every number of samples."""
    names = [record.file_name.removesuffix(".png").removeprefix("part").split("_frame") for record in labelled.records]
    several = tuple(evidence(labelled, k) for k in COUNTS if k <= labelled.num_samples)
    part = np.unique([int(p) for p, _ in names], return_inverse=True)[1]
    return Pool(labelled, several, part, np.array([int(k) for _, k in names]))


def taken(one: Evidence, rows: np.ndarray[Any, Any]) -> Evidence:
    """Return the evidence of some images."""
    return replace(
        one,
        scores={column: values[rows] for column, values in one.scores.items()},
        wrong=one.wrong[rows],
        answers=tuple(one.answers[i] for i in rows),
        usable=one.usable[rows],
        tied=None if one.tied is None else one.tied[rows],
    )


def one_calibration(
    pool: Pool, rng: np.random.Generator, parts: int, frames: int, target: float, *, grouped: bool
) -> tuple[float, float, float] | None:
    """Return (share of accepted images that are wrong, of accepted parts with one, coverage); null without a promise.

    A part that is drawn twice is two parts, as independent draws are; so its frames get hashes of their own.
    """
    drawn = rng.integers(0, int(pool.part.max()) + 1, parts)
    inside = np.flatnonzero(pool.frame < frames)
    of = {p: inside[pool.part[inside] == p] for p in np.unique(drawn)}
    rows = np.concatenate([of[p] for p in drawn])
    number = np.repeat(np.arange(parts), [len(of[p]) for p in drawn])
    salt = rng.integers(0, 2**62)
    hashes = [hashlib.sha256(f"{salt}:{i}".encode()).hexdigest() for i in range(len(rows))]
    light: Any = tuple(SimpleNamespace(sha256=h, page=1) for h in hashes)  # all that is asked of them
    held = replace(
        pool.labelled,
        records=light,
        labels=tuple(pool.labelled.labels[i] for i in rows),
        truths=tuple(pool.labelled.truths[i] for i in rows),
        novelties=tuple(pool.labelled.novelties[i] for i in rows),
        parts=tuple(number.tolist()) if grouped else (),
    )
    several = [taken(one, rows) for one in pool.evidence]
    design = design_part(held)
    score = choose_score([several[-1]], design, parts=held.part_of).score
    samples = compare_counts(several, score, design, held.part_of).proposed
    i = next(i for i, one in enumerate(several) if one.num_samples == samples)
    made = promise(held, several[i], score, design, kind="risk", target=target, confidence=CONFIDENCE)
    if not made.holds:
        return None
    whole = pool.evidence[i]
    accepted = made.accepts(whole, score) & (pool.frame < frames)
    failed = accepted & whole.wrong
    seen, wrong = (len(np.unique(pool.part[images])) for images in (accepted, failed))
    return float(failed.sum() / max(1, accepted.sum())), wrong / max(1, seen), made.coverage


def many(pool: Pool, parts: int, frames: int, target: float, calibrations: int, *, grouped: bool) -> Outcome:
    """Return what comes of many calibrations; equal for an equal pool."""
    rng = np.random.default_rng((SEED, parts, frames))
    found = [one_calibration(pool, rng, parts, frames, target, grouped=grouped) for _ in range(calibrations)]
    held = [one for one in found if one is not None]
    return Outcome(
        frames,
        parts,
        target,
        "part" if grouped else "frame",
        calibrations,
        len(held),
        sum(image > target for image, _, _ in held),
        sum(part > target for _, part, _ in held),
        float(np.mean([coverage for *_, coverage in held])) if held else 0.0,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 where promises of parts were broken more often than chance explains."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.frames", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=int, default=400, help="in the pool")
    parser.add_argument("--frames", type=int, nargs="+", default=[5, 10], help="of each part")
    parser.add_argument("--calibrations", type=int, default=1000)
    parser.add_argument("--naive", type=int, default=200, help="calibrations that count every frame, to compare with")
    parser.add_argument("--settings", nargs="+", default=["80:0.1", "200:0.05"], help="PARTS:TARGET")
    parser.add_argument("--cache", type=Path, required=True, help="folder for images and readings")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    options.cache.mkdir(parents=True, exist_ok=True)
    folder = burst(options.cache, options.parts, max(FRAMES, *options.frames))
    gate = options.cache / f"{folder.name}.toml"
    stdout, sys.stdout = sys.stdout, io.StringIO()  # the command's own summary is not asked for
    try:
        calibrated(folder, gate)
    finally:
        sys.stdout = stdout
    records, provenance = read_result(gate.with_suffix(".parquet"))
    pool = pool_of(join(records, provenance, read_labels(folder)))
    console = Console(stderr=True)
    rows = []
    for setting in options.settings:
        parts, target = setting.split(":")
        for frames in options.frames:
            for grouped in (True, False):
                begun = time.perf_counter()
                times = options.calibrations if grouped else options.naive
                rows.append(many(pool, int(parts), frames, float(target), times, grouped=grouped))
                console.print(f"{rows[-1]}, {time.perf_counter() - begun:.0f} s")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("parts", "frames", "target", "a trial", "promised", "broken by image", "by part", "coverage"):
        table.add_column(title, justify="right")
    for row in rows:
        broken = (f"{number / row.calibrations:.1%}" for number in (row.broken_by_image, row.broken_by_part))
        cells = (row.parts, row.frames, f"{row.target:.0%}", row.counted, f"{row.promised / row.calibrations:.1%}")
        table.add_row(*map(str, cells), *broken, f"{row.coverage:.1%}")
    Console().print(table)
    allowed = 1 - CONFIDENCE + 3 * math.sqrt(CONFIDENCE * (1 - CONFIDENCE) / options.calibrations)
    looks = len(set(pool.labelled.parts)) if pool.labelled.parts else len(pool.part)
    print(f"{len(pool.part):,} frames of {int(pool.part.max()) + 1:,} parts look like {looks:,} parts")
    print(f"broken in {1 - CONFIDENCE:.0%} of calibrations is what is promised; by chance up to {allowed:.1%}")
    if options.json:
        told = [asdict(row) | {"rate": row.rate} for row in rows]
        options.json.write_text(json.dumps({"rows": told, "look_like": looks}, indent=2), encoding="utf-8")
    return 0 if all(row.rate <= allowed for row in rows if row.counted == "part") else 1


if __name__ == "__main__":
    sys.exit(main())
