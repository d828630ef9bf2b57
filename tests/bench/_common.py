"""What the benches of scores share: readings with their truth, kept in a file; scores of them; areas with intervals."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from rich.table import Table

from tests.bench import _builtin as measure
from tests.bench._anomalies import KINDS
from vlmgate.captioner.location import model_fingerprint, weights_folder
from vlmgate.config import BUILTIN, ModelConfig, SamplingConfig
from vlmgate.data import Caption, Quality, Sampled
from vlmgate.factory.world import Defect, Truth
from vlmgate.gate.rules import HIGHER_IS_WORSE, Candidate
from vlmgate.images import pages
from vlmgate.scores.diversity import Kernel
from vlmgate.scores.novelty import Reference, pack
from vlmgate.scores.score import Scorer

SCHEMA = 1  # of the file of readings
BATCH = 16  # images
WRONG, ANOMALY = "wrong condition, mixed", "anomaly against clean"
# Scores that are made with a kernel; all others are the same under each.
OF_KERNEL = (
    "vendi_score",
    "agreement",
    "mean_dissimilarity",
    "semantic_entropy",
    "cocoa",
    "support",
    "view_contrast",
    "doubt",
)
OF_QUALITY = tuple(Quality.__dataclass_fields__)

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]


# --- readings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Read:
    """What was said of one image, and what is true of it."""

    group: str  # "clean", a degradation, or a kind of anomaly
    said: Sampled
    truth: Truth | None = None  # None for an anomaly
    novelty: float | None = None
    features: bytes | None = None  # packed, as a journal keeps them
    quality: Quality | None = None

    @property
    def wrong(self) -> bool:
        """Say whether most captions name another condition than the part has."""
        return not measure.judged(self.truth, self.said.captions)["condition"]

    def first(self, samples: int) -> Read:
        """Return the reading as fewer samples of one view would have had it."""
        answers = self.said.answers
        said = Sampled(self.said.captions[:samples], None if answers is None else answers[:samples])
        return replace(self, said=said)


@dataclass(frozen=True, slots=True)
class Drawing:
    """Which images are drawn."""

    seed: int
    clean: int = 600
    each: int = 60
    anomalies: int = 100

    def draw(self) -> list[measure.Drawn]:
        """Draw them."""
        return list(measure.draw(self.seed, self.clean, self.each, self.anomalies))


@dataclass(frozen=True, slots=True)
class Source:
    """Images, a model and a sampling: all that decides what a file of readings holds."""

    drawing: Drawing
    model: str = BUILTIN
    sampling: SamplingConfig = field(default_factory=lambda: measure.asked(SamplingConfig(batch_size=BATCH)))

    @property
    def folder(self) -> Path:
        """Return the folder of the model."""
        return weights_folder() if self.model == BUILTIN else Path(self.model)

    def key(self) -> dict[str, Any]:
        """Return what a file of readings must have been made with; the checkpoint is null where it is not here."""
        sampling = {name: value for name, value in asdict(self.sampling).items() if name != "batch_size"}
        return {"drawing": asdict(self.drawing), "sampling": sampling, "checkpoint": self._checkpoint()}

    def _checkpoint(self) -> str | None:
        if not (self.folder / "config.json").is_file():
            return None
        reference = self.reference.read_bytes() if self.reference.is_file() else b""
        weights = model_fingerprint(ModelConfig(model=str(self.folder)))["content"]
        return f"{weights}:{hashlib.sha256(reference).hexdigest()}"

    @property
    def reference(self) -> Path:
        """Return the file with the model's reference for novelty."""
        return self.folder / "novelty.npz"


def readings(source: Source, cache: Path | None, drawn: Sequence[measure.Drawn] | None = None) -> list[Read]:
    """Return the readings: from the cache where they are, else from the model, and then into the cache."""
    if cache is not None and cache.exists():
        return load(cache, source.key())
    images = drawn if drawn is not None else source.drawing.draw()
    taken = take(source, images)
    if cache is not None:
        save(cache, source.key(), taken)
    return taken


def take(source: Source, drawn: Sequence[measure.Drawn]) -> list[Read]:
    """Read the images with the model."""
    views, samples = source.sampling.views, source.sampling.num_samples
    tell(f"reading {len(drawn):,} images, {samples} samples each, {views} view{'s' * (views > 1)}")
    reference = Reference.load(source.reference)
    sampled = measure.sample(drawn, ModelConfig(model=source.model), source.sampling)
    return [_read(one, said, reference) for one, said in zip(drawn, sampled, strict=True)]


def _read(drawn: measure.Drawn, sampled: Sampled, reference: Reference) -> Read:
    return Read(
        group=drawn.group,
        said=sampled,
        truth=drawn.made.truth if drawn.made else None,
        novelty=float(reference.novelty([sampled.features])[0]) if sampled.features else None,
        features=pack(sampled.features),
        quality=pages.measure(drawn.image),
    )


def save(path: Path, key: Mapping[str, Any], reads: Sequence[Read]) -> None:
    """Write readings to a file, whole or not at all."""
    told = {"schema_version": SCHEMA, "key": key, "reads": [_plain(read) for read in reads]}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(told) + "\n", encoding="utf-8")
    os.replace(partial, path)


def load(path: Path, key: Mapping[str, Any]) -> list[Read]:
    """Read what `save` wrote; exits where it was made with anything else than `key` says."""
    told = json.loads(path.read_text(encoding="utf-8"))
    if told["schema_version"] != SCHEMA:
        sys.exit(f"{path}: of another version of this bench; remove it, or name another file.")
    made, wanted = told["key"], json.loads(json.dumps(key))
    differing = [name for name in wanted if made[name] != wanted[name]]
    if differing == ["checkpoint"] and wanted["checkpoint"] is None:  # nothing to compare
        tell(f"{path}: the model is not here; the readings are taken as they are")
    elif differing:
        sys.exit(f"{path}: was read with another {' and '.join(differing)}; remove it, or name another file.")
    return [_loaded(one) for one in told["reads"]]


def _plain(read: Read) -> dict[str, Any]:
    features = None if read.features is None else base64.b64encode(read.features).decode()
    return asdict(read) | {"features": features}


def _loaded(one: Mapping[str, Any]) -> Read:
    said, truth = one["said"], one["truth"]
    return Read(
        group=one["group"],
        said=Sampled(
            captions=tuple(Caption(**caption) for caption in said["captions"]),
            answers=None if said["answers"] is None else tuple(Caption(**answer) for answer in said["answers"]),
            views=None if said["views"] is None else tuple(said["views"]),
        ),
        truth=None if truth is None else Truth(**truth | {"defects": tuple(Defect(**d) for d in truth["defects"])}),
        novelty=one["novelty"],
        features=None if one["features"] is None else base64.b64decode(one["features"]),
        quality=None if one["quality"] is None else Quality(**one["quality"]),
    )


# --- scores -----------------------------------------------------------------------------------------------------------


def scores_of(reads: Sequence[Read], sampling: SamplingConfig, kernel: Kernel) -> dict[str, Values]:
    """Return every score (N,) that any image has a value of, turned so that higher = less to be trusted."""
    scorer = Scorer(sampling.prompt, sampling.choices, kernel)
    scorer.prepare(read.said for read in reads)
    candidates = [
        Candidate.of(read.group, *scorer.score(read.said, read.novelty), read.quality, read.novelty) for read in reads
    ]
    found = {
        name: np.array([measure.untrusted(candidate, name) for candidate in candidates]) for name in HIGHER_IS_WORSE
    }
    return {name: values for name, values in found.items() if np.isfinite(values).any()}


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Some of the images, and which of them a score should find."""

    name: str
    chosen: NDArray[np.intp]  # (M,), which of the readings
    bad: Flags  # (M,)
    counts: NDArray[np.int64]  # (times, M), how often each is in each resample

    @property
    def found(self) -> str:
        """Return how many there are to be found among how many."""
        return f"{int(self.bad.sum()):,} of {len(self.bad):,}"

    def area(self, values: Values) -> Area:
        """Return the AUROC of a score of all readings."""
        return area(values[self.chosen], self.bad, self.counts)


def tasks(reads: Sequence[Read], seed: int, times: int) -> list[Task]:
    """Return what scores are asked to find: wrong conditions in the mixed set, and anomalies among clean parts."""
    groups = [read.group for read in reads]
    mixed = measure.mixed(groups)
    strange = [i for i, group in enumerate(groups) if group == "clean" or group in KINDS]
    wrong = [reads[i].wrong for i in mixed]
    return [
        Task(name, np.array(chosen, np.intp), np.array(bad, bool), resampled(len(chosen), times, (seed, stream)))
        for stream, (name, chosen, bad) in enumerate(
            [(WRONG, mixed, wrong), (ANOMALY, strange, [groups[i] in KINDS for i in strange])]
        )
    ]


# --- areas ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Area:
    """An area under the curve, or a difference of two, with a 95 % percentile interval; NaN where there is none."""

    value: float
    draws: Values  # (times,), of every resample

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 2.5th and the 97.5th percentile of the resamples that have both kinds of image."""
        known = self.draws[~np.isnan(self.draws)]
        if math.isnan(self.value) or len(known) == 0:
            return math.nan, math.nan
        low, high = np.percentile(known, [2.5, 97.5])
        return float(low), float(high)

    def minus(self, other: Area) -> Area:
        """Return the difference, resample by resample: both must be of the same resamples."""
        return Area(self.value - other.value, self.draws - other.draws)

    def told(self) -> dict[str, float | None]:
        """Return it as plain data."""
        low, high = self.interval
        return {name: _rounded(value) for name, value in (("value", self.value), ("low", low), ("high", high))}

    def text(self, *, signed: bool = False) -> str:
        """Return it in words, e.g. "0.912 (0.894 to 0.930)"."""
        if math.isnan(self.value):
            return "-"
        low, high = self.interval
        form = "+.3f" if signed else ".3f"
        return f"{self.value:{form}} ({low:{form}} to {high:{form}})"


def resampled(images: int, times: int, seed: int | Sequence[int]) -> NDArray[np.int64]:
    """Return how often each image (times, N) is in each of `times` resamples with replacement."""
    if images == 0:
        return np.zeros((times, 0), np.int64)
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=times)


def area(values: ArrayLike, bad: ArrayLike, counts: NDArray[np.int64]) -> Area:
    """Return how often a bad image's value lies above a good one's, ties counting half, for all and for each resample.

    `values` and `bad` are (N,), `counts` (times, N). Values may be infinite, not NaN.
    """
    score, flags = np.asarray(values, np.float64), np.asarray(bad, bool)
    if np.isnan(score).any():
        raise ValueError("a score is NaN")
    weights = np.concatenate([np.ones((1, len(score)), np.int64), counts])  # the first row is every image, once
    if len(score) == 0:
        return Area(math.nan, np.full(len(counts), math.nan))
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(np.unique(score, return_inverse=True)[1][order]) > 0])
    sorted_weights, sorted_bad = weights[:, order], flags[order]
    worse = np.add.reduceat(sorted_weights * sorted_bad, starts, axis=1)  # (1 + times, different values)
    better = np.add.reduceat(sorted_weights * ~sorted_bad, starts, axis=1)
    twice = (worse * (2 * np.cumsum(better, axis=1) - better)).sum(axis=1)  # below counts twice, equal once
    pairs = worse.sum(axis=1) * better.sum(axis=1)
    with np.errstate(invalid="ignore"):
        found = np.where(pairs > 0, twice / (2 * np.maximum(pairs, 1)), math.nan)
    return Area(float(found[0]), found[1:])


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


# --- tables and command lines -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table in words: the first column names the rows, the others hold numbers."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def table(self) -> Table:
        """Return it for a terminal."""
        table = Table(title=self.title, title_justify="left")
        for i, heading in enumerate(self.headings):
            table.add_column(heading, justify="right" if i else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return it as Markdown."""
        lines = [self.headings, ["---", *("---:" for _ in self.headings[1:])], *self.rows]
        return "\n".join([f"{self.title}:", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def publish(
    options: argparse.Namespace, sheets: Sequence[Sheet], lines: Sequence[str], figures: Mapping[str, Any]
) -> None:
    """Print tables and lines; write them as Markdown, and the figures as JSON, where that is asked for."""
    console = Console(width=200, markup=False, highlight=False)
    for sheet in sheets:
        console.print(sheet.table())
    for line in lines:
        console.print(line)
    if options.markdown:
        text = "\n".join([*(sheet.markdown() for sheet in sheets), *(f"- {line}" for line in lines), ""])
        options.markdown.write_text(text, encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what these benches are asked."""
    usual = Drawing(0)
    parser.add_argument("--seed", type=int, required=True, help="of the images; any, training used none of them")
    parser.add_argument("--clean", type=int, default=usual.clean, help=f"clean images (default {usual.clean})")
    parser.add_argument("--each", type=int, default=usual.each, help=f"of each degradation (default {usual.each})")
    parser.add_argument("--anomalies", type=int, default=usual.anomalies, help=f"of each kind ({usual.anomalies})")
    parser.add_argument("--model", default=BUILTIN, help="a folder to measure instead of the built-in weights")
    parser.add_argument("--json", type=Path, help="file that takes the figures as JSON")
    parser.add_argument("--markdown", type=Path, help="file that takes the tables as Markdown")


def drawing_of(options: argparse.Namespace) -> Drawing:
    """Return which images are asked for."""
    return Drawing(options.seed, options.clean, options.each, options.anomalies)


def command(script: str, options: argparse.Namespace, *more: str) -> str:
    """Return the command that makes the same figures, without the files it keeps."""
    usual, words = Drawing(0), ["python", "-m", f"tests.bench.{script}", "--seed", str(options.seed)]
    for name in ("clean", "each", "anomalies"):
        if getattr(options, name) != getattr(usual, name):
            words += [f"--{name}", str(getattr(options, name))]
    if options.model != BUILTIN:
        words += ["--model", "FOLDER"]
    return " ".join([*words, *more])


def tell(text: str) -> None:
    """Say what is being done, beside the figures."""
    print(text, file=sys.stderr, flush=True)
