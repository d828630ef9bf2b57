"""Refuse damaged files where Pillow's decoders pass over the damage in silence.

`check_integrity` looks at a whole file before it is opened; `PngFrames` and `check_webp` look at the pixel data of one
page, as `jpeg` and `tiff` do for their formats. Not found: bytes that were changed within compressed data so that they
still mean something, and zeros in formats that are not compressed, where they are black pixels.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from PIL import PngImagePlugin, WebPImagePlugin

from vlmgate.images.formats import RefusedError

# Entropy-coded data hold no long runs of zeros: 16 bytes at most in whole AVIF files. JPEG 2000 writes one zero for
# each packet without content, of which large flat pictures have many.
_ZERO_RUN = {"AVIF": 64, "HEIF": 64, "JPEG 2000": 512}  # bytes
_SPARE = 4  # bytes; whole files, as libwebp writes them, have two at most that no pixel needs
_END_OF_CODES = b"\xff\xd9"  # of JPEG, JPEG-LS and JPEG 2000
_QOI_END = bytes(7) + b"\x01"
_BLOCK = 1 << 20  # bytes inflated at a time


def check_integrity(stream: BinaryIO, kind: str) -> None:
    """Refuse a file that broke off or fails its own checksums; nothing is decoded for it."""
    stream.seek(0)
    if kind == "PNG":  # checksums of the pixel data are compared by `verify` only
        PngImagePlugin.PngImageFile(stream).verify()
    elif kind == "QOI":
        if not stream.read().rstrip(b"\0").endswith(_QOI_END):
            raise RefusedError("truncated")
    elif kind in _ZERO_RUN:
        data = stream.read()
        zeros = bytes(_ZERO_RUN[kind])
        if not any(data[-len(zeros) :]):
            raise RefusedError("truncated: ends in zeros")
        parts = [_codestream(data)] if kind == "JPEG 2000" else _coded_parts(data)
        if any(zeros in part for part in parts):
            raise RefusedError("a block of zeros in the image data")


def check_qoi_end(stream: BinaryIO) -> None:
    """Refuse a QOI file, read up to its last pixel, whose data do not end there: changed ones take other lengths."""
    if stream.read(len(_QOI_END)) != _QOI_END:
        raise RefusedError("damaged QOI data: more than the picture needs")


def check_end(data: bytes) -> None:
    """Refuse data of the JPEG family within another file that lack their end marker."""
    if not data.rstrip(b"\0").endswith(_END_OF_CODES):  # DICOM fills odd lengths up with a zero
        raise RefusedError("truncated")


def check_jpeg2000(data: bytes) -> None:
    """Refuse JPEG 2000 or JPEG-LS data within another file that lack their end, or hold a block of zeros."""
    check_end(data)
    if bytes(_ZERO_RUN["JPEG 2000"]) in _codestream(data):
        raise RefusedError("a block of zeros in the image data")


# --- AVIF, HEIF and JPEG 2000 ----------------------------------------------------------------------------------------


def _codestream(data: bytes) -> bytes:
    """Return the pixel data of a JPEG 2000 file, from the first tile's on."""
    end = data.rfind(_END_OF_CODES)
    return data[max(0, data.find(b"\xff\x93")) : end if end > 0 else len(data)]


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of the content of each box; ISO/IEC 14496-12."""
    while at + 8 <= end:
        size, name, start = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, start = int.from_bytes(data[start : start + 8], "big"), start + 8
        stop = end if size == 0 else min(end, at + size)
        if stop < start:
            return
        yield name, start, stop
        at = stop


def _coded_parts(data: bytes) -> list[bytes]:
    """Return the pixel data of an AVIF or HEIF file: its coded items, or of a sequence all media data.

    Raises `RefusedError` where an item reaches behind the end of the file.
    """
    boxes = {name: (start, end) for name, start, end in _boxes(data, 0, len(data))}
    if b"moov" in boxes or b"meta" not in boxes:
        return [data[start:end] for name, start, end in _boxes(data, 0, len(data)) if name == b"mdat"]
    start, end = boxes[b"meta"]
    meta = {name: data[first:last] for name, first, last in _boxes(data, start + 4, end)}
    coded = _coded_items(meta.get(b"iinf", b""))
    found = []
    for item, at, length in _extents(meta.get(b"iloc", b"")):
        if item in coded:
            if at + length > len(data):
                raise RefusedError("truncated")
            found.append(data[at : at + length or len(data)])
    return found


def _coded_items(table: bytes) -> set[int]:
    """Return the numbers of the items that are coded pictures, from an `iinf` box."""
    found = set()
    for name, start, end in _boxes(table, 6 if table[:1] == b"\0" else 8, len(table)):
        if name == b"infe" and end - start >= 12 and table[start] >= 2:
            wide = 4 if table[start] == 3 else 2  # bytes of an item's number
            if table[start + 4 + wide + 2 : start + 4 + wide + 6] in (b"av01", b"hvc1", b"hev1"):
                found.add(int.from_bytes(table[start + 4 : start + 4 + wide], "big"))
    return found


def _extents(table: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield item, offset and length of what an `iloc` box places in the file."""
    stream = io.BytesIO(table)

    def number(size: int) -> int:
        data = stream.read(size)
        return int.from_bytes(data, "big") if len(data) == size else 0

    version = number(1)
    number(3)
    sizes, more = number(1), number(1)
    wide = 4 if version == 2 else 2
    for _ in range(min(number(wide), len(table))):
        item = number(wide)
        method = number(2) & 15 if version else 0
        number(2)
        base = number(more >> 4)
        for _ in range(min(number(2), len(table))):
            number(more & 15 if version else 0)
            at, length = number(sizes >> 4), number(sizes & 15)
            if method == 0:
                yield item, base + at, length


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
            raise RefusedError("compressed data that do not inflate") from error
        return count


# --- WebP ------------------------------------------------------------------------------------------------------------


def check_webp(data: bytes) -> None:
    """Refuse a WebP with zeros in the place of a chunk, or with more data than its picture needs.

    Damaged data decode to something in nearly any case. But they then take another number of bytes, and where the
    decoder comes to the end too early it says so; where it does not, some are left over. The flat rest of a whole
    picture may be all zeros; every one of them is needed.
    """
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    for name, start, stop in _webp_chunks(data, 12, end):
        if not any(name):
            raise RefusedError("truncated: ends in zeros")
        if name in (b"VP8 ", b"VP8L") and _webp_decodes(name, data[start : stop - _SPARE]):
            zeros = not any(data[stop - _SPARE : stop])
            raise RefusedError(
                "truncated: ends in zeros" if zeros else "damaged WebP data: more than the picture needs"
            )


def _webp_chunks(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of each chunk's content, those of the frames of an animation included."""
    while at + 8 <= end:
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        stop = min(end, at + 8 + length)
        if name == b"ANMF":  # its position and size, then chunks
            yield from _webp_chunks(data, at + 8 + 16, stop)
        else:
            yield name, at + 8, stop
        at = stop + length % 2


def _webp_decodes(name: bytes, content: bytes) -> bool:
    """Say whether one chunk decodes as a file."""
    chunk = b"WEBP" + name + len(content).to_bytes(4, "little") + content + bytes(len(content) % 2)
    try:
        WebPImagePlugin.WebPImageFile(io.BytesIO(b"RIFF" + len(chunk).to_bytes(4, "little") + chunk)).load()
    except Exception:
        return False
    return True
