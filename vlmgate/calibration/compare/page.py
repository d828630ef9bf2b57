"""Write the page of a comparison: one file that opens from any disk, without a network.

Knows what was found and how a page is put together; knows nothing of how it was found. What users and models have named
is escaped by the template, and stands in no picture: there, models are letters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmgate.calibration.charts import BLUE, GREEN, GREY, ORANGE, RED, svg
from vlmgate.calibration.compare import report
from vlmgate.calibration.compare.compare import Comparison
from vlmgate.calibration.compare.verdict import verdicts
from vlmgate.calibration.labels import Labels
from vlmgate.calibration.page import data_uri, write_html
from vlmgate.version import __version__

_TEMPLATE = Path(__file__).with_name("page.html.j2")
_FAR_APART = 6  # times as slow; on one scale the faster models would be a heap at the edge
_COLOURS = (BLUE, ORANGE, GREEN, RED, GREY)


def write_page(found: Comparison, labels: Labels, out: Path) -> Path:
    """Write the page and return it; raises `OutputError`."""
    content = {
        "version": __version__,
        "title": f"{len(found.standings)} models on {found.images:,} labelled images",
        "answers": verdicts(found),
        "labels": f"{labels.source}: {labels.form}.",
        "names": report.names(found),
        "titles": report.titles(found),
        "rows": report.rows(found),
        "notes": report.notes(found),
        "picture": data_uri(quality_and_time(found)),
    }
    return write_html(out, _TEMPLATE, content)


def is_page(path: Path) -> bool:
    """Say whether a file is such a page, which may be replaced."""
    try:
        return "<title>vlmgate comparison: " in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def quality_and_time(found: Comparison) -> bytes:
    """Return AURC against the time an image takes, a line for each model through its numbers of samples, as SVG."""

    def draw(axes: Any) -> None:
        for i, standing in enumerate(found.standings):
            colour, name = _COLOURS[i % len(_COLOURS)], report.letter(i)
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
        axes.set_xlabel("seconds an image")
        axes.set_ylabel("AURC, lower is better")
        taken = [seconds for standing in found.standings for _, seconds, _ in standing.by_samples]
        if taken and max(taken) > _FAR_APART * min(taken):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        else:
            axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)

    return svg(draw)
