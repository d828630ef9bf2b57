"""Does a calibrated gate keep its promise on images that nobody has seen?

    python -m tests.bench.promise --repeats 20 --images 1000 --seed 5000 --cache FOLDER --json FILE

Calibrates on `sample_images/labelled` with the default settings of the command (or, with --fresh, on newly drawn
images in every repeat), then splits freshly drawn images by that gate, through the product's own commands, and counts
what it accepts and what of that is wrong. The images of a repeat follow from its seed, which neither training nor the
sample images use; their labels are the truth that they were drawn from. What was read stays in the cache, so a bench
that was stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vlmgate.cli import app
from vlmgate.data import Route
from vlmgate.factory.render import Wanted, render
from vlmgate.factory.world import CONDITIONS
from vlmgate.gate.file import read_gate
from vlmgate.store.result import TRIES_FILE, read_result

LABELLED = Path(__file__).parents[2] / "sample_images" / "labelled"
STREAM = 7  # first word of every seed drawn here; training, evaluation and the sample images use others


@dataclass(frozen=True, slots=True)
class Repeat:
    """One folder of fresh images, split by a gate."""

    seed: int
    images: int
    accepted: int
    wrong: int  # accepted, and the answer is not the truth
    target: float
    gate: str

    @property
    def risk(self) -> float:
        """Return the share of wrong readings among the accepted, 0 where nothing is accepted."""
        return self.wrong / self.accepted if self.accepted else 0.0

    @property
    def kept(self) -> bool:
        """Say whether the promise was kept."""
        return self.risk <= self.target


def draw(folder: Path, seed: int, count: int) -> dict[str, str]:
    """Draw labelled images as those of `sample_images/labelled` were, and return their conditions by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = {}
    for i in range(count):
        condition = CONDITIONS[i % len(CONDITIONS)]
        name = f"{i:05d}.jpg"
        labels[name] = condition
        if not (folder / name).exists():
            made = render((STREAM, seed, i), Wanted(condition=condition, num_defects=1, defect_contrast=1.0))
            file = io.BytesIO()
            made.image.save(file, "JPEG", quality=88)
            (folder / name).write_bytes(file.getvalue())
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["file_name", "label"])
        writer.writerows(labels.items())
    return labels


def run(*arguments: object) -> int:
    """Run a command of the product in this process and return its exit code."""
    try:
        app([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def calibrated(labelled: Path, out: Path, options: Sequence[str] = ()) -> Path | None:
    """Return the gate that the command writes with default settings; None where it refuses."""
    if not out.exists() and run("calibrate", labelled, "-o", out, "-q", "--no-page", "--format", "json", *options):
        return None
    return out


def repeat(gate: Path, folder: Path, seed: int, count: int) -> Repeat:
    """Split fresh images by a gate and count."""
    labels = draw(folder, seed, count)
    result = folder.with_suffix(".parquet")
    run("scan", folder, "--gate", gate, "-o", result, "-q", "--format", "json")
    records, _ = read_result(result, features=False)
    accepted = [r for r in records if r.route == Route.AUTO_ACCEPT]
    wrong = sum(r.answer != labels[r.file_name] for r in accepted)
    promise = read_gate(gate).promise
    return Repeat(seed, len(records), len(accepted), wrong, float(promise["target_risk"]), gate.name)


def tell(rows: Sequence[Repeat], refused: int) -> dict[str, Any]:
    """Return what came of it."""
    return {
        "kept": sum(row.kept for row in rows),
        "repeats": len(rows),
        "refused": refused,
        "accepted": sum(row.accepted for row in rows),
        "wrong": sum(row.wrong for row in rows),
        "rows": [asdict(row) | {"risk": row.risk, "kept": row.kept} for row in rows],
    }


def table_of(rows: Sequence[Repeat]) -> Table:
    """Return the repeats as a table."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("seed", "images", "accepted", "wrong", "risk", "target", "kept"):
        table.add_column(title, justify="right")
    for row in rows:
        kept = "yes" if row.kept else "NO"
        cells = (row.seed, row.images, row.accepted, row.wrong, f"{row.risk:.2%}", f"{row.target:.2%}", kept)
        table.add_row(*map(str, cells))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 where the promise was broken more often than one time in twenty."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.promise", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--images", type=int, default=1000, help="fresh images a repeat")
    parser.add_argument("--seed", type=int, default=5000, help="of the first repeat; the next ones count on")
    parser.add_argument("--fresh", type=int, default=0, help="calibrate on so many fresh images in every repeat")
    parser.add_argument("--cache", type=Path, required=True, help="folder for images, readings and gates")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    options.cache.mkdir(parents=True, exist_ok=True)
    rows: list[Repeat] = []
    refused = 0
    stdout, sys.stdout = sys.stdout, io.StringIO()  # the commands' own summaries are not asked for
    try:
        for i in range(options.repeats):
            begun = time.perf_counter()
            seed = options.seed + i
            if options.fresh:
                labelled = options.cache / f"labelled_{seed}"
                draw(labelled, seed + 1_000_000, options.fresh)
                gate = calibrated(labelled, options.cache / f"gate_{seed}.toml")
            else:
                labelled = options.cache / "labelled"  # a copy, for what was tried on the sample images counts as a try
                if not labelled.is_dir():
                    shutil.copytree(LABELLED, labelled, ignore=shutil.ignore_patterns(TRIES_FILE))
                gate = calibrated(labelled, options.cache / "gate.toml")
            if gate is None:
                refused += 1
                continue
            rows.append(repeat(gate, options.cache / f"fresh_{seed}_{options.images}", seed, options.images))
            console.print(f"{seed}: {rows[-1].risk:.2%} of {rows[-1].accepted}, {time.perf_counter() - begun:.0f} s")
    finally:
        sys.stdout = stdout
    found = tell(rows, refused)
    Console().print(table_of(rows))
    print(f"kept {found['kept']} of {found['repeats']}; {refused} calibrations refused to promise")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")
    return 0 if found["repeats"] == 0 or found["kept"] >= 0.95 * found["repeats"] else 1


if __name__ == "__main__":
    sys.exit(main())
