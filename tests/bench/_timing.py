"""What the benches of speed share: rounds in turn, medians and spreads, a table and a file of JSON."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

SCHEMA = 1  # of the JSON


def interleaved(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each way in each round; all take turns, so that a busy machine slows all.

    A first round warms up and does not count.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            if number:
                taken[name].append(time.perf_counter() - begun)
    return taken


def ratios(taken: Mapping[str, Sequence[float]], name: str, to: str) -> list[float]:
    """Return one way's time over another's, round by round."""
    return [a / b for a, b in zip(taken[name], taken[to], strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return a median with the least and the greatest value."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown; all but the first column are numbers."""
    lines = [f"| {' | '.join(head)} |", "|" + "|".join([" --- ", *[" ---: "] * (len(head) - 1)]) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def write(path: Path | None, bench: str, options: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    """Write the figures, and what they were made with."""
    if path is not None:
        told = {"schema_version": SCHEMA, "bench": bench, "cores": os.cpu_count(), "load": os.getloadavg()}
        told |= {"options": {key: str(value) for key, value in options.items()}, "figures": dict(figures)}
        path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
