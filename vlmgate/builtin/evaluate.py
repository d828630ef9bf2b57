"""Measure the built-in model on freshly drawn images: `python -m vlmgate.builtin.evaluate --seed S`.

Reads through the product's own path. Knows truths and counts; knows nothing of how captions are sampled or scored.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from vlmgate.builtin.captions import majority, parse
from vlmgate.builtin.render import Render, Wanted, render
from vlmgate.builtin.world import CLEAN, CONDITIONS, DEGRADATIONS
from vlmgate.captioner import load_captioner
from vlmgate.config import ModelConfig, SamplingConfig
from vlmgate.diversity import vendi_score, word_kernel
from vlmgate.records import ImageFile, Picture

STREAM = 4  # first word of every seed drawn here; training and the sample images use others
STRONG = 0.7  # severity from which a degradation counts as strong
_ASPECTS = ("part", "finish", "condition", "position")


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A render and what was said of it."""

    made: Render
    right: dict[str, bool]  # by majority of the captions; position only where there is a defect
    said: str | None  # condition
    vendi: float

    @property
    def group(self) -> str:
        """Return the degradation, or "clean"."""
        return "clean" if self.made.degradation == CLEAN else self.made.degradation

    @property
    def strong(self) -> bool:
        """Say whether the image is strongly degraded."""
        return self.made.severity >= STRONG


def draw(seed: int, clean: int, each: int) -> Iterator[Render]:
    """Draw `clean` clean images and `each` of every degradation, half of those strong."""
    for i in range(clean):
        yield render((STREAM, seed, 0, i), Wanted(degradation=CLEAN))
    for k, kind in enumerate(DEGRADATIONS, start=1):
        for i in range(each):
            share = (i // 2 + 0.5) / max(1, each // 2)
            severity = STRONG + (1 - STRONG) * share if i % 2 else 0.1 + (STRONG - 0.1) * share
            yield render((STREAM, seed, k, i), Wanted(degradation=kind, severity=min(severity, 1.0)))


def read(renders: Sequence[Render], model: ModelConfig, sampling: SamplingConfig) -> tuple[list[Reading], float]:
    """Return what the model says of each render, and the seconds that the reading took."""
    captioner = load_captioner(model, sampling)
    pictures = [_picture(i, made) for i, made in enumerate(renders)]
    readings: list[Reading] = []
    begin = time.monotonic()
    for start in range(0, len(pictures), sampling.batch_size):
        batch = captioner.read(pictures[start : start + sampling.batch_size])
        for made, captions in zip(renders[start : start + sampling.batch_size], batch, strict=True):
            readings.append(_judge(made, [caption.text for caption in captions]))
    return readings, time.monotonic() - begin


def _picture(number: int, made: Render) -> Picture:
    width, height = made.image.size
    name = f"render_{number:05d}"
    digest = hashlib.sha256(made.image.tobytes()).hexdigest()
    file = ImageFile(
        file_name=name,
        path=Path(name),
        sha256=digest,
        page=1,
        num_pages=1,
        width=width,
        height=height,
        mode="RGB",
        conversion=None,
        size_bytes=0,
        mtime_ns=0,
        ctime_ns=0,
    )
    return Picture(file, made.image)


def _judge(made: Render, texts: Sequence[str]) -> Reading:
    said = [parse(text) for text in texts]
    voted = {aspect: majority([getattr(one, aspect) for one in said]) for aspect in _ASPECTS}
    truth = made.truth
    right = {aspect: voted[aspect] == getattr(truth, aspect) for aspect in _ASPECTS}
    if truth.position is None:
        del right["position"]
    return Reading(made, right, voted["condition"], vendi_score(word_kernel(texts)))


# --- figures ----------------------------------------------------------------------------------------------------------


def auroc(worse: Sequence[float], better: Sequence[float]) -> float | None:
    """Return how often a value of `worse` lies above one of `better`, ties counting half; null if either is empty."""
    if not worse or not better:
        return None
    a, b = np.asarray(worse)[:, None], np.asarray(better)[None, :]
    return float(((a > b) + 0.5 * (a == b)).mean())


def summarise(readings: Sequence[Reading], clean_in_mix: int) -> dict[str, Any]:
    """Return every figure as plain data; null where there is nothing to count."""
    clean = [reading for reading in readings if reading.group == "clean"]
    by_kind = {kind: [reading for reading in readings if reading.group == kind] for kind in DEGRADATIONS}
    spoilt = [reading for kind in DEGRADATIONS for reading in by_kind[kind]]
    mixed = clean[:clean_in_mix] + spoilt
    clean_scores = [reading.vendi for reading in clean]
    strong = {kind: [reading.vendi for reading in group if reading.strong] for kind, group in by_kind.items()}
    return {
        "schema_version": 1,
        "accuracy": {
            group: {aspect: _share(of, aspect) for aspect in _ASPECTS}
            for group, of in {"clean": clean, **by_kind, "all degraded": spoilt}.items()
        },
        "clean_by_condition": {
            name: _share([r for r in clean if r.made.truth.condition == name], "condition") for name in CONDITIONS
        },
        "clean_mistaken": [
            {"truth": truth, "said": said or "-", "count": count}
            for (truth, said), count in Counter(
                (r.made.truth.condition, r.said) for r in clean if not r.right["condition"]
            ).most_common(8)
        ],
        "median_vendi": {"clean": _median(clean_scores)} | {f"strong {k}": _median(v) for k, v in strong.items()},
        "auroc_strong_against_clean": {kind: _rounded(auroc(values, clean_scores)) for kind, values in strong.items()},
        "auroc_wrong_condition_mixed": _rounded(
            auroc(
                [r.vendi for r in mixed if not r.right["condition"]], [r.vendi for r in mixed if r.right["condition"]]
            )
        ),
        "mixed": {"images": len(mixed), "wrong": sum(not r.right["condition"] for r in mixed)},
    }


def _share(group: Sequence[Reading], aspect: str) -> dict[str, float | int | None]:
    judged = [reading.right[aspect] for reading in group if aspect in reading.right]
    return {"right": sum(judged), "of": len(judged), "share": _rounded(sum(judged) / len(judged)) if judged else None}


def _median(values: Sequence[float]) -> float | None:
    scores: NDArray[np.float64] = np.asarray(values)
    return _rounded(float(np.median(scores))) if len(values) else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


# --- what people read -------------------------------------------------------------------------------------------------


def tables(figures: dict[str, Any]) -> Iterator[Table]:
    """Yield the figures as tables."""
    right = Table(title="Right by majority of the captions", title_justify="left")
    for heading in ("images", *_ASPECTS):
        right.add_column(heading, justify="left" if heading == "images" else "right")
    for group, shares in figures["accuracy"].items():
        right.add_row(group, *(_cell(shares[aspect]) for aspect in _ASPECTS))
    yield right

    conditions = Table(title="Condition, clean images", title_justify="left")
    conditions.add_column("truth")
    conditions.add_column("right", justify="right")
    for name, share in figures["clean_by_condition"].items():
        conditions.add_row(name, _cell(share))
    yield conditions

    scores = Table(title="Vendi score", title_justify="left")
    for heading in ("images", "median", "AUROC against clean"):
        scores.add_column(heading, justify="left" if heading == "images" else "right")
    for group, median in figures["median_vendi"].items():
        area = figures["auroc_strong_against_clean"].get(group.removeprefix("strong "))
        scores.add_row(group, _number(median), _number(area))
    yield scores


def _cell(share: dict[str, Any]) -> str:
    return "-" if share["share"] is None else f"{share['share']:.1%} ({share['right']}/{share['of']})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m vlmgate.builtin.evaluate", description=__doc__)
    parser.add_argument("--seed", type=int, required=True, help="of the images; any, training used none of them")
    parser.add_argument("--clean", type=int, default=400, help="clean images (default 400)")
    parser.add_argument("--each", type=int, default=60, help="images of each degradation, half strong (default 60)")
    parser.add_argument("--model", default="builtin", help="a folder to measure instead of the built-in weights")
    parser.add_argument("--json", type=Path, help="file that takes the same figures as JSON")
    options = parser.parse_args()
    renders = list(draw(options.seed, options.clean, options.each))
    sampling = SamplingConfig(num_samples=8, temperature=1.0, batch_size=16)
    readings, seconds = read(renders, ModelConfig(model=options.model), sampling)
    figures = summarise(readings, len(DEGRADATIONS) * options.each)
    figures |= {"seed": options.seed, "num_samples": 8, "temperature": 1.0}
    figures["seconds_per_image"] = round(seconds / max(1, len(readings)), 4)
    console = Console()
    for table in tables(figures):
        console.print(table)
    wrong, mixed = figures["auroc_wrong_condition_mixed"], figures["mixed"]
    console.print(
        f"AUROC of the Vendi score for a wrong condition, clean and degraded mixed: {_number(wrong)} "
        f"({mixed['wrong']} wrong of {mixed['images']})"
    )
    for one in figures["clean_mistaken"]:
        console.print(f"mistaken on clean images: {one['truth']} read as {one['said']}, {one['count']} times")
    print(f"{figures['seconds_per_image']:.3f} s an image for 8 captions", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
