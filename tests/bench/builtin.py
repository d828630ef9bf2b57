"""Measure the built-in model on freshly drawn images: `python -m tests.bench.builtin --seed S`.

Prints tables, and writes the same figures as JSON and Markdown.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench import _builtin as measure
from tests.bench._anomalies import KINDS
from tests.bench._builtin import (
    ASPECTS,
    PHOTOGRAPH,
    Reading,
    draw,
    photographs,
    read,
    seconds_per_image,
)
from tests.bench._common import Sheet, add_options, publish, tell
from tests.bench._sentences import majority
from vlmgate.captioner.location import OWN_LIMITS, OWN_NOVELTY, weights_folder
from vlmgate.config import BUILTIN, ModelConfig, SamplingConfig
from vlmgate.data import Route
from vlmgate.factory.world import CONDITIONS, DEGRADATIONS, VISIBLE
from vlmgate.gate.rules import decide, make_gate
from vlmgate.scores.diversity import FINDINGS
from vlmgate.scores.novelty import Reference

DEFAULT_SCORE = "vendi_score"
NOVELTY, JOINT = "novelty", "doubt"
_BINS = 10  # of answer frequencies, for the calibration error


# --- figures ----------------------------------------------------------------------------------------------------------


def auroc(worse: Sequence[float], better: Sequence[float]) -> float | None:
    """Return how often a value of `worse` lies above one of `better`, ties counting half; null if either is empty."""
    if not worse or not better:
        return None
    a, b = np.asarray(worse)[:, None], np.asarray(better)[None, :]
    return float(((a > b) + 0.5 * (a == b)).mean())


def summarise(readings: Sequence[Reading]) -> dict[str, Any]:
    """Return every figure as plain data; null where there is nothing to count."""
    kinds = (*KINDS, PHOTOGRAPH)
    groups = {name: [r for r in readings if r.group == name] for name in ("clean", *DEGRADATIONS, *kinds)}
    clean = groups["clean"]
    visible = [r for r in clean if r.made is not None and r.made.all_visible]
    degraded = [r for kind in DEGRADATIONS for r in groups[kind]]
    mixed = [readings[i] for i in measure.mixed([r.group for r in readings])]
    anomalies = [r for kind in KINDS for r in groups[kind]]
    strong = {kind: [r for r in groups[kind] if r.strong] for kind in DEGRADATIONS}
    wrong = [r for r in mixed if not r.right["condition"]]
    names = list(readings[0].scores)
    told = {"clean, visible": visible, "clean, all": clean, **{k: groups[k] for k in DEGRADATIONS}}
    return {
        "schema_version": 3,
        "visible_from": VISIBLE,
        "images": {"clean": len(clean), "visible": len(visible), "mixed": len(mixed), "anomalies": len(anomalies)},
        "accuracy": {
            name: {aspect: _share(of, aspect) for aspect in ASPECTS}
            for name, of in {**told, "all degraded": degraded, "mixed": mixed}.items()
        },
        "visible_by_condition": {
            name: _share([r for r in visible if r.made and r.made.truth.condition == name], "condition")
            for name in CONDITIONS
        },
        "median": {
            name: {group: _median(of, name) for group, of in _medians_of(clean, strong, anomalies).items()}
            for name in names
        },
        "auroc": {
            name: {
                "wrong condition, mixed": _area(wrong, [r for r in mixed if r.right["condition"]], name),
                "all strong": _area([r for kind in DEGRADATIONS for r in strong[kind]], clean, name),
                **{f"strong {kind}": _area(strong[kind], clean, name) for kind in DEGRADATIONS},
                "anomaly": _area(anomalies, clean, name),
                **{f"anomaly: {kind}": _area(groups[kind], clean, name) for kind in kinds if groups[kind]},
            }
            for name in names
        },
        "joined": _joined(mixed, degraded, strong, clean, anomalies),
        "wrong_in_mixed": len(wrong),
        "own_limits": _gated({**told, **{k: groups[k] for k in kinds if groups[k]}}),
        "answers": _answers(clean, mixed),
    }


def _joined(
    mixed: Sequence[Reading],
    degraded: Sequence[Reading],
    strong: Mapping[str, Sequence[Reading]],
    clean: Sequence[Reading],
    anomalies: Sequence[Reading],
) -> dict[str, dict[str, float | None]]:
    """Return AUROCs of diversity, of novelty and of both joined, of the images that have all three."""

    def area(worse: Sequence[Reading], better: Sequence[Reading]) -> dict[str, float | None]:
        bad, good = ([r for r in group if math.isfinite(r.scores[JOINT])] for group in (worse, better))
        return {name: _area(bad, good, name) for name in (DEFAULT_SCORE, NOVELTY, JOINT)}

    return {
        "wrong condition, mixed": area(
            *([r for r in mixed if r.right["condition"] is right] for right in (False, True))
        ),
        "degraded": area(degraded, clean),
        "all strong": area([r for of in strong.values() for r in of], clean),
        "anomaly": area(anomalies, clean),
    }


def _gated(groups: Mapping[str, Sequence[Reading]]) -> dict[str, Any]:
    """Return what the model's own limits accept of each group, and how many of those name a wrong condition."""
    gate = make_gate(num_samples=SamplingConfig().num_samples, own=(*OWN_LIMITS[FINDINGS], *OWN_NOVELTY))
    found: dict[str, Any] = {"gate": gate.describe()}
    for name, group in groups.items():
        routes = [decision.route for decision in decide([reading.candidate for reading in group], gate)]
        accepted = [r for r, route in zip(group, routes, strict=True) if route is Route.AUTO_ACCEPT]
        wrong = sum(not reading.right.get("condition", False) for reading in accepted)
        found[name] = {"images": len(group), "accepted": len(accepted), "accepted_wrong": wrong}
    return found


def _medians_of(
    clean: Sequence[Reading], strong: Mapping[str, Sequence[Reading]], anomalies: Sequence[Reading]
) -> dict[str, Sequence[Reading]]:
    return {"clean": clean, **{f"strong {kind}": of for kind, of in strong.items()}, "anomaly": anomalies}


def _answers(clean: Sequence[Reading], mixed: Sequence[Reading]) -> dict[str, Any]:
    """Return what answers come to, with "unsure" offered and without; by majority of K."""
    forced = [r.is_right(majority([a.choice for a in r.forced])) for r in mixed]
    decided = [(r, answer) for r in mixed if (answer := _voted(r)) is not None]
    sampled = [a for r in clean for a in r.offered]
    return {
        "clean_unsure_images": _mean([_voted(r) is None for r in clean]),
        "clean_unsure_answers": _mean([a.choice is None for a in sampled]),
        "mixed_unsure_images": _mean([_voted(r) is None for r in mixed]),
        "accuracy_without_offer": _mean(forced),
        "accuracy_with_offer_where_sure": _mean([r.is_right(answer) for r, answer in decided]),
        "unparsable": _mean([a.choice is None and not a.abstains for r in mixed for a in (*r.offered, *r.forced)]),
        "unsure_though_not_offered": _mean([a.abstains for r in mixed for a in r.forced]),
        "calibration_error": _calibration_error(mixed),
    }


def _voted(reading: Reading) -> str | None:
    """Return what most of the answers say where "unsure" is offered; null where that is "unsure"."""
    voted = majority([answer.choice or "" for answer in reading.offered])
    return voted or None


def _calibration_error(readings: Sequence[Reading]) -> float | None:
    """Return the expected calibration error of the frequency of the most frequent answer, in [0, 1]; lower is better.

    Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), with ten bins; "unsure" not offered. K answers
    choose the answer and others tell its frequency: one that had also chosen would be too high, the more so the fewer
    the samples; and of few, four of four would stand for what comes less often than always.
    """
    pairs = [
        (sum(a.choice == answer for a in r.told) / len(r.told), r.is_right(answer))
        for r in readings
        if (answer := majority([a.choice for a in r.forced])) is not None
    ]
    if not pairs:
        return None
    frequency, right = np.array([p for p, _ in pairs]), np.array([r for _, r in pairs], float)
    bins = np.minimum((frequency * _BINS).astype(int), _BINS - 1)
    gaps = [abs(frequency[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in set(bins.tolist())]
    return round(float(sum(gaps)), 4)


def _share(group: Sequence[Reading], aspect: str) -> dict[str, float | int | None]:
    judged = [reading.right[aspect] for reading in group if aspect in reading.right]
    return {"right": sum(judged), "of": len(judged), "share": _mean(judged)}


def _mean(values: Sequence[bool]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def _median(group: Sequence[Reading], score: str) -> float | None:
    median = float(np.median([r.scores[score] for r in group])) if group else math.inf
    return round(median, 4) if math.isfinite(median) else None


def _area(worse: Sequence[Reading], better: Sequence[Reading], score: str) -> float | None:
    area = auroc([r.scores[score] for r in worse], [r.scores[score] for r in better])
    return None if area is None else round(area, 4)


def bars(figures: Mapping[str, Any]) -> Iterator[tuple[str, float | None, str, float]]:
    """Yield (what, measured, "≥" or "≤", bar)."""
    visible = figures["accuracy"]["clean, visible"]
    for aspect, bar in (("part", 0.99), ("finish", 0.99), ("condition", 0.95), ("position", 0.90)):
        yield f"clean and visible: {aspect} right", visible[aspect]["share"], "≥", bar
    areas, answers = figures["auroc"], figures["answers"]
    wrong = "wrong condition, mixed"
    yield f"AUROC of {DEFAULT_SCORE}, {wrong}", areas[DEFAULT_SCORE][wrong], "≥", 0.85
    best = max(areas, key=lambda name: areas[name][wrong] or 0)
    yield f"AUROC of the best score ({best}), {wrong}", areas[best][wrong], "≥", 0.90
    for kind in DEGRADATIONS:
        yield f"AUROC of {DEFAULT_SCORE}, strong {kind}", areas[DEFAULT_SCORE][f"strong {kind}"], "≥", 0.90
    yield f"AUROC of {NOVELTY}, anomalies", areas[NOVELTY]["anomaly"], "≥", 0.97
    for of in (wrong, "all strong", "anomaly"):
        joined = figures["joined"][of]
        either = max(joined[DEFAULT_SCORE] or 0, joined[NOVELTY] or 0)
        yield f"AUROC of {JOINT} against the better of both, {of}", joined[JOINT], "≥", either
    yield "unsure on clean images, where offered", answers["clean_unsure_images"], "≤", 0.03
    gain = (answers["accuracy_with_offer_where_sure"] or 0) - (answers["accuracy_without_offer"] or 0)
    yield "accuracy of answers that are not unsure, gain by the offer", round(gain, 4), "≥", 0.05
    yield "calibration error of the answers, mixed", answers["calibration_error"], "≤", 0.05
    yield "seconds an image for 8 captions", figures.get("seconds_per_image"), "≤", 0.15
    yield "weights, MB", figures.get("weights_mb"), "≤", 16.0


# --- what people read -------------------------------------------------------------------------------------------------


def sheets(figures: Mapping[str, Any]) -> Iterator[Sheet]:
    """Yield the figures as tables."""
    yield Sheet(
        "Right by majority of the captions",
        ("images", *ASPECTS),
        [(name, *(_cell(shares[a]) for a in ASPECTS)) for name, shares in figures["accuracy"].items()],
    )
    yield Sheet(
        f"Condition, clean images with visibility from {figures['visible_from']:g}",
        ("truth", "right"),
        [(name, _cell(share)) for name, share in figures["visible_by_condition"].items()],
    )
    for title, figure in (
        ("AUROC of each score (degraded and anomalies: against clean)", "auroc"),
        ("Median of each score, turned so that higher is worse", "median"),
    ):
        headings = list(figures[figure][DEFAULT_SCORE])
        yield Sheet(
            title,
            ("score", *headings),
            [(name, *(_number(row[h]) for h in headings)) for name, row in figures[figure].items()],
        )
    yield Sheet(
        f"AUROC of {DEFAULT_SCORE} and {NOVELTY} joined, of images that have both",
        ("", DEFAULT_SCORE, NOVELTY, JOINT),
        [(of, *(_number(area, 3) for area in row.values())) for of, row in figures["joined"].items()],
    )
    gated = {name: counts for name, counts in figures["own_limits"].items() if name != "gate"}
    yield Sheet(
        f"Accepted by {figures['own_limits']['gate']}",
        ("images", "accepted", "of", "accepted with a wrong condition"),
        [(name, *(f"{c[k]:,}" for k in ("accepted", "images", "accepted_wrong"))) for name, c in gated.items()],
    )
    yield Sheet("Answers", ("", "share"), [(k.replace("_", " "), _number(v, 3)) for k, v in figures["answers"].items()])
    yield Sheet(
        "Bars",
        ("", "measured", "bar", ""),
        [
            (what, _number(value, 3), f"{sign} {bar:.3g}", "ok" if reached(value, sign, bar) else "MISSED")
            for what, value, sign, bar in bars(figures)
        ],
    )


def reached(value: float | None, sign: str, bar: float) -> bool:
    """Say whether a bar is cleared."""
    return value is not None and (value >= bar if sign == "≥" else value <= bar)


def _cell(share: Mapping[str, Any]) -> str:
    return "-" if share["share"] is None else f"{share['share']:.1%} ({share['right']}/{share['of']})"


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def mistaken(readings: Sequence[Reading]) -> Iterator[str]:
    """Yield the commonest mistakes on clean, visible conditions, in words."""
    pairs = Counter(
        (r.made.truth.condition, majority([a.choice for a in r.forced]) or "-")
        for r in readings
        if r.group == "clean" and r.made is not None and r.made.all_visible and not r.right["condition"]
    )
    for (truth, said), count in pairs.most_common(8):
        yield f"captions wrong on clean, visible {truth}, answered {said}: {count}"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.builtin", description=__doc__)
    add_options(parser)
    parser.add_argument("--photographs", type=Path, help="folder of other images that are no parts")
    parser.add_argument("--num-samples", type=int, default=8, help="captions and answers an image (default 8)")
    options = parser.parse_args()
    folder = weights_folder() if options.model == BUILTIN else Path(options.model)
    drawn = list(draw(options.seed, options.clean, options.each, options.anomalies))
    drawn += photographs(options.photographs) if options.photographs else ()
    sampling = SamplingConfig(num_samples=options.num_samples, temperature=1.0, batch_size=16)
    model = ModelConfig(model=options.model)
    reference = Reference.load(folder / "novelty.npz")
    readings = read(drawn, model, sampling, reference, tell)
    figures = summarise(readings) | {"seed": options.seed, "num_samples": options.num_samples, "temperature": 1.0}
    figures["seconds_per_image"] = round(seconds_per_image(drawn, model, SamplingConfig(batch_size=16)), 4)
    figures["weights_mb"] = round(sum(path.stat().st_size for path in folder.iterdir()) / 1e6, 2)
    figures["bars"] = [
        {"what": what, "measured": value, "bar": f"{sign} {bar:g}", "reached": reached(value, sign, bar)}
        for what, value, sign, bar in bars(figures)
    ]
    publish(options, list(sheets(figures)), list(mistaken(readings)), figures)


if __name__ == "__main__":
    main()
