"""Decode a JPEG and refuse it where its scans end before the image does.

Knows markers and scans; knows nothing of colours or files. libjpeg paints what is missing grey and goes on, and Pillow
does not pass its warning on. No look at the pixels can tell that grey from a grey wall, so the decoder itself is asked:
behind the data of a scan it is given, instead of the marker that ends it, a few bytes that mean nothing. A scan that is
complete leaves them alone. One that is not reads them: it then runs dry or, with several scans, changes the pixels.

What cannot be told: bytes that were changed or zeroed within a scan, pieces lost between two restart markers whose
numbers still fit, and the end of arithmetic coding, which may leave out its last bytes.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field

import numpy as np
from PIL import ImageFile, JpegImagePlugin

from vlmgate.images.formats import RefusedError

_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)  # a stuffed zero says that FF is data
_START_OF_SCAN, _END, _RESTART_INTERVAL = 0xDA, 0xD9, 0xDD
_RESTARTS, _WITHOUT_BODY = range(0xD0, 0xD8), (0x01, 0xD8)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE, _ARITHMETIC = (0xC2, 0xC6, 0xCA, 0xCE), range(0xC9, 0xD0)
_COEFFICIENTS = 64  # of a block

# 64 bits, as many as the decoder wants to see ahead; all ones is no code, so that they last for two blocks at most.
_NOTHING = b"\xff\x00" * 8
# Where running dry does not show, any codes will do that change coefficients.
_ANYTHING = bytes((73 * i + 29) % 251 for i in range(_COEFFICIENTS))
_ZEROS = 32  # bytes at the end of a scan from which on they are looked into


def load_whole_jpeg(image: ImageFile.ImageFile, least_side: int = 0) -> None:
    """Decode in place; raises `RefusedError` or OSError if the data do not reach to the last pixel.

    With `least_side` at a half, a quarter or an eighth of its size, as long as neither side comes out shorter. The
    decoder then leaves out what finer detail costs. Only where it reads the data once and front to back: elsewhere
    what is missing may show in the detail alone.
    """
    if len(image.tile) != 1:  # no scan begins
        raise RefusedError("truncated")
    (tile,) = image.tile
    assert image.fp is not None
    image.fp.seek(tile.offset)
    jpeg = image.fp.read()  # one frame, or with MPO all from this one on
    layout = _layout_of(jpeg)
    if not layout.complete:
        raise RefusedError("truncated")
    checked = layout.frame not in _ARITHMETIC
    last = layout.data_end
    zeros = last - len(jpeg[:last].rstrip(b"\0"))
    if least_side and checked and layout.one_scan and zeros < _ZEROS and min(image.size) >= 2 * least_side:
        assert isinstance(image, JpegImagePlugin.JpegImageFile)
        image.draft(None, (least_side, least_side))
        (tile,) = image.tile
    image.tile = [tile._replace(offset=0)]
    image.fp = io.BytesIO(layout.probe(jpeg, 0) if checked and layout.one_scan else jpeg[: layout.end + 2])
    image.load()
    if not checked:
        return
    if not layout.one_scan and not _decodes_alike(image, layout.probe(jpeg, 0)):
        raise RefusedError("truncated")
    # A copy that broke off may be padded with zeros, which decode as flat; some are needed then, and some left over.
    # (A whole image that is flat may end in zeros and needs each one; some writers pad, and none is needed.)
    if (
        zeros >= _ZEROS
        and _decodes_alike(image, layout.probe(jpeg, _ZEROS))
        and not _decodes_alike(image, layout.probe(jpeg, zeros))
    ):
        raise RefusedError("truncated: ends in zeros")


@dataclass(slots=True)
class _Layout:
    """What the markers of one JPEG say."""

    frame: int = 0  # the marker that names the coding
    scan_ends: list[int] = field(default_factory=list)  # offset of the marker behind each scan's data
    end: int = -1  # offset of the end-of-image marker
    one_scan: bool = True  # decoded while it is read; several scans are collected first
    to_come: dict[int, list[int]] = field(
        default_factory=dict
    )  # per component and coefficient: not zero = bits missing

    @property
    def data_end(self) -> int:
        """Where the data end that the last pixels come from; behind the one scan of a baseline file nothing is read."""
        return self.scan_ends[0 if self.one_scan else -1]

    @property
    def complete(self) -> bool:
        """Every coefficient has come to its last bit: a progressive file that broke off between scans has not."""
        return self.end > 0 and bool(self.scan_ends) and not any(map(any, self.to_come.values()))

    def probe(self, jpeg: bytes, shorter: int) -> bytes:
        """Return the JPEG with something meaningless behind each scan, the last scan shortened by so many bytes."""
        last = self.data_end
        if self.one_scan:
            return jpeg[: last - shorter] + _NOTHING
        pieces, start = [], 0
        for stop in self.scan_ends[:-1]:
            pieces += [jpeg[start:stop], _ANYTHING]
            start = stop
        return b"".join([*pieces, jpeg[start : last - shorter], _ANYTHING, jpeg[last : self.end + 2]])


def _layout_of(jpeg: bytes) -> _Layout:
    """Follow the markers to the end of the image, scan data passed over as libjpeg does."""
    layout = _Layout()
    at, in_scan, interval, restarts = 2, False, 0, 0
    while match := _MARKER.search(jpeg, at):
        code, start, at = match[1][0], match.start(), match.end()
        if in_scan and interval and code == _RESTARTS[restarts % 8]:
            restarts += 1
            continue
        if in_scan:  # by any other marker, a restart that is out of turn included
            layout.scan_ends.append(start)
            in_scan = False
        if code == _END:
            layout.end = at - 2  # fill bytes may stand before it
            break
        if code in _RESTARTS or code in _WITHOUT_BODY:
            continue
        length = int.from_bytes(jpeg[at : at + 2], "big")
        body = jpeg[at + 2 : at + length]
        at += max(2, length)
        if code in _FRAMES and len(body) > 5:
            layout.frame = code
            layout.to_come = {number: [1] * _COEFFICIENTS for number in body[6 : 6 + 3 * body[5] : 3]}
        elif code == _RESTART_INTERVAL:
            interval = int.from_bytes(body[:2], "big")
        elif code == _START_OF_SCAN and body:
            _note_scan(layout, body)
            in_scan, restarts = True, 0
    return layout


def _note_scan(layout: _Layout, body: bytes) -> None:
    count = body[0]
    components, (first, last, bits) = body[1 : 1 + 2 * count : 2], body[1 + 2 * count : 4 + 2 * count].ljust(3, b"\0")
    progressive = layout.frame in _PROGRESSIVE
    if not layout.scan_ends:
        layout.one_scan = count == len(layout.to_come) and not progressive
    for number in components:
        coefficients = layout.to_come.get(number, [])
        if progressive:
            coefficients[first : last + 1] = [bits & 15] * len(coefficients[first : last + 1])
        else:
            coefficients[:] = [0] * len(coefficients)


def _decodes_alike(image: ImageFile.ImageFile, jpeg: bytes) -> bool:
    try:
        other = JpegImagePlugin.JpegImageFile(io.BytesIO(jpeg))
        other.load()
    except Exception:
        return False
    return np.array_equal(np.asarray(other), np.asarray(image))
