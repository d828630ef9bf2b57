"""Refuse damaged files where Pillow's decoders pass over the damage in silence.

`check_integrity` looks at a whole file before it is opened; `PngFrames`, `check_webp` and `check_jpeg` look at the
pixel data of one page. Not found: bytes that were changed within compressed data so that they still mean something, and
zeros in formats that are not compressed, where they are black pixels.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

import numpy as np
import simplejpeg
from PIL import JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from vlmgate.images.formats import RefusedError

_ZERO_TAIL = 64  # bytes; a copy that broke off is often padded with zeros, whole AVIF and JPEG 2000 end in none
_SPARE = 16  # bytes; libwebp does not read that far ahead of what it needs
_QOI_END = bytes(7) + b"\x01"
_BLOCK = 1 << 20  # bytes inflated at a time


def check_integrity(stream: BinaryIO, kind: str) -> None:
    """Refuse a file that broke off or fails its own checksums; nothing is decoded for it."""
    stream.seek(0)
    broke_off = False
    if kind == "PNG":  # checksums of the pixel data are compared by `verify` only
        PngImagePlugin.PngImageFile(stream).verify()
    elif kind == "TIFF":
        broke_off = count_tiff_pages(stream, 1)[1]
    elif kind == "QOI":
        broke_off = not stream.read().rstrip(b"\0").endswith(_QOI_END)
    elif kind in ("AVIF", "JPEG 2000"):
        size = stream.seek(0, 2)
        stream.seek(max(0, size - _ZERO_TAIL))
        if size > _ZERO_TAIL and not any(stream.read()):
            raise RefusedError("truncated: ends in zeros")
    if broke_off:
        raise RefusedError("truncated")


# --- JPEG ------------------------------------------------------------------------------------------------------------

_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)  # FF 00 is data, D0 to D7 are restarts within it
_EOI = b"\xff\xd9"
_START_OF_SCAN, _END, _WITHOUT_BODY = 0xDA, 0xD9, (0x01, 0xD8)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_NEEDED = frozenset(range(0xC0, 0xD0)) | {0xDB, 0xDD, 0xEE}  # frame, tables, restart interval, Adobe's colour model
_PROGRESSIVE, _ARITHMETIC = (0xC2, 0xC6, 0xCA, 0xCE), range(0xC9, 0xD0)
_COEFFICIENTS = 64  # of a block
_LEFT_OVER = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
_ZEROS = 32  # bytes at the end of a scan from which on they are looked into
_JPEG_SPARE = 4  # bytes; some cameras leave that many behind the last scan
_ANYTHING = bytes((73 * i + 29) % 251 for i in range(_COEFFICIENTS))  # codes that change coefficients


@dataclass(slots=True)
class Jpeg:
    """What decoding one JPEG needs, front to back; what else its header holds may be odd in a whole file."""

    scans: list[tuple[bytes, bytes]] = field(default_factory=list)  # header segments before the data, and the data
    frame: int = 0  # the marker that names the coding
    end: int = -1  # offset behind the end-of-image marker; -1 = there is none
    missing: set[tuple[int, int]] = field(default_factory=set)  # components and their coefficients that lack bits

    @property
    def complete(self) -> bool:
        """Every coefficient has come to its last bit: a file that broke off between scans has not."""
        return self.end > 0 and bool(self.scans) and not self.missing

    @property
    def reads_once(self) -> bool:
        """The decoder reads the data once, front to back, and turns them into pixels as it goes."""
        return len(self.scans) == 1 and self.frame not in (*_PROGRESSIVE, *_ARITHMETIC)


def check_jpeg(data: bytes) -> Jpeg:
    """Refuse a JPEG whose scans are missing, end early, hold broken codes, or more data than the image needs.

    libjpeg paints what is missing grey, and Pillow drops its warnings. `simplejpeg` reports them: it decodes in grey at
    an eighth of the size, which reads every code and costs less than the decoding that follows. Only the first warning
    is reported, so everything is left out that gives a harmless one.
    """
    jpeg = _parse_jpeg(data)
    if not jpeg.complete:
        raise RefusedError("truncated")
    bare = b"".join(header + coded for header, coded in jpeg.scans)
    zeros = len(bare) - len(bare.rstrip(b"\0"))
    warning = _jpeg_warning(bare)
    if _LEFT_OVER.match(warning):
        # A copy that broke off may be padded with zeros, which decode as flat: some are needed, and some left over.
        # Some writers pad a whole image: none is needed, but for one that ends the data itself.
        if zeros and not _jpeg_warning(bare[: 1 - zeros or None]):
            return jpeg
        raise RefusedError("truncated: ends in zeros" if zeros >= _ZEROS else f"corrupt image data ({warning})")
    if warning.startswith(("Corrupt JPEG data", "Premature end")):
        broke_off = "premature" in warning or "marker 0xd9" in warning
        raise RefusedError("truncated" if broke_off else f"corrupt image data ({warning})")
    if warning and jpeg.frame not in _ARITHMETIC:  # simplejpeg cannot decode it, mostly for rare chroma subsampling
        if _runs_dry(jpeg, 0):
            raise RefusedError("truncated")
        if zeros >= _ZEROS and not _runs_dry(jpeg, _ZEROS) and _runs_dry(jpeg, zeros - 1):
            raise RefusedError("truncated: ends in zeros")
    return jpeg


def _jpeg_warning(data: bytes) -> str:
    """Return the first warning or error about a JPEG, which has no end marker yet; empty = all is well."""
    try:
        simplejpeg.decode_jpeg(data + _EOI, "GRAY", min_height=1, min_width=1)
    except ValueError as error:
        left_over = _LEFT_OVER.match(str(error))
        return "" if left_over and int(left_over[1]) <= _JPEG_SPARE else str(error)
    return ""


def _runs_dry(jpeg: Jpeg, shorter: int) -> bool:
    """Tell whether a scan (the last one `shorter` by so many bytes) reads on into codes that are put behind it."""
    header, coded = jpeg.scans[-1]
    scans = [*jpeg.scans[:-1], (header, coded[: len(coded) - shorter])]
    probe = b"".join(header + coded + _ANYTHING for header, coded in scans) + (b"" if jpeg.reads_once else _EOI)
    whole = b"".join(header + coded for header, coded in jpeg.scans) + _EOI
    try:
        pixels, wanted = (np.asarray(JpegImagePlugin.JpegImageFile(io.BytesIO(data))) for data in (probe, whole))
    except Exception:
        return True
    return not np.array_equal(pixels, wanted)


def _parse_jpeg(data: bytes) -> Jpeg:
    """Follow the markers to the end of the image."""
    jpeg, header, at = Jpeg(), b"\xff\xd8", 2
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
            header += data[start : start + 4] + _note_scan(jpeg, body)
            end = following.start() if (following := _MARKER.search(data, at)) else len(data)
            jpeg.scans.append((header, data[at:end].rstrip(b"\xff")))  # fill bytes may stand before a marker
            header, at = b"", end
        elif code in _NEEDED:
            header += data[start:at]
            if code in _FRAMES and len(body) > 5:
                jpeg.frame = code
                jpeg.missing = {(number, k) for number in body[6 : 6 + 3 * body[5] : 3] for k in range(_COEFFICIENTS)}
    return jpeg


def _note_scan(jpeg: Jpeg, body: bytes) -> bytes:
    """Note which bits a scan brings; return its header, corrected where some writers put what decoders ignore."""
    components = 1 + 2 * body[0]  # ends here; then first and last coefficient, bits before and after
    coefficients = body[components:].ljust(3, b"\0") if jpeg.frame in _PROGRESSIVE else b"\x00\x3f\x00"
    first, last, bits = coefficients[:3]
    brought = {(number, k) for number in body[1:components:2] for k in range(first, last + 1)}
    if bits & 15:  # lower bits follow in later scans
        jpeg.missing |= brought
    else:
        jpeg.missing -= brought
    return body[:components] + coefficients


# --- TIFF ------------------------------------------------------------------------------------------------------------


def count_tiff_pages(stream: BinaryIO, limit: int) -> tuple[int, bool]:
    """Follow the chain of TIFF directories; stop at the limit, at a loop, or where the file ends too early (True)."""
    size = stream.seek(0, 2)
    stream.seek(0)
    head = stream.read(16)
    order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
    big = head[2:4] in (b"+\x00", b"\x00+")
    count_size, entry_size, pointer_size, first = (8, 20, 8, 8) if big else (2, 12, 4, 4)  # bytes
    offset = int.from_bytes(head[first : first + pointer_size], order)
    seen: set[int] = set()
    while (offset or not seen) and offset not in seen and len(seen) < limit:
        seen.add(offset)
        stream.seek(min(offset, size))
        entries = stream.read(count_size)
        end = stream.tell() + int.from_bytes(entries, order) * entry_size
        if len(head) < first + pointer_size or len(entries) < count_size or end > size:
            return len(seen), True
        stream.seek(end)
        pointer = stream.read(pointer_size)  # some writers leave out the last one, which is zero anyway
        offset = int.from_bytes(pointer, order) if len(pointer) == pointer_size else 0
    return len(seen), False


# --- GIF -------------------------------------------------------------------------------------------------------------


def ends_with_gif_trailer(stream: BinaryIO) -> bool:
    """Tell whether the blocks of a GIF lead to its trailer; where they do not, frames may be missing."""
    stream.seek(10)
    _skip_colour_table(stream, _byte(stream))
    stream.seek(2, 1)
    while (block := _byte(stream)) in (0x00, 0x21, 0x2C):  # 0: stray, some writers leave them between blocks
        if block == 0x21:  # extension: a label
            stream.seek(1, 1)
        elif block == 0x2C:  # frame: position and size, colours, code size
            stream.seek(8, 1)
            _skip_colour_table(stream, _byte(stream))
            stream.seek(1, 1)
        while block and (length := _byte(stream)) > 0:
            stream.seek(length, 1)
    return block == 0x3B


def _byte(stream: BinaryIO) -> int:
    """Read one byte; -1 at the end."""
    return next(iter(stream.read(1)), -1)


def _skip_colour_table(stream: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        stream.seek(3 << ((flags & 7) + 1), 1)


# --- PNG -------------------------------------------------------------------------------------------------------------

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_ADAM7 = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))


class PngFrames:
    """Where the pixel data of each frame lies; data that end early inflate to fewer bytes than the frame needs.

    Checksums do not help there: a writer that was stopped closes its file properly.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._bits, self._interlaced = 8, False  # bits of a pixel
        self._frames: list[tuple[int, int, list[tuple[int, int]]]] = []  # width, height, (offset, length) of the data
        width = height = 0
        made_of = b""  # the kind of chunk that the last frame is made of
        stream.seek(8)
        while len(header := stream.read(8)) == 8:
            length, name, at = int.from_bytes(header[:4], "big"), header[4:], stream.tell()
            if name == b"IHDR":
                width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", stream.read(13))
                self._bits, self._interlaced = depth * _PNG_CHANNELS.get(colour, 4), bool(interlace)
            elif name == b"fcTL":
                width, height = struct.unpack(">II", stream.read(26)[4:12])
                made_of = b""
            elif name in (b"IDAT", b"fdAT"):
                if made_of != name:
                    self._frames.append((width, height, []))
                skipped = 4 if name == b"fdAT" else 0  # sequence number
                self._frames[-1][2].append((at + skipped, length - skipped))
                made_of = name
            stream.seek(at + length + 4)

    def check(self, page: int) -> None:
        """Refuse a frame (counted from 1) whose data end before its last row."""
        if page > len(self._frames):
            raise RefusedError("truncated")
        width, height, parts = self._frames[page - 1]
        missing = self._bytes_of(width, height)
        inflater = zlib.decompressobj()
        for offset, length in parts:
            self._stream.seek(offset)
            while length > 0 and missing > 0:
                data = self._stream.read(min(length, _BLOCK))
                length -= len(data) or length
                missing -= self._inflated(inflater, data, missing)
        if missing > 0:
            raise RefusedError("truncated")

    def _bytes_of(self, width: int, height: int) -> int:
        """Return the size of a frame before compression: each row has one byte more, its filter."""
        passes = _ADAM7 if self._interlaced else ((0, 1, 0, 1),)
        shapes = [(len(range(x, width, dx)), len(range(y, height, dy))) for x, dx, y, dy in passes]
        return sum(rows * (1 + (columns * self._bits + 7) // 8) for columns, rows in shapes if columns)

    @staticmethod
    def _inflated(inflater: zlib._Decompress, data: bytes, limit: int) -> int:
        """Return how many bytes (limit at most) come out of these; only a block of them is in memory."""
        count = 0
        try:
            while count < limit:
                block = inflater.decompress(data, min(_BLOCK, limit - count))
                if not block:
                    break
                count += len(block)
                data = inflater.unconsumed_tail
        except zlib.error as error:
            raise RefusedError("corrupt image data (its compression is broken)") from error
        return count


# --- WebP ------------------------------------------------------------------------------------------------------------


def check_webp(data: bytes) -> None:
    """Refuse zeros that stand for data: chunks without a name, or image data that end in more zeros than are used.

    The flat rest of a whole lossless image may be all zeros as well; there, every one of them is needed.
    """
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    sizes, name = _last_webp_chunk(data[:end])
    if not any(name):
        raise RefusedError("truncated: ends in zeros")
    zeros = end - len(data[:end].rstrip(b"\0"))
    if zeros < _ZERO_TAIL or name not in (b"VP8 ", b"VP8L"):
        return
    if _webp_decodes(data[:end], sizes, _SPARE) and not _webp_decodes(data[:end], sizes, zeros & ~1):
        raise RefusedError("truncated: ends in zeros")


def _last_webp_chunk(data: bytes) -> tuple[list[int], bytes]:
    """Return the offsets of the size fields that reach to the end, outermost first, and the innermost chunk's name."""
    sizes, at, name = [4], 12, b"RIFF"
    while at + 8 <= len(data):
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        after = at + 8 + length + length % 2
        if not any(name):
            break
        if after < len(data):
            at = after
            continue
        sizes.append(at + 4)
        if name != b"ANMF":
            break
        at += 8 + 16  # a frame of an animation: its position and size, then chunks
    return sizes, name


def _webp_decodes(data: bytes, sizes: list[int], shorter: int) -> bool:
    """Tell whether every frame still decodes with so many bytes less at the end."""
    shortened = bytearray(data[: len(data) - shorter])
    for at in sizes:
        size = int.from_bytes(data[at : at + 4], "little") - shorter
        if size < 0:
            return False
        shortened[at : at + 4] = size.to_bytes(4, "little")
    try:
        image = WebPImagePlugin.WebPImageFile(io.BytesIO(shortened))
        for frame in range(getattr(image, "n_frames", 1)):
            image.seek(frame)
            image.load()
    except Exception:
        return False
    return True
