"""Every score of ours under every kernel, on the built-in model's readings, beside chance, simple figures and peers.

    python -m tests.bench.scores --seed 2026 --cache readings.json --peers PEERS --markdown scores.md

Draws images, reads them once, keeps the readings in the cache (what is there already needs no model), and prints how
well each score finds wrong conditions in the mixed set and anomalies among clean parts: AUROC with 95 % percentile
intervals of resampled images. The peers score the very same captions. They are put where nothing else is:

    pip install --no-deps --target PEERS vendi-score==0.0.3 lm-polygraph==0.7.0 rouge-score==0.1.2 \\
        scipy scikit-learn joblib threadpoolctl cloudpickle narwhals nltk absl-py six
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tests.bench._common import (
    OF_KERNEL,
    OF_QUALITY,
    Area,
    Read,
    Sheet,
    Source,
    Task,
    Values,
    add_options,
    command,
    drawing_of,
    publish,
    readings,
    scores_of,
    tasks,
    tell,
)
from tests.bench._peers import Texts, peers, values_of
from vlmgate.config import SamplingConfig
from vlmgate.errors import ConfigError
from vlmgate.scores.diversity import FINDINGS, MINILM, WORDS, Kernel, check_kernel, load_kernel

Kind = Literal["ours", "simple", "peer"]
DEFAULT = ("vendi_score", FINDINGS)
BEFORE = WORDS  # the default kernel of the first release
OF_CLAIMS = ("support", "verdict_share", "contradiction")  # the first release had none of them
# Made of nothing but the texts of the captions, as the peers' scores are.
TEXTS_ALONE = ("vendi_score", "agreement", "mean_dissimilarity", "semantic_entropy")


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One score of every image, turned so that higher = less to be trusted, and how well it does in each task."""

    kind: Kind
    name: str
    kernel: str  # "" = none
    areas: tuple[Area, ...]  # as the tasks

    @property
    def label(self) -> str:
        """Return its name, with the kernel where there is one."""
        return f"{self.name}, {self.kernel}" if self.kernel else self.name


def compared(
    reads: Sequence[Read],
    sampling: SamplingConfig,
    over: Sequence[Task],
    kernels: dict[str, Kernel],
    others: dict[str, Values],
    seed: int,
) -> list[Row]:
    """Return a row for each of our scores, each simple figure and each peer; `others` are the peers' values."""
    found: list[tuple[Kind, str, str, Values]] = []
    plain: dict[str, Values] = {}  # what depends on no kernel
    for name, kernel in kernels.items():
        scores = scores_of(reads, sampling, kernel)
        plain |= {score: values for score, values in scores.items() if score not in OF_KERNEL}
        found += [("ours", score, name, values) for score, values in scores.items() if score in OF_KERNEL]
    found += [("ours", score, "", values) for score, values in plain.items() if score not in OF_QUALITY]
    found += [("simple", name, "", values) for name, values in _simple(reads, plain, seed).items()]
    found += [("peer", name, "", values) for name, values in others.items()]
    return [Row(kind, name, kernel, tuple(t.area(values) for t in over)) for kind, name, kernel, values in found]


def _simple(reads: Sequence[Read], plain: dict[str, Values], seed: int) -> dict[str, Values]:
    """Return what any score must beat; each one's direction is settled beforehand."""
    words = [[len(caption.text.split()) for caption in read.said.captions] for read in reads]
    simple = {
        "random": np.random.default_rng((seed, 2)).random(len(reads)),
        "caption length in words, longer is worse": np.array([np.mean(counts) for counts in words]),
    }
    exposure = np.array(
        [np.nan if r.quality is None or r.quality.exposure is None else r.quality.exposure for r in reads]
    )
    clean = np.array([read.group == "clean" for read in reads]) & np.isfinite(exposure)
    for name in OF_QUALITY:
        if name in plain:
            simple[f"image: {name}"] = plain[name]
        elif name == "exposure" and clean.any():
            away = np.abs(exposure - np.median(exposure[clean]))
            simple["image: exposure, away from the clean median"] = np.where(np.isfinite(away), away, np.inf)
    return simple


def best(rows: Sequence[Row], task: int, among: Sequence[str] = ()) -> Row:
    """Return our score with the largest area in a task, of all or of some."""
    ours = [row for row in rows if row.kind == "ours" and (not among or row.name in among)]
    return max(ours, key=lambda row: np.nan_to_num(row.areas[task].value, nan=-1.0))


def champions(rows: Sequence[Row], task: int) -> dict[str, Row]:
    """Return which of our scores are set against the rivals in a task."""
    default = next(row for row in rows if (row.name, row.kernel) == DEFAULT)
    return {
        "default": default,
        "best of the texts alone": best(rows, task, TEXTS_ALONE),
        "best of all": best(rows, task),
    }


def successors(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return each score of the default kernel with the score of before: the same under `BEFORE`.

    Scores that are made of claims alone are set against the Vendi score of before.
    """
    before = {row.name: row for row in rows if row.kind == "ours" and row.kernel == BEFORE}
    if not before:
        return []
    new = [row for row in rows if row.kind == "ours" and (row.kernel == FINDINGS or row.name in OF_CLAIMS)]
    return [(row, before["vendi_score" if row.name in OF_CLAIMS else row.name]) for row in new]


def loses(ours: Row, rival: Row, task: int) -> bool:
    """Say whether ours is worse than a rival, and the interval of the difference lies wholly below nothing."""
    return ours.areas[task].minus(rival.areas[task]).interval[1] < 0


# --- what people read -------------------------------------------------------------------------------------------------


def sheets(rows: Sequence[Row], over: Sequence[Task], caption: str) -> Iterator[Sheet]:
    """Yield the areas, and the differences from our default and our best to every rival."""
    said = {"ours": "", "simple": "", "peer": "peer: "}
    yield Sheet(
        f"AUROC of every score, 0.5 = chance, with 95 % intervals ({caption})",
        ("score", "kernel", *(f"{task.name} ({task.found})" for task in over)),
        [(f"{said[r.kind]}{r.name}", r.kernel or "-", *(a.text() for a in r.areas)) for r in rows],
    )
    yield Sheet(
        f"AUROC of the score less AUROC of the score under {BEFORE}, same resampled images, 95 % intervals",
        ("score", "less", *(task.name for task in over)),
        [
            (new.label, old.label, *(a.minus(b).text(signed=True) for a, b in zip(new.areas, old.areas, strict=True)))
            for new, old in successors(rows)
        ],
    )
    rivals = [row for row in rows if row.kind != "ours"]
    for i, task in enumerate(over):
        ours = champions(rows, i)
        yield Sheet(
            f"AUROC of ours less AUROC of the rival, {task.name}, same resampled images, 95 % intervals; which of ours "
            "is best was seen on the same images",
            ("rival", *(f"{which}: {row.label}" for which, row in ours.items())),
            [
                (f"{said[r.kind]}{r.name}", *(o.areas[i].minus(r.areas[i]).text(signed=True) for o in ours.values()))
                for r in rivals
            ],
        )


def verdicts(rows: Sequence[Row], over: Sequence[Task]) -> Iterator[tuple[str, str, bool, list[str]]]:
    """Yield (task, which of ours, loses to none outside its interval, to which it does)."""
    for i, task in enumerate(over):
        for which, ours in champions(rows, i).items():
            lost = [row.label for row in rows if row.kind != "ours" and loses(ours, row, i)]
            yield task.name, f"{which} ({ours.label})", not lost, lost


def verdict_lines(rows: Sequence[Row], over: Sequence[Task]) -> Iterator[str]:
    """Yield the verdicts in words."""
    for task, which, good, lost in verdicts(rows, over):
        answer = "yes" if good else f"no, to {'; '.join(lost)}"
        yield f"{task}: our {which} loses to no rival outside its interval: {answer}"


def figures(rows: Sequence[Row], over: Sequence[Task]) -> dict[str, Any]:
    """Return all of it as plain data."""
    return {
        "tasks": {task.name: {"found": int(task.bad.sum()), "of": len(task.bad)} for task in over},
        "scores": [
            {"kind": r.kind, "score": r.name, "kernel": r.kernel or None}
            | {task.name: area.told() for task, area in zip(over, r.areas, strict=True)}
            for r in rows
        ],
        "differences": [
            {"task": task.name, "which": which, "ours": ours.label, "rival": rival.label}
            | ours.areas[i].minus(rival.areas[i]).told()
            for i, task in enumerate(over)
            for which, ours in champions(rows, i).items()
            for rival in rows
            if rival.kind != "ours"
        ],
        "successors": [
            {"score": new.label, "before": old.label}
            | {task.name: a.minus(b).told() for task, a, b in zip(over, new.areas, old.areas, strict=True)}
            for new, old in successors(rows)
        ],
        "loses_to_none": [
            {"task": task, "which": which, "so": good, "lost_to": lost}
            for task, which, good, lost in verdicts(rows, over)
        ],
    }


# --- command line -----------------------------------------------------------------------------------------------------


def _kernels(named: Sequence[str]) -> dict[str, Kernel]:
    """Load the kernels: findings and words, minilm where its weights are, and what is named; keys are short."""
    names = [FINDINGS, WORDS, *named]
    if MINILM not in names:
        try:
            check_kernel(MINILM)
            names.insert(2, MINILM)
        except ConfigError:
            tell("left out: kernel minilm, whose weights are not installed")
    return {_short(name): load_kernel(name) for name in dict.fromkeys(names)}


def _short(name: str) -> str:
    kind, _, folder = name.partition(":")
    return f"{kind} {Path(folder).name}" if folder else kind


def _others(folder: Path | None, texts: Texts) -> tuple[dict[str, Values], list[str]]:
    """Return the peers' values, and what is to be told of them."""
    if folder is None:
        return {}, ["all peers: --peers was not given"]
    scores, left_out = peers(folder)
    found: dict[str, Values] = {}
    for name, score in scores.items():
        tell(f"scoring with {name}")
        found[name], without = values_of(score, texts)
        if without:
            left_out.append(f"{name}: {without:,} images without a value; they count as least to be trusted")
    return found, left_out


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--resamples", type=int, default=1000, help="of the images, for the intervals (default 1000)")
    parser.add_argument("--cache", type=Path, help="file that keeps the readings")
    parser.add_argument("--kernel", action="append", default=[], help="another, as in vlmgate; may be given repeatedly")
    parser.add_argument("--peers", type=Path, help="folder with the peers")
    options = parser.parse_args()
    source = Source(drawing_of(options), options.model)
    reads = readings(source, options.cache)
    kernels = _kernels(options.kernel)
    over = tasks(reads, options.seed, options.resamples)
    texts = [[caption.text for caption in read.said.captions] for read in reads]
    others, left_out = _others(options.peers, texts)
    tell("comparing")
    rows = compared(reads, source.sampling, over, kernels, others, options.seed)
    more = [word for name in options.kernel for word in ("--kernel", _short(name).replace(" ", ":"))]
    run = command("scores", options, *(["--peers", "PEERS"] if options.peers else []), *more)
    sampling = source.sampling
    caption = (
        f"`{run}`; {len(reads):,} images, {sampling.num_samples} captions and answers each at temperature "
        f"{sampling.temperature:g}; {options.resamples:,} resamples"
    )
    told, lines = list(sheets(rows, over, caption)), list(verdict_lines(rows, over))
    lines += [f"left out: {what}" for what in left_out]
    data = {"schema_version": 1, "command": run, "images": len(reads), "resamples": options.resamples}
    data |= {"num_samples": sampling.num_samples, **figures(rows, over), "left_out": left_out}
    publish(options, told, lines, data)


if __name__ == "__main__":
    main()
