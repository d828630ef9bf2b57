"""The structure of TIFF files: which pages there are, and whether all that a page needs is there and whole.

`read_pages` follows the chain of directories; `check_page` looks at the strips or tiles of one. Pillow takes a strip
that is missing for black, and libtiff passes over broken codes. Not found: bytes that were changed in pixels that are
not compressed, where anything means something.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from vlmgate.images.damage import check_jpeg2000, check_webp
from vlmgate.images.formats import RefusedError
from vlmgate.images.jpeg import check_jpeg
from vlmgate.images.libtiff import first_complaint

Order = Literal["little", "big"]

# Tags: TIFF 6.0 (Adobe, 1992), and its supplements.
NEW_SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
FILL_ORDER, STRIP_OFFSETS, BANDS, STRIP_ROWS, STRIP_BYTES, PLANAR, SUB_PAGES = 266, 273, 277, 278, 279, 284, 330
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES, SAMPLE_FORMAT, JPEG_TABLES = 322, 323, 324, 325, 339, 347
DNG_VERSION = 50706
_READ = frozenset(value for name, value in globals().items() if name.isupper() and isinstance(value, int))
_SIZES = {1: 1, 3: 2, 4: 4, 7: 1, 13: 4, 16: 8, 18: 8}  # bytes of one value, by type: those of whole numbers
_NONE, _OLD_JPEG, _JPEG, _DEFLATE = 1, 6, 7, (8, 32946)
_YCBCR = 6
_JPEG_2000, _WEBP, _JPEG_XR = (33003, 33004, 33005, 34712), (34927, 50001), (22610, 34934)
BY_TIFFFILE = (
    22610,
    33003,
    33004,
    33005,
    34712,
    34887,
    34927,
    34933,
    34934,
    50000,
    50001,
    50002,
    52546,
)  # JPEG 2000, LERC, …
_BLOCK = 1 << 20  # bytes inflated at a time
_MOST_STRIPS = 1 << 22  # more than any writer makes
_MOST_ROWS, _MOST_ROWS_OF_ALL = (
    4096,
    1 << 20,
)  # tags of one directory, and of all; directories may be laid over each other
_MOST_BANDS = 4096  # more than any camera has; the tag may claim four thousand million


@dataclass(frozen=True, slots=True)
class TiffPage:
    """One directory: its whole-number tags, but for long ones, which are read when they are needed."""

    offset: int  # where the directory lies
    order: Order = "little"
    tags: dict[int, tuple[int, ...]] = field(default_factory=dict)
    far: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # bytes of a value, how many, where they lie

    def __contains__(self, tag: int) -> bool:
        return tag in self.tags or tag in self.far

    def all(self, tag: int, stream: BinaryIO) -> tuple[int, ...]:
        """Return all values of a tag; none where some lie behind the end of the file."""
        if tag not in self.far:
            return self.tags.get(tag, ())
        width, count, at = self.far[tag]
        stream.seek(min(at, stream.seek(0, 2)))
        data = stream.read(width * count)
        return _numbers(data, width, self.order) if len(data) == width * count else ()

    def first(self, tag: int, default: int = 0) -> int:
        """Return the first value of a tag."""
        return (self.tags.get(tag) or (default,))[0]

    @property
    def pixels(self) -> int:
        """Return how many pixels it has."""
        return self.first(WIDTH) * self.first(HEIGHT)

    @property
    def reduced(self) -> bool:
        """Say whether the file calls this page a small copy of another one."""
        return bool(self.first(NEW_SUBFILE) & 1) or self.first(OLD_SUBFILE) == 2


@dataclass(frozen=True, slots=True)
class Piece:
    """One strip or tile."""

    offset: int
    length: int  # bytes in the file
    needed: int  # bytes before compression


def read_pages(stream: BinaryIO, limit: int) -> tuple[list[TiffPage], bool]:
    """Follow the chain of directories; stop at the limit, at a loop, or where the file ends too early (True).

    Raises `RefusedError` where they have more tags than any writer makes.
    """
    size = stream.seek(0, 2)
    stream.seek(0)
    head = stream.read(16)
    order: Order = "little" if head[:2] == b"II" else "big"
    big = head[2:4] in (b"+\x00", b"\x00+")
    count_size, entry_size, pointer_size, first = (8, 20, 8, 8) if big else (2, 12, 4, 4)  # bytes
    offset = int.from_bytes(head[first : first + pointer_size], order)
    pages: list[TiffPage] = []
    seen: set[int] = set()
    total = 0
    while (offset or not seen) and offset not in seen and len(seen) < limit:
        seen.add(offset)
        stream.seek(min(offset, size))
        entries = stream.read(count_size)
        rows = int.from_bytes(entries, order)
        end = stream.tell() + rows * entry_size
        if len(head) < first + pointer_size or len(entries) < count_size or end > size:
            return [*pages, TiffPage(offset)], True
        total += rows
        if rows > _MOST_ROWS or total > _MOST_ROWS_OF_ALL:
            raise RefusedError("a TIFF whose directories have more tags than any writer makes")
        table = stream.read(end - stream.tell())
        pointer = stream.read(pointer_size)  # some writers leave out the last one, which is zero anyway
        pages.append(page := TiffPage(offset, order))
        for at in range(0, len(table), entry_size):
            _note(page, table[at : at + entry_size], pointer_size)
        offset = int.from_bytes(pointer, order) if len(pointer) == pointer_size else 0
    return pages, False


def _note(page: TiffPage, row: bytes, inline: int) -> None:
    """Note a tag that is read here; its values stand in the row where they fit into so many bytes."""
    tag, kind = int.from_bytes(row[:2], page.order), int.from_bytes(row[2:4], page.order)
    width, count = _SIZES.get(kind, 0), int.from_bytes(row[4 : 4 + inline], page.order)
    if tag not in _READ or not width or count > _MOST_STRIPS:
        return
    if count * width > inline:
        page.far[tag] = width, count, int.from_bytes(row[4 + inline :], page.order)
    else:
        page.tags[tag] = _numbers(row[4 + inline : 4 + inline + count * width], width, page.order)


def _numbers(data: bytes, width: int, order: Order) -> tuple[int, ...]:
    return tuple(int.from_bytes(data[i : i + width], order) for i in range(0, len(data), width))


def holds_raw(pages: Sequence[TiffPage]) -> bool:
    """Say whether a TIFF is camera raw: it calls itself so, or has small copies only, and the picture in sub-pages."""
    dng = any(DNG_VERSION in page for page in pages[:1])
    return dng or (all(page.reduced for page in pages) and any(SUB_PAGES in page for page in pages))


# --- is all of a page there? -----------------------------------------------------------------------------------------


def check_page(stream: BinaryIO, page: TiffPage) -> None:
    """Refuse a page with strips or tiles that are missing, too short, shared, or that do not decode."""
    compression = page.first(COMPRESSION, _NONE)
    if compression in _JPEG_XR:  # its decoder passes over damage, and nothing else finds it
        raise RefusedError("TIFF with JPEG XR cannot be checked for damage; convert it to PNG")
    pieces = _pieces_of(stream, page)
    if compression != _OLD_JPEG:
        _check_places(pieces, stream.seek(0, 2), compressed=compression != _NONE)
    if compression in _DEFLATE and page.first(FILL_ORDER, 1) == 1:
        for number, piece in enumerate(pieces, 1):
            _check_deflate(stream, piece, f"{number} of {len(pieces)}")
    elif compression == _JPEG:
        tables = bytes(page.all(JPEG_TABLES, stream))
        for piece in pieces:
            stream.seek(piece.offset)
            check_jpeg(tables[:-2] + stream.read(piece.length)[2 if tables else 0 :])
    elif compression in _JPEG_2000 or compression in _WEBP:
        check = check_webp if compression in _WEBP else check_jpeg2000
        for piece in pieces:
            stream.seek(piece.offset)
            check(stream.read(piece.length))
    elif compression not in (_NONE, *_DEFLATE, *BY_TIFFFILE):
        complaint = first_complaint(stream, page.offset, len(pieces), tiled=TILE_OFFSETS in page)
        if complaint:
            raise RefusedError(f"compressed data that do not decode: {complaint}")


def _pieces_of(stream: BinaryIO, page: TiffPage) -> list[Piece]:
    """Return the strips or tiles that a page of its size has; raises `RefusedError` where fewer are listed."""
    tiled = TILE_OFFSETS in page
    width, height = page.first(WIDTH), page.first(HEIGHT)
    columns = page.first(TILE_WIDTH) if tiled else width
    rows = page.first(TILE_HEIGHT) if tiled else min(page.first(STRIP_ROWS) or height, height)
    if min(width, height, columns, rows) <= 0:
        raise RefusedError("a page without a size")
    across, down = -(-width // columns), -(-height // rows)
    bits = bits_of(stream, page)
    planes = bits if page.first(PLANAR, 1) == 2 else [sum(bits)]
    wanted = across * down * len(planes)
    offsets = page.all(TILE_OFFSETS if tiled else STRIP_OFFSETS, stream)
    lengths = page.all(TILE_BYTES if tiled else STRIP_BYTES, stream)
    what = "tiles" if tiled else "strips"
    if len(offsets) < wanted:
        raise RefusedError(f"truncated: {wanted - len(offsets):,} of {wanted:,} {what} are not listed")
    if len(lengths) < wanted and wanted > 1:
        raise RefusedError(f"truncated: the lengths of {wanted - len(lengths):,} of {wanted:,} {what} are not listed")
    subsampled = page.first(PHOTOMETRIC) == _YCBCR and page.first(COMPRESSION, _NONE) == _NONE
    pieces = []
    for number in range(wanted):
        plane, place = divmod(number, across * down)
        here = rows if tiled else min(rows, height - place * rows)
        needed = 0 if subsampled else -(-columns * planes[plane] // 8) * here
        length = lengths[number] if number < len(lengths) else needed
        pieces.append(Piece(offsets[number], length, needed))
    return pieces


def bands_of(page: TiffPage) -> int:
    """Return how many channels a page has; raises `RefusedError` for more than any camera delivers."""
    bands = max(1, page.first(BANDS, 1))
    if bands > _MOST_BANDS:
        raise RefusedError(f"a page of {bands:,} channels; no more than {_MOST_BANDS:,} are read")
    return bands


def bits_of(stream: BinaryIO, page: TiffPage) -> list[int]:
    """Return the bits of each channel; raises `RefusedError` for too many channels."""
    bands = bands_of(page)
    bits = page.all(BITS, stream) or (1,)
    return [*bits, *[bits[0]] * bands][:bands]


def _check_places(pieces: Sequence[Piece], size: int, *, compressed: bool) -> None:
    """Refuse pieces without a place, behind the end of the file, shorter than their pixels, or laid over each other."""
    absent = sum(piece.offset <= 0 or piece.length <= 0 for piece in pieces)
    if absent:
        raise RefusedError(f"truncated: {absent:,} of {len(pieces):,} strips or tiles were never written")
    cut = sum(piece.offset + _length(piece, compressed) > size for piece in pieces)
    if cut:
        raise RefusedError(f"truncated: {cut:,} of {len(pieces):,} strips or tiles lie behind the end of the file")
    short = sum(piece.length < piece.needed for piece in pieces)
    if short and not compressed:
        raise RefusedError(f"truncated: {short:,} of {len(pieces):,} strips or tiles are shorter than their pixels")
    end = 0
    for piece in sorted(pieces, key=lambda piece: piece.offset):
        if piece.offset < end:
            raise RefusedError("several strips or tiles lie on the same bytes")
        end = piece.offset + _length(piece, compressed)


def _length(piece: Piece, compressed: bool) -> int:
    """Return how many bytes of the file a piece takes; some writers give one strip a length beyond its pixels."""
    return piece.length if compressed or not piece.needed else min(piece.length, piece.needed)


def _check_deflate(stream: BinaryIO, piece: Piece, which: str) -> None:
    """Refuse a strip that does not inflate to its pixels, or whose checksum is another one."""
    stream.seek(piece.offset)
    inflater, left, count = zlib.decompressobj(), piece.length, 0
    try:
        while left > 0 and not inflater.eof:
            data = stream.read(min(left, _BLOCK))
            left -= len(data) or left
            while data and not inflater.eof:
                count += len(inflater.decompress(data, _BLOCK))
                if count > piece.needed + _BLOCK:  # more than a page of this size has: no checksum is worth a bomb
                    return
                data = inflater.unconsumed_tail
    except zlib.error as error:
        raise RefusedError(f"compressed data that do not inflate: strip or tile {which}") from error
    if count < piece.needed or not inflater.eof:
        raise RefusedError(f"truncated: strip or tile {which} ends early")
