"""How often does a comparison tell two models apart that are equal, and how often two that are not?

    python -m tests.bench.compare --repeats 150 --images 150 --gap 0 --seed 1 --json FILE

Draws two models' answers to the same images: an image has a hardness, a model a skill, and a sample is right with the
chance skill − hardness. Both are compared as `vlmgate compare` does. Equal models (--gap 0) should be told apart in one
trial of twenty, by every figure; others as often as can be.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.support.results import row
from vlmgate.calibration.compare.compare import Contestant, compare
from vlmgate.calibration.cost import Costs
from vlmgate.calibration.readings import Labelled

CLASSES = ("crack", "dent", "none")
SAMPLES = 4
SKILL = 0.9  # chance that a sample of the easiest image is right


def drawn(truths: Sequence[str], hardness: np.ndarray[Any, Any], skill: float, rng: np.random.Generator) -> Labelled:
    """Return the readings of a model; an image is known by its number and the trial."""
    trial = hashlib.sha256("".join(truths).encode()).hexdigest()
    records = []
    for i, (truth, hard) in enumerate(zip(truths, hardness, strict=True)):
        chance = np.clip(skill - hard + rng.normal(0, 0.1), 0.05, 0.98)
        other = CLASSES[(CLASSES.index(truth) + 1) % len(CLASSES)]
        answers = tuple(truth if rng.random() < chance else other for _ in range(SAMPLES))
        told: dict[str, Any] = {"captions": tuple(f"a part with {one}" for one in answers), "answers": answers}
        for what in ("caption", "answer"):
            told |= {f"{what}_finishes": ("stop",) * SAMPLES, f"{what}_logprobs": (-0.3,) * SAMPLES}
        records.append(row(str(i), sha256=hashlib.sha256(f"{trial}{i}".encode()).hexdigest(), **told))
    blank = (None,) * len(truths)
    labels = tuple(truths)
    return Labelled("class", tuple(records), labels, CLASSES, "none", "Describe it.", None, SAMPLES, 1, labels, blank)


def trials(repeats: int, images: int, gap: float, seed: int) -> dict[str, float]:
    """Return in which share of the trials each figure tells the two models apart."""
    rng = np.random.default_rng(seed)
    told: Counter[str] = Counter()
    for _ in range(repeats):
        truths = [CLASSES[k] for k in rng.integers(0, len(CLASSES), images)]
        hardness = 0.7 * rng.random(images) ** 2
        pair = [
            Contestant(name, drawn(truths, hardness, skill, rng), {"sampling": {}}, {}, None)
            for name, skill in (("one", SKILL), ("other", SKILL + gap))
        ]
        found = compare(pair, target_risk=0.1, confidence=0.95, costs=[Costs(), Costs()])
        told.update({name: int(one.told) for name, one in found.differences[0].items()})
    return {name: number / repeats for name, number in told.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.compare", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=150)
    parser.add_argument("--images", type=int, default=150, help="labelled images a trial")
    parser.add_argument("--gap", type=float, default=0.0, help="what the other model has more skill")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    told = trials(options.repeats, options.images, options.gap, options.seed)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("figure", "told apart"):
        table.add_column(title)
    for name, share in told.items():
        table.add_row(name, f"{share:.1%}")
    Console().print(table)
    if options.json:
        setting = {key: getattr(options, key) for key in ("repeats", "images", "gap", "seed")}
        options.json.write_text(json.dumps(setting | {"told_apart": told}, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
