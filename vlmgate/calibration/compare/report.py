"""Show a comparison on the terminal, and as JSON.

Knows what was found and how to say it; knows nothing of how it was found. Names of models and files are never markup.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vlmgate.calibration.compare.compare import Comparison
from vlmgate.calibration.compare.verdict import verdicts
from vlmgate.calibration.labels import Labels
from vlmgate.calibration.report import Speaker, percent

SCHEMA_VERSION = 1


def letter(number: int) -> str:
    """Return what stands for a model in a picture: A, B, …, Z, A2, …"""
    return chr(ord("A") + number % 26) + (str(number // 26 + 1) if number >= 26 else "")


def names(found: Comparison) -> list[str]:
    """Return a line for each model: its letter, name, size and where it ran."""
    lines = []
    for number, standing in enumerate(found.standings):
        one = standing.contestant
        size = "size unknown" if one.parameters is None else f"{_short(one.parameters)} parameters"
        lines.append(f"{letter(number)}  {one.name} · {size} · {one.device}")
    return lines


def titles(found: Comparison) -> list[str]:
    """Return the heads of the table: a column for each model, and one for each difference from the first."""
    letters = [letter(i) for i in range(len(found.standings))]
    return ["", *letters, *(f"{one} − A" for one in letters[1:])]


def rows(found: Comparison) -> list[list[str]]:
    """Return the table: a row for each figure."""
    target = f"cov@{percent(found.target_risk)}"
    figures = {"accuracy": ("accuracy", _PERCENT), "aurc": ("AURC", _DECIMAL), "coverage": (target, _PERCENT)}
    if found.costs:
        figures["cost"] = ("cost", _NUMBER)
    table = []
    for name, (title, form) in figures.items():
        estimates = [getattr(standing, name) for standing in found.standings]
        values = [_with_ends(form, one.value, one.low, one.high) for one in estimates]
        apart = [_with_ends(form, d[name].value, d[name].low, d[name].high, sign="+") for d in found.differences]
        table.append([title, *values, *apart])
    blank = [""] * len(found.differences)
    all_of = found.standings
    table.append(["promised", *("none" if s.promised is None else f"{s.promised:.1%}" for s in all_of), *blank])
    times = [f"{s.seconds / all_of[0].seconds:.2f} × time" if s.seconds and all_of[0].seconds else "" for s in all_of]
    table.append(["images/s", *(f"{1 / s.seconds:.2f}" if s.seconds else "–" for s in all_of), *times[1:]])
    held = [s.contestant.memory for s in all_of]
    table.append(["peak memory", *("–" if one is None else f"{one / 1e9:.2f} GB" for one in held), *blank])
    return table


_PERCENT, _DECIMAL, _NUMBER = ".1%", ".3f", ",.0f"


def _with_ends(form: str, value: float, low: float, high: float, sign: str = "") -> str:
    """Return a figure with the ends of its interval, those of a share in whole per cents."""
    if form == _PERCENT:
        ends = [format(100 * one, f"{sign}.0f") for one in (low, high)]
        ends[1] += "%"
    else:
        ends = [format(one, sign + form) for one in (low, high)]
    return f"{format(value, sign + form)} ({(' to ' if sign else '–').join(ends)})"


def notes(found: Comparison) -> list[str]:
    """Return what the figures are of."""
    apart = found.graded < found.images
    of = f"the {found.graded:,} images that no score was chosen on" if apart else "the same images"
    target, confidence = percent(found.target_risk), percent(found.confidence)
    lines = [
        f"Accuracy: right answers among {found.images:,} labelled images that every model has read, with "
        f"{found.num_samples} samples each. All else: of {of}. In brackets: 95% intervals of resampled images.",
        f"Images are ordered by {found.score}{', the best over all models on the others' if apart else ''}. AURC: lower"
        f" is better. cov@{target}: the most that could be accepted with so many wrong, in hindsight. promised: what a "
        f"gate accepts with {confidence} confidence. Times and memory: when each was read.",
    ]
    if found.costs:
        lines.append("cost: per 1,000 images, by the gate that is cheapest in hindsight; lower is better.")
    lines += [f"Note: {note}." for note in found.notes]
    return lines


def print_comparison(
    found: Comparison, labels: Labels, results: Sequence[Path], page: Path | None, console: Console
) -> None:
    """Print the tables and the answer."""
    say = Speaker(console)
    say(f"Labels: {labels.source}, {labels.form}.")
    say()
    for line in names(found):
        say(line)
    say()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in titles(found):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    for row in rows(found):
        table.add_row(*row)
    console.print(table)
    for line in notes(found):
        say(line)
    say()
    for line in verdicts(found):
        say(line)
    say()
    say(f"Readings and page: {', '.join(str(path) for path in (*results, *([page] if page else [])))}.")


def comparison_json(found: Comparison, labels: Labels, results: tuple[Path, ...], page: Path | None) -> str:
    """Return all of it as one JSON object with a `schema_version`."""
    tree = {
        "schema_version": SCHEMA_VERSION,
        "labels": {"source": str(labels.source), "form": labels.form},
        "images": found.images,
        "graded": found.graded,
        "num_samples": found.num_samples,
        "target_risk": found.target_risk,
        "score": found.score,
        "models": [
            {
                "name": one.contestant.name,
                "result": str(result),
                "device": one.contestant.device,
                "num_parameters": one.contestant.parameters,
                "accuracy": asdict(one.accuracy),
                "aurc": asdict(one.aurc),
                "coverage_at_target_risk": asdict(one.coverage),
                "promised_coverage": one.promised,
                "cost_per_1000": None if one.cost is None else asdict(one.cost),
                "seconds_per_image": one.seconds,
                "images_per_second": 1 / one.seconds if one.seconds else None,
                "peak_memory_bytes": one.contestant.memory,
                "by_samples": [
                    {"num_samples": k, "seconds_per_image": seconds, "aurc": aurc}
                    for k, seconds, aurc in one.by_samples
                ],
            }
            for one, result in zip(found.standings, results, strict=True)
        ],
        "differences_from_the_first": [
            {name: asdict(one) | {"told": one.told, "needed": one.needed} for name, one in differences.items()}
            for differences in found.differences
        ],
        "notes": found.notes,
        "answers": verdicts(found),
        "page": None if page is None else str(page),
    }
    return json.dumps(tree, indent=2, allow_nan=False)


def _short(number: int) -> str:
    for size, sign in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{sign}"
    return str(number)
