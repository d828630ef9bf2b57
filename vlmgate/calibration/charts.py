"""The pictures of the pages, as SVG. Nothing that a user or an image has named is written into a picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vlmgate.calibration.compare.compare import Standing, letter
from vlmgate.calibration.cost import Bill
from vlmgate.calibration.figures import Ladder, Mask, Vector, resampled
from vlmgate.calibration.readings import in_own_units

# The palette of Okabe and Ito (2008), which people with any colour vision can tell apart.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
_SIZE = (6.4, 3.8)  # inches
_RESAMPLES = 300
_POINTS = 101
_FAR_APART = 6  # times as slow; on a linear scale the faster models would lie on top of each other
_COLOURS = (BLUE, ORANGE, GREEN, RED, GREY)


def risk_coverage(score: Vector, wrong: Mask, *, target: float | None, coverage: float | None) -> bytes:
    """Return the risk–coverage curve with its 95 % band, as SVG; `coverage` marks the gate."""
    shares = np.linspace(0.02, 1, _POINTS)
    whole = Ladder.of(score, wrong)
    middle = np.array([float(whole.risk_at(share)[0]) for share in shares])
    drawn = [Ladder.of(score, wrong, weights) for weights in resampled(len(score), 0, _RESAMPLES)]
    spread = np.stack([np.concatenate([ladder.risk_at(share) for ladder in drawn]) for share in shares])
    low, high = np.quantile(spread, [0.025, 0.975], axis=1)

    def draw(axes: Any) -> None:
        axes.fill_between(shares * 100, low * 100, high * 100, color=BLUE, alpha=0.2, linewidth=0, label="95 % band")
        axes.plot(shares * 100, middle * 100, color=BLUE, label="by the score")
        axes.axhline(wrong.mean() * 100, color=GREY, linestyle=":", label="at random")
        if target is not None:
            axes.axhline(target * 100, color=RED, linestyle="--", label="target")
        if coverage is not None:
            axes.axvline(coverage * 100, color=GREEN, linewidth=2, label="the gate")
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)

    return svg(draw, "coverage: accepted images, %", "risk: wrong among them, %")


def distribution(score: Vector, wrong: Mask, name: str, threshold: float | None) -> bytes:
    """Return how the score is distributed among right and wrong readings, as SVG; what has none is left out."""
    known = np.isfinite(score)
    turn = 1.0 if in_own_units(name, 1.0) > 0 else -1.0
    values = turn * score[known]
    bins = np.histogram_bin_edges(values, bins=24) if len(values) else np.linspace(0, 1, 2)

    def draw(axes: Any) -> None:
        groups = [values[~wrong[known]], values[wrong[known]]]
        axes.hist(groups, bins=bins, stacked=True, color=[BLUE, ORANGE], label=["right", "wrong"])
        if threshold is not None:
            axes.axvline(threshold, color=GREEN, linewidth=2, label="the gate's limit")

    return svg(draw, f"{name} (the safe end is {'left' if turn > 0 else 'right'})", "images")


def samples(rows: Mapping[int, tuple[float, float]], seconds: Mapping[int, float], chosen: int) -> bytes:
    """Return AURC (with its standard error behind the best) and time by number of samples, as SVG."""
    counts = sorted(rows)

    def draw(axes: Any) -> None:
        axes.errorbar(
            counts, [rows[k][0] for k in counts], yerr=[rows[k][1] for k in counts], color=BLUE, capsize=3, label="AURC"
        )
        axes.axvline(chosen, color=GREEN, linewidth=2, label="the gate")
        axes.set_xticks(counts)
        axes.set_ylim(0, 1.4 * max(sum(pair) for pair in rows.values()) or 1)
        if seconds:
            right = axes.twinx()
            timed = sorted(seconds)
            right.plot(timed, [seconds[k] for k in timed], color=ORANGE, linestyle="--", label="seconds an image")
            right.set_ylabel("seconds an image")
            right.set_ylim(0, 1.6 * max(seconds.values()))  # leaves room for the legend
            axes.plot([], [], color=ORANGE, linestyle="--", label="seconds an image")

    return svg(draw, "samples per image", "AURC, lower is better")


def cost_curve(bill: Bill, marked: Mapping[str, tuple[float, float]]) -> bytes:
    """Return cost per 1,000 images against the share that people look at, as SVG; `marked` are points by name."""
    share, gated, random = bill.routed[0] * 100, bill.gated[0], bill.random[0]

    def draw(axes: Any) -> None:
        axes.plot(share, gated, color=BLUE, label="by the score")
        axes.plot(share, random, color=GREY, linestyle=":", label="at random")
        for (name, (routed, cost)), colour in zip(marked.items(), (GREEN, ORANGE, RED), strict=False):
            axes.plot([routed * 100], [cost], "o", color=colour, label=name)
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)

    return svg(draw, "images that people look at, %", "cost per 1,000 images")


def quality_and_time(standings: Sequence[Standing]) -> bytes:
    """Return AURC against the time an image takes, as SVG: a line a model, through its numbers of samples.

    Models are letters, for what users have named stands in no picture.
    """

    def draw(axes: Any) -> None:
        for i, standing in enumerate(standings):
            colour, name = _COLOURS[i % len(_COLOURS)], letter(i)
            if standing.by_samples:
                counts, seconds, areas = zip(*standing.by_samples, strict=True)
                axes.plot(seconds, areas, color=colour, marker="o", markersize=3, linewidth=1)
                for k, x, y in zip(counts, seconds, areas, strict=True):
                    axes.annotate(str(k), (x, y), textcoords="offset points", xytext=(3, 4), fontsize=7, color=colour)
            low, value, high = standing.aurc.low, standing.aurc.value, standing.aurc.high
            if standing.seconds and low is not None and value is not None and high is not None:
                spread = [[max(0.0, value - low)], [max(0.0, high - value)]]
                axes.errorbar([standing.seconds], [value], yerr=spread, color=colour, marker="s", capsize=3, label=name)
            else:
                axes.plot([], [], color=colour, marker="s", label=f"{name} (not timed)")
        taken = [seconds for standing in standings for _, seconds, _ in standing.by_samples]
        if taken and max(taken) > _FAR_APART * min(taken):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        else:
            axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)

    return svg(draw, "seconds an image", "AURC, lower is better")


def svg(draw: Callable[[Any], None], across: str, up: str) -> bytes:
    """Return what is drawn over two named axes; the same drawing gives the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "vlmgate", "font.size": 10, "axes.spines.top": False}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot(xlabel=across, ylabel=up)
        draw(axes)
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=9)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
