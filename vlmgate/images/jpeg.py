"""Refuse JPEGs that are not whole, where libjpeg paints over the damage: `check_jpeg`."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import JpegImagePlugin

from vlmgate.images.formats import RefusedError

_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)  # FF 00 is data, D0 to D7 are restarts within it
EOI = b"\xff\xd9"
_START_OF_SCAN, _END, _TABLES, _WITHOUT_BODY = 0xDA, 0xD9, 0xDB, (0x01, 0xD8)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_NEEDED = frozenset(range(0xC0, 0xD0)) | {0xDB, 0xDD, 0xEE}  # frame, tables, restart interval, Adobe's colour model
_PROGRESSIVE, _ARITHMETIC = (0xC2, 0xC6, 0xCA, 0xCE), range(0xC9, 0xD0)
_COEFFICIENTS = 64  # of a block
_MOST_COMPONENTS = 10  # libjpeg takes no more
_MOST_SCANS = 500  # a progressive file has about ten; the decoder goes over the whole picture for each
_MOST_SEGMENTS = 4096  # frames and tables, all scans together
_TOO_BRIGHT = 4  # grey levels; whole files stay below 2
_PREFIX = "Corrupt JPEG data: "
_LEFT_OVER = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
_ZEROS = 32  # bytes at the end of a scan from which on they are looked into
_JPEG_SPARE = 4  # bytes; some cameras leave that many behind the last scan
_ANYTHING = bytes((73 * i + 29) % 251 for i in range(_COEFFICIENTS))  # codes that change coefficients


@dataclass(slots=True)
class Jpeg:
    """What decoding one JPEG needs, front to back; what else its header holds may be odd in a whole file."""

    scans: list[tuple[bytes, bytes]] = field(default_factory=list)  # header segments before the data, and the data
    frame: int = 0  # the marker that names the coding
    components: int = 0
    end: int = -1  # offset behind the end-of-image marker; -1 = there is none
    missing: set[tuple[int, int]] = field(default_factory=set)  # components and their coefficients that lack bits

    @property
    def complete(self) -> bool:
        """Every coefficient has come to its last bit: a file that broke off between scans has not."""
        return bool(self.scans) and not self.missing

    @property
    def reads_once(self) -> bool:
        """The decoder reads the data once, front to back, and turns them into pixels as it goes."""
        return len(self.scans) == 1 and self.frame not in (*_PROGRESSIVE, *_ARITHMETIC)


def check_jpeg(data: bytes) -> Jpeg:
    """Refuse a JPEG whose scans are missing, end early, hold broken codes, or more data than the image needs.

    libjpeg paints what is missing grey, and Pillow drops its warnings. `simplejpeg` reports them: it decodes in grey at
    an eighth of the size, which reads every code and costs less than the decoding that follows. Only the first warning
    is reported, so everything is left out that gives a harmless one.

    Codes that were changed may still make sense. But brightness is stored as differences from block to block, so that
    all blocks behind a change are too bright or too dark, mostly some of them beyond white or black.
    """
    jpeg = _parse_jpeg(data)
    if not jpeg.complete:
        raise RefusedError("truncated")
    bare = b"".join(header + coded for header, coded in jpeg.scans)
    zeros = len(bare) - len(bare.rstrip(b"\0"))
    dimmed, factor, step = _dimmed(bare)
    warning, grey = _decode(dimmed)
    if _LEFT_OVER.match(warning):
        # A copy that broke off may be padded with zeros, which decode as flat: some are needed, and some left over.
        # Some writers pad a whole image: none is needed, but for one that ends the data itself.
        if zeros and jpeg.end > 0 and not _decode(bare[: 1 - zeros or None])[0]:
            return jpeg
        raise RefusedError(
            "truncated: ends in zeros" if zeros >= _ZEROS else f"damaged JPEG data: {warning.removeprefix(_PREFIX)}"
        )
    if warning.startswith((_PREFIX, "Premature end")):
        broke_off = "premature" in warning or "marker 0xd9" in warning
        raise RefusedError("truncated" if broke_off else f"damaged JPEG data: {warning.removeprefix(_PREFIX)}")
    if warning and jpeg.frame not in _ARITHMETIC:  # simplejpeg cannot decode it, mostly for rare chroma subsampling
        if _runs_dry(jpeg, 0):
            raise RefusedError("truncated")
        if zeros >= _ZEROS and not _runs_dry(jpeg, _ZEROS) and _runs_dry(jpeg, zeros - 1):
            raise RefusedError("truncated: ends in zeros")
    if jpeg.end < 0 and (warning or zeros > 1):  # it cannot be known whether anything is missing
        raise RefusedError("truncated")
    if grey is not None and factor < 1 and jpeg.components in (1, 3):
        lowest, highest = ((float(value) - 128) / factor + 128 for value in (grey.min(), grey.max()))
        if max(-lowest, highest - 255) > _TOO_BRIGHT + step / 8:
            raise RefusedError("damaged JPEG data: blocks that are brighter than white or darker than black")
    return jpeg


def _decode(data: bytes) -> tuple[str, npt.NDArray[np.uint8] | None]:
    """Return the first warning or error about a JPEG without an end marker, "" for none, and its grey in small."""
    try:
        return "", simplejpeg.decode_jpeg(data + EOI, "GRAY", min_height=1, min_width=1)
    except ValueError as error:
        left_over = _LEFT_OVER.match(str(error))
        return "" if left_over and int(left_over[1]) <= _JPEG_SPARE else str(error), None


def _dimmed(bare: bytes) -> tuple[bytes, float, int]:
    """Halve the contrast of a JPEG between its blocks, so that what is brighter than white is not cut off at white.

    Returns the JPEG, what the contrast was multiplied by (1 = it cannot be reduced), and the greatest step in which
    brightness is stored, in eighths of a grey level: encoders round it by half of that, some by all of it.
    """
    dimmed, factors, steps, at = bytearray(bare), [0.0], [0], 2
    while at + 4 <= len(bare) and bare[at] == 0xFF and bare[at + 1] != _START_OF_SCAN:
        end = at + 2 + int.from_bytes(bare[at + 2 : at + 4], "big")
        table = at + 4
        while bare[at + 1] == _TABLES and table + 3 <= min(end, len(bare)):
            width = 1 + (bare[table] >> 4)  # bytes of a step
            step = int.from_bytes(bare[table + 1 : table + 1 + width], "big")
            steps.append(step)
            factors.append((step // 2 or 1) / max(1, step))
            dimmed[table + 1 : table + 1 + width] = (step // 2 or 1).to_bytes(width, "big")
            table += 1 + _COEFFICIENTS * width
        at = end
    return bytes(dimmed), max(factors) or 1.0, max(steps)


def _runs_dry(jpeg: Jpeg, shorter: int) -> bool:
    """Tell whether a scan (the last one `shorter` by so many bytes) reads on into codes that are put behind it."""
    header, coded = jpeg.scans[-1]
    scans = [*jpeg.scans[:-1], (header, coded[: len(coded) - shorter])]
    probe = b"".join(header + coded + _ANYTHING for header, coded in scans) + (b"" if jpeg.reads_once else EOI)
    whole = b"".join(header + coded for header, coded in jpeg.scans) + EOI
    try:
        pixels, wanted = (np.asarray(JpegImagePlugin.JpegImageFile(io.BytesIO(data))) for data in (probe, whole))
    except Exception:
        return True
    return not np.array_equal(pixels, wanted)


def _parse_jpeg(data: bytes) -> Jpeg:
    """Follow the markers to the end of the image; raises `RefusedError` for more segments or scans than any writer."""
    jpeg, header, segments, at = Jpeg(), [b"\xff\xd8"], 0, 2
    while match := _MARKER.search(data, at):
        code, at = match[1][0], match.end()
        if code == _END:
            jpeg.end = at
            break
        if code in _WITHOUT_BODY:
            continue
        start = match.start()
        at += max(2, int.from_bytes(data[at : at + 2], "big"))
        body = data[start + 4 : at]
        if code == _START_OF_SCAN and body:
            if len(jpeg.scans) == _MOST_SCANS:
                raise RefusedError(f"a JPEG of more than {_MOST_SCANS:,} scans")
            header += [data[start : start + 4], _note_scan(jpeg, body)]
            end = following.start() if (following := _MARKER.search(data, at)) else len(data)
            jpeg.scans.append((b"".join(header), data[at:end].rstrip(b"\xff")))  # fill bytes may stand before a marker
            header, at = [], end
        elif code in _NEEDED:
            segments += 1
            if segments > _MOST_SEGMENTS:
                raise RefusedError(f"a JPEG whose header has more than {_MOST_SEGMENTS:,} tables")
            header.append(data[start:at])
            if code in _FRAMES and len(body) > 5:
                jpeg.frame, jpeg.components = code, body[5]
                numbers = body[6 : 6 + 3 * min(body[5], _MOST_COMPONENTS) : 3]
                jpeg.missing = {(number, k) for number in numbers for k in range(_COEFFICIENTS)}
    return jpeg


def _note_scan(jpeg: Jpeg, body: bytes) -> bytes:
    """Note which bits a scan brings; return its header, corrected where some writers put what decoders ignore."""
    components = 1 + 2 * body[0]  # ends here; then first and last coefficient, bits before and after
    coefficients = body[components:].ljust(3, b"\0") if jpeg.frame in _PROGRESSIVE else b"\x00\x3f\x00"
    first, last, bits = coefficients[:3]
    numbers = body[1 : min(components, 1 + 2 * _MOST_COMPONENTS) : 2]
    brought = {(number, k) for number in numbers for k in range(first, min(last + 1, _COEFFICIENTS))}
    if bits & 15:  # lower bits follow in later scans
        jpeg.missing |= brought
    else:
        jpeg.missing -= brought
    return body[:components] + coefficients
