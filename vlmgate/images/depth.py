"""Map values of any depth to 8 bits: 16-bit grey and colour, floats, heights, temperatures. Call `to_8_bits`.

What is taken for black and for white decides what a model can see. One hot pixel, or a mark for "no data", must not
decide it, and pictures of one camera must come out alike: `Shared` is asked for the range of the pictures beside this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmgate.errors import count
from vlmgate.images.formats import RefusedError

BITS = (8, 10, 12, 14, 16, 24, 32)  # depths that cameras and their software write
_ROWS_AT_ONCE = 1 << 22  # values; bounds the float copies of a large image
_ODD = 1e-4  # share of the pixels at either end that may be hot or dead and do not count
_NO_DATA = 1e30  # and beyond: no measurement is that large
_MARKS = (-9999.0, -99999.0, -32767.0, -32768.0, -(2.0**31))  # for "no data", where they stand apart from all else
_SAMPLED = 1 << 20  # pixels that different values are counted in
FEWEST_LEVELS = 16  # of 256; a picture with less contrast than this hides what is on it

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Span:
    """The range of the values of one picture, without marks for "no data" and without single odd pixels."""

    low: float
    high: float

    def joined(self, other: Span) -> Span:
        """Return the range of both."""
        return Span(min(self.low, other.low), max(self.high, other.high))


Shared = Callable[[Span], Span]  # takes the range of this picture; returns that of the pictures of its camera


def alone(span: Span) -> Span:
    """Return the range of a picture that has no others beside it."""
    return span


def alpha_to_8_bits(values: Array) -> npt.NDArray[np.uint8]:
    """Map transparency of 16 bits, or of fewer in a container of 16, to 8 bits."""
    bits = next(bits for bits in BITS if values.max() < 2**bits)
    return _scale(values, 0.0, 2.0**bits - 1)


def to_8_bits(
    values: Array, declared: int | None = None, no_data: float | None = None, shared: Shared = alone
) -> tuple[npt.NDArray[np.uint8], str]:
    """Map values (any shape, any number type) to 8 bits, and say how.

    `declared` is the value that the file itself calls white, `no_data` what it calls a mark. The range taken as black
    to white is, in this order:
    1. what the file declares, if the values keep to it;
    2. for values in [0, 65535] and beyond, the smallest of 8, 10, 12, 14, 16, 24, 32 bits that holds the largest value
       (cameras leave the upper bits of a 16-bit container empty); for floats in [0, 1], that interval;
    3. where the values would fill less than a sixteenth of that range (floats: less than a quarter), or are negative:
       from the smallest to the largest, or from zero if that is near.
    Rules 2 and 3 brighten an image that is dark throughout. That is the safe side: brightened, its noise shows and is
    read differently each time; left black, it would be read the same way each time and be accepted. Values beyond the
    range become black or white.

    Raises `RefusedError` where nothing but marks is left, and where fewer than 16 levels are left of more.
    """
    known, marks = _without_marks(values, no_data)
    own = _span_of(known)
    keeps = declared is not None and known.min() >= 0 and known.max() <= declared
    if keeps:
        assert declared is not None
        bits = (declared + 1).bit_count() == 1
        words = (
            f"{declared.bit_length()}-bit scaled to 8 (as declared)"
            if bits
            else f"0-{declared} as declared scaled to 8 bits"
        )
        scaled, lost = _scaled(values, known, 0.0, float(declared))
    else:
        span = own if declared is not None else shared(own)
        scaled, words, lost = _by_span(values, known, span)
        if span != own and lost:  # those are pictures of another kind, or of another camera
            scaled, words, lost = _by_span(values, known, own)
        elif _black_and_white(span, values) != _black_and_white(own, values):
            words += " (range of the pictures beside it)"
    if lost:
        raise RefusedError(lost)
    if no_data is not None:
        scaled[values == no_data] = 0
    return scaled, f"{words}; {marks}" if marks else words


def _by_span(values: Array, known: Array, span: Span) -> tuple[npt.NDArray[np.uint8], str, str]:
    """Return values as 8 bits by the rule that fits a range, the rule in words, and why they cannot be shown so."""
    bottom, top, words = _black_and_white(span, values)
    beyond = int(np.count_nonzero(known < bottom) + np.count_nonzero(known > top))
    if beyond:
        words += f"; {beyond} single pixels beyond it set to black or white"
    scaled, lost = _scaled(values, known, bottom, top)
    return scaled, words, lost


def _scaled(values: Array, known: Array, bottom: float, top: float) -> tuple[npt.NDArray[np.uint8], str]:
    """Return values as 8 bits, and what is said where contrast was lost on the way; "" = it was not."""
    scaled = _scale(values, bottom, top)
    levels = int(np.count_nonzero(_counts(scaled.ravel(), 256)))
    if levels >= FEWEST_LEVELS:
        return scaled, ""
    some = known[:: 1 + known.size // _SAMPLED]
    before = len(np.unique(some[(some >= bottom) & (some <= top)]))
    if before < FEWEST_LEVELS:
        return scaled, ""
    return scaled, (
        f"loses its contrast: {before:,} different values would come out as {count(levels, 'grey level')}; save it as "
        "8 bits, with the range that matters"
    )


def _black_and_white(span: Span, values: Array) -> tuple[float, float, str]:
    """Return the values that become black and white, and the rule in words."""
    floats, low, high = values.dtype.kind == "f", span.low, span.high
    if floats and low >= 0 and high <= 1 and _fills(low, high, 1.0, 4):
        return 0.0, 1.0, "float 0-1 scaled to 8 bits"
    if low >= 0 and 16 <= high < (65536 if floats else 2**32):
        bits = next(bits for bits in BITS if high < 2**bits)
        if _fills(low, high, 2.0**bits, 4 if floats else 16):
            kind = "float" if floats else "grey" if values.ndim == 2 else "colour"
            words = f"{bits}-bit {kind} scaled to 8" if bits > 8 else "8-bit values in a wider container"
            return 0.0, float(2**bits - 1), words
    if low == high == 0:
        return 0.0, 1.0, "all values are zero"
    bottom, top = (low if low > high - low else min(0.0, low)), high
    if top <= bottom:
        bottom, top = low, low + 1
    return bottom, top, f"values {bottom:g} to {top:g} stretched to 0-255"


def _fills(low: float, high: float, whole: float, part: int) -> bool:
    """Say whether values fill at least one in so many parts of a range, or are one value of no less."""
    return high >= whole / part and (high == low or high - low >= whole / part)


def _without_marks(values: Array, no_data: float | None) -> tuple[Array, str]:
    """Return the values (N,) that are measurements, and in words what was left out.

    A usual mark counts as one where it lies further from all other values than these lie from each other.
    """
    known, words = values.ravel(), []
    if values.dtype.kind == "f":
        finite = np.isfinite(known)
        if not finite.all():
            known = known[finite]
            words.append(f"{finite.size - known.size} pixels that are not numbers set to black, or white if +infinite")
        large = np.abs(known) >= min(_NO_DATA, float(np.finfo(values.dtype).max))
        if large.any() and not large.all():
            words.append(f"{np.count_nonzero(large)} pixels marked as no data set to black or white")
            known = known[~large]
    if no_data is not None and (known == no_data).any():
        words.append(f"{np.count_nonzero(known == no_data)} pixels marked as no data ({no_data:g}) set to black")
        known = known[known != no_data]
    if known.size == 0:
        raise RefusedError("no pixel is a finite number" if words else "no pixel holds a measurement")
    for mark in (float(known.min()), float(known.max())):
        if mark not in _MARKS and not (values.dtype.kind in "iu" and mark == np.iinfo(values.dtype).max):
            continue
        rest = known[known != mark]
        if rest.size and abs(mark - _nearest(rest, mark)) > float(rest.max()) - float(rest.min()):
            colour = "black" if mark in _MARKS else "white"
            words.append(f"{known.size - rest.size} pixels of {mark:.0f}, far from all others, set to {colour}")
            known = rest
    return known, "; ".join(words)


def _nearest(values: Array, mark: float) -> float:
    """Return the value next to a mark, which is the least or the greatest of all."""
    least, greatest = float(values.min()), float(values.max())
    return least if mark < least else greatest


def _span_of(known: Array) -> Span:
    """Return the range of values (N,), without the odd ones at either end."""
    odd = int(known.size * _ODD)
    whole = Span(float(known.min()), float(known.max()))
    if not odd:
        return whole
    usual = _without_ends(known, odd)
    room = (usual.high - usual.low) / 4  # what lies nearer is the end of the distribution
    low = usual.low if usual.low - whole.low > room else whole.low
    high = usual.high if whole.high - usual.high > room else whole.high
    return Span(low, high)


def _without_ends(known: Array, odd: int) -> Span:
    """Return the range of values (N,) without so many at either end."""
    if known.dtype == np.uint16:
        below = np.cumsum(_counts(known, 65536))
        return Span(float(np.searchsorted(below, odd, "right")), float(np.searchsorted(below, known.size - odd)))
    ordered = np.partition(known, (odd, known.size - 1 - odd))
    return Span(float(ordered[odd]), float(ordered[known.size - 1 - odd]))


def _counts(values: Array, number: int) -> npt.NDArray[np.int64]:
    """Return how often each of [0, number) is among values (N,); numpy would count in a copy of eight bytes each."""
    counts = np.zeros(number, np.int64)
    for start in range(0, values.size, _ROWS_AT_ONCE):
        counts += np.bincount(values[start : start + _ROWS_AT_ONCE], minlength=number)
    return counts


def _scale(values: Array, bottom: float, top: float) -> npt.NDArray[np.uint8]:
    """Map [bottom, top] linearly to 0..255, rounded to nearest."""
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        steps = np.arange(65536, dtype=np.float64)
        table = np.clip(np.rint((steps - bottom) * (255 / (top - bottom))), 0, 255).astype(np.uint8)
        return table[values]
    out = np.empty(values.shape, np.uint8)
    rows = max(1, _ROWS_AT_ONCE // max(1, values[0].size))
    for start in range(0, len(values), rows):
        block = values[start : start + rows].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            block = (block - bottom) / (top - bottom) * 255.0
        block = np.nan_to_num(block, nan=0.0, posinf=255.0, neginf=0.0)
        out[start : start + rows] = np.clip(np.rint(block), 0, 255).astype(np.uint8)
    return out
