"""A comparison in words: tables and the answer for terminal and page, and all of it as JSON.

`print_comparison` and `comparison_json` show everything; the page calls what they are made of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from vlmgate.calibration.compare.compare import Comparison, Difference, Standing, letter
from vlmgate.calibration.labels import Labels
from vlmgate.calibration.numbers import percent
from vlmgate.calibration.text import Speaker

SCHEMA_VERSION = 1
_PERCENT, _DECIMAL, _NUMBER = ".1%", ".3f", ",.0f"
_UNITS = {"aurc": "mean share of wrong readings among the accepted (AURC)", "cost": "cost per 1,000 images"}


def verdicts(found: Comparison) -> list[str]:
    """Return a sentence for each further model: whether it is worth it instead of the first, or cannot be told from it.

    It goes by costs where they are known, else by AURC, which counts accuracy and how well doubt is recognised.
    """
    first, *others = found.standings
    figure = "cost" if found.costs else "aurc"
    sentences = []
    for other, differences in zip(others, found.differences, strict=True):
        if not differences[figure].told:
            sentences.append(_undecided(figure, differences[figure], first, other))
        elif found.costs:
            sentences.append(_by_cost(differences["cost"], first, other))
        else:
            sentences.append(_by_aurc(differences, first, other, found.target_risk))
    return sentences


def _undecided(figure: str, one: Difference, first: Standing, other: Standing) -> str:
    a, b = first.contestant.name, other.contestant.name
    low, high = _signed(figure, one.low), _signed(figure, one.high)
    between = f"the difference in {_UNITS[figure]} lies between {low} and {high}"
    these = f"with these {one.images:,} images"
    if one.needed is None:
        return f"Cannot tell {b} from {a} {these}, nor with any number that can be labelled: {between}."
    needed = f"it would take about {one.needed:,} if the difference is what it seems"
    return f"Cannot tell whether {b} is worth it instead of {a} {these}: {between}; {needed}."


def _by_cost(one: Difference, first: Standing, other: Standing) -> str:
    cheaper = one.value < 0
    worth, costs, more = ("is worth it", "saves", "") if cheaper else ("is not worth it", "costs", " more")
    return (
        f"{other.contestant.name} {worth} instead of {first.contestant.name} on these images: it {costs} "
        f"{abs(one.value):,.0f}{more} per 1,000 images ({_interval('cost', one)}){_slower(first, other)}."
    )


def _by_aurc(differences: Mapping[str, Difference], first: Standing, other: Standing, target_risk: float) -> str:
    one, coverage = differences["aurc"], differences["coverage"]
    accepted, tail, slower = "", "", _slower(first, other)
    if coverage.told:
        number = f"{100 * abs(coverage.value):.0f} {'more' if coverage.value > 0 else 'fewer'} in 100"
        accepted = f", and {number} could be accepted at {percent(target_risk)} risk"
    if one.value < 0 and "times the time" in slower:
        tail = "; whether that is worth it, your costs tell (--cost-escape, --cost-review)"
    return (
        f"{other.contestant.name} reads {'better' if one.value < 0 else 'worse'} than {first.contestant.name} on these "
        f"images: AURC {other.aurc.value:.3f} instead of {first.aurc.value:.3f} "
        f"({_interval('aurc', one)}){accepted}{slower}{tail}."
    )


def _interval(figure: str, one: Difference) -> str:
    return f"difference {_signed(figure, one.low)} to {_signed(figure, one.high)}, 95% interval"


def _slower(first: Standing, other: Standing) -> str:
    if not first.seconds or not other.seconds:
        return ""
    ratio = other.seconds / first.seconds
    if ratio >= 1.05:
        return f"; it takes {ratio:.1f} times the time an image"
    return f"; it takes {ratio:.2f} of the time an image" if ratio <= 0.95 else "; it takes the same time an image"


def _signed(figure: str, value: float) -> str:
    return f"{value:+,.0f}" if figure == "cost" else f"{value:+.3f}"


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
    figures = {"accuracy": ("accuracy", _PERCENT), "aurc": ("AURC", _DECIMAL)}
    figures["coverage"] = (f"cov@{percent(found.target_risk)}", _PERCENT)
    if found.costs:
        figures["cost"] = ("cost", _NUMBER)
    table = []
    for name, (title, form) in figures.items():
        values = [_with_ends(form, getattr(standing, name)) for standing in found.standings]
        table.append([title, *values, *(_with_ends(form, d[name], sign="+") for d in found.differences)])
    blank = [""] * len(found.differences)
    first, *others = found.standings
    times = [f"{s.seconds / first.seconds:.2f} × time" if s.seconds and first.seconds else "" for s in others]
    memory = [standing.contestant.memory for standing in found.standings]
    return [
        *table,
        ["promised", *("none" if s.promised is None else f"{s.promised:.1%}" for s in found.standings), *blank],
        ["images/s", *(f"{1 / s.seconds:.2f}" if s.seconds else "–" for s in found.standings), *times],
        ["peak memory", *("–" if one is None else f"{one / 1e9:.2f} GB" for one in memory), *blank],
    ]


def _with_ends(form: str, figure: Any, sign: str = "") -> str:
    """Return a figure with the ends of its interval, those of a share in whole per cents."""
    if form == _PERCENT:
        ends = [format(100 * one, f"{sign}.0f") for one in (figure.low, figure.high)]
        ends[1] += "%"
    else:
        ends = [format(one, sign + form) for one in (figure.low, figure.high)]
    return f"{format(figure.value, sign + form)} ({(' to ' if sign else '–').join(ends)})"


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
    say(f"Labels: {labels.source}, {labels.form}.", "", *names(found), "")
    say.table(titles(found), [(cells, False) for cells in rows(found)])
    say(*notes(found), "", *verdicts(found), "")
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
