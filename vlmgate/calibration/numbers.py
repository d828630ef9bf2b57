"""Figures as people read them."""

from __future__ import annotations

from vlmgate.calibration.figures import Estimate


def percent(value: float) -> str:
    """Return a share in per cent with as many digits as it has, such as "0.1%"."""
    return f"{100 * value:.6g}%"


def decimal(value: float | None) -> str:
    """Return a figure with three decimals, a dash for none."""
    return "–" if value is None else f"{value:.3f}"


def with_interval(figure: Estimate) -> str:
    """Return a figure with the ends of its interval."""
    if figure.value is None or figure.low is None or figure.high is None:
        return decimal(figure.value)
    return f"{figure.value:.3f} ({figure.low:.2f}–{figure.high:.2f})"


def share(part: int, whole: int) -> str:
    """Return a share in per cent, a dash where there is nothing."""
    return f"{part / whole:.1%}" if whole else "–"
