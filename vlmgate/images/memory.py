"""How much memory a picture takes while it is decoded and while it waits, and how much there is for all of them."""

from __future__ import annotations

import os
from pathlib import Path

GIGABYTE = 1_000_000_000  # bytes
_LEAST = GIGABYTE  # whatever is free
_SHARE = 4  # one part in so many of what is free
KEPT = 4  # bytes a pixel of an RGB picture, as Pillow holds it

# Bytes a pixel at the peak of decoding, the picture that comes of it included: `python -m tests.bench.memory`.
_BY_MODE = {"1": 9, "L": 9, "P": 13, "LA": 17, "PA": 17, "La": 17, "RGB": 12, "RGBA": 20, "CMYK": 12, "YCbCr": 12}
_BY_MODE |= {"LAB": 12, "I;16": 20, "I": 28, "F": 28}  # a picture beside it is looked at, too, for the range of both
_DEEP_COLOUR = 32  # 16 bits in each channel
_DECODERS = {"WEBP": 10, "AVIF": 4, "JPEG 2000": 12, "QOI": 4}  # what a decoder takes besides
_SAMPLED, _OF_SAMPLE = 4_000_000, 6  # pixels that quality is measured in at most, and bytes for each
_COPIES = {"JPEG": 3, "WEBP": 2, "AVIF": 2, "HEIF": 3, "JPEG 2000": 2, "QOI": 2}  # of the file's bytes in memory
_COPIES |= {"DICOM": 3, "JPEG XL": 2, "camera raw": 2, "PNG": 1}  # these and those above are read whole, however large
IN_MEMORY = 64 << 20  # bytes; larger files are decoded from the open file


def held_of(kind: str, size: int) -> int:
    """Return the bytes that a file of so many bytes takes while a page is decoded, all copies of it together."""
    return _COPIES.get(kind, 1) * size if size <= IN_MEMORY or kind in _COPIES else 0


def peak_of(kind: str, mode: str, pixels: int, size: int, *, deep_colour: bool = False, decoded: int = 0) -> int:
    """Return the bytes that decoding a page takes at its peak, by the kind of file and how it stores its pixels.

    `size` is that of the file, in bytes. `decoded` bytes come on top where a package other than Pillow reads the
    values, all channels of them.
    """
    name = "I;16" if mode.startswith("I;16") else mode
    each = _DEEP_COLOUR if deep_colour else _BY_MODE.get(name, _DEEP_COLOUR)
    sample = _OF_SAMPLE * min(pixels, _SAMPLED)
    return pixels * (each + _DECODERS.get(kind, 0)) + held_of(kind, size) + sample + decoded


def usual_budget() -> int:
    """Return a quarter of the memory that is free now, in bytes; at least a gigabyte."""
    return max(_LEAST, _free() // _SHARE)


def _free() -> int:
    """Return the bytes that are free on this machine, or within the limit that a container has; 0 = unknown."""
    known = [bytes_ for bytes_ in (_free_of_machine(), _free_of_container()) if bytes_ is not None]
    return max(0, min(known, default=0))


def _free_of_machine() -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text("ascii").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, LookupError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _free_of_container() -> int | None:
    """Return what a control group has left, version 2; None without a limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text("ascii"))
        return limit - int((group / "memory.current").read_text("ascii"))
    except (OSError, ValueError):  # "max"
        return None
