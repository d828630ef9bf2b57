"""What noised views do to how well scores find errors, at equal samples and at equal time.

    python -m tests.bench.views --seed 2026 --cache FOLDER --markdown views.md

Reads the same images with 1, 2, 4 and 8 views at K = 8 samples, captions and answers. At equal time, each of them is
set against one view with the largest K that takes no longer: seconds an image are measured in the same run, every way
once a round, in turn, so that a busy machine slows all of them; the medians count. More samples of one view begin with
those that fewer would have been, so one reading with the most serves for all. Errors are each reading's own: with noise
the majority may be another. Readings and times are kept in the cache; what is there already needs no model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench import _builtin as measure
from tests.bench._common import (
    BATCH,
    OF_QUALITY,
    Area,
    Read,
    Sheet,
    Source,
    Task,
    add_options,
    command,
    drawing_of,
    publish,
    readings,
    scores_of,
    tasks,
    tell,
)
from vlmgate.captioner import load_captioner
from vlmgate.config import ModelConfig
from vlmgate.gate.rules import HIGHER_IS_WORSE
from vlmgate.scores.diversity import WORDS, load_kernel

SAMPLES = 8  # K of every number of views
VIEWS = (1, 2, 4, 8)
MORE = (8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64)  # K of one view, of which those in the same time are found
SAME = ("novelty", *OF_QUALITY)  # of the clean image alone: no view changes them
CONTRAST = "view_contrast"  # exists with several views only, and is set against the default score of one

Way = tuple[int, int]  # views, samples


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """How one way of reading does: each score's area in each task, and how often it is right."""

    way: Way
    right: float  # share of the mixed set whose condition most captions name
    areas: Mapping[str, tuple[Area, ...]]  # score → as the tasks

    @property
    def label(self) -> str:
        """Return the way in a few words."""
        return name_of(self.way)


def name_of(way: Way) -> str:
    """Return a way of reading in a few words, e.g. "V = 2, K = 8"."""
    return f"V = {way[0]}, K = {way[1]}"


def column(way: Way, reads: Sequence[Read], source: Source, over: Sequence[Task], kernel: str = WORDS) -> Column:
    """Return how well the scores of some readings do."""
    scores = scores_of(reads, source.sampling, load_kernel(kernel))
    areas = {name: tuple(task.area(values) for task in over) for name, values in scores.items() if name not in SAME}
    return Column(way, 1 - float(np.mean(over[0].bad)), areas)


def same_time(seconds: Mapping[Way, float], way: Way) -> Way:
    """Return one view with the most samples that take no longer than a way does; with the fewest where none does."""
    alone = sorted(other for other in seconds if other[0] == 1)
    return max((other for other in alone if seconds[other] <= seconds[way]), default=alone[0])


# --- time -------------------------------------------------------------------------------------------------------------


def timed(source: Source, ways: Sequence[Way], rounds: int, images: int) -> dict[Way, list[float]]:
    """Return seconds an image of every way, once a round, in turn."""
    drawn = replace(source.drawing, clean=images, each=0, anomalies=0).draw()
    pictures = measure.pictures(drawn)
    engines = {way: load_captioner(ModelConfig(model=source.model), of(source, way).sampling) for way in ways}
    taken: dict[Way, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):  # the first warms up
        tell(f"timing, round {number} of {rounds}" if number else "timing, warming up")
        for way, engine in engines.items():
            begun = time.perf_counter()
            for start in range(0, len(pictures), BATCH):
                engine.read(pictures[start : start + BATCH])
            if number:
                taken[way].append((time.perf_counter() - begun) / len(pictures))
    return taken


@dataclass(frozen=True, slots=True)
class Timing:
    """Median seconds an image of every way, and how they were measured."""

    seconds: Mapping[Way, float]
    how: str


def times(source: Source, ways: Sequence[Way], cache: Path | None, rounds: int, images: int) -> Timing:
    """Return the times of every way, from the cache where they are; exits where those are of another model."""
    path = None if cache is None else cache / "seconds.json"
    checkpoint = source.key()["checkpoint"]
    if path is not None and path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if checkpoint not in (None, kept["checkpoint"]):
            sys.exit(f"{path}: was measured with another checkpoint; remove it, or name another folder.")
    else:
        taken = timed(source, ways, rounds, images)
        threads = os.environ.get("OMP_NUM_THREADS", "all")
        how = f"median of {rounds} rounds of {images} images on {platform.machine()}, {os.cpu_count()} cores"
        rows = [{"views": v, "samples": k, "seconds": seconds} for (v, k), seconds in taken.items()]
        kept = {"checkpoint": checkpoint, "how": f"{how}, OMP_NUM_THREADS {threads}", "ways": rows}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    medians = {(one["views"], one["samples"]): statistics.median(one["seconds"]) for one in kept["ways"]}
    return Timing(medians, kept["how"])


# --- what people read -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """All that was measured."""

    seconds: Mapping[Way, float]
    columns: Mapping[Way, Column]
    tasks: tuple[str, ...]

    @property
    def several(self) -> list[Way]:
        """Return the ways with several views."""
        return [way for way in self.columns if way[0] > 1]

    def pairs(self) -> Iterator[tuple[str, Way, Way]]:
        """Yield (what is equal, a way with several views, the way with one that it is set against)."""
        for way in self.several:
            yield "samples", way, (1, SAMPLES)
            yield "time", way, same_time(self.seconds, way)

    def gain(self, score: str, way: Way, alone: Way, task: int) -> Area:
        """Return the difference of areas, several views less one."""
        base = "vendi_score" if score == CONTRAST else score
        return self.columns[way].areas[score][task].minus(self.columns[alone].areas[base][task])


def sheets(found: Found, caption: str) -> Iterator[Sheet]:
    """Yield what each way takes and brings."""
    yield Sheet(
        f"Views: time, and conditions right ({caption})",
        ("", *(column.label for column in found.columns.values())),
        [
            ("seconds an image", *(f"{found.seconds[way]:.3f}" for way in found.columns)),
            ("condition right, mixed", *(f"{column.right:.1%}" for column in found.columns.values())),
        ],
    )
    for i, task in enumerate(found.tasks):
        yield Sheet(
            f"AUROC, {task}, with 95 % intervals",
            ("score", *(column.label for column in found.columns.values())),
            [
                (score, *(c.areas[score][i].text() if score in c.areas else "-" for c in found.columns.values()))
                for score in _scores(found)
            ],
        )
        for equal in ("samples", "time"):
            ways = [(way, alone) for what, way, alone in found.pairs() if what == equal]
            yield Sheet(
                f"AUROC with several views less that with one, at equal {equal}, {task}, same resampled images, 95 % "
                f"intervals; {CONTRAST} against vendi_score",
                ("score", *(f"{name_of(way)} against {name_of(alone)}" for way, alone in ways)),
                [(score, *(_gained(found, score, way, alone, i) for way, alone in ways)) for score in _scores(found)],
            )


def _scores(found: Found) -> list[str]:
    """Return the scores that any way has, in the order of the gate."""
    return [name for name in HIGHER_IS_WORSE if any(name in column.areas for column in found.columns.values())]


def _compares(found: Found, score: str, way: Way, alone: Way) -> bool:
    return score in found.columns[way].areas and (score == CONTRAST or score in found.columns[alone].areas)


def _gained(found: Found, score: str, way: Way, alone: Way, task: int) -> str:
    if not _compares(found, score, way, alone):
        return "-"
    return found.gain(score, way, alone, task).text(signed=True)


def gains(found: Found) -> list[dict[str, Any]]:
    """Return every difference as plain data, with whether it lies outside its interval."""
    rows = []
    for equal, way, alone in found.pairs():
        for score in _scores(found):
            if not _compares(found, score, way, alone):
                continue
            for i, task in enumerate(found.tasks):
                told = found.gain(score, way, alone, i).told()
                low, high = told["low"], told["high"]
                verdict = "better" if (low or 0) > 0 else "worse" if high is not None and high < 0 else "neither"
                rows.append(
                    {"equal": equal, "views": way[0], "against_samples": alone[1], "score": score, "task": task}
                    | {**told, "verdict": verdict}
                )
    return rows


def verdict_lines(found: Found) -> Iterator[str]:
    """Yield what follows, in words: of the default score first, then of all."""
    rows = gains(found)
    for equal in ("samples", "time"):
        of_default = [r for r in rows if r["equal"] == equal and r["score"] == "vendi_score"]
        told = [f"V = {r['views']}, {r['task']}: {r['verdict']}" for r in of_default if r["verdict"] != "neither"]
        yield f"vendi_score at equal {equal}, outside the interval: {'; '.join(told) or 'no V better or worse'}"
        some = [r for r in rows if r["equal"] == equal]
        better = [f"{r['score']} V = {r['views']} {r['task']}" for r in some if r["verdict"] == "better"]
        worse = sum(r["verdict"] == "worse" for r in some)
        yield (
            f"all scores at equal {equal}: {len(better)} of {len(some)} better outside the interval, {worse} worse, "
            f"where chance alone would give {0.025 * len(some):.1f} each; better: {', '.join(better) or 'none'}"
        )


def of(source: Source, way: Way) -> Source:
    """Return the source with another number of views and samples."""
    return replace(source, sampling=replace(source.sampling, views=way[0], num_samples=way[1]))


def measured(source: Source, cache: Path | None, seconds: Mapping[Way, float], seed: int, resamples: int) -> Found:
    """Read what the ways ask for, and compare."""
    several = [(views, SAMPLES) for views in VIEWS if views > 1]
    alone = sorted({(1, SAMPLES), *(same_time(seconds, way) for way in several)})
    drawn: list[measure.Drawn] = []

    def read(way: Way) -> list[Read]:
        path = None if cache is None else cache / f"views{way[0]}_samples{way[1]}.json"
        if not drawn and (path is None or not path.exists()):
            drawn.extend(source.drawing.draw())
        return readings(of(source, way), path, drawn)

    most = read(alone[-1])
    taken = {way: [one.first(way[1]) for one in most] for way in alone} | {way: read(way) for way in several}
    columns = {}
    over: list[Task] = []
    for way, reads in taken.items():
        over = tasks(reads, seed, resamples)  # of the same resamples each time
        columns[way] = column(way, reads, source, over)
    return Found(seconds, columns, tuple(task.name for task in over))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--resamples", type=int, default=1000, help="of the images, for the intervals (default 1000)")
    parser.add_argument("--cache", type=Path, help="folder that keeps the readings and the times")
    parser.add_argument("--rounds", type=int, default=5, help="of timing (default 5)")
    parser.add_argument("--timed", type=int, default=BATCH, help=f"images a round (default {BATCH})")
    options = parser.parse_args()
    source = Source(drawing_of(options), options.model)
    ways = [*((1, k) for k in MORE), *((v, SAMPLES) for v in VIEWS if v > 1)]
    timing = times(source, ways, options.cache, options.rounds, options.timed)
    found = measured(source, options.cache, timing.seconds, options.seed, options.resamples)
    run = command("views", options)
    drawing = source.drawing
    caption = (
        f"`{run}`; {drawing.clean:,} clean images, {drawing.each:,} of every degradation, {drawing.anomalies:,} of "
        f"every kind of anomaly; noise {source.sampling.view_noise:g} of 255; {options.resamples:,} resamples; "
        f"{timing.how}"
    )
    told, lines = list(sheets(found, caption)), list(verdict_lines(found))
    data = {"schema_version": 1, "command": run, "seconds": {name_of(w): s for w, s in timing.seconds.items()}}
    data["columns"] = [_column_data(column, found.tasks) for column in found.columns.values()]
    publish(options, told, lines, data | {"gains": gains(found)})


def _column_data(column: Column, names: Sequence[str]) -> dict[str, Any]:
    areas = {score: dict(zip(names, [a.told() for a in of], strict=True)) for score, of in column.areas.items()}
    return {"views": column.way[0], "samples": column.way[1], "right": round(column.right, 4), "auroc": areas}


if __name__ == "__main__":
    main()
