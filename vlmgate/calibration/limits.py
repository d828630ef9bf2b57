"""The limits of a gate besides that on its score: those of the user, novelty, and how the pictures usually look."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vlmgate.calibration.figures import Mask, Vector
from vlmgate.calibration.readings import Labelled
from vlmgate.config import CalibrateConfig
from vlmgate.errors import LabelError
from vlmgate.gate.rules import COLUMNS, Limit, parse_limit

# A blurred or dark picture may be read wrongly, and nobody has measured how often.
USUAL = ("sharpness", "exposure", "contrast", "noise")
FEWEST = 20  # images; fewer tell nothing of what is usual
SHARE = 0.99  # of the pictures that a range shall hold, half of the rest on either side
_FLOOR = 1e-6
_WIDEST = 10.0  # times beyond what was seen; a bound farther out protects nothing
CONFIDENCE = 0.95  # that either end lies that far out


def limits_of(
    labelled: Labelled, design: Mask, config: CalibrateConfig, why_no_reference: str | None
) -> tuple[tuple[Limit, ...], list[str]]:
    """Return the limits, and what to tell of those that cannot be had; raises `LabelError`.

    They come from the images that choose (`design`) alone: the others certify what the limits let through.
    """
    limits, notes = [parse_limit(text, labelled.num_samples) for text in config.limits], []
    if any(limit.column == "novelty" for limit in limits):
        raise LabelError("--limit on novelty: use --novelty-limit, which is measured from the calibrated images.")
    carried = any(novelty is not None for novelty in labelled.novelties)
    if why_no_reference is None or carried:
        limits.append(Limit("novelty", "<=", config.novelty_limit))
    elif math.isfinite(config.novelty_limit):
        notes.append(f"no limit on novelty: {why_no_reference}")
    given = {(limit.column, limit.side) for limit in limits}
    chosen = [r for r, one in zip(labelled.records, design & labelled.stands, strict=True) if one]
    for column in USUAL:
        values = [value for record in chosen if (value := getattr(record, column)) is not None]
        limits += [one for one in usual_range(column, values) if (one.column, one.side) not in given]
    return tuple(limits), notes


def deciding_novelty(labelled: Labelled, measured: Vector | None) -> list[float | None] | None:
    """Return the novelty (N,) that a gate goes by: the greater of that from the labels and the checkpoint's own.

    None where there is none from the labels: then it is the checkpoint's, as the readings hold it.
    """
    if measured is None:
        return None
    own = [-math.inf if novelty is None else novelty for novelty in labelled.novelties]
    strangest = np.maximum(measured, own)
    return [float(value) if math.isfinite(value) else None for value in strangest]


def usual_range(column: str, values: Sequence[float]) -> list[Limit]:
    """Return the limits of the range that pictures usually keep to, rounded outwards; none of too few.

    From the 0.5 % to the 99.5 % quantile, each end no nearer than its tolerance bound: with `CONFIDENCE` no more than
    0.5 % of all pictures lie beyond. The bound is that of a normal distribution (by the noncentral t distribution;
    Krishnamoorthy & Mathew, "Statistical Tolerance Regions", 2009, section 2.2), of the logarithm of the values, or of
    the logit of shares.
    """
    from scipy.stats import nct, norm

    table = np.asarray([value for value in values if value > _FLOOR], float)  # a blank frame is no picture to go by
    n, tail = len(table), (1 - SHARE) / 2
    if n < FEWEST:
        return []
    share = COLUMNS[column].high == 1
    small = np.minimum(table, 1 - _FLOOR) if share else table
    points = np.log(small / (1 - small)) if share else np.log(small)
    far = nct.ppf(CONFIDENCE, n - 1, norm.ppf(1 - tail) * math.sqrt(n)) / math.sqrt(n) * points.std(ddof=1)
    ends = np.exp([points.mean() - far, points.mean() + far])
    low, high = ends / (1 + ends) if share else ends
    low, high = max(low, table.min() / _WIDEST), min(high, table.max() * _WIDEST)
    low, high = min(low, np.quantile(table, tail)), max(high, np.quantile(table, 1 - tail))
    least, most = COLUMNS[column].low, COLUMNS[column].high
    found = [Limit(column, ">=", _outward(low, -1)), Limit(column, "<=", _outward(high, 1))]
    return [one for one in found if one.value > least and (most is None or one.value < most)]


def _outward(value: float, way: int) -> float:
    """Return a value with three digits, not nearer than it is: down for -1, up for 1."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{(math.floor if way < 0 else math.ceil)(value / unit) * unit:.10g}")
